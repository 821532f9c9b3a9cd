"""The normal equations of the linear part: sums over labels, each of which is linear in the weights of the features."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import optimization_barrier
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import nnls

from neuralil_ase.model.config import DescriptorConfig
from neuralil_ase.model.spectrum import power_spectrum, summed_changes
from neuralil_ase.prediction import VOIGT
from neuralil_ase.samples.batches import Packer, Sample, some_of
from neuralil_ase.samples.forward import Batch
from neuralil_ase.samples.linear import Linear
from neuralil_ase.samples.normalisation import factor_of

ROUNDING = 10 * float(np.finfo(float).eps)
"""Rounding error of a diagonal element, divided by the largest one and the number of unknowns."""


@dataclass(frozen=True)
class Unknowns:
    """The unknowns of a fit: weights of (p - mean) * factor by element of the centre, then a bias for each element.

    Without a bias, the mean is 0.
    """

    mean: np.ndarray  # (elements, F)
    factor: np.ndarray  # (elements, F)
    has_bias: np.ndarray  # (elements,)

    @classmethod
    def of(cls, packer: Packer, samples: Sequence[Sample], alone: Sequence[int]) -> "Unknowns":
        """Make the unknowns from the atoms of these samples; ``alone`` are the elements without a bias."""
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
        """Convert solutions, shape (M, U), to weights of the features themselves."""
        n_elements = len(self.mean)
        weights = solutions[:, :-n_elements].reshape(-1, *self.mean.shape) * self.factor
        bias = solutions[:, -n_elements:] * self.has_bias - (weights * self.mean).sum(axis=-1)
        return Linear(weights.swapaxes(1, 2), bias)


class Sums(NamedTuple):
    """Sums over one kind of label: Σ a aᵀ, Σ a y, Σ y² and the sum of weights, for labels y and their rows a."""

    gram: np.ndarray
    right: np.ndarray
    square: float
    total_weight: float

    @classmethod
    def of(cls, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> "Sums":
        """Compute the sums from rows of shape (labels, U)."""
        square = float((weights * labels**2).sum())
        # NumPy computes the product of an array and its own transpose in half the time.
        scaled = rows * np.sqrt(weights)[:, None]
        right = scaled.T @ (np.sqrt(weights) * labels)
        return cls(scaled.T @ scaled, right, square, float(weights.sum()))

    def combined(self, other: "Sums", factor: float) -> "Sums":
        """These sums and ``factor`` times the others."""
        return Sums(
            self.gram + factor * other.gram,
            self.right + factor * other.right,
            self.square + factor * other.square,
            self.total_weight + factor * other.total_weight,
        )

    def squared_error(self, solution: np.ndarray) -> float:
        """Σ (a x - y)²."""
        return float(solution @ self.gram @ solution - 2 * solution @ self.right + self.square)


class Choice(NamedTuple):
    """The numbers that a fit needs besides its equations."""

    energy_weight: float
    penalty: float
    n_elements: int

    def penalised(self, factor: float) -> "Choice":
        """The same with ``factor`` times the penalty."""
        return self._replace(penalty=factor * self.penalty)

    def matrix(self, gram: np.ndarray) -> np.ndarray:
        """Matrix of the normal equations, with the penalties."""
        penalties = np.full(len(gram), self.penalty)
        # A fixed composition determines only the sum of biases. A small penalty keeps all else near zero.
        penalties[-self.n_elements :] = 1e-6 * self.energy_weight
        return gram + np.diag(penalties)

    def root(self, gram: np.ndarray) -> np.ndarray:
        """Upper triangle R with Rᵀ R = ``matrix``."""
        matrix = self.matrix(gram)
        try:
            return np.asarray(cholesky(matrix))
        except LinAlgError:
            # Rounding errors exceed the penalties, as in frames that are all equal.
            rounding = ROUNDING * len(matrix) * float(matrix.diagonal().max())
            return np.asarray(cholesky(matrix + np.diag(np.full(len(matrix), rounding))))


@dataclass(frozen=True)
class Equations:
    """The sums for energies (per atom), forces, and stresses (virials over the root of the number of atoms)."""

    energies: Sums
    forces: Sums
    stresses: Sums

    @classmethod
    def empty(cls, size: int) -> "Equations":
        """No labels."""
        return cls(*(Sums(np.zeros((size, size)), np.zeros(size), 0.0, 0.0) for _ in range(3)))

    def plus(self, other: "Equations", factor: float = 1.0) -> "Equations":
        """These sums plus ``factor`` times the other sums."""
        return Equations(
            self.energies.combined(other.energies, factor),
            self.forces.combined(other.forces, factor),
            self.stresses.combined(other.stresses, factor),
        )

    def solve(self, choice: Choice) -> np.ndarray:
        """The unknowns with the least weighted sum of squares; the biases come last."""
        sums = self.sums(choice)
        return cho_solve((choice.root(sums.gram), False), sums.right)

    def draw(
        self,
        choice: Choice,
        variance: float,
        n_members: int,
        seed: tuple[int, ...],
        more_penalty: float = 1.0,
    ) -> np.ndarray:
        """Draw unknowns, shape (M, U), from their posterior distribution. The mean over members is the solution.

        ``variance`` is the variance of labels of weight 1 around a linear function. The mean is computed with
        ``more_penalty`` times the penalty of the distribution.
        """
        sums = self.sums(choice)
        root = choice.root(sums.gram)
        normal = np.random.default_rng((*seed, 4)).normal(size=(len(root), n_members))
        normal -= normal.mean(axis=1, keepdims=True)
        normal *= np.sqrt(variance * n_members / max(n_members - 1, 1))
        stronger = root
        if more_penalty != 1:
            stronger = choice.penalised(more_penalty).root(sums.gram)
        return cho_solve((stronger, False), sums.right) + solve_triangular(root, normal).T

    def at_least(
        self,
        choice: Choice,
        solutions: np.ndarray,
        rows: np.ndarray,
        bounds: np.ndarray,
        weight: float,
    ) -> np.ndarray:
        """The unknowns nearest to each of ``solutions``, shape (M, U), with which no row falls far below its bound.

        They minimise (x - x0)ᵀ A (x - x0) + weight Σ max(0, b - r x)² over the rows r, shape (R, U), and their bounds
        b, shape (R,), with the matrix A of the normal equations. Where the labels say nothing, this changes x at no
        cost. In the dual problem, the multipliers of the rows are found by non-negative least squares.
        """
        towards = cho_solve((choice.root(self.sums(choice).gram), False), rows.T)
        gram = rows @ towards
        rounding = ROUNDING * len(gram) * float(gram.diagonal().max())
        root = cholesky(gram + np.diag(np.full(len(gram), 1 / weight + rounding)), lower=True)
        missing = solve_triangular(root, bounds[:, None] - rows @ solutions.T, lower=True)
        multipliers = [nnls(root.T, column)[0] for column in missing.T]
        return solutions + np.array(multipliers) @ towards.T

    def sums(self, choice: Choice) -> Sums:
        """Weighted sums over all labels; their total weight is the number of labels."""
        kinds = (self.energies, self.forces, self.stresses)
        found = self.forces.combined(self.stresses, 1.0).combined(
            self.energies, choice.energy_weight
        )
        return found._replace(total_weight=sum(kind.total_weight for kind in kinds))


def equations_of(packer: Packer, unknowns: Unknowns, samples: Sequence[Sample]) -> Equations:
    """The sums over some samples."""
    total = Equations.empty(unknowns.size)
    for batch in packer.for_sums().pack(samples, np.ones((1, len(samples)))):
        total = total.plus(_of_batch(packer, unknowns, batch))
    return total


def _of_batch(packer: Packer, unknowns: Unknowns, batch: Batch) -> Equations:
    found = _rows(packer.config.descriptor, packer.slots, batch)
    features, forces, virials = (np.asarray(x, np.float64) for x in found)
    n_elements, n_frames = len(packer.slots), len(batch.n_atoms)
    n_atoms = batch.n_atoms.astype(np.float64)
    # Energies: sums over the atoms of each element.
    segment = batch.frame * n_elements + batch.types
    real = batch.frame < n_frames - 1  # the last frame is padding
    counts = np.bincount(segment[real], minlength=n_frames * n_elements).reshape(n_frames, -1)
    energies = np.zeros((n_frames * n_elements, features.shape[1]))
    np.add.at(energies, segment[real], features[real])
    energies = energies.reshape(n_frames, n_elements, -1) - counts[..., None] * unknowns.mean
    of_energies = np.concatenate(
        [(energies * unknowns.factor).reshape(n_frames, -1), counts * unknowns.has_bias], axis=1
    )
    of_forces = _without_bias(forces * unknowns.factor[:, None, None], n_elements)
    of_virials = _without_bias(virials.swapaxes(0, 1) * unknowns.factor[:, None, None], n_elements)
    root = np.sqrt(n_atoms)
    stresses = batch.stress[0] * (batch.volume / root)[:, None]
    return Equations(
        Sums.of(of_energies / n_atoms[:, None], batch.energy[0] / n_atoms, batch.energy_weight),
        Sums.of(of_forces, batch.forces[0].reshape(-1), np.repeat(batch.force_weight, 3)),
        Sums.of(
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
    """Features (N, F), and the forces and virials for a unit weight of each feature and centres of each element.

    Shapes: forces (elements, N, 3, F), virials (B, elements, 6, F).
    """
    density, slopes = jnp.asarray(batch.density), jnp.asarray(batch.slopes)
    spectrum = partial(power_spectrum, descriptor, only_forward=True)
    features, along = jax.linearize(spectrum, density)
    n_elements, n_frames = len(slots), len(batch.n_atoms)
    is_element = jax.nn.one_hot(batch.types, n_elements, dtype=features.dtype)  # (N, elements)

    # The atom as a centre: the sums over its neighbours are those of the changes of its coefficients.
    own = jax.vmap(along, in_axes=2, out_axes=1)(_sums_over_slots(slots, slopes, batch.vectors))
    virials = jax.ops.segment_sum(
        own[:, 3:], batch.frame * n_elements + batch.types, n_frames * n_elements
    )
    # The atom as a neighbour of centres of each element.
    n_slots = slopes.shape[1]
    reverse = jnp.asarray(batch.reverse)
    back = slopes.reshape(-1, *slopes.shape[2:])[reverse]  # of the pairs (j, i), (N, S, 3, C)
    back, neighbours = optimization_barrier((back, density[reverse // n_slots]))
    forces = []
    for element, group in enumerate(_groups(slots)):
        as_neighbour = summed_changes(descriptor, neighbours[:, group], back[:, group], is_element)
        forces.append(is_element[:, element, None, None] * own[:, :3] - as_neighbour)
    return features, jnp.stack(forces), virials.reshape(n_frames, n_elements, 6, -1)


def _groups(slots: tuple[int, ...]) -> list[slice]:
    """The slots for neighbours of each element."""
    ends = np.cumsum(slots).tolist()
    return [slice(end - count, end) for end, count in zip(ends, slots, strict=True)]


def _sums_over_slots(slots: tuple[int, ...], slopes: Array, vectors: np.ndarray) -> Array:
    """Σ_j of dc/dr_ij, and of r_ij ⊗ dc/dr_ij, symmetrised, in Voigt order: shape (N, elements, 3 + 6, C)."""
    x, y = VOIGT
    factors = jnp.concatenate([jnp.ones((*vectors.shape[:2], 1), slopes.dtype), vectors], axis=2)
    sums = []
    for group in _groups(slots):
        # With 1 as a fourth component, one matrix product gives both.
        found = jnp.einsum("nsx,nsyc->nxyc", factors[:, group], slopes[:, group])
        tensor = found[:, 1:]
        symmetric = (tensor + tensor.swapaxes(1, 2)) / 2
        sums.append(jnp.concatenate([found[:, 0], symmetric[:, x, y]], axis=1))
    return jnp.stack(sums, axis=1)
