"""Random structures of any shape, a plain reference for their pairs, and a process that tries them one by one.

Run as a script it prints one line of JSON for every seed: ``structures.py FIRST LAST``.
"""

import json
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.geometry import cellpar_to_cell
from scipy.spatial.transform import Rotation

from neuralil_ase.engine.neighbors import NeighborList, Pairs
from neuralil_ase.errors import StructureError

R_CUT = 3.0
WHOLE_PATH = 32
"""Atoms of the largest structure whose energy and forces are computed, too."""
REFERENCE_WORK = 1e6
"""Images of pairs that the reference looks at, at most."""


class Structure(NamedTuple):
    """A structure, what it was made of, and what is known of it.

    Attributes
    ----------
    positions, cell, pbc, types
        Shapes (N, 3), (3, 3), (3,), (N,).
    lattice
        Short vectors of the same lattice as ``cell``, shape (3, 3).
    is_ordinary
        It has to be answered.
    is_broken
        It has to be refused.
    """

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    types: np.ndarray
    lattice: np.ndarray
    is_ordinary: bool
    is_broken: bool


def random_structure(seed: int) -> Structure:
    """All pbc patterns, extents from 1e-3 to 1e12 Å, cells of any shape, 0 to 1000 atoms."""
    rng = np.random.default_rng(seed)
    pbc = rng.random(3) < 0.5
    n_atoms = int(rng.choice([rng.integers(0, 4), rng.integers(2, 13), rng.integers(2, 65), rng.integers(65, 1001)],
                             p=[0.2, 0.65, 0.14, 0.01]))  # fmt: skip
    lattice, odd_cell = _lattice(rng, n_atoms)
    positions, odd_places = _positions(rng, lattice, pbc, n_atoms)
    cell = _same_lattice(rng, lattice, pbc)
    odd_cell |= np.abs(cell[pbc]).max(initial=0) > 1e3 * np.abs(lattice).max()
    if pbc.any() and rng.random() < 0.03:
        cell = lattice = _degenerate(rng, cell, pbc)
        broken = True
    else:
        broken = False
    if n_atoms and rng.random() < 0.03:
        positions[rng.integers(n_atoms), rng.integers(3)] = rng.choice(
            [np.nan, np.inf, -np.inf, 1e300]
        )
        broken = True
    ordinary = not (broken or odd_cell or odd_places)
    return Structure(positions, cell, pbc, rng.integers(0, 4, n_atoms), lattice, ordinary, broken)


def _lattice(rng: np.random.Generator, n_atoms: int) -> tuple[np.ndarray, bool]:
    """A cell, and whether it is an odd one; ordinary ones hold their atoms at a density that exists."""
    shape = rng.choice(["ordinary", "extreme", "flat", "collapsed"], p=[0.5, 0.25, 0.15, 0.1])
    least = max(2.5, (n_atoms / 0.2) ** (1 / 3))
    lengths = rng.uniform(least, 3 * least, 3)
    if shape == "extreme":
        lengths = 10 ** rng.uniform(-3, 12, 3)
    elif shape == "flat":
        lengths[rng.integers(3)] = 10 ** rng.uniform(-3, 12)
    elif shape == "collapsed":
        lengths *= 10 ** rng.uniform(-3, 0)
    angles = rng.uniform(60, 120, 3) if rng.random() < 0.6 else np.full(3, 90)
    try:
        cell = cellpar_to_cell([*lengths, *angles])
    except AssertionError:  # no such angles
        cell = np.diag(lengths)
    cell = cell @ Rotation.random(None, rng).as_matrix() if rng.random() < 0.5 else cell
    if rng.random() < 0.3:
        cell = cell[[1, 0, 2]]
    return cell, shape != "ordinary"


