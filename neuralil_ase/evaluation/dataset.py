"""Labelled frames from anything ASE reads, checked before they cost anything."""

import bz2
import gzip
import logging
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from neuralil_ase.engine.neighbors import NeighborList, Pairs, check_geometry
from neuralil_ase.errors import DataError, StructureError
from neuralil_ase.model.elements import element_types

logger = logging.getLogger(__name__)
VALIDATION_NAMES = ("valid", "validation")


@dataclass(frozen=True)
class Keys:
    """Names of the labels in ``atoms.info``, ``atoms.arrays`` or the calculator's results."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """One labelled structure; a label that the data lack is None.

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
        Value of the key that the split goes by.
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

    @property
    def volume(self) -> float | None:
        """Of the cell in Å³, None without three lattice vectors."""
        volume = abs(float(np.linalg.det(self.cell)))
        return volume if volume > 0 else None


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
        If a file cannot be read, or a label that was asked for by name is nowhere, has the wrong shape or is not
        finite.
    """
    wanted = keys or Keys()
    frames = [
        _frame(atoms, source, wanted, split_by)
        for path in paths
        for source, atoms in _read_file(path)
    ]
    if not frames:
        raise DataError(f"no frames in {', '.join(map(str, paths))}")
    _check_labels(frames, wanted, paths)
    return frames


def frames_from_atoms(
    atoms_list: Iterable[Atoms], keys: Keys | None = None, split_by: str | None = None
) -> list[Frame]:
    """Frames from structures in memory; see :func:`read_frames`."""
    wanted = keys or Keys()
    frames = [_frame(a, f"structure {k}", wanted, split_by) for k, a in enumerate(atoms_list)]
    if not frames:
        raise DataError("no structures were given to train on")
    _check_labels(frames, wanted, ["the structures"])
    return frames


def elements_of(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Chemical symbols in the data, in alphabetical order."""
    return tuple(sorted({str(symbol) for frame in frames for symbol in set(frame.symbols)}))


def types_of(frame: Frame, elements: tuple[str, ...]) -> np.ndarray:
    """Element index of every atom.

    Raises
    ------
    DataError
        If the frame has an element that is not among them.
    """
    unknown = sorted(set(frame.symbols) - set(elements))
    if unknown:
        raise DataError(
            f"{frame.source} holds {', '.join(unknown)}, but the model knows only {', '.join(elements)}"
        )
    numbers = np.array([atomic_numbers[symbol] for symbol in frame.symbols.tolist()], int)
    return element_types(numbers, elements).astype(np.int32)


def pairs_of(frame: Frame, types: np.ndarray, r_cut: float) -> Pairs:
    """Neighbours inside the cutoff."""
    return NeighborList(r_cut, 0.0).pairs(frame.positions, frame.cell, frame.pbc, types)


def drop_absurd(frames: Sequence[Frame], max_force: float) -> list[Frame]:
    """Leave out frames with a force component above ``max_force`` (eV/Å), and say which.

    Raises
    ------
    DataError
        If most frames are like that, which usually means other units.
    """
    largest = np.array([0 if f.forces is None else np.abs(f.forces).max() for f in frames])
    bad = np.flatnonzero(largest > max_force)
    if 2 * len(bad) > len(frames):
        raise DataError(
            f"{len(bad)} of {len(frames)} frames have forces above {max_force:g} eV/Å (the largest: "
            f"{largest.max():.3g}). Usually the forces are not in eV/Å; convert them, or raise max_force"
        )
    for k in bad:
        logger.warning(
            "%s left out: its largest force component is %.3g eV/Å (max_force %g)",
            frames[int(k)].source, largest[k], max_force,
        )  # fmt: skip
    return [frame for frame, force in zip(frames, largest, strict=True) if force <= max_force]


