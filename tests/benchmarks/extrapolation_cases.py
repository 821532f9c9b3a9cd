"""Data for extrapolation.py: what is trained on, what is ordinary, and what no model of it has seen."""

import lzma
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.geometry import get_distances
from ase.io import iread, read
from scipy.spatial.transform import Rotation

ROOT = Path(__file__).resolve().parents[2]
EAN_GFN1 = ROOT / "md_examples" / "ean_gfn1"
sys.path.insert(0, str(EAN_GFN1))

from ean_boxes import ANION, CATION, ion_slices, scale_volume  # noqa: E402 - from the folder added above

EAN = EAN_GFN1 / "ean_gfn1.extxyz.xz"
PUBLISHED = ROOT.parent / "shared" / "original"
BOX = 120  # atoms of the usual cell of the EAN data
STRETCHED = 1.6  # Å, an N-H bond longer than any in the data
O_H = 0.98  # Å, in nitric acid
TRANSFERRED = 1.1  # Å: a hydrogen this near to an oxygen has changed hands


@dataclass(frozen=True)
class Strange:
    """Frames to be told from ordinary ones, and which of their atoms are the strange ones."""

    frames: list[Atoms]
    atoms: list[np.ndarray]


@dataclass(frozen=True)
class Problem:
    """One system.

    Attributes
    ----------
    data
        Frames with ``info["split"]`` "train" or "valid"; error bars are calibrated on the latter.
    options
        For ``train``.
    test
        Ordinary frames, with labels, in neither.
    ordinary
        Those that strange ones are told from: of the same size.
    strange
        By name.
    notes
        What the training set holds.
    """

    data: list[Atoms]
    options: dict[str, object]
    test: list[Atoms]
    ordinary: list[Atoms]
    strange: dict[str, Strange]
    notes: list[str]


def load(system: str, limit: int, seed: int = 0, data: Path | None = None) -> Problem:
    """The problem "sto", "ean" or "dft"; with at most `limit` frames to train on, unless that is 0.

    `data`, for "ean", stands in for the data set that comes with the examples.

    Raises
    ------
    FileNotFoundError
        If the data are not there.
    """
    if system == "ean":
        return _ean(limit, seed, data)
    return {"sto": _sto, "dft": _dft}[system](limit, seed)


def _sto(limit: int, seed: int) -> Problem:
    frames = _published("sto_dft_100.extxyz")
    cold = [a for a in frames if a.info["temperature_K"] == 500]
    hot = [a for a in frames if a.info["temperature_K"] == 1000]
    train, valid, test = _parts(cold, (25, 12), limit, seed)
    strange = {"1000 K": Strange(hot, [np.ones(len(a), bool) for a in hot])}
    notes = [
        f"{len(train)} cells of 500 K to train on, {len(valid)} to calibrate, {len(test)} to test"
    ]
    return Problem([*train, *valid], {"r_cut": 5.5, "n_max": 5}, test, test, strange, notes)


def _dft(limit: int, seed: int) -> Problem:
    train, valid, test = _parts(_published("ean_dft_50.extxyz"), (30, 8), limit, seed)
    notes = [f"{len(train)} DFT cells to train on, {len(valid)} to calibrate, {len(test)} to test"]
    return Problem([*train, *valid], {}, test, test, {}, notes)


def _ean(limit: int, seed: int, data: Path | None = None) -> Problem:
    with lzma.open(data or EAN, "rt", encoding="utf-8") as file:
        every = read(StringIO(file.read()), index=":", format="extxyz")
    frames = [atoms for atoms in every if not transferring(atoms)]
    parts = {s: [a for a in frames if a.info["split"] == s] for s in ("train", "valid", "test")}
    picked = np.random.default_rng(seed).permutation(len(parts["train"]))[: limit or None]
    train = [parts["train"][k] for k in np.sort(picked)]
    ordinary = [a for a in parts["test"] if len(a) == BOX and a.pbc.all()]
    rng = np.random.default_rng(seed)
    strange = {
        name: Strange(*map(list, zip(*[make(atoms, rng) for atoms in ordinary], strict=True)))
        for name, make in CASES.items()
    }
    return Problem(
        [*train, *parts["valid"]],
        {},
        parts["test"],
        ordinary,
        strange,
        _contents(train, len(every) - len(frames)),
    )


def compressed(factor: float) -> Callable[[Atoms, np.random.Generator], tuple[Atoms, np.ndarray]]:
    """Volume times `factor`, ions rigid."""

    def make(atoms: Atoms, rng: np.random.Generator) -> tuple[Atoms, np.ndarray]:
        return scale_volume(atoms, factor), np.ones(len(atoms), bool)

    return make


def stretched_bond(atoms: Atoms, rng: np.random.Generator) -> tuple[Atoms, np.ndarray]:
    """The N-H bond with the least of a hydrogen bond drawn out, the rest as it was."""
    made = _bare(atoms)
    donors, _, _, distances = _hydrogen_bonds(made)
    nitrogen, hydrogen = donors[int(np.argmax(distances.min(axis=1)))]
    made.set_distance(nitrogen, hydrogen, STRETCHED, fix=0)
    return made, _marked(made, [nitrogen, hydrogen])


def transferred_proton(atoms: Atoms, rng: np.random.Generator) -> tuple[Atoms, np.ndarray]:
    """The proton of the shortest hydrogen bond moved to the nitrate: a pair of neutral molecules."""
    made = _bare(atoms)
    donors, acceptors, vectors, distances = _hydrogen_bonds(made)
    i, j = np.unravel_index(np.argmin(distances), distances.shape)
    made.positions[donors[i][1]] += vectors[i, j] * (1 - O_H / distances[i, j])
    return made, _marked(made, [*donors[i], *acceptors[j]])


