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
"""An update is refused if the error on the frames that judge it grows by more than this factor. Every update changes
the error by some per cent."""
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
        Root mean square norm of the force errors in eV/Å on the frames that judge the update: those that are held out,
        and the new ones. If none is held out, on all frames.
    """

    kept: bool
    cycles: int
    before: float
    after: float

    def __str__(self) -> str:
        found = f"{self.cycles} cycles, force error {self.before:.4f} to {self.after:.4f} eV/Å"
        if self.kept:
            return found
        return f"{found}: refused, the model stays as it was, and the new frames are learnt with the next ones"


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
        self._waiting: list[int] = []
        self._continuation: Continuation | None = None
        self._compositions: set[str] = set()
        self._lessons = 0
        self.linear_frames = linear_frames

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, atoms: Atoms, held_out: bool, learnt: bool = False) -> None:
        """Add a labelled frame.

        Parameters
        ----------
        atoms
            The frame with energy and forces.
        held_out
            Whether it tests updates, instead of being learnt in the next lesson.
        learnt
            Whether the potential has learnt it before, as in an earlier run.
        """
        (frame,) = frames_from_atoms([atoms])
        if held_out and self._knows(frame):
            self._held.add(len(self._frames))
        elif not learnt:
            self._waiting.append(len(self._frames))
        self._by_symbols.setdefault(" ".join(frame.symbols), []).append(len(self._frames))
        self._frames.append(frame)
        if self._continuation is not None and self._knows(frame):
            self._continuation.add(frame)
        else:
            self._continuation = None

    def lesson(self, target: float) -> Lesson:
        """Train until the new frames are learnt, or the largest number of cycles is reached.

        New are frames that no accepted update has learnt. They are drawn as often as all others together.

        The update is judged by the held-out frames and the new ones. All of them were predicted before they were
        learnt. Held-out frames alone must not judge: as long as they are few, any region that is new to the model makes
        some of them worse. A run in such a region would ask at every step, and never learn.

        Parameters
        ----------
        target
            Root mean square force error on the new frames at which training ends, in eV/Å.
        """
        is_first = self._begin()
        self._move_reference(*self._ready())
        continuation, potential = self._ready()
        lessons = self._for_learning
        new = self._waiting or lessons[-1:]
        chances = _chances(np.isin(lessons, new))
        held = sorted(self._held)[-JUDGES:]
        judges = [*held, *new] if held else lessons[-JUDGES:]
        before = _rms(continuation, potential, judges)
        trained = fitted = self._with_linear(continuation, potential)
        cycles = 0
        while cycles < CYCLES * (1 + is_first):
            seed = self.settings.seed + 7919 * self._lessons + cycles
            trained = continuation.update(trained, lessons, chances, seed)
            cycles += 1
            if _rms(continuation, trained, new) <= target:
                break
        self._lessons += 1
        after = _rms(continuation, trained, judges)
        kept = is_first or not held or after <= WORSE * before
        if kept:
            self._waiting = []
            self.potential = replace(trained, calibration=potential.calibration)
        elif fitted is not potential:
            continuation.use_linear(linear_of(potential))
        return Lesson(kept, cycles, before, after)

    def floors(self) -> tuple[dict[str, float], float]:
        """Residuals on the latest frames that are not held out: root mean square norm of the force residuals by element
        in eV/Å, and root mean square energy residual in eV per sqrt(atoms)."""
        self._begin()  # in a later run whose first label is held out, there was no lesson
        continuation, potential = self._ready()
        squares: dict[str, list[float]] = {symbol: [] for symbol in potential.elements}
        energies = []
        learnt = self._for_learning[-JUDGES:]
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

        It is infinite if there is no such frame. With ``from_learnt``, only frames that the model has learnt count, and
        the displacement of the lattice vectors does, too.
        """
        same = [self._frames[k] for k in self._same(atoms, from_learnt)]
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
        same = [self._frames[k].cell for k in self._same(atoms, from_learnt=True)]
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
    def waiting(self) -> list[int]:
        """Numbers of the frames that no accepted update has learnt, in the order in which frames were added."""
        return list(self._waiting)

    @property
    def _for_learning(self) -> list[int]:
        return [k for k in range(len(self._frames)) if k not in self._held]

    def _same(self, atoms: Atoms, from_learnt: bool) -> list[int]:
        """Numbers of the frames of the same atoms; with ``from_learnt``, of those that the model has learnt."""
        same = self._by_symbols.get(" ".join(atoms.get_chemical_symbols()), [])
        not_learnt = self._held.union(self._waiting) if from_learnt else set()
        return [k for k in same if k not in not_learnt]

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
            self._waiting = self._for_learning
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
        if len(self._for_learning) >= AGAIN * self.linear_frames:
            self.linear_frames = len(self._for_learning)
        return continuation.fit_linear(potential, self._for_learning, self.linear_frames)

    def _move_reference(self, continuation: Continuation, potential: Potential) -> None:
        """Fit the energy reference again if a composition appears for the first time."""
        met = {_composition(frame) for frame in self._frames}
        if met <= self._compositions:
            return
        self._compositions = met
        frames = [self._frames[k] for k in self._for_learning]
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


def _chances(is_new: np.ndarray) -> np.ndarray:
    """Relative probabilities of the frames: the new ones together are drawn at least as often as all others."""
    new = int(is_new.sum())
    return np.where(is_new, max(1.0, (len(is_new) - new) / max(new, 1)), 1.0)


def _rms(continuation: Continuation, potential: Potential, numbers: Sequence[int]) -> float:
    left = [(r.forces**2).sum(axis=1) for r in continuation.residuals(potential, numbers)]
    return float(np.sqrt(np.mean(np.concatenate(left))))


def _composition(frame: Frame) -> str:
    symbols, counts = np.unique(frame.symbols, return_counts=True)
    return " ".join(f"{s}{n}" for s, n in zip(symbols, counts, strict=True))