def split(frames: Sequence[Frame], fraction: float, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Random split into training and validation frames; frames of one group stay together.

    Groups named "train", "valid" (or "validation") and "test" are taken at their word: the data come with
    their split, and test frames stay out of training.

    Raises
    ------
    DataError
        If there are too few frames or groups to hold any back.
    """
    names = {frame.group for frame in frames}
    if "train" in names and names <= {"train", *VALIDATION_NAMES, "test"}:
        return _named(frames, ("train",)), _named(frames, VALIDATION_NAMES)
    if fraction == 0:
        return list(frames), []
    labels = [frame.source if frame.group is None else frame.group for frame in frames]
    groups = sorted(set(labels))
    count = max(1, round(fraction * len(groups)))
    if count >= len(groups):
        raise DataError(
            f"cannot hold back {fraction:.0%} of {len(groups)} frames or groups for validation: nothing would "
            "be left to train on. Give more data, a validation file, or validation_fraction 0"
        )
    held = set(np.random.default_rng(seed).permutation(groups)[:count].tolist())
    train = [f for f, label in zip(frames, labels, strict=True) if label not in held]
    return train, [f for f, label in zip(frames, labels, strict=True) if label in held]


def _named(frames: Sequence[Frame], names: Sequence[str]) -> list[Frame]:
    return [frame for frame in frames if frame.group in names]


def _structures(path: str | Path) -> Iterator[Atoms]:
    """What ASE reads; a compressed extxyz file is unpacked first, for ASE seeks in it frame by frame."""
    opener: Any = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}.get(Path(path).suffix)
    if opener is None or Path(path).with_suffix("").suffix not in (".extxyz", ".xyz"):
        yield from ase.io.iread(path, index=None if "@" in str(path) else ":")
        return
    with opener(path, "rt", encoding="utf-8") as file:
        yield from ase.io.iread(StringIO(file.read()), index=":", format="extxyz")


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


def _frame(atoms: Atoms, source: str, keys: Keys, split_by: str | None) -> Frame:
    if len(atoms) == 0:
        raise DataError(f"{source} holds no atoms")
    cell, pbc = atoms.cell.array, np.asarray(atoms.pbc)
    try:
        check_geometry(atoms.positions, cell, pbc, 0.1)
    except StructureError as error:
        raise DataError(f"{source} cannot be used: {error}") from error
    if split_by is not None and split_by not in atoms.info:
        raise DataError(
            f"{source} has no info key {split_by!r} to split by; it has {sorted(atoms.info)}"
        )
    return Frame(
        source,
        np.array(atoms.get_chemical_symbols()),
        atoms.positions.copy(),
        cell.copy(),
        pbc,
        _energy(atoms, source, keys.energy),
        _forces(atoms, source, keys.forces),
        _stress(atoms, source, keys.stress),
        None if split_by is None else str(atoms.info[split_by]),
    )


def _label(atoms: Atoms, key: str | None, default: str, extra: Mapping[str, Any]) -> Any:
    """A label by name; never through ``Atoms.get_forces``, where constraints would zero it."""
    name = key or default
    results = getattr(atoms.calc, "results", {}) or {}
    for place in (results, extra) if key is None else (extra, results):
        if name in place:
            return place[name]
    return None


def _energy(atoms: Atoms, source: str, key: str | None) -> float | None:
    value = _label(atoms, key, "energy", atoms.info)
    if value is None:
        return None
    return float(_numbers(value, (1,), source, key or "energy")[0])


def _forces(atoms: Atoms, source: str, key: str | None) -> np.ndarray | None:
    value = _label(atoms, key, "forces", atoms.arrays)
    return None if value is None else _numbers(value, (len(atoms), 3), source, key or "forces")


def _stress(atoms: Atoms, source: str, key: str | None) -> np.ndarray | None:
    value = _label(atoms, key, "stress", atoms.info)
    if value is None or atoms.cell.rank < 3:
        return None
    if np.size(value) == 9:
        matrix = _numbers(value, (3, 3), source, key or "stress")
        return ((matrix + matrix.T) / 2)[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
    return _numbers(value, (6,), source, key or "stress")


def _numbers(value: Any, shape: tuple[int, ...], source: str, name: str) -> np.ndarray:
    try:
        array = np.array(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name!r} of {source} is not numeric: {value!r}") from error
    if array.size != int(np.prod(shape)):
        raise DataError(f"{name!r} of {source} has shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise DataError(
            f"{name!r} of {source} holds values that are not finite; usually the reference calculation failed. "
            "Remove the frame"
        )
    return array.reshape(shape)


def _check_labels(frames: Sequence[Frame], keys: Keys, paths: Sequence[Any]) -> None:
    """Labels asked for by name must exist somewhere; something must be there to learn from."""
    for name, key in (("energy", keys.energy), ("forces", keys.forces), ("stress", keys.stress)):
        if key is not None and all(getattr(frame, name) is None for frame in frames):
            raise DataError(
                f"no frame of {', '.join(map(str, paths))} has the {name} key {key!r}; look at the file for the "
                "name it uses"
            )
    if all(frame.energy is None and frame.forces is None for frame in frames):
        raise DataError(
            f"neither energies nor forces were found in {', '.join(map(str, paths))}. Usually they go by other "
            "names there (REF_energy, dft_forces, …): name them with energy_key and forces_key"
        )
