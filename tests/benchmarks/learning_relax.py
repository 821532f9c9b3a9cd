"""Relaxations with a LearningCalculator against plain BFGS: calls of the teacher, and whether the minimum is the same.

    python tests/benchmarks/learning_relax.py -o relax.jsonl             # EMT: 8 slabs, 8 clusters, 8 cells
    python tests/benchmarks/learning_relax.py --ean -o relax_ean.jsonl   # GFN1-xTB (tblite): EAN ion pairs and clusters
    python tests/benchmarks/learning_relax.py --choice other -o other.jsonl   # or third; also with --ean
    python tests/benchmarks/learning_relax.py --one-learner --ways kept -o one.jsonl
    python tests/benchmarks/learning_relax.py --ways kept --seed 1 -o again.jsonl     # again with other parameters

The rules of learning were found while looking at the usual structures, so that the others judge them. Each choice has
its own elements and displacements.

Every structure is relaxed three times to the same fmax: by the teacher alone, by a learner that begins from nothing,
and by one learner that is kept over the structures of its series, in their order, or with ``--one-learner`` over all
series. Final energies are the teacher's. Without ``--series`` all of them are done. Results are appended, and a run
that was ended goes on behind them.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, fcc111
from ase.calculators.emt import EMT
from ase.cluster import Decahedron, Icosahedron, Octahedron
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS

from neuralil_ase import Confirmed, Learner, LearningCalculator

FMAX, MAX_STEPS, SAME = 0.05, 2000, 0.005
WAYS = ("nothing", "kept")


class Choice(NamedTuple):
    """Which structures: elements, and the first seed of displacements."""

    slab: str
    adsorbate: str
    cluster: tuple[str, str]
    cell: tuple[str, str]
    constant: float
    first_seed: int


USUAL = Choice("Cu", "O", ("Cu", "Au"), ("Cu", "Au"), 3.8, 0)
OTHER = Choice("Pd", "N", ("Ni", "Pt"), ("Pd", "Ag"), 4.1, 100)
THIRD = Choice("Ag", "C", ("Pd", "Au"), ("Ni", "Pd"), 3.7, 200)
CHOICES = {"usual": USUAL, "other": OTHER, "third": THIRD}
PAIR = Path(__file__).parents[2] / "md_examples" / "ean_pair.extxyz"
CALLS = [0]


def counted(kind: type, **options: Any) -> Any:
    """A calculator of this class that counts its calls."""

    class Counted(kind):  # type: ignore[misc]  # made at run time, as tblite is optional
        def calculate(self, *args: Any, **kwargs: Any) -> None:
            CALLS[0] += 1
            super().calculate(*args, **kwargs)

    return Counted(**options)


def slabs(choice: Choice) -> Iterator[Atoms]:
    """An adsorbate off its site, two facets, all atoms displaced; the lowest layer held fixed."""
    for k in range(8):
        build, height = ((fcc111, 1.2), (fcc100, 0.9))[k % 2]
        atoms = build(choice.slab, (2, 2, 3), vacuum=7)
        add_adsorbate(atoms, choice.adsorbate, height, "fcc" if k % 2 == 0 else "hollow")
        atoms.pbc = True
        rng = np.random.default_rng(choice.first_seed + k)
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        atoms.positions[-1] += (*rng.uniform(-0.4, 0.4, 2), rng.uniform(0, 0.6))
        atoms.set_constraint(FixAtoms([a.index for a in atoms if a.tag == 3]))
        yield atoms


def clusters(choice: Choice) -> Iterator[Atoms]:
    """Two metals, 13 to 23 atoms, in random order, displaced."""
    metal, other = choice.cluster
    shapes = (
        lambda: Icosahedron(metal, 2),
        lambda: Octahedron(metal, 3),
        lambda: Decahedron(metal, 3, 1, 0),
        lambda: Octahedron(metal, 3, 1),
    )
    for k in range(8):
        rng = np.random.default_rng(choice.first_seed + k)
        atoms = shapes[k % 4]()
        atoms.symbols[rng.permutation(len(atoms))[: len(atoms) // 2]] = other
        atoms.set_cell(1.05 * atoms.cell)
        atoms.positions = 1.05 * atoms.positions + rng.normal(0, 0.15, atoms.positions.shape)
        yield Atoms(atoms.symbols, positions=atoms.positions)


def cells(choice: Choice) -> Iterator[Atoms]:
    """Two metals in random order, strained and displaced; the cell is relaxed, too."""
    metal, other = choice.cell
    for k in range(8):
        rng = np.random.default_rng(choice.first_seed + k)
        atoms = bulk(metal, cubic=True, a=choice.constant) * ((2, 1, 1) if k % 2 else (2, 2, 1))
        atoms.symbols[rng.permutation(len(atoms))[: len(atoms) // 4 * (1 + k // 4)]] = other
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        yield atoms


def pairs(choice: Choice) -> Iterator[Atoms]:
    """An ion pair, or two of them side by side, displaced."""
    pair = read(PAIR)
    for k in range(6):
        rng = np.random.default_rng(choice.first_seed + k)
        atoms = Atoms(pair.symbols, positions=pair.positions)
        if k % 3 == 2:
            other = atoms.copy()
            other.rotate(180, "z")
            other.translate(
                np.array((0, 0, 4.5)) + pair.positions.mean(0) - other.positions.mean(0)
            )
            atoms += other
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        yield atoms


def relaxed(atoms: Atoms, calc: Any, with_cell: bool) -> tuple[int, bool]:
    """Calls of the teacher, and whether it converged; the atoms are at the end."""
    before = CALLS[0]
    atoms.calc = calc
    system: Any = FrechetCellFilter(atoms) if with_cell else atoms
    if isinstance(calc, LearningCalculator):
        optimizer = Confirmed(system).optimizer(BFGS, logfile=None)
    else:
        optimizer = BFGS(system, logfile=None)
    converged = optimizer.run(fmax=FMAX, steps=MAX_STEPS)
    return CALLS[0] - before, bool(converged)


def energy_of(atoms: Atoms, teacher: Any) -> float:
    copy = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    copy.calc = teacher
    return float(copy.get_potential_energy())


def one(
    name: str,
    k: int,
    atoms: Atoms,
    teacher: Callable[[], Any],
    kept: Learner,
    ways: Sequence[str] = WAYS,
    seed: int = 0,
) -> dict[str, Any]:
    """One structure by the teacher alone, and in these ways."""
    with_cell = name == "cells"
    found: dict[str, Any] = {"series": name, "number": k, "atoms": len(atoms)}
    plain = atoms.copy()
    found["plain"], _ = relaxed(plain, teacher(), with_cell)
    energy = energy_of(plain, teacher())
    for way in ways:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            learner = kept if way == "kept" else Learner(teacher(), folder, seed=seed)
            calc = LearningCalculator(learner=learner)
            moved = atoms.copy()
            calls, converged = relaxed(moved, calc, with_cell)
        found[way] = calls
        found[f"{way}_converged"] = converged
        found[f"{way}_meV"] = round(1e3 * (energy_of(moved, teacher()) - energy), 2)
        found[f"{way}_cpu_s"] = round(time.process_time() - began, 1)
    return found


def summary(results: list[dict[str, Any]]) -> None:
    for name in [*sorted({r["series"] for r in results}), "all"]:
        rows = [r for r in results if name in (r["series"], "all")]
        line = f"{name}: {len(rows)} structures, plain median {np.median([r['plain'] for r in rows]):.0f} calls"
        for way in (way for way in WAYS if all(way in r for r in rows)):
            ratios = [r[way] / r["plain"] for r in rows]
            same = sum(abs(r[f"{way}_meV"]) <= 1e3 * SAME for r in rows)
            lower = sum(r[f"{way}_meV"] < -1e3 * SAME for r in rows)
            line += (
                f"; {way}: median ratio {np.median(ratios):.3f}, total {sum(r[way] for r in rows)} of "
                f"{sum(r['plain'] for r in rows)}, {same} the same minimum, {lower} a lower one"
            )
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--ean", action="store_true")
    parser.add_argument("--series", choices=("slabs", "clusters", "cells"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--one-learner", action="store_true", help="keep one over all series")
    parser.add_argument(
        "--choice", choices=tuple(CHOICES), default="usual", help="elements and displacements"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the learners (default 0)")
    options = parser.parse_args()
    series = {"slabs": slabs, "clusters": clusters, "cells": cells}
    if options.ean:
        from tblite.ase import TBLite

        series = {"pairs": pairs}

        def teacher() -> Any:
            return counted(TBLite, method="GFN1-xTB", accuracy=0.01, verbosity=0)
    else:

        def teacher() -> Any:
            return counted(EMT)

    lines = options.output.read_text().splitlines() if options.output.exists() else []
    results = [json.loads(line) for line in lines]
    kept: Learner | None = None
    for name, structures in series.items():
        if options.series not in (None, name):
            continue
        done = {r["number"] for r in results if r["series"] == name}
        if kept is None or not options.one_learner:
            folder = options.output.with_suffix(f".{name}")
            kept = Learner(teacher(), folder, seed=options.seed)
        for k, atoms in enumerate(structures(CHOICES[options.choice])):
            if k not in done:
                results.append(one(name, k, atoms, teacher, kept, options.ways, options.seed))
                with options.output.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    summary(results)


if __name__ == "__main__":
    main()
