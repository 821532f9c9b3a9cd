"""Reads labelled frames from any format of ASE, and checks them before any long work."""

import bz2
import gzip
import logging
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.formats import parse_filename

from neuralil_ase.array_record import ArrayRecord, count
from neuralil_ase.engine.geometry import check_geometry
from neuralil_ase.engine.neighbors import NeighborList, Pairs
from neuralil_ase.errors import DataError, StructureError
from neuralil_ase.evaluation.audit import Part, audit
from neuralil_ase.evaluation.labels import Keys, Labels, read_labels
from neuralil_ase.model.elements import element_types

logger = logging.getLogger(__name__)
VALIDATION_NAMES = ("valid", "val", "validation")
Data = Sequence[str | Path] | Sequence[Atoms] | str | Path | Atoms
"""Labelled structures: one or several files in any format that ASE reads, or ``Atoms`` with calculator results."""


@dataclass(frozen=True, eq=False, repr=False)
class Frame(ArrayRecord):
    """One labelled structure. Missing labels are None.

    Attributes
    ----------
    source
        File and index, for messages.
    symbols
        Chemical symbols, shape (N,).
    positions, cell, pbc
        In Å.
    energy
        In eV.
    forces
        In eV/Å, shape (N, 3).
    stress
        In eV/Å³, tension positive, shape (6,), Voigt order xx yy zz yz xz xy.
    group
        Value of the ``split_by`` key.
    weight
        How much the frame counts in training.
    """

    source: str
    symbols: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None
    group: str | None = None
    weight: float = 1.0

    def __repr__(self) -> str:
        labels = [
            name for name in ("energy", "forces", "stress") if getattr(self, name) is not None
        ]
        atoms = count(len(self.symbols), "atom")
        return f"Frame: {self.source}, {atoms}, labels: {' '.join(labels) or 'none'}"

    @property
    def volume(self) -> float | None:
        """Volume of the cell in Å³; None without three lattice vectors."""
        volume = abs(float(np.linalg.det(self.cell)))
        return volume if volume > 0 else None


def as_frames(
    data: Data | Sequence[Frame], keys: Keys | None = None, split_by: str | None = None
) -> list[Frame]:
    """Frames from files or from structures in memory; frames are returned as they are. See :func:`read_frames`.

    Raises
    ------
    DataError
        If there are none, or as from :func:`read_frames`.
    """
    items = items_of(data)
    if not items:
        raise DataError("no data were given; give files, or structures with labels")
    if all(isinstance(item, Frame) for item in items):
        return items
    if all(isinstance(item, Atoms) for item in items):
        return frames_from_atoms(items, keys, split_by)
    if not all(isinstance(item, str | Path) for item in items):
        kinds = ", ".join(sorted({type(item).__name__ for item in items}))
        raise DataError(
            f"the data are of the kinds {kinds}; give files, or structures (Atoms) with labels, but not both in one "
            "list"
        )
    return read_frames(items, keys, split_by)


def items_of(data: Data | Sequence[Frame]) -> list[Any]:
    """The files, structures or frames of the data as a list, also if there is only one."""
    # Atoms can be iterated, too, but are one structure.
    if isinstance(data, str | Path | Atoms) or not isinstance(data, Iterable):
        return [data]
    return list(data)


def read_frames(
    paths: Sequence[str | Path], keys: Keys | None = None, split_by: str | None = None
) -> list[Frame]:
    """All frames of several files.

    Parameters
    ----------
    paths
        Files in any format ASE reads; ``file@::10`` selects frames, as everywhere in ASE.
    keys
        Where the labels are.
    split_by
        Key in ``atoms.info`` of each frame's group.

    Raises
    ------
    DataError
        If a file cannot be read, or if a label that was requested by name is missing in all frames, has the wrong shape
        or is not finite.
    """
    return _frames(((str(path), _read_file(path)) for path in paths), keys or Keys(), split_by)


def frames_from_atoms(
    atoms_list: Iterable[Atoms], keys: Keys | None = None, split_by: str | None = None
) -> list[Frame]:
    """Frames from structures in memory; see :func:`read_frames`."""
    structures = [(f"structure {k}", atoms) for k, atoms in enumerate(atoms_list)]
    if not structures:
        raise DataError("no structures were given to train on")
    return _frames([("the structures", structures)], keys or Keys(), split_by)