def replaced(
    name: str, length: int
) -> Callable[[Atoms, np.random.Generator], tuple[Atoms, np.ndarray]]:
    """A molecule in the place of one ion of `length` atoms, turned so that it has most room."""

    def make(atoms: Atoms, rng: np.random.Generator) -> tuple[Atoms, np.ndarray]:
        ion = _any_ion(atoms, length, rng)
        kept = _bare(atoms)
        centre = kept.positions[ion].mean(axis=0)
        del kept[ion]
        guest = molecule(name)
        shape = guest.positions - guest.positions.mean(axis=0)
        turns = [Rotation.random(None, rng).apply(shape) + centre for _ in range(200)]
        guest.positions = max(turns, key=lambda turn: _room(kept, turn))
        made = kept + guest
        return made, _marked(made, range(len(kept), len(made)))

    return make


def gas_phase(length: int) -> Callable[[Atoms, np.random.Generator], tuple[Atoms, np.ndarray]]:
    """One ion of `length` atoms as it is in the liquid, with nothing around it."""

    def make(atoms: Atoms, rng: np.random.Generator) -> tuple[Atoms, np.ndarray]:
        ion: Atoms = _bare(atoms)[_any_ion(atoms, length, rng)]
        ion.set_cell(None)
        ion.pbc = False
        return ion, np.ones(length, bool)

    return make


CASES: dict[str, Callable[[Atoms, np.random.Generator], tuple[Atoms, np.ndarray]]] = {
    "volume -10 %": compressed(0.9),
    "volume -30 %": compressed(0.7),
    f"N-H at {STRETCHED} Å": stretched_bond,
    "proton moved": transferred_proton,
    "water for nitrate": replaced("H2O", len(ANION)),
    "pyridine for cation": replaced("C5H5N", len(CATION)),
    "cation alone": gas_phase(len(CATION)),
    "nitrate alone": gas_phase(len(ANION)),
}


def _published(name: str) -> list[Atoms]:
    path = PUBLISHED / name
    if not path.exists():
        raise FileNotFoundError(f"the published DFT cells are not there: {path} does not exist")
    return list(iread(path, index=":"))


def _parts(
    frames: list[Atoms], sizes: tuple[int, int], limit: int, seed: int
) -> tuple[list[Atoms], list[Atoms], list[Atoms]]:
    """Random parts to train on, to calibrate on and to test on; with a limit all three are that small."""
    order = np.random.default_rng(seed).permutation(len(frames))
    first, second, third = np.split(order, np.cumsum(sizes))
    parts = [[frames[k] for k in part[: limit or None]] for part in (first, second, third)]
    for name, part in zip(("train", "valid", "test"), parts, strict=True):
        for atoms in part:
            atoms.info["split"] = name
    return parts[0], parts[1], parts[2]


def transferring(atoms: Atoms) -> bool:
    """Whether a nitrate holds a proton, a reaction that GFN1-xTB does show."""
    hydrogens, oxygens = (atoms.positions[atoms.numbers == z] for z in (1, 8))
    return bool((_between(atoms, hydrogens, oxygens)[1] < TRANSFERRED).any())


def _contents(train: list[Atoms], n_left_out: int) -> list[str]:
    """What the training set holds of the strange things."""
    bonds = [
        np.linalg.norm(a.positions[c.start] - a.positions[c.start + 1 : c.start + 4], axis=1).max()
        for a in train
        for c in _ions(a, len(CATION))
    ]
    volumes = [atoms.get_volume() / len(atoms) for atoms in train if atoms.pbc.all()]
    return [
        f"{len(train)} frames to train on, longest N-H {max(bonds):.2f} Å; everywhere, {n_left_out} frames with an "
        f"O-H below {TRANSFERRED} Å are left out",
        f"volumes {min(volumes):.2f} to {max(volumes):.2f} Å³ per atom: at most "
        f"{1 - min(volumes) / np.median(volumes):.0%} of compression",
    ]


def _ions(atoms: Atoms, length: int) -> list[slice]:
    return [ion for ion in ion_slices(atoms) if ion.stop - ion.start == length]


def _any_ion(atoms: Atoms, length: int, rng: np.random.Generator) -> slice:
    ions = _ions(atoms, length)
    return ions[rng.integers(len(ions))]


def _bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _marked(atoms: Atoms, indices: Iterable[int]) -> np.ndarray:
    return np.isin(np.arange(len(atoms)), np.array(list(indices)))


def _hydrogen_bonds(
    atoms: Atoms,
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], np.ndarray, np.ndarray]:
    """Pairs N, H of cations and N, O of nitrates, vectors H -> O and their lengths."""
    donors = [(c.start, c.start + k) for c in _ions(atoms, len(CATION)) for k in (1, 2, 3)]
    acceptors = [(a.start, a.start + k) for a in _ions(atoms, len(ANION)) for k in (1, 2, 3)]
    hydrogens, oxygens = ([last for _, last in pairs] for pairs in (donors, acceptors))
    return (
        donors,
        acceptors,
        *_between(atoms, atoms.positions[hydrogens], atoms.positions[oxygens]),
    )


def _room(atoms: Atoms, positions: np.ndarray) -> float:
    """Smallest distance to any atom."""
    return float(_between(atoms, positions, atoms.positions)[1].min())


def _between(atoms: Atoms, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors to the nearest images in the cell of these atoms, (n, m, 3), and their lengths."""
    vectors, distances = get_distances(first, second, cell=atoms.cell, pbc=atoms.pbc)
    return vectors, distances
