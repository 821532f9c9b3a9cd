"""Runs short trainings one after another, while the data grow. All use the functions compiled for the first one.

Compiling takes longer than such a training. The architecture, the number of steps and the shapes of the microbatches
therefore stay the same. There are spare slots for neighbours, and a microbatch is large enough for the largest frame.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from neuralil_ase.engine.concurrency import claim_jax
from neuralil_ase.evaluation.dataset import Frame, pairs_of, types_of
from neuralil_ase.model.graph import bucket
from neuralil_ase.model.potential import Potential
from neuralil_ase.samples.batches import Packer, Sample, neighbour_counts, packer_for
from neuralil_ase.samples.least_squares import LinearFit
from neuralil_ase.samples.linear import (
    Linear,
    learns_own,
    linear_of,
    what_is_left,
    with_linear,
    without_linear,
)
from neuralil_ase.training.loop import Trainer, check_finite
from neuralil_ase.training.prepare import Task, make_targets, scaling_of_samples
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.warm_start import Start

MORE_PENALTIES = {"all": (1.0, 100.0), "half": (1.0, np.inf)}
"""Factors for the penalty of the linear part, by the setting ``linear``; members take them in turn. With the penalty
that predicts best, errors are smaller near a minimum of the energy, with a larger one on the way to it. The errors of
the two kinds are almost unrelated, so that their mean is better than either."""
SPARE = 1.2
"""Number of slots for the neighbours of an element, divided by the number that is needed when the slots are made."""
ROUND = 8
"""The number of slots is a multiple of this, so that similar systems share compiled functions."""


@dataclass(frozen=True)
class Residuals:
    """Prediction minus label of one frame, for the mean over members.

    Attributes
    ----------
    energy
        In eV/atom; NaN without a label.
    forces
        In eV/Å, shape (N, 3); empty without labels.
    """

    energy: float
    forces: np.ndarray


class Continuation:
    """Trains a potential repeatedly.

    Parameters
    ----------
    potential
        The potential to train. All updates keep its architecture, and its energy reference until :meth:`move_reference`
        is called.
    settings
        Only the settings of the loss and of the optimiser, ``batch_size``, ``seed`` and ``memory_budget`` are used.
    steps
        Number of steps of one update, which is a whole cycle of the learning rate.
    """

    def __init__(self, potential: Potential, settings: TrainingSettings, steps: int) -> None:
        self.config, self.reference = without_linear(potential.config), potential.energy_reference
        self._linear, self._is_own = linear_of(potential), learns_own(potential)
        self._n_targets = self.config.n_members
        if self._linear is not None and not self._is_own:
            self._n_targets = len(self._linear.common.bias)
        self._fit: LinearFit | None = None
        # Number of frames that scale the unknowns, and number of all frames in the fit.
        self._fitted = (0, 0)
        # A weight decay that depends on the number of frames would need another compilation at every update.
        self.settings, self.steps = settings.with_frames(1), steps
        self._wholes: list[Sample] = []
        self._samples: list[Sample] = []  # the same, without the linear part in their targets
        self._slots: tuple[int, ...] = (0,) * len(potential.elements)
        self._sizes: tuple[int, int] = (0, 0)

    def add(self, frame: Frame) -> None:
        """Add a labelled frame. Frames are numbered in the order in which they are added.

        Raises
        ------
        DataError
            If the potential does not know one of its elements.
        """
        elements = self.config.descriptor.elements
        types = types_of(frame, elements)
        pairs = pairs_of(frame, types, self.config.descriptor.r_cut)
        self._make_room(neighbour_counts(pairs, types, len(elements)).max(axis=0), len(types))
        targets = make_targets(self.config, frame, types, pairs, self.reference)
        sample = self._with_arrays(Sample(frame, types, pairs, frame.volume or 1.0, targets, None))
        (left,) = self._left([sample])
        self._wholes.append(sample)
        self._samples.append(left)

    def move_reference(self, reference: np.ndarray) -> None:
        """Replace the energy reference: energy of every element in eV, shape (elements,)."""
        self.reference, self._fit = reference, None
        self._wholes = [self._with_targets(sample) for sample in self._wholes]
        self.use_linear(self._linear)

    def fit_linear(self, potential: Potential, learnt: Sequence[int], first: int) -> Potential:
        """Fit the linear part again to the labels of these frames. The networks stay as they are.

        If no linear part can be fitted, the potential is returned unchanged.

        Parameters
        ----------
        potential
            The potential so far.
        learnt
            Numbers of the frames.
        first
            The fit begins with this many of the frames, which determine how the unknowns are scaled. The result does
            not depend on whether the other frames are added in this call or were added by earlier calls.
        """
        claim_jax()
        if self._fit is None or self._fitted[0] != first:
            self._fit = LinearFit(self._packer(), [self._wholes[k] for k in learnt[:first]])
            self._fitted = (first, first)
        for number in learnt[self._fitted[1] :]:
            self._fit.add(self._packer(), [self._wholes[number]])
            self._fitted = (first, self._fitted[1] + 1)
        penalties = MORE_PENALTIES[self.settings.linear or "all"]
        linear = self._fit.solve(self.config.n_members, self.settings.seed, penalties)
        if linear is None:
            return potential
        self.use_linear(linear)
        return with_linear(potential, linear)

    def use_linear(self, linear: Linear | None) -> None:
        """Subtract this linear part from the targets, instead of the previous one."""
        self._linear = linear
        self._samples = self._left(self._wholes)

    def update(
        self, potential: Potential, learnt: Sequence[int], chances: np.ndarray, seed: int
    ) -> Potential:
        """Train once more and return the new potential.

        Parameters
        ----------
        potential
            Training continues from its parameters.
        learnt
            Numbers of the frames to learn from.
        chances
            Relative probability that each of these frames is drawn, same length.
        seed
            Seed of the order in which frames are drawn.

        Raises
        ------
        TrainingError
            If the parameters are no longer finite.
        """
        claim_jax()
        trainer = self._trainer(potential, learnt)
        state = trainer.start().state
        for chosen in _draws(chances, self.settings.batch_size, self.steps, seed):
            state, *_ = trainer.step(state, chosen)
        check_finite(state, "an update")
        trained = trainer.potential(state.average)
        return replace(potential, params=trained.params, energy_reference=self.reference)

    def residuals(self, potential: Potential, numbers: Sequence[int]) -> list[Residuals]:
        """Residuals of the potential on these frames."""
        claim_jax()
        trainer = self._trainer(potential, numbers)
        samples = trainer.task.train
        energies, forces, _ = trainer.residuals(trainer.start().state.params, samples)
        of_energy, of_forces = iter(energies.tolist()), iter(forces)
        return [
            Residuals(
                next(of_energy) if np.isfinite(sample.targets.energy).all() else np.nan,
                _rows(of_forces, sample),
            )
            for sample in samples
        ]

    def _trainer(self, potential: Potential, learnt: Sequence[int]) -> Trainer:
        samples = [self._samples[k] for k in learnt]
        packer = self._packer()
        task = Task(
            config=self.config,
            settings=self.settings.updated({"epochs": 1}),
            reference=self.reference,
            scaling=scaling_of_samples(packer, samples),
            packer=packer,
            train=samples,
            validation=[],
            counts=np.ones((self.config.n_members, len(samples))),
            element_fractions={},
            data={},
            start=Start(potential, "the potential before"),
            linear=self._linear,
        )
        return Trainer(task, self.steps)

    def _with_targets(self, sample: Sample) -> Sample:
        """The sample with targets for the present energy reference."""
        assert sample.pairs is not None
        targets = make_targets(
            self.config, sample.frame, sample.types, sample.pairs, self.reference
        )
        return replace(sample, targets=targets)

    def _left(self, samples: list[Sample]) -> list[Sample]:
        """The samples with the linear part subtracted from their targets."""
        if self._linear is None:
            return [*samples]
        subtracted = self._linear if self._is_own else self._linear.common
        return what_is_left(self._packer(), subtracted, samples)

    def _packer(self) -> Packer:
        smallest, largest = self._sizes
        sizes, batch_size = [smallest, largest], self.settings.batch_size
        packer = packer_for(self.config, self._slots, sizes, batch_size)
        return replace(packer, n_targets=self._n_targets)

    def _make_room(self, counts: np.ndarray, size: int) -> None:
        counts = np.maximum(counts, 1)  # an atom without neighbours has a slot, too
        smallest, largest = self._sizes
        smallest = min(smallest or size, size)
        self._sizes = smallest, max(largest, bucket(size))
        if (counts <= self._slots).all():
            return
        roomy = ROUND * np.ceil(SPARE * counts / ROUND)
        spare = np.where(counts > self._slots, roomy, self._slots)
        self._slots = tuple(int(count) for count in spare)
        wholes, self._wholes = self._wholes, []  # arrays of the old size do not count as memory
        for sample in wholes:
            self._wholes.append(self._with_arrays(replace(sample, arrays=None)))
        pairs = zip(self._samples, self._wholes, strict=True)
        self._samples = [replace(sample, arrays=whole.arrays) for sample, whole in pairs]

    def _with_arrays(self, sample: Sample) -> Sample:
        packer = self._packer()
        held = sum(s.arrays.slopes.nbytes for s in self._wholes if s.arrays is not None)
        if held > self.settings.memory_budget:
            return sample
        return replace(sample, arrays=packer.arrays(sample))


def _draws(chances: np.ndarray, batch_size: int, steps: int, seed: int) -> list[np.ndarray]:
    """Samples of every step, drawn without replacement within a step."""
    rng = np.random.default_rng((seed, 4))
    size = min(batch_size, len(chances))
    return [rng.choice(len(chances), size, False, chances / chances.sum()) for _ in range(steps)]


def _rows(forces: Iterator[np.ndarray], sample: Sample) -> np.ndarray:
    """Take the forces of the next sample from the iterator, shape (N, 3); empty if it has no force labels."""
    has_forces = np.isfinite(sample.targets.forces).all()
    rows = [*islice(forces, len(sample.types))] if has_forces else []
    return np.array(rows).reshape(-1, 3)