def _frames(
    parts: Iterable[tuple[str, Iterable[tuple[str, Atoms]]]], keys: Keys, split_by: str | None
) -> list[Frame]:
    """Frames with labels. Data that are not used are reported (:mod:`neuralil_ase.evaluation.audit`).

    Each ``Atoms`` object is discarded as soon as its frame is made, because it takes several times the memory of its
    arrays.
    """
    audited, frames = [], []
    for name, structures in parts:
        labels = []
        for source, atoms in structures:
            labels.append(read_labels(_checked(atoms, source), source, keys))
            if labels[-1].energy is not None or labels[-1].forces is not None:
                frames.append(_frame(atoms, source, labels[-1], split_by))
        if not labels:
            raise DataError(f"no frames in {name}; leave the file out, or check why it is empty")
        audited.append(Part(name, labels))
    audit(audited, keys)
    return frames


def elements_of(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Chemical symbols in the data, in alphabetical order."""
    return tuple(sorted({str(symbol) for frame in frames for symbol in set(frame.symbols)}))


def types_of(frame: Frame, elements: tuple[str, ...]) -> np.ndarray:
    """Element index of every atom.

    Raises
    ------
    DataError
        If the frame has an element that is not in ``elements``.
    """
    unknown = sorted(set(frame.symbols) - set(elements))
    if unknown:
        raise DataError(
            f"{frame.source} holds {', '.join(unknown)}, but the model knows only {', '.join(elements)}"
        )
    numbers = np.array([atomic_numbers[symbol] for symbol in frame.symbols.tolist()], int)
    return element_types(numbers, elements).astype(np.int32)


def pairs_of(frame: Frame, types: np.ndarray, r_cut: float) -> Pairs:
    """Neighbours inside the cutoff.

    Raises
    ------
    DataError
        If the frame is too dense for any material.
    """
    try:
        return NeighborList(r_cut, 0.0).pairs(frame.positions, frame.cell, frame.pbc, types)
    except StructureError as error:
        raise DataError(f"{frame.source} cannot be used: {error}") from error


def is_isolated_atom(frame: Frame, radius: float) -> bool:
    """Whether the frame is one atom without a neighbour, or image of itself, within this radius in Å."""
    return len(frame.symbols) == 1 and not len(
        pairs_of(frame, np.zeros(1, np.int32), radius).centers
    )


def fractions_of(frame: Frame, elements: tuple[str, ...]) -> np.ndarray:
    """Fractions of the elements in a frame, shape (elements,)."""
    counts = np.bincount(types_of(frame, elements), minlength=len(elements))
    return counts / counts.sum()


def split(frames: Sequence[Frame], fraction: float, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Random split into training and validation frames; frames of one group stay together.

    Groups named "train", "valid" (or "val", "validation") and "test" are used as named, and test frames are left out. A
    group that is the only one with some element is not held out, since nothing could then be learnt about that
    element.

    Raises
    ------
    DataError
        If there are too few frames or groups to hold out any, or if there are other group names besides "train".
    """
    names = {frame.group for frame in frames}
    if "train" in names:
        return _named_split(frames, names)
    if fraction == 0:
        return list(frames), []
    labels = [frame.source if frame.group is None else frame.group for frame in frames]
    groups = sorted(set(labels))
    count = max(1, round(fraction * len(groups)))
    if count >= len(groups):
        raise DataError(
            f"cannot hold out {fraction:.0%} of {len(groups)} frames or groups for validation: nothing would "
            "be left to train on. Give more data, a validation file, or validation_fraction 0"
        )
    order = np.random.default_rng(seed).permutation(groups).tolist()
    held = _with_all_elements_left(frames, labels, order, count)
    train = [f for f, label in zip(frames, labels, strict=True) if label not in held]
    return train, [f for f, label in zip(frames, labels, strict=True) if label in held]


def _with_all_elements_left(
    frames: Sequence[Frame], labels: Sequence[str], order: Sequence[str], count: int
) -> set[str]:
    """The first ``count`` groups, in this order, that can be held out while the others still hold every element."""
    elements: dict[str, set[str]] = {}
    for frame, label in zip(frames, labels, strict=True):
        elements.setdefault(label, set()).update(frame.symbols.tolist())
    left = Counter(symbol for symbols in elements.values() for symbol in symbols)
    held: set[str] = set()
    kept: list[str] = []
    for group in order:
        if len(held) == count:
            break
        alone = sorted(symbol for symbol in elements[group] if left[symbol] == 1)
        if alone:
            kept.append(", ".join(alone))
            continue
        held.add(group)
        left.subtract(elements[group])
    if kept:
        logger.info(
            "frames with %s are not held out for validation: no other frame or group to train on has these elements",
            "; ".join(kept),
        )
    if not held:
        raise DataError(
            "nothing can be held out for validation: every frame or group is the only one with some element. Give "
            "more data, a validation file, or validation_fraction 0"
        )
    return held


def _named_split(
    frames: Sequence[Frame], names: set[str | None]
) -> tuple[list[Frame], list[Frame]]:
    unknown = sorted(str(name) for name in names - {"train", "test", *VALIDATION_NAMES})
    if unknown:
        raise DataError(
            f"the data define a split with unknown names: {', '.join(unknown)}. Known names are train, "
            f"{', '.join(VALIDATION_NAMES)} and test; rename the others, or split by another key"
        )
    unused = sum(frame.group == "test" for frame in frames)
    if unused:
        logger.info("%d frames of the part 'test' are left out", unused)
    return _named(frames, ("train",)), _named(frames, VALIDATION_NAMES)


def _named(frames: Sequence[Frame], names: Sequence[str]) -> list[Frame]:
    return [frame for frame in frames if frame.group in names]


def _structures(path: str | Path) -> Iterator[Atoms]:
    """The structures that ASE reads. A compressed extxyz file is unpacked first, because ASE reads single frames of it
    slowly."""
    name, index = parse_filename(str(path), None)
    if Path(name).suffix in (".db", ".json"):
        yield from _rows(name, index)
        return
    opener: Any = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}.get(Path(path).suffix)
    if opener is None or Path(path).with_suffix("").suffix not in (".extxyz", ".xyz"):
        yield from ase.io.iread(path, index=None if "@" in str(path) else ":")
        return
    with opener(path, "rt", encoding="utf-8") as file:
        yield from ase.io.iread(StringIO(file.read()), index=":", format="extxyz")


