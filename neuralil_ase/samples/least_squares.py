"""Fits the linear part of the energy by least squares.

Energies, forces and stresses are linear in its weights, and the best weights are the solution of one system of
equations, as in SNAP (Thompson et al., J. Comput. Phys. 285, 316 (2015)). A linear function of smooth invariants
changes little outside the data, where a network may do anything.

The labels determine the weights only in part. Each member gets its own, drawn from their posterior distribution
(Bayesian linear regression), so that members agree where the data determine the energy and differ where they do not.
Weights that all members share would hide how uncertain the linear part is far from the data.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular

from neuralil_ase.model.config import DescriptorConfig
from neuralil_ase.model.spectrum import power_spectrum
from neuralil_ase.prediction import VOIGT
from neuralil_ase.progress import Progress
from neuralil_ase.samples.batches import Labels, Packer, Sample, some_of
from neuralil_ase.samples.forward import Batch
from neuralil_ase.samples.linear import Linear
from neuralil_ase.samples.normalisation import factor_of

FOLDS = 5
"""Groups of frames for the cross-validation that chooses the two numbers below."""
FEWEST = 3
"""Smallest number of frames for a fit."""
ENERGY_WEIGHTS = tuple(10.0**k for k in range(2, 7))
"""Weights to try for a squared error of energies, in (eV/atom)², against one of a force component, in (eV/Å)²."""
PENALTIES = (1e-4, 1e-2, 1.0, 1e2, 1e4)
"""Penalties to try for the sum of the squared weights, with features whose largest variance is 1."""
MOST_FRAMES = 500
"""Largest number of frames for the fit, spread over the data. Few numbers are fitted, and more frames change little."""
MOST_UNKNOWNS = 3000
"""Largest number of unknowns. All sums of a fit of this size need 3 GB."""
logger = logging.getLogger(__name__)


class LinearFit:
    """The equations for the linear part, which can grow.

    The weight of energies against forces and the penalty of large weights are those with the smallest product of the
    root mean square errors of energies and forces in a cross-validation of the first samples. Stresses count as much as
    the forces of their frame.

    Parameters
    ----------
    packer, samples
        The first samples. Their descriptors determine how the unknowns are scaled.
    alone
        Elements of which isolated atoms are known. They get no bias: the linear part of an isolated atom is 0.
    progress
        Show a progress bar.
    """

    def __init__(
        self,
        packer: Packer,
        samples: Sequence[Sample],
        alone: Sequence[int] = (),
        progress: bool = False,
    ) -> None:
        self._best: tuple[_Choice, float] | None = None
        if len(samples) < FEWEST:
            return
        self._scaling = _Scaling.of(packer, samples, alone)
        if self._scaling.size > MOST_UNKNOWNS:
            logger.info(
                "no linear part: %d unknowns are more than %d", self._scaling.size, MOST_UNKNOWNS
            )
            return
        self._sums = _Equations.empty(self._scaling.size)
        self._begin(packer, samples, progress)

    def add(self, packer: Packer, samples: Sequence[Sample]) -> None:
        """Add the labels of more samples."""
        if self._best is not None:
            self._sums = self._sums.plus(_equations(packer, self._scaling, samples))

    def solve(self, n_members: int, seed: int) -> Linear | None:
        """The linear part; ``seed`` is that of the members' deviations.

        Returns
        -------
        Linear or None
            One linear part for each member, whose mean is the least-squares solution. None if no linear part predicts
            held-out frames better than none at all, if there were too few frames at first, or if the equations of many
            elements become too large.
        """
        if self._best is None:
            return None
        return self._scaling.linear(self._sums.draw(*self._best, n_members, seed))

    def _begin(self, packer: Packer, samples: Sequence[Sample], progress: bool) -> None:
        """Make the equations, and choose by cross-validation."""
        folds = []
        n_folds = min(FOLDS, len(samples))
        with Progress(n_folds, "group", "linear fit", progress) as bar:
            for k in range(n_folds):
                folds.append(_equations(packer, self._scaling, samples[k::n_folds]))
                self._sums = self._sums.plus(folds[-1])
                bar.update(k + 1)
        others = [self._sums.plus(fold, -1.0) for fold in folds]
        best, score = _best_choice(others, folds, self._scaling.n_elements)
        if score < _score([np.zeros(self._scaling.size)] * n_folds, folds):
            self._best = best, _variance(best, others, folds)


def some_labelled(samples: Sequence[Sample]) -> list[Sample]:
    """Samples for a fit: those with labels, or every other, third … one if they are very many."""
    labelled = [sample for sample in samples if _has_labels(sample.labels)]
    return labelled[:: max(1, -(-len(labelled) // MOST_FRAMES))]


def _has_labels(labels: Labels) -> bool:
    return bool(np.isfinite(labels.energy) or np.isfinite(labels.forces).all())


@dataclass(frozen=True)
class _Scaling:
    """From features to the numbers that weights are fitted to: (p - mean) * factor for each element of the centre.

    Without a bias, the mean is 0.
    """

    mean: np.ndarray  # (elements, F)
    factor: np.ndarray  # (elements, F)
    has_bias: np.ndarray  # (elements,)

    @classmethod
    def of(cls, packer: Packer, samples: Sequence[Sample], alone: Sequence[int]) -> "_Scaling":
        """From the atoms of these samples; ``alone`` are the elements without a bias."""
        some = some_of(samples)
        features = packer.features(some)
        types = np.concatenate([sample.types for sample in some])
        groups = [features[types == e] for e in range(len(packer.slots))]
        filled = [group if len(group) else features for group in groups]
        mean = np.stack([group.mean(axis=0, dtype=np.float64) for group in filled])
        has_bias = ~np.isin(np.arange(len(groups)), alone)
        factor = np.stack([factor_of(group) for group in filled])
        return cls(mean * has_bias[:, None], factor, has_bias)

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return len(self.mean)

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return self.mean.size + self.n_elements

    def linear(self, solutions: np.ndarray) -> Linear:
        """In terms of the features themselves; solutions of shape (M, U)."""
        n_elements = len(self.mean)
        weights = solutions[:, :-n_elements].reshape(-1, *self.mean.shape) * self.factor
        bias = solutions[:, -n_elements:] * self.has_bias - (weights * self.mean).sum(axis=-1)
        return Linear(weights.swapaxes(1, 2), bias)


class _Sums(NamedTuple):
    """Of one kind of label: Σ a aᵀ, Σ a y, Σ y² and the sum of weights, for labels y and their rows a."""

    gram: np.ndarray
    right: np.ndarray
    square: float
    total_weight: float

    @classmethod
    def of(cls, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> "_Sums":
        """Rows of shape (labels, U)."""
        weighted = rows * weights[:, None]
        square = float((weights * labels**2).sum())
        return cls(rows.T @ weighted, weighted.T @ labels, square, float(weights.sum()))

    def combined(self, other: "_Sums", factor: float) -> "_Sums":
        """These sums and ``factor`` times the others."""
        return _Sums(
            self.gram + factor * other.gram,
            self.right + factor * other.right,
            self.square + factor * other.square,
            self.total_weight + factor * other.total_weight,
        )

    def squared_error(self, solution: np.ndarray) -> float:
        """Σ (a x - y)²."""
        return float(solution @ self.gram @ solution - 2 * solution @ self.right + self.square)


class _Choice(NamedTuple):
    """What a fit needs besides its equations."""

    energy_weight: float
    penalty: float
    n_elements: int

    def matrix(self, gram: np.ndarray) -> np.ndarray:
        """Matrix of the normal equations, with the penalties."""
        penalties = np.full(len(gram), self.penalty)
        # A fixed composition determines only the sum of biases. The others stay near zero.
        penalties[-self.n_elements :] = 1e-6 * self.energy_weight
        return gram + np.diag(penalties)


@dataclass(frozen=True)
class _Equations:
    """The sums for energies (per atom), forces, and stresses (virials over the root of the number of atoms)."""

    energies: _Sums
    forces: _Sums
    stresses: _Sums

    @classmethod
    def empty(cls, size: int) -> "_Equations":
        """No labels."""
        return cls(*(_Sums(np.zeros((size, size)), np.zeros(size), 0.0, 0.0) for _ in range(3)))

    def plus(self, other: "_Equations", factor: float = 1.0) -> "_Equations":
        """With ``factor`` times the sums of others."""
        return _Equations(
            self.energies.combined(other.energies, factor),
            self.forces.combined(other.forces, factor),
            self.stresses.combined(other.stresses, factor),
        )

    def solve(self, choice: _Choice) -> np.ndarray:
        """The unknowns with the least weighted sum of squares; the last ones are those of the bias."""
        sums = self.sums(choice)
        return cho_solve(cho_factor(choice.matrix(sums.gram)), sums.right)

    def draw(self, choice: _Choice, variance: float, n_members: int, seed: int) -> np.ndarray:
        """Unknowns from their posterior distribution, shape (M, U), whose mean is the solution.

        ``variance`` is that of the labels around a linear function, for labels of weight 1.
        """
        sums = self.sums(choice)
        root = cholesky(choice.matrix(sums.gram))  # upper: Rᵀ R
        normal = np.random.default_rng((seed, 4)).normal(size=(len(root), n_members))
        normal -= normal.mean(axis=1, keepdims=True)
        normal *= np.sqrt(variance * n_members / max(n_members - 1, 1))
        solution = cho_solve((root, False), sums.right)
        return solution + solve_triangular(root, normal).T

    def sums(self, choice: _Choice) -> _Sums:
        """Weighted sums over all labels; their total weight is the number of labels."""
        kinds = (self.energies, self.forces, self.stresses)
        found = self.forces.combined(self.stresses, 1.0).combined(
            self.energies, choice.energy_weight
        )
        return found._replace(total_weight=sum(kind.total_weight for kind in kinds))


def _error(kind: str, solutions: Sequence[np.ndarray], folds: Sequence[_Equations]) -> float | None:
    """Root mean square error of one kind of label, each fold by its own solution; None if there are no labels."""
    sums: list[_Sums] = [getattr(fold, kind) for fold in folds]
    count = sum(s.total_weight for s in sums)
    if not count:
        return None
    squares = sum(s.squared_error(x) for s, x in zip(sums, solutions, strict=True))
    return float(np.sqrt(max(squares, 0.0) / count))


def _score(solutions: Sequence[np.ndarray], folds: Sequence[_Equations]) -> float:
    """Product of the root mean square errors of energies and forces, as far as there are labels."""
    errors = [_error(kind, solutions, folds) for kind in ("energies", "forces")]
    return float(np.prod([error for error in errors if error is not None]))


def _variance(choice: _Choice, others: Sequence[_Equations], folds: Sequence[_Equations]) -> float:
    """Variance of labels of weight 1 around a linear function.

    It is the one with which held-out squared errors are as large as the posterior predicts them: the variance times 1 +
    aᵀ A⁻¹ a, with the matrix A of the other folds and the row a of the label.
    """
    squares = expected = 0.0
    for rest, fold in zip(others, folds, strict=True):
        sums = fold.sums(choice)
        squares += sums.squared_error(rest.solve(choice))
        expected += sums.total_weight
        expected += float(
            np.trace(cho_solve(cho_factor(choice.matrix(rest.sums(choice).gram)), sums.gram))
        )
    return max(squares, 0.0) / expected


def _best_choice(
    others: Sequence[_Equations], folds: Sequence[_Equations], n_elements: int
) -> tuple[_Choice, float]:
    """The choice with the smallest score, and that score: one number is varied after the other, twice."""
    scores: dict[_Choice, float] = {}
    best = _Choice(ENERGY_WEIGHTS[2], PENALTIES[2], n_elements)
    for field, values in 2 * (("penalty", PENALTIES), ("energy_weight", ENERGY_WEIGHTS)):
        tried = [_Choice(**(best._asdict() | {field: value})) for value in values]
        for choice in tried:
            if choice not in scores:
                scores[choice] = _score([rest.solve(choice) for rest in others], folds)
        best = min(tried, key=scores.__getitem__)
    return best, scores[best]


def _equations(packer: Packer, scaling: _Scaling, samples: Sequence[Sample]) -> _Equations:
    """The sums over some samples."""
    total = _Equations.empty(scaling.size)
    for batch in packer.pack(samples, np.ones((1, len(samples)))):
        total = total.plus(_of_batch(packer, scaling, batch))
    return total


def _of_batch(packer: Packer, scaling: _Scaling, batch: Batch) -> _Equations:
    found = _rows(packer.config.descriptor, packer.slots, batch)
    features, forces, virials = (np.asarray(x, np.float64) for x in found)
    n_elements, n_frames = len(packer.slots), len(batch.energy)
    n_atoms = batch.n_atoms.astype(np.float64)
    # Energies: sums over the atoms of each element.
    segment = batch.frame * n_elements + batch.types
    real = batch.frame < n_frames - 1  # the last frame is padding
    counts = np.bincount(segment[real], minlength=n_frames * n_elements).reshape(n_frames, -1)
    energies = np.zeros((n_frames * n_elements, features.shape[1]))
    np.add.at(energies, segment[real], features[real])
    energies = energies.reshape(n_frames, n_elements, -1) - counts[..., None] * scaling.mean
    of_energies = np.concatenate(
        [(energies * scaling.factor).reshape(n_frames, -1), counts * scaling.has_bias], axis=1
    )
    of_forces = _without_bias(forces * scaling.factor[:, None, None], n_elements)
    of_virials = _without_bias(virials.swapaxes(0, 1) * scaling.factor[:, None, None], n_elements)
    root = np.sqrt(n_atoms)
    stresses = batch.stress * (batch.volume / root)[:, None]
    return _Equations(
        _Sums.of(of_energies / n_atoms[:, None], batch.energy / n_atoms, batch.energy_weight),
        _Sums.of(of_forces, batch.forces.reshape(-1), np.repeat(batch.force_weight, 3)),
        _Sums.of(
            of_virials / np.repeat(root, 6)[:, None],
            stresses.reshape(-1),
            np.repeat(batch.stress_weight, 6),
        ),
    )


def _without_bias(values: np.ndarray, n_elements: int) -> np.ndarray:
    """(elements, A, B, F) -> (A B, unknowns)."""
    rows = np.moveaxis(values, 0, 2).reshape(values.shape[1] * values.shape[2], -1)
    return np.concatenate([rows, np.zeros((len(rows), n_elements))], axis=1)


@partial(jax.jit, static_argnums=(0, 1))
def _rows(
    descriptor: DescriptorConfig, slots: tuple[int, ...], batch: Batch
) -> tuple[Array, Array, Array]:
    """Features (N, F), and what a unit weight of each feature gives for centres of each element.

    These are forces, (elements, N, 3, F), and virials, (B, elements, 6, F).
    """
    spectrum = partial(power_spectrum, descriptor, only_forward=True)
    features, along = jax.linearize(spectrum, jnp.asarray(batch.density))
    n_atoms, n_slots, _, n_channels = batch.slopes.shape
    n_elements, n_frames = len(slots), len(batch.energy)
    atoms = jnp.arange(n_atoms)
    neighbours = jnp.asarray(batch.reverse) // n_slots  # an empty slot is its own, with slope 0
    x, y = VOIGT

    def add_slot(
        sums: tuple[Array, Array], slot: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], None]:
        forces, virials = sums
        element, slopes, vectors, neighbour = slot
        moved = (
            jnp.zeros((3, n_atoms, n_elements, n_channels))
            .at[:, :, element]
            .set(slopes.swapaxes(0, 1))
        )
        slope = jax.vmap(along)(moved).swapaxes(0, 1)  # dp_i / dr_ij, (N, 3, F)
        forces = forces.at[batch.types, atoms].add(slope).at[batch.types, neighbour].add(-slope)
        tensor = vectors[:, x, None] * slope[:, y]
        tensor = (tensor + vectors[:, y, None] * slope[:, x]) / 2
        return (forces, virials.at[batch.frame, batch.types].add(tensor)), None

    start = (
        jnp.zeros((n_elements, n_atoms, 3, features.shape[1])),
        jnp.zeros((n_frames, n_elements, 6, features.shape[1])),
    )
    elements = np.repeat(np.arange(n_elements), slots)
    of_slots = (
        jnp.asarray(elements),
        jnp.asarray(batch.slopes).swapaxes(0, 1),
        jnp.asarray(batch.vectors).swapaxes(0, 1),
        neighbours.T,
    )
    (forces, virials), _ = jax.lax.scan(add_slot, start, of_slots)
    return features, forces, virials
