"""Where the time of one MD step through ASE goes: CPU time of a run, of its compiled function, and of other parts.

    python tests/benchmarks/step_parts.py

One member of the published size, float32, forces and stress, velocity Verlet at 0.5 fs and 300 K from the 225-atom EAN
cell. "Compiled function" is the call that takes a padded graph to energies, forces and virials on the host, measured
in the run; "outside" is all else of a step: ASE's loop, the pair list, padding, sums and results. The parts below
are measured by themselves, with warmer caches; ASE's loop is a run with a calculator that returns zeros, and
compares atoms as ASE does.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase_step import CALCULATORS, START

from neuralil_ase.calculator import to_system
from neuralil_ase.engine.neighbors import DEFAULT_SKIN, NeighborList
from neuralil_ase.model.graph import bucket, pad_graph


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


class Stopwatch:
    """A function that adds up the CPU time it takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any) -> Any:
        began = time.process_time()
        result = self.function(*args)
        self.seconds += time.process_time() - began
        return result


def measure(atoms: Atoms, steps: int) -> dict[str, float]:
    """Mean CPU ms per step, by name (the mean, for rebuilds of the pair list are rare and dear)."""
    calculator = CALCULATORS["neuralil-1"]()
    predictor = calculator._predictor
    watch = predictor._run = Stopwatch(predictor._run)
    ours, empty = (moving(atoms, calc) for calc in (calculator, Nothing()))
    ours.run(5)
    watch.seconds = 0.0
    step, inside = per_call(lambda: ours.run(steps), steps), 1e3 * watch.seconds / steps
    return {
        "step through ASE": step,
        "compiled function": inside,
        "outside the compiled function": step - inside,
        "ASE's loop by itself": per_call(lambda: empty.run(steps), steps),
    } | {name: per_call(part, steps, steps) for name, part in parts(ours.atoms).items()}


def parts(atoms: Atoms) -> dict[str, Callable[[], object]]:
    """Functions to time, by name; atoms stand still."""
    potential = atoms.calc.potential
    pair_list = NeighborList(potential.r_cut, DEFAULT_SKIN)
    system = to_system(atoms, potential, pair_list)
    sizes = {"n_atoms": bucket(len(atoms)), "n_pairs": bucket(len(system.pairs.centers))}
    options = sizes | {"r_cut": potential.r_cut, "dtype": np.float32}

    def build() -> None:
        to_system(atoms, potential, NeighborList(potential.r_cut, DEFAULT_SKIN))

    return {
        "pair list, kept": lambda: to_system(atoms, potential, pair_list),
        "pair list, built": build,
        "padding": lambda: pad_graph(*system.pairs, system.types, **options),
    }


def per_call(function: Callable[[], object], count: int, calls: int = 1) -> float:
    """CPU ms that `calls` calls take, by `count`."""
    began = time.process_time()
    for _ in range(calls):
        function()
    return 1e3 * (time.process_time() - began) / count


def moving(atoms: Atoms, calculator: Calculator) -> VelocityVerlet:
    moved = atoms.copy()
    moved.calc = calculator
    thermalize_momenta(moved, temperature_K=300, rng=np.random.default_rng(0))
    return VelocityVerlet(moved, 0.5 * units.fs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600, help="of the smallest cell")
    parser.add_argument("--rounds", type=int, default=5, help="runs; medians are printed")
    options = parser.parse_args()
    cell, columns = read(START), {}
    for repeat in options.repeat:
        atoms = cell.repeat(repeat)
        found = [measure(atoms, max(options.steps // repeat**2, 20)) for _ in range(options.rounds)]
        columns[f"{len(atoms)} atoms"] = {
            name: float(np.median([times[name] for times in found])) for name in found[0]
        }
    print(f"| CPU ms | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(f'{c[name]:.3f}' for c in columns.values())} |")


if __name__ == "__main__":
    main()
