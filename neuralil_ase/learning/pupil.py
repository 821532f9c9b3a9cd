"""The pupil: a potential that is trained further, in seconds, whenever there are new labels.

Training begins from nothing, with an architecture chosen from the first frames, or from a given potential. If a new
element appears, or the first neighbours after isolated atoms, training begins again with all frames. Every update first
fits the linear part of the energy again to all frames. This fit learns most of a new frame at once, and the spread
decreases accordingly. The networks learn the rest.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from neuralil_ase.calibration import Calibration
from neuralil_ase.evaluation.dataset import (
    Frame,
    elements_of,
    frames_from_atoms,
    pairs_of,
    types_of,
)
from neuralil_ase.model.potential import Potential
from neuralil_ase.samples.cutoff import rounded, surroundings
from neuralil_ase.samples.linear import linear_of
from neuralil_ase.samples.normalisation import first_params
from neuralil_ase.samples.reference import energy_reference
from neuralil_ase.training.continuation import Continuation
from neuralil_ase.training.prepare import model_config
from neuralil_ase.training.settings import RADIAL_SPACING, TrainingSettings
from neuralil_ase.training.warm_start import Start, reference_for

logger = logging.getLogger(__name__)
CORE = 0.7
"""Range of the ZBL repulsion, as a fraction of the sum of the covalent radii."""
REACH = 1.76
"""Cutoff divided by the distance between nearest neighbours: 4.5 Å in copper. A few frames contain little information
about atoms farther away. With 5.5 Å the next frames of a relaxation are not predicted better, at twice the cost."""
CUTOFF_OF_ATOMS = 3.9
"""Cutoff in Å if no atom has a neighbour. It is chosen for nothing else: the first frame with neighbours begins a new
model, whose cutoff belongs to the distances there."""
STEPS = 100
"""Steps of one cycle of training."""
CYCLES = 4
"""Largest number of cycles of an update; twice as many for the first one."""
WORSE = 1.1
"""An update is refused if the error on held-out frames grows by more than this factor. Every update changes the error
by some per cent, and the newest frames, which it improves most, are not held out."""
AGAIN = 1.3
"""The unknowns of the linear part are scaled again when the number of frames has grown by this factor."""
STRAINED = 1e-3
"""Difference in Å from which on a lattice vector is another one."""
JUDGES = 32
"""Number of latest frames over which errors are averaged."""
BATCH_ATOMS = 240
"""Number of atoms in one training step."""
LEARNING = TrainingSettings(
    members=4, head_widths=(), ema=0.9, weight_decay=0.1, force_scale=0.05, force_weight=1.0
)
"""Four members. There are no aleatoric layers, because a few frames do not determine them. The weight decay is small,
so that a few frames are learnt to some meV/Å: for 11 frames of a slab with oxygen, the default decay gives twice the
error on these frames, and 1.4 times the error on the next ones."""


@dataclass(frozen=True)
class Lesson:
    """The result of an update.

    Attributes
    ----------
    kept
        Whether the new parameters were accepted.
    cycles
        Number of training cycles.
    before, after
        Root mean square norm of the force errors in eV/Å on the held-out frames. If there are none, on all frames.
    """

    kept: bool
    cycles: int
    before: float
    after: float


class Pupil:
    """A potential, the frames that it learns from, and the frames that test it.

    Parameters
    ----------
    potential
        The potential to start from; None to begin from nothing.
    settings
        Settings of training.
    linear_frames
        Number of frames that scaled the unknowns of the linear part. None if the potential keeps its linear part.

    Attributes
    ----------
    potential
        The present potential; None before the first lesson.
    linear_frames
        Number of frames that scaled the unknowns in the latest fit; None if the potential keeps its linear part.
    """

    def __init__(
        self, potential: Potential | None, settings: TrainingSettings, linear_frames: int | None
    ) -> None:
        self.potential = potential
        self.settings = settings
        self._frames: list[Frame] = []
        self._by_symbols: dict[str, list[int]] = {}
        self._held: set[int] = set()
        self._continuation: Continuation | None = None
        self._compositions: set[str] = set()
        self._lessons = 0
        self.linear_frames = linear_frames

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, atoms: Atoms, held_out: bool) -> None:
        """Add a labelled frame. It is learnt in the next lesson, or held out."""
        (frame,) = frames_from_atoms([atoms])
        if held_out and self._knows(frame):
            self._held.add(len(self._frames))
        self._by_symbols.setdefault(" ".join(frame.symbols), []).append(len(self._frames))
        self._frames.append(frame)
        if self._continuation is not None and self._knows(frame):
            self._continuation.add(frame)
        else:
            self._continuation = None

    def lesson(self, new: int, target: float) -> Lesson:
        """Train until the newest frames are learnt, or the largest number of cycles is reached.

        Parameters
        ----------
        new
            Number of new frames; they are drawn more often.
        target
            Root mean square force error on the new frames at which training ends, in eV/Å.
        """
        is_first = self._begin()
        self._move_reference(*self._ready())
        continuation, potential = self._ready()
        learnt = self._learnt
        judges = sorted(self._held)[-JUDGES:] or learnt[-JUDGES:]
        before = _rms(continuation, potential, judges)
        trained = fitted = self._with_linear(continuation, potential)
        cycles, newest = 0, learnt[-max(new, 1) :]
        while cycles < CYCLES * (1 + is_first):
            seed = self.settings.seed + 7919 * self._lessons + cycles
            trained = continuation.update(trained, learnt, _chances(len(learnt), new), seed)
            cycles += 1
            if _rms(continuation, trained, newest) <= target:
                break
        self._lessons += 1
        after = _rms(continuation, trained, judges)
        # Without held-out frames, the new frames also count: their error was large and is smaller now.
        kept = is_first or not self._held or after <= WORSE * before
        if kept:
            self.potential = replace(trained, calibration=potential.calibration)
        elif fitted is not potential:
            continuation.use_linear(linear_of(potential))
        return Lesson(kept, cycles, before, after)

    def floors(self) -> tuple[dict[str, float], float]:
        """Residuals on the learnt frames: root mean square norm of the force residuals by element in eV/Å, and root
        mean square energy residual in eV per sqrt(atoms)."""
        self._begin()  # in a later run whose first label is held out, there was no lesson
        continuation, potential = self._ready()
        squares: dict[str, list[float]] = {symbol: [] for symbol in potential.elements}
        energies = []
        learnt = self._learnt[-JUDGES:]
        for number, left in zip(learnt, continuation.residuals(potential, learnt), strict=True):
            symbols = self._frames[number].symbols.tolist()
            for symbol, square in zip(symbols, (left.forces**2).sum(axis=1), strict=True):
                squares[symbol].append(float(square))
            energies.append(len(symbols) * left.energy**2)
        largest = max((np.mean(values) for values in squares.values() if values), default=0.0)
        found = {s: float(np.sqrt(np.mean(v) if v else largest)) for s, v in squares.items()}
        return found, float(np.sqrt(np.nanmean(energies)))

    def calibrate(self, calibration: Calibration, provenance: dict[str, Any]) -> Potential:
        """The present potential with error bars and provenance."""
        _, potential = self._ready()
        self.potential = replace(potential, calibration=calibration, provenance=provenance)
        return self.potential

    def moved(self, atoms: Atoms, from_learnt: bool = False) -> float:
        """Largest displacement in Å of an atom from the nearest labelled frame of the same atoms.

        It is infinite if there is no such frame. With ``from_learnt``, frames that are held out do not count, and the
        displacement of the lattice vectors does.
        """
        numbers = self._by_symbols.get(" ".join(atoms.get_chemical_symbols()), [])
        same = [self._frames[k] for k in numbers if not (from_learnt and k in self._held)]
        if not same:
            return np.inf
        vectors = np.stack([atoms.positions - f.positions for f in same])
        cell = atoms.cell.complete().array
        shifts = np.round(vectors @ np.linalg.inv(cell)) * atoms.pbc
        moved = np.linalg.norm(vectors - shifts @ cell, axis=2).max(axis=1)
        if from_learnt:
            strained = np.stack([atoms.cell.array - f.cell for f in same])
            moved = np.maximum(moved, np.linalg.norm(strained, axis=2).max(axis=1))
        return float(moved.min())

    def is_strained(self, atoms: Atoms) -> bool:
        """Whether the lattice vectors differ from those of all learnt frames of the same atoms."""
        numbers = self._by_symbols.get(" ".join(atoms.get_chemical_symbols()), [])
        same = [self._frames[k].cell for k in numbers if k not in self._held]
        return all(np.abs(atoms.cell.array - cell).max() > STRAINED for cell in same)

    @property
    def has_stress(self) -> bool:
        """Whether any frame has a stress, or none has a cell that could have one."""
        with_cell = [frame for frame in self._frames if frame.volume is not None]
        return not with_cell or any(frame.stress is not None for frame in with_cell)

    @property
    def force_size(self) -> float:
        """Root mean square norm of the forces in eV/Å: the median over the latest labelled frames."""
        latest = self._frames[-JUDGES:]
        squares = [(f.forces**2).sum(axis=1) for f in latest if f.forces is not None]
        return float(np.median([np.sqrt(s.mean()) for s in squares])) if squares else 0.0

    @property
    def n_held_out(self) -> int:
        """Number of held-out frames, which test updates."""
        return len(self._held)

    @property
    def _learnt(self) -> list[int]:
        return [k for k in range(len(self._frames)) if k not in self._held]

    def _knows(self, frame: Frame) -> bool:
        """Whether the architecture is made for such a frame: it has the elements, and may have neighbours."""
        if self.potential is None or not set(frame.symbols.tolist()) <= set(
            self.potential.elements
        ):
            return False
        is_for_atoms = self.linear_frames is not None and self.potential.r_cut == CUTOFF_OF_ATOMS
        return not is_for_atoms or not _has_neighbours([frame])

    def _ready(self) -> tuple[Continuation, Potential]:
        assert self._continuation is not None
        assert self.potential is not None
        return self._continuation, self.potential

    def _begin(self) -> bool:
        """Prepare the potential and the shared compiled training; returns whether the potential is new."""
        if self._continuation is not None:
            return False
        is_new = not all(map(self._knows, self._frames))
        if is_new:
            if self.potential is not None:
                reason = "the first frame whose atoms have neighbours"
                if not set(elements_of(self._frames)) <= set(self.potential.elements):
                    reason = "a new element"
                logger.warning("%s: the model begins again with all %d frames", reason, len(self))
            self._held.clear()
            self.linear_frames = 0
            self.potential = first_potential(self._frames, self.settings)
            self._compositions = {_composition(frame) for frame in self._frames}
        assert self.potential is not None
        largest = max(len(frame.symbols) for frame in self._frames)
        batch_size = int(np.clip(BATCH_ATOMS // largest, 1, 4))
        settings = self.settings.updated({"batch_size": batch_size})
        self._continuation = Continuation(self.potential, settings, STEPS)
        for frame in self._frames:
            self._continuation.add(frame)
        return is_new

    def _with_linear(self, continuation: Continuation, potential: Potential) -> Potential:
        """The potential with a linear part fitted again to all learnt frames."""
        if self.linear_frames is None or self.settings.linear == "none":
            return potential
        if len(self._learnt) >= AGAIN * self.linear_frames:
            self.linear_frames = len(self._learnt)
        return continuation.fit_linear(potential, self._learnt, self.linear_frames)

    def _move_reference(self, continuation: Continuation, potential: Potential) -> None:
        """Fit the energy reference again if a composition appears for the first time."""
        met = {_composition(frame) for frame in self._frames}
        if met <= self._compositions:
            return
        self._compositions = met
        frames = [self._frames[k] for k in self._learnt]
        reference = reference_for(Start(potential, "the model so far"), frames)
        if not np.array_equal(reference, potential.energy_reference):
            continuation.move_reference(reference)
            self.potential = replace(potential, energy_reference=reference)


def first_potential(frames: Sequence[Frame], settings: TrainingSettings) -> Potential:
    """A potential with random parameters and an architecture chosen from the frames."""
    elements = elements_of(frames)
    found = surroundings(frames, elements)
    usual = rounded(REACH * found.nearest, found.longest)
    r_cut = settings.r_cut or (usual if _has_neighbours(frames) else CUTOFF_OF_ATOMS)
    # A finer descriptor would need more than a few frames.
    n_max = settings.n_max or round(r_cut / RADIAL_SPACING)
    settings = replace(settings, r_cut=r_cut, n_max=n_max).with_frames(len(frames))
    types = [types_of(frame, elements) for frame in frames]
    pairs = [pairs_of(f, t, settings.r_cut) for f, t in zip(frames, types, strict=True)]
    config = model_config(settings, elements, pairs, types)
    if config.pair_term == "zbl":
        # A few frames do not contain the shortest distances. The repulsion therefore begins below bond lengths.
        radii = covalent_radii[[atomic_numbers[symbol] for symbol in elements]]
        core = CORE * (radii[:, None] + radii[None, :])[np.triu_indices(len(elements))]
        config = replace(config, zbl_radii=tuple(core.round(4).tolist()))
    parameters = first_params(config, settings.seed)
    return Potential(config, parameters, energy_reference(frames, elements))


def _has_neighbours(frames: Sequence[Frame]) -> bool:
    return surroundings(frames, elements_of(frames)).neighbours > 0


def _chances(count: int, new: int) -> np.ndarray:
    """Relative probabilities of the frames: the new ones together are drawn as often as all others."""
    chances = np.ones(count)
    if 0 < new < count:
        chances[-new:] = max(1.0, (count - new) / new)
    return chances


def _rms(continuation: Continuation, potential: Potential, numbers: Sequence[int]) -> float:
    left = [(r.forces**2).sum(axis=1) for r in continuation.residuals(potential, numbers)]
    return float(np.sqrt(np.mean(np.concatenate(left))))


def _composition(frame: Frame) -> str:
    symbols, counts = np.unique(frame.symbols, return_counts=True)
    return " ".join(f"{s}{n}" for s, n in zip(symbols, counts, strict=True))