def _positions(
    rng: np.random.Generator, lattice: np.ndarray, pbc: np.ndarray, n_atoms: int
) -> tuple[np.ndarray, bool]:
    """Positions, and whether they are odd."""
    kind = rng.choice(["uniform", "grid", "spot", "line", "far", "out", "unwrapped"],
                      p=[0.4, 0.1, 0.05, 0.1, 0.2, 0.05, 0.1])  # fmt: skip
    places = rng.random((n_atoms, 3))
    if kind == "grid":
        places = rng.integers(0, 4, (n_atoms, 3)) / 4
    elif kind == "spot":
        places = np.tile(places[:1], (n_atoms, 1))
    elif kind == "line":
        places = np.outer(rng.random(n_atoms), [1, 1, 1]) * rng.integers(1, 9)
    if kind == "unwrapped":
        places = (
            places
            + np.where(pbc, rng.integers(-1, 2, (n_atoms, 3)) * 10 ** rng.uniform(0, 11), 0).round()
        )
    lattice = np.where(pbc[:, None], lattice, np.diag(rng.uniform(3, 20) * np.ones(3)))
    positions = places @ lattice
    if (
        kind == "far" and n_atoms
    ):  # some atoms leave along directions that are not periodic, alone or together
        leaving = rng.random(n_atoms) < rng.choice([1 / n_atoms, 0.3, 0.9])
        together = rng.random() < 0.5
        distances = 10 ** rng.uniform(0, 12, (1 if together else n_atoms, 1)) * rng.choice([-1, 1])
        normals = _normals(lattice, pbc)
        if len(normals):
            way = rng.normal(size=len(normals)) @ normals
            positions = positions + np.where(
                leaving[:, None], distances * way / np.linalg.norm(way), 0
            )
    elif kind == "out" and n_atoms:  # along any
        positions[rng.integers(n_atoms)] += 10 ** rng.uniform(0, 13) * rng.normal(size=3)
    return positions, kind in ("spot", "out", "unwrapped", "line", "grid")