def _rows(name: str, index: slice | int | str | None) -> Iterator[Atoms]:
    """Rows of a database of ASE. Their key-value pairs and data, which ASE's own reader leaves out, are in ``info``."""
    if not Path(name).exists():
        raise FileNotFoundError(name)
    database = ase.db.connect(name, serial=True)
    rows = enumerate(database.select(index if isinstance(index, str) else None))
    chosen = slice(index, index + 1 or None) if isinstance(index, int) else index
    kept = range(database.count())[chosen] if isinstance(chosen, slice) else None
    for k, row in rows:
        if kept is None or k in kept:
            atoms = row.toatoms()
            atoms.info |= row.key_value_pairs | row.data
            yield atoms


def _read_file(path: str | Path) -> Iterator[tuple[str, Atoms]]:
    index = -1
    try:
        for index, atoms in enumerate(_structures(path)):
            yield f"{path} frame {index}", atoms
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {path}") from error
    except Exception as error:  # ASE's readers raise anything from KeyError to StopIteration
        raise DataError(
            f"cannot read {path} beyond frame {index}: {type(error).__name__}: {error}. Usually the file is cut "
            "off or not in the format its name says"
        ) from error


def _checked(atoms: Atoms, source: str) -> Atoms:
    """Check a structure and return it."""
    if len(atoms) == 0:
        raise DataError(f"{source} holds no atoms")
    try:
        check_geometry(atoms.positions, atoms.cell.array, np.asarray(atoms.pbc))
    except StructureError as error:
        raise DataError(f"{source} cannot be used: {error}") from error
    return atoms


def _frame(atoms: Atoms, source: str, labels: Labels, split_by: str | None) -> Frame:
    if split_by is not None and split_by not in atoms.info:
        raise DataError(
            f"{source} has no info key {split_by!r} to split by; it has {sorted(atoms.info)}"
        )
    return Frame(
        source,
        np.array(atoms.get_chemical_symbols()),
        atoms.positions.copy(),
        atoms.cell.array.copy(),
        np.asarray(atoms.pbc),
        labels.energy,
        labels.forces,
        labels.stress,
        None if split_by is None else str(atoms.info[split_by]),
        labels.weight,
    )
