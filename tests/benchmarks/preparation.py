"""Time that training needs before its first step, on frames of many sizes.

214 rattled Cu-Au crystals and clusters of 2 to 108 atoms with EMT labels are prepared with default settings, in a
fresh interpreter, so that every compilation counts::

    python tests/benchmarks/preparation.py
"""

import argparse
import time

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

REPEATS = (1, 2, 3)


def structure(rng: np.random.Generator) -> Atoms:
    """A rattled crystal, or part of one without cell."""
    atoms = bulk("Cu", cubic=bool(rng.integers(2)), a=rng.uniform(3.5, 4.1))
    atoms = atoms * tuple(int(n) for n in rng.choice(REPEATS, 3))
    if len(atoms) > 8 and rng.random() < 0.3:
        atoms = atoms[np.sort(rng.permutation(len(atoms))[: rng.integers(4, len(atoms))])]
        atoms.center(vacuum=6)
        atoms.pbc = bool(rng.integers(2))
    while len(atoms) < 2:
        atoms = atoms * (2, 1, 1)
    atoms.symbols[rng.random(len(atoms)) < rng.random()] = "Au"
    atoms.rattle(0.1, rng=rng)
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.cell.rank == 3:
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def data_set(count: int = 214, seed: int = 0) -> list[Atoms]:
    """Frames of 2 to 108 atoms."""
    rng = np.random.default_rng(seed)
    return [structure(rng) for _ in range(count)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=214)
    parser.add_argument("--no-linear", action="store_true", help="networks alone")
    options = parser.parse_args(arguments)
    structures = data_set(options.frames)
    sizes = [len(atoms) for atoms in structures]
    from neuralil_ase.training.data import load_data
    from neuralil_ase.training.prepare import prepare
    from neuralil_ase.training.settings import TrainingSettings

    settings = TrainingSettings(max_force=1e4, linear="none" if options.no_linear else None)
    began, cpu = time.perf_counter(), time.process_time()
    frames = load_data(structures, settings)
    task = prepare(settings, *frames)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    n_slots = sum(task.packer.slots) * sum(sizes)
    kind = "networks alone" if task.linear is None else "with a linear part"
    print(
        f"{len(structures)} frames of {min(sizes)} to {max(sizes)} atoms ({len(set(sizes))} sizes), {n_slots} slots "
        f"for neighbours, {kind}: {wall:.1f} s, {cpu:.1f} s of CPU time"
    )


if __name__ == "__main__":
    main()
