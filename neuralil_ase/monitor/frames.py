"""Flagged frames: copies that carry the spreads into files, and the file that they are saved in."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import read_extxyz, write_extxyz

from neuralil_ase.errors import MonitorError, OutputError
from neuralil_ase.files.owned import OwnedFile
from neuralil_ase.monitor.actions import Event
from neuralil_ase.monitor.log import waiting
from neuralil_ase.monitor.novelty import NoveltyFilter
from neuralil_ase.monitor.readings import Band
from neuralil_ase.monitor.targets import PredictionLike

_RESULTS = ("energy", "energies", "forces", "stress")


def annotate(
    atoms: Atoms,
    prediction: PredictionLike,
    *,
    per_atom_info: bool = False,
    as_charges: bool = False,
) -> Atoms:
    """A copy of `atoms` that carries the prediction and its spreads into a file.

    ``frame.calc`` holds energy, energies, forces and stress of the model (eV, eV/Å, eV/Å³).
    ``frame.info["energy_std"]`` holds the spread of the energy (eV). ``frame.arrays["energies_std"]``
    and ``frame.arrays["forces_std"]`` hold the spreads of each atom's energy (eV) and force (eV/Å); the
    force spread only if the prediction holds it. Spreads are standard deviations over members with
    ddof 1; of a force, the norm of the vector of component deviations.

    Parameters
    ----------
    atoms : Atoms
        Not changed.
    prediction : PredictionLike
        Prediction for the same geometry.
    per_atom_info : bool
        Also put the arrays into ``frame.info``: a ``.traj`` file keeps info, but not own arrays.
        Leave it off for extxyz, which keeps the arrays.
    as_charges : bool
        Also store the force spread as initial charges, by which the ASE GUI can colour atoms.

    Returns
    -------
    Atoms

    Notes
    -----
    *OVITO*: open the extxyz file, add the modification "Color coding", property ``forces_std``. (OVITO reads an
    entry ``origin`` in ``info`` as a vector and refuses the file if it is text.)
    *ASE GUI*: write with ``as_charges=True``, then View → Colors → By initial charge.
    *nglview*: ``frame.set_array("bfactor", 1e3 * frame.arrays["forces_std"])``, in meV/Å because a PDB file keeps
    two decimals; ``ase.io.write("frame.pdb", frame)``; then ``view = nglview.show_file("frame.pdb")``,
    ``view.clear()`` and ``view.add_spacefill(color_scheme="bfactor")``.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from ase.io import write
    >>> from neuralil_ase import NeuralILCalculator
    >>> atoms = molecule("CH3CH2NH2")
    >>> calc = NeuralILCalculator()
    >>> frame = annotate(atoms, calc.prediction(atoms, uncertainty="forces"))
    >>> write("frames.extxyz", frame, append=True)
    >>> frame.arrays["forces_std"].shape
    (10,)
    """
    frame = _plain_copy(atoms)
    frame.info["energy_std"] = float(prediction.energy_std)
    spreads = {"energies_std": prediction.energies_std}
    # A prediction without member forces raises UncertaintyError, which is an AttributeError.
    forces_std = getattr(prediction, "forces_std", None)
    if forces_std is not None:
        spreads["forces_std"] = forces_std
        if as_charges:
            frame.set_initial_charges(forces_std)
    for name, values in spreads.items():
        frame.set_array(name, np.array(values, dtype=float))
        if per_atom_info:
            frame.info[name] = np.array(values, dtype=float)
    frame.calc = SinglePointCalculator(frame, **_results(prediction))
    return frame


class FrameSaver:
    """Appends candidates, and the frames before the flag, to an extxyz file.

    Frames of band HIGH are not saved, because they are useless for training. The frames before them are saved.

    Parameters
    ----------
    file : OwnedFile
    novelty : NoveltyFilter
    max_saved : int
        Largest number of frames in the file, including those of earlier parts of a resumed run.
    append : bool
        Append to an existing file; otherwise it is renamed.
    """

    def __init__(
        self, file: OwnedFile, novelty: NoveltyFilter, max_saved: int, append: bool
    ) -> None:
        self.novelty = novelty
        self.max_saved = max_saved
        self.n_saved = 0
        self.unwritten: list[bytes] = []
        self._file = file
        if not append:
            self._file.set_aside()
        for frame in self._take_stock() if append else ():
            watched = np.ravel(frame.info.get("monitor_atoms", []))
            inside = watched.dtype.kind == "i" and np.isin(watched, range(len(frame))).all()
            novelty.remember(frame, watched.tolist() if watched.size and inside else None)

    def __call__(self, event: Event) -> int:
        """Save the new frames of the event; returns how many. MonitorError if they cannot be written."""
        offered = [_reasons(event, frame, "before") for frame in event.before]
        if event.band == Band.CANDIDATE:
            offered.append(_reasons(event, event.frame, "candidate"))
        in_file = self.n_saved if self._file.exists else 0  # else moved away, e.g. for labelling
        room = self.max_saved - in_file - len(self.unwritten)
        kept: list[Atoms] = []
        for frame in reversed(offered):  # the flagged frame first, then the latest
            if len(kept) < room and self.novelty.is_new(frame, event.watched):
                self.novelty.remember(frame, event.watched)
                kept.append(frame)
        left_out: set[str] = set()
        self.unwritten.extend(_extxyz(frame, left_out) for frame in reversed(kept))
        self.flush()
        if left_out:
            warnings.warn(
                f"{self._file.path}: the saved frames do not hold {', '.join(sorted(left_out))} of the structure, "
                "which extxyz cannot hold",
                stacklevel=2,
            )
        return len(kept)

    def flush(self) -> None:
        """Write all waiting frames. If an error is raised, none is written."""
        if not self.unwritten:
            return
        try:
            record = b"".join(self.unwritten)
            if self._file.added() == record:  # an interrupt came just after they were written
                self._file.read()
            else:
                if self._file.changed:
                    self._take_stock()
                self._file.append(record, sync=True)
        except (OutputError, MonitorError) as problem:
            raise waiting(problem, f"{len(self.unwritten)} frame(s)") from problem
        self.n_saved += len(self.unwritten)
        self.unwritten.clear()

    def describe(self) -> str:
        """How many frames are in the file, in words."""
        return (
            f"{self.n_saved} frames saved{' (the most allowed)' * (self.n_saved >= self.max_saved)}"
        )

    def _take_stock(self) -> list[Atoms]:
        """Read the frames in the file; an incomplete frame at its end is moved to another file."""
        content = self._file.read()
        frames, whole = _frames(content, self._file.path)
        self.n_saved = len(frames)
        if whole < len(content):
            aside = self._file.cut_tail(whole)
            warnings.warn(
                f"{self._file.path} ends with half a frame, as after a kill; it was moved to {aside}",
                stacklevel=2,
            )
        return frames


def _frames(content: bytes, path: Path) -> tuple[list[Atoms], int]:
    """The whole frames of an extxyz file, and the number of bytes that they fill.

    Raises
    ------
    MonitorError
        If the file holds something else. The file must then stay as it is.
    """
    frames: list[Atoms] = []
    start = 0
    for end in _ends(content, path):
        try:
            text = content[start:end].decode()
            frames += read_extxyz(_as_file(text), slice(None))
        except Exception as problem:  # ASE's reader raises errors of any type
            line = content.count(b"\n", 0, start) + 1
            raise MonitorError(
                f"{path}: the frame that begins on line {line} cannot be read ({type(problem).__name__}: {problem}). "
                "Correct or remove it, or choose another name; append=False renames the whole file. It was not touched"
            ) from problem
        start = end
    return frames, start


def _ends(content: bytes, path: Path) -> Iterator[int]:
    """Where each whole frame of an extxyz file ends."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        count = content[start : end if end >= 0 else None].strip()
        if not count.isdigit() or len(count) > 9:
            line = content.count(b"\n", 0, start) + 1
            raise MonitorError(
                f"{path} is not an extxyz file: line {line} should begin a frame with "
                f"the number of its atoms, but reads {count[:40]!r}. Frames are not added to a foreign file; choose "
                "another name"
            )
        for _ in range(int(count) + 1):
            end = content.find(b"\n", end + 1) if end >= 0 else -1
            if end < 0:
                return
        start = end + 1
        yield start


