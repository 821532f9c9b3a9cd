"""Atoms per second of CPU time: one cell, one larger cell, replicas in ASE loops, replicas stepped together.

    python tests/benchmarks/throughput.py

The same number of atoms moves in every row: R replicas of the 225-atom EAN cell, velocity Verlet at 0.5 fs, one
after another in ASE or together, all replicas in one evaluation and one vectorised step; and one cell repeated to about
the same size. ``predict_many`` evaluates the replicas as a data set, with new pair lists.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from ase import Atoms, units
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase_step import CALCULATORS, START

from neuralil_ase import Potential, Replicas, predict_many

STEP = 0.5 * units.fs


class Walkers:
    """Replicas of one system, all stepped by one velocity Verlet and evaluated in one call."""

    def __init__(self, structures: list[Atoms], potential: Potential) -> None:
        self.replicas = Replicas(structures[0], potential)
        self.positions = np.stack([atoms.positions for atoms in structures])
        self.momenta = np.stack([atoms.get_momenta() for atoms in structures])
        self.masses = structures[0].get_masses()[:, None]
        self.forces = self.replicas.predict(self.positions).forces

    def step(self) -> None:
        self.momenta += STEP / 2 * self.forces
        self.positions += STEP * self.momenta / self.masses
        self.forces = self.replicas.predict(self.positions).forces
        self.momenta += STEP / 2 * self.forces


def thermal(atoms: Atoms, seed: int) -> Atoms:
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(seed))
    return atoms


def ase_loops(structures: list[Atoms]) -> Callable[[], None]:
    """One step of every structure, each with its own calculator and integrator."""
    loops = []
    for atoms in structures:
        atoms.calc = CALCULATORS["neuralil-1"]()
        loops.append(VelocityVerlet(atoms, STEP))

    def step() -> None:
        for dyn in loops:
            dyn.run(1)

    return step


def rate(step: Callable[[], object], n_atoms: int, seconds: float) -> float:
    """Median of atoms per second of CPU time over single calls."""
    for _ in range(2):
        step()
    cpu: list[float] = []
    while sum(cpu) < seconds or len(cpu) < 3:
        start = time.process_time()
        step()
        cpu.append(time.process_time() - start)
    return n_atoms / float(np.median(cpu))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 27])
    parser.add_argument("--seconds", type=float, default=2, help="CPU time of every row")
    options = parser.parse_args()
    cell, potential = read(START), CALCULATORS["neuralil-1"]().potential
    print(
        "| replicas | ASE loops | stepped together | predict_many | one cell as large |\n|---|---|---|---|---|"
    )
    for count in options.replicas:
        side = round(count ** (1 / 3))
        replicas = [[thermal(cell.copy(), seed) for seed in range(count)] for _ in range(3)]
        large = thermal(cell.repeat(side), 0)
        together = Walkers(replicas[1], potential)

        def predict(structures: list[Atoms] = replicas[2]) -> object:
            return predict_many(potential, structures, uncertainty="off", batch_atoms=10**5)

        rates = [
            rate(step, n_atoms, options.seconds)
            for step, n_atoms in (
                (ase_loops(replicas[0]), count * len(cell)),
                (together.step, count * len(cell)),
                (predict, count * len(cell)),
                (ase_loops([large]), len(large)),
            )
        ]
        print(f"| {count} | " + " | ".join(f"{r:,.0f}" for r in rates) + " |", flush=True)
    print("\nAtoms per second of CPU time, one member, forces and stress.")


if __name__ == "__main__":
    main()
