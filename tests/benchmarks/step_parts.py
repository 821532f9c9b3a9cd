"""Where the time of one MD step through ASE goes: CPU time of its parts, one after another in every round.

    python tests/benchmarks/step_parts.py

One member of the published size, float32, forces and stress, velocity Verlet at 0.5 fs and 300 K from the 225-atom EAN
cell. "Compiled function" is the call that takes a padded graph to energies, forces and virials on the host;
"outside" is all else of a step: ASE's loop, the pair list, padding, sums and results. ASE's loop alone is a step with
a calculator that returns zeros.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import jax
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase_step import CALCULATORS, START

from neuralil_ase.calculator import to_system
from neuralil_ase.evaluator import compiled
from neuralil_ase.graph import bucket, pad_graph
from neuralil_ase.kernel import supports
from neuralil_ase.neighbors import DEFAULT_SKIN, NeighborList


class Nothing(Calculator):
    """Zeros, at every step anew."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 - ASE's convention

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {
            "energy": 0.0,
            "forces": np.zeros((len(self.atoms), 3)),
            "stress": np.zeros(6),
        }


def parts(atoms: Atoms) -> dict[str, Callable[[], object]]:
    """Functions to time, by name."""
    calculator = CALCULATORS["neuralil-1"]()
    potential = calculator.potential
    ours, empty = (moving(atoms, calc) for calc in (calculator, Nothing()))
    pair_list = NeighborList(potential.r_cut, DEFAULT_SKIN)
    pairs = to_system(atoms, potential, pair_list)
    sizes = {"n_atoms": bucket(len(atoms)), "n_pairs": bucket(len(pairs.pairs.centers))}
    options = sizes | {"r_cut": potential.r_cut, "dtype": np.float32}
    graph = pad_graph(*pairs.pairs, pairs.types, **options)
    function, params = (
        compiled(potential.config, "off", supports(potential.config)),
        jax.device_put(potential.params),
    )
    return {
        "step through ASE": lambda: ours.run(1),
        "ASE's loop": lambda: empty.run(1),
        "compiled function": lambda: jax.tree.map(np.asarray, function(params, graph)),
        "pair list": lambda: to_system(atoms, potential, pair_list),
        "padding": lambda: pad_graph(*pairs.pairs, pairs.types, **options),
    }


def moving(atoms: Atoms, calculator: Calculator) -> VelocityVerlet:
    moved = atoms.copy()
    moved.calc = calculator
    thermalize_momenta(moved, temperature_K=300, rng=np.random.default_rng(0))
    return VelocityVerlet(moved, 0.5 * units.fs)


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Mean CPU ms of every function, called in turns (steps need the mean: rebuilds are rare and dear)."""
    times = defaultdict(list)
    for _ in range(rounds + 5):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: float(np.mean(values[5:])) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    cell, columns = read(START), {}
    for repeat in options.repeat:
        atoms = cell.repeat(repeat)
        found = measure(parts(atoms), max(options.rounds // repeat**2, 3))
        found["outside the compiled function"] = (
            found["step through ASE"] - found["compiled function"]
        )
        found["outside, ASE's loop apart"] = (
            found["outside the compiled function"] - found["ASE's loop"]
        )
        columns[f"{len(atoms)} atoms"] = found
    print(f"| CPU ms | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(f'{c[name]:.3f}' for c in columns.values())} |")


if __name__ == "__main__":
    main()