def _reasons(event: Event, frame: Atoms, band: str) -> Atoms:
    frame.info.setdefault("monitor_step", event.step)
    if event.image is not None:
        frame.info["monitor_image"] = event.image
    frame.info["monitor_band"] = band
    text = event.describe()
    frame.info["monitor_reasons"] = (
        f"before step {event.step}: {text}" if band == "before" else text
    )
    if event.watched is not None:
        frame.info["monitor_atoms"] = np.array(event.watched, dtype=int)
    return frame


def _extxyz(frame: Atoms, left_out: set[str]) -> bytes:
    """The frame as extxyz text. Entries that would make the frame unreadable are left out and added to `left_out`.

    ASE writes some entries of ``info`` and ``arrays`` (empty text, line breaks, quotes) so that they spoil the frame.
    """
    text = _readable_text(frame)
    if text is not None:
        return text
    kept = frame.copy()
    kept.calc = frame.calc
    for place in ("info", "arrays"):
        for key, value in getattr(frame, place).items():
            if key in ("numbers", "positions") or str(key).startswith("monitor_"):
                continue
            # Test the entry alone, before another entry and a pbc that is not the default, which a bad entry might
            # swallow.
            probe = Atoms(frame.numbers, positions=frame.positions, cell=np.eye(3), pbc=(1, 0, 1))
            getattr(probe, place)[key] = value
            probe.info["monitor_after"] = 1
            if _readable_text(probe) is None:
                left_out.add(repr(key))
                del getattr(kept, place)[key]
    text = _readable_text(kept)
    if text is None:
        raise MonitorError(
            "a flagged frame cannot be written as extxyz; usually an entry of atoms.info or atoms.arrays is the cause"
        )
    return text


def _readable_text(frame: Atoms) -> bytes | None:
    """The frame as extxyz text; None if the same frame cannot be read from the text."""
    buffer = io.StringIO()
    try:
        write_extxyz(buffer, frame)
        (read,) = read_extxyz(_as_file(buffer.getvalue()), slice(None))
        text = buffer.getvalue().encode()
    except Exception:  # of any kind, depending on the entry
        return None
    same = (
        (read.pbc == frame.pbc).all()
        and np.allclose(read.cell, frame.cell)
        and read.info.keys() == frame.info.keys()
    )
    return text if same and text.count(b"\n") == len(frame) + 2 else None


def _as_file(text: str) -> io.StringIO:
    """The text as it is read from a file, where a carriage return also ends a line."""
    return io.StringIO(text, newline=None)


def _plain_copy(atoms: Atoms) -> Atoms:
    """A copy whose info and arrays do not collide with the results written beside them."""
    frame = atoms.copy()
    for name in (*_RESULTS, "free_energy", "stresses"):
        frame.info.pop(name, None)
        frame.arrays.pop(name, None)
    return frame


def _results(prediction: PredictionLike) -> dict[str, Any]:
    results = {name: getattr(prediction, name, None) for name in _RESULTS}
    return {name: value for name, value in results.items() if value is not None}