def _normals(lattice: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    if not pbc.any():
        return np.eye(3)
    return np.linalg.svd(lattice[pbc], full_matrices=True)[2][np.count_nonzero(pbc) :]


def _same_lattice(rng: np.random.Generator, lattice: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Other vectors of the same lattice; those of directions that are not periodic may be anything."""
    cell, periodic = lattice.copy(), np.flatnonzero(pbc)
    if len(periodic) > 1 and rng.random() < 0.2:
        for _ in range(3):
            a, b = rng.choice(periodic, 2, replace=False)
            cell[a] += rng.choice([1, 2, -3]) * cell[b]
        if rng.random() < 0.3:
            cell[a] += np.rint(10 ** rng.uniform(0, 5)) * cell[b]
    for k in np.flatnonzero(~pbc):
        cell[k] = [np.zeros(3), cell[k], rng.normal(size=3), cell[(k + 1) % 3]][rng.integers(4)]
    return cell


def _degenerate(rng: np.random.Generator, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    cell, k = cell.copy(), rng.choice(np.flatnonzero(pbc))
    others = [j for j in np.flatnonzero(pbc) if j != k]
    cell[k] = cell[rng.choice(others)] * rng.choice([1, -2]) if others and rng.random() < 0.5 else 0
    if rng.random() < 0.1:
        cell[k] = np.nan
    return cell


def images(structure: Structure) -> np.ndarray:
    """Lattice vectors that any pair may need beyond the nearest one, as integers, shape (L, 3)."""
    lengths = np.linalg.norm(structure.lattice, axis=1)
    units = structure.lattice / lengths[:, None]
    reach = [0, 0, 0]
    for k in np.flatnonzero(structure.pbc):
        others = [units[j] for j in np.flatnonzero(structure.pbc) if j != k]
        rest = units[k] - (np.linalg.pinv(others) @ (others @ units[k]) if others else 0)
        height = lengths[k] * np.linalg.norm(rest)
        reach[k] = int(min(np.ceil(R_CUT / height) + 1, 1e9))
    if len(structure.types) ** 2 * np.prod([2 * n + 1.0 for n in reach]) > REFERENCE_WORK:
        raise OverflowError
    return np.array(list(product(*(range(-n, n + 1) for n in reach))))


def reference_pairs(structure: Structure, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Keys (i, j, three integers) and exact vectors of all pairs shorter than the cutoff and a margin, one by one."""
    positions, n_atoms = structure.positions, len(structure.types)
    lattice = np.where(structure.pbc[:, None], structure.lattice, 0)
    given = np.where(structure.pbc[:, None], structure.cell, 0).astype(np.longdouble)
    in_given = _in_given_vectors(structure)
    near = images(structure)
    keys, vectors = [np.empty((0, 5), np.int64)], [np.empty((0, 3), np.longdouble)]
    for i in range(n_atoms):
        apart = positions - positions[i]
        nearest = -np.rint(_fractional(apart, structure))
        shifts = nearest[:, None] + near
        rough = apart[:, None] + shifts @ lattice
        j, image = np.nonzero(np.linalg.norm(rough, axis=2) < R_CUT + 1)
        integers = shifts[j, image]
        exact = (
            positions[j].astype(np.longdouble)
            - positions[i]
            + (integers.astype(np.longdouble) @ in_given) @ given
        )
        keep = (np.linalg.norm(exact.astype(float), axis=1) < R_CUT + margin) & (
            (j != i) | integers.any(axis=1)
        )
        keys.append(np.column_stack([np.full(len(j), i), j, integers])[keep].astype(np.int64))
        vectors.append(exact[keep])
    return np.concatenate(keys), np.concatenate(vectors)


def _in_given_vectors(structure: Structure) -> np.ndarray:
    """The vectors of the lattice as whole multiples of those of the cell, whose rounding is part of what was asked."""
    pbc, multiples = structure.pbc, np.zeros((3, 3), np.longdouble)
    if pbc.any():
        whole = np.rint(_fractional(structure.cell[pbc], structure)[:, pbc])
        multiples[np.ix_(pbc, pbc)] = np.rint(np.linalg.inv(whole))
    return multiples


def _fractional(vectors: np.ndarray, structure: Structure) -> np.ndarray:
    """Coordinates along the periodic vectors of the lattice, zero along others."""
    pbc = structure.pbc
    fractional = np.zeros(vectors.shape)
    if pbc.any():
        lengths = np.linalg.norm(structure.lattice[pbc], axis=1)
        fractional[:, pbc] = (
            vectors @ np.linalg.pinv(structure.lattice[pbc] / lengths[:, None]) / lengths
        )
    return fractional


def rounding(structure: Structure) -> float:
    """Å: what float64 can leave of the error of a pair's vector.

    Short vectors of the lattice are sums of those of an oblique cell, which nearly cancel. Their rounding counts as
    often as there are such vectors between an atom and its image, or the cell at the origin.
    """
    size = np.abs(structure.positions).max(initial=0)
    lengths = np.linalg.norm(np.where(structure.pbc[:, None], structure.cell, 0), axis=1)
    summed = np.abs(_in_given_vectors(structure)).astype(float) @ lengths
    cells_away = np.abs(_fractional(structure.positions, structure)).max(axis=0, initial=0)
    within_cutoff = R_CUT / np.linalg.norm(structure.lattice, axis=1)
    multiples = 1 + cells_away + within_cutoff
    return 1e-9 + 2e-15 * (size + lengths.max(initial=0) + multiples @ summed)


def compare(structure: Structure, found: Pairs) -> str:
    """What is wrong with a pair list; nothing if it holds all pairs inside the cutoff and no other."""
    margin = rounding(structure)
    keys, exact = reference_pairs(structure, margin)
    apart = found.vectors - (
        structure.positions[found.neighbors].astype(np.longdouble)
        - structure.positions[found.centers]
    )
    integers = np.rint(_fractional(apart.astype(float), structure)).astype(np.int64)
    mine = np.column_stack([found.centers, found.neighbors, integers])
    _, place = np.unique(_numbered(np.concatenate([keys, mine])), return_inverse=True)
    which = np.full(place.max(initial=-1) + 1, -1)
    which[place[: len(keys)]] = np.arange(len(keys))
    places = which[place[len(keys) :]]
    if (places < 0).any():
        return f"no such pair: {mine[places < 0][0].tolist()}"
    if len(np.unique(places)) < len(places):
        return "a pair is there twice"
    wrong = np.abs(found.vectors - exact[places]).max(initial=0)
    if wrong > margin:
        return f"vectors are wrong by {float(wrong)} Å"
    inside = np.linalg.norm(exact.astype(float), axis=1) < R_CUT - margin
    inside[places] = False
    return f"missing: {keys[inside][0].tolist()}" if inside.any() else ""


def _numbered(keys: np.ndarray) -> np.ndarray:
    """One integer for every different row."""
    if not len(keys):
        return np.zeros(0, int)
    keys = keys - keys.min(axis=0)
    sizes = keys.max(axis=0) + 1
    if sizes.astype(float).prod() > 2.0**62:
        raise OverflowError
    return np.ravel_multi_index(tuple(keys.T), tuple(sizes))


def whole_path(structure: Structure, found: Pairs) -> str:
    """Energy and forces of the calculator against those of the pairs that the reference finds."""
    from ase import Atoms

    from neuralil_ase.engine.arrays import System

    calculator, predictor = _calculators()
    atoms = Atoms(
        np.array(["C", "H", "N", "O"])[structure.types],
        structure.positions,
        cell=structure.cell,
        pbc=structure.pbc,
    )
    keys, vectors = reference_pairs(structure, 0.0)
    order = np.lexsort((structure.types[keys[:, 1]], keys[:, 0]))
    pairs = Pairs(vectors[order].astype(float), *keys[order, :2].T.astype(np.int32))
    (expected,) = predictor.predict([System(structure.types, pairs, None)], "off")
    try:
        calculator.calculate(atoms)
    except StructureError as error:  # its skin is another one
        return f"refused: {error}" if structure.is_ordinary else ""
    scale = 1 + np.abs(expected.forces).max(initial=0) + abs(expected.energy)
    for name in ("energy", "forces"):
        wrong = np.abs(calculator.results[name] - getattr(expected, name))
        if not np.all(wrong <= scale * 1e3 * rounding(structure)):
            return f"{name} wrong by {np.max(wrong)}"
    return ""


_made: list[Any] = []


def _calculators() -> list[Any]:
    if not _made:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from systems import ensemble

        from neuralil_ase import NeuralILCalculator
        from neuralil_ase.engine.predictor import Predictor

        _made.append(NeuralILCalculator(ensemble(), dtype="float64", uncertainty="off"))
        _made.append(Predictor(ensemble(), "float64"))
    return _made


def attempt(seed: int) -> dict[str, Any]:
    """Try one structure: outcome, what is wrong, and how long the pair list took."""
    structure = random_structure(seed)
    skin = (0.0, 0.5)[seed % 2]
    start = time.process_time()
    try:
        found = NeighborList(R_CUT, skin).pairs(
            structure.positions, structure.cell, structure.pbc, structure.types
        )
    except StructureError as error:
        spent = time.process_time() - start
        wrong = f"refused: {error}" if structure.is_ordinary else ""
        return {"seed": seed, "outcome": "refused", "wrong": wrong, "seconds": spent}
    spent = time.process_time() - start
    outcome = {"seed": seed, "outcome": "compared", "seconds": spent, "atoms": len(structure.types)}
    if not len(structure.types):
        return outcome | {"wrong": "pairs of nothing" if len(found.centers) else ""}
    if structure.is_broken:
        return outcome | {"wrong": "answered"}
    try:
        wrong = compare(structure, found)
        if not wrong and len(structure.types) <= WHOLE_PATH:
            wrong = whole_path(structure, found)
    except OverflowError:
        return outcome | {"outcome": "too large to compare", "wrong": ""}
    return outcome | {"wrong": wrong}


if __name__ == "__main__":
    first, last = map(int, sys.argv[1:])
    _calculators()
    print("ready", flush=True)  # loading may take minutes on a busy machine
    for number in range(first, last):
        print(json.dumps(attempt(number)), flush=True)
