"""The normal equations of the linear part: sums over labels, each of which is linear in the weights of the features."""

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
from neuralil_ase.samples.batches import Packer, Sample, some_of
from neuralil_ase.samples.forward import Batch
from neuralil_ase.samples.linear import Linear
from neuralil_ase.samples.normalisation import factor_of


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
        weighted = rows * weights[:, None]
        square = float((weights * labels**2).sum())
        return cls(rows.T @ weighted, weighted.T @ labels, square, float(weights.sum()))

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

    def matrix(self, gram: np.ndarray) -> np.ndarray:
        """Matrix of the normal equations, with the penalties."""
        penalties = np.full(len(gram), self.penalty)
        # A fixed composition determines only the sum of biases. A small penalty keeps all else near zero.
        penalties[-self.n_elements :] = 1e-6 * self.energy_weight
        return gram + np.diag(penalties)


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
        return cho_solve(cho_factor(choice.matrix(sums.gram)), sums.right)

    def draw(
        self,
        choice: Choice,
        variance: float,
        n_members: int,
        seed: int,
        more_penalty: float = 1.0,
    ) -> np.ndarray:
        """Draw unknowns, shape (M, U), from their posterior distribution. The mean over members is the solution.

        ``variance`` is the variance of labels of weight 1 around a linear function. The mean is computed with
        ``more_penalty`` times the penalty of the distribution.
        """
        sums = self.sums(choice)
        root = cholesky(choice.matrix(sums.gram))  # upper: Rᵀ R
        normal = np.random.default_rng((seed, 4)).normal(size=(len(root), n_members))
        normal -= normal.mean(axis=1, keepdims=True)
        normal *= np.sqrt(variance * n_members / max(n_members - 1, 1))
        factor = root, False
        if more_penalty != 1:
            stronger = choice._replace(penalty=more_penalty * choice.penalty)
            factor = cho_factor(stronger.matrix(sums.gram))
        return cho_solve(factor, sums.right) + solve_triangular(root, normal).T

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
    for batch in packer.pack(samples, np.ones((1, len(samples)))):
        total = total.plus(_of_batch(packer, unknowns, batch))
    return total


def _of_batch(packer: Packer, unknowns: Unknowns, batch: Batch) -> Equations:
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
    energies = energies.reshape(n_frames, n_elements, -1) - counts[..., None] * unknowns.mean
    of_energies = np.concatenate(
        [(energies * unknowns.factor).reshape(n_frames, -1), counts * unknowns.has_bias], axis=1
    )
    of_forces = _without_bias(forces * unknowns.factor[:, None, None], n_elements)
    of_virials = _without_bias(virials.swapaxes(0, 1) * unknowns.factor[:, None, None], n_elements)
    root = np.sqrt(n_atoms)
    stresses = batch.stress * (batch.volume / root)[:, None]
    return Equations(
        Sums.of(of_energies / n_atoms[:, None], batch.energy / n_atoms, batch.energy_weight),
        Sums.of(of_forces, batch.forces.reshape(-1), np.repeat(batch.force_weight, 3)),
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
    spectrum = partial(power_spectrum, descriptor, only_forward=True)
    features, along = jax.linearize(spectrum, jnp.asarray(batch.density))
    n_atoms, n_slots, _, n_channels = batch.slopes.shape
    n_elements, n_frames = len(slots), len(batch.energy)
    atoms = jnp.arange(n_atoms)
    # For an empty slot, the neighbour is the atom itself, with slope 0.
    neighbours = jnp.asarray(batch.reverse) // n_slots
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
