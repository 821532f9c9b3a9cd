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

from neuralil_ase.calibration import Calibration
from neuralil_ase.evaluation.dataset import Frame, elements_of
from neuralil_ase.learning.environments import Environments, Stranger
from neuralil_ase.learning.first_model import CUTOFF_OF_ATOMS, first_potential, has_neighbours
from neuralil_ase.learning.geometries import Geometries
from neuralil_ase.model.potential import Potential
from neuralil_ase.samples.linear import linear_of
from neuralil_ase.training.continuation import Continuation
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.warm_start import Start, reference_for

_State = tuple[Potential | None, set[int], list[int], set[str], int | None]
logger = logging.getLogger(__name__)
STEPS = 100
"""Steps of one cycle of training."""
CYCLES = 4
"""Largest number of cycles of an update; twice as many for the first one."""
WORSE = 1.1
"""An update is refused if the error on the frames that judge it grows by more than this factor. Every update changes
the error by some per cent."""
AGAIN = 1.3
"""The unknowns of the linear part are scaled again when the number of frames has grown by this factor."""
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
        self._geometries, self._environments = Geometries(), Environments()
        self._known_environments: tuple[int, set[int], float] = 0, set(), 0.0
        self._held: set[int] = set()
        self._waiting: list[int] = []
        self._has_cell = self._has_stress = False
        self._continuation: Continuation | None = None
        self._compositions: set[str] = set()
        self._lessons = 0
        self.linear_frames = linear_frames

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: Frame, held_out: bool, learnt: bool = False) -> None:
        """Add a labelled frame.

        Parameters
        ----------
        frame
            The frame with energy and forces. Its source is its name, see :attr:`names`.
        held_out
            Whether it tests updates, instead of being learnt in the next lesson.
        learnt
            Whether the potential has learnt it before, as in an earlier run.
        """
        number = len(self._frames)
        # An interrupted addition leaves no continuation, and the next lesson makes a new one with all frames.
        continuation, self._continuation = self._continuation, None
        self._frames.append(frame)
        self._geometries.add(number, frame)
        self._has_cell |= frame.volume is not None
        self._has_stress |= frame.stress is not None
        if held_out and self._knows(frame):
            self._held.add(number)
        elif not learnt:
            self._waiting.append(number)
        if continuation is not None and self._knows(frame):
            continuation.add(frame)
            self._continuation = continuation

    def lesson(self, target: float) -> Lesson:
        """Train until the new frames are learnt, or the largest number of cycles is reached.

        New are frames that no accepted update has learnt. They are drawn as often as all others together.

        The update is judged by the held-out frames and the new ones. All of them were predicted before they were
        learnt. Held-out frames alone must not judge: as long as they are few, any region that is new to the model makes
        some of them worse. A run in such a region would ask at every step, and never learn.

        If the lesson is interrupted or refused, the pupil stays as it was.

        Parameters
        ----------
        target
            Root mean square force error on the new frames at which training ends, in eV/Å.
        """
        before = self._state
        try:
            lesson = self._lesson(target)
        except BaseException:
            self._state, self._continuation = before, None
            raise
        if not lesson.kept:
            self._undo(before)
        return lesson

    def _lesson(self, target: float) -> Lesson:
        is_first = self._begin()
        self._move_reference(*self._ready())
        continuation, potential = self._ready()
        lessons = self._for_learning
        new = self._waiting or lessons[-1:]
        chances = _chances(np.isin(lessons, new))
        held = sorted(self._held)[-JUDGES:]
        judges = [*held, *new] if held else lessons[-JUDGES:]
        before = _rms(continuation, potential, judges)
        trained = self._with_linear(continuation, potential)
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
        return Lesson(kept, cycles, before, after)

    @property
    def _state(self) -> _State:
        """Everything that a lesson changes, but for the prepared training and the number of lessons."""
        held, waiting = set(self._held), list(self._waiting)
        return self.potential, held, waiting, self._compositions, self.linear_frames

    @_state.setter
    def _state(self, state: _State) -> None:
        self.potential, self._held, self._waiting, self._compositions, self.linear_frames = state

    def _undo(self, state: _State) -> None:
        """Go back behind a refused lesson."""
        self._state = state
        continuation, potential = self._ready()
        if not np.array_equal(potential.energy_reference, continuation.reference):
            continuation.move_reference(potential.energy_reference)
        continuation.use_linear(linear_of(potential))

    def floors(self) -> tuple[dict[str, float], float] | None:
        """Residuals on the latest frames that are not held out: root mean square norm of the force residuals by element
        in eV/Å, and root mean square energy residual in eV per sqrt(atoms). None if all frames are held out."""
        if not self._for_learning:
            return None
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
        assert self.potential is not None
        self.potential = replace(self.potential, calibration=calibration, provenance=provenance)
        return self.potential

    def moved(self, atoms: Atoms) -> float:
        """Largest displacement in Å of an atom or a lattice vector from the nearest learnt frame of the same atoms;
        infinite if there is none."""
        return self._geometries.moved(atoms, self._not_learnt)

    def strangest(self, atoms: Atoms) -> Stranger:
        """The atom whose coordination is least like those in learnt frames, which have all elements of ``atoms``."""
        assert self.potential is not None
        not_learnt, cutoff = self._not_learnt, self.potential.r_cut
        known = len(self._frames), not_learnt, cutoff
        if known != self._known_environments:  # not at every evaluation
            learnt = {k: f for k, f in enumerate(self._frames) if k not in not_learnt}
            self._environments.learn(learnt, cutoff)
            self._known_environments = known
        return self._environments.strangest(atoms)

    def is_strained(self, atoms: Atoms) -> bool:
        """Whether the lattice vectors differ from those of all learnt frames of the same atoms."""
        return self._geometries.is_strained(atoms, self._not_learnt)

    @property
    def has_stress(self) -> bool:
        """Whether any frame has a stress, or none has a cell that could have one."""
        return self._has_stress or not self._has_cell

    @property
    def force_size(self) -> float:
        """Root mean square norm of the forces in eV/Å: the lower median over the latest labelled frames, which is not
        that of a violent frame while half of few frames are violent."""
        latest = self._frames[-JUDGES:]
        squares = [(f.forces**2).sum(axis=1) for f in latest if f.forces is not None]
        sizes = sorted(float(np.sqrt(s.mean())) for s in squares)
        return sizes[(len(sizes) - 1) // 2] if sizes else 0.0

    @property
    def names(self) -> list[str]:
        """Names of all frames, in the order in which they were added."""
        return [frame.source for frame in self._frames]

    @property
    def held_out(self) -> list[str]:
        """Names of the held-out frames, which test updates."""
        return [self._frames[k].source for k in sorted(self._held)]

    @property
    def waiting(self) -> list[str]:
        """Names of the frames that no accepted update has learnt, in the order in which they were added."""
        return [self._frames[k].source for k in self._waiting]

    @property
    def n_learnt(self) -> int:
        """Number of frames that the potential has learnt."""
        return len(self._frames) - len(self._not_learnt)

    @property
    def learnt(self) -> list[str]:
        """Names of the frames that the potential has learnt, in the order in which they were added."""
        not_learnt = self._not_learnt
        return [f.source for k, f in enumerate(self._frames) if k not in not_learnt]

    @property
    def _not_learnt(self) -> set[int]:
        return self._held.union(self._waiting)

    @property
    def _for_learning(self) -> list[int]:
        return [k for k in range(len(self._frames)) if k not in self._held]

    def _knows(self, frame: Frame) -> bool:
        """Whether the architecture is made for such a frame: it has the elements, and may have neighbours."""
        if self.potential is None or not set(frame.symbols.tolist()) <= set(
            self.potential.elements
        ):
            return False
        is_for_atoms = self.linear_frames is not None and self.potential.r_cut == CUTOFF_OF_ATOMS
        return not is_for_atoms or not has_neighbours([frame])

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
        began_here = self.linear_frames is not None
        reference = reference_for(Start(potential, "the model so far"), frames, began_here)
        if not np.array_equal(reference, potential.energy_reference):
            continuation.move_reference(reference)
            self.potential = replace(potential, energy_reference=reference)


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
