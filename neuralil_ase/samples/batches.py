"""Packs frames into padded microbatches of one shape, so that a run compiles its functions once.

The descriptor has no trainable parameters. Density coefficients and their slopes are therefore computed once per frame
and used in every epoch, by all members. The slope of a pair is the derivative of its contribution to the density
coefficients by the pair vector. A force is then a matrix product of these slopes and the derivative of the energy by
the coefficients. A pair (i, j) contributes only to the coefficients of the element of j. The slots for neighbours are
therefore grouped by element, and a microbatch needs a few batched matrix products and no scatter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from neuralil_ase.engine.neighbors import Pairs
from neuralil_ase.evaluation.dataset import Frame, pairs_of
from neuralil_ase.model.config import DescriptorConfig, ModelConfig
from neuralil_ase.model.descriptors import pair_products
from neuralil_ase.model.spectrum import channels, power_spectrum
from neuralil_ase.samples.forward import Batch

MICROBATCH_ATOMS = 256
"""Atoms evaluated together. At this size the arrays of eight members stay in the caches of a CPU."""
FRAMES_OF_SUMS = 17
"""Frames evaluated together, if they have few atoms, where no optimiser step follows (one of them is padding)."""
FEATURE_BLOCK = 256
"""Atoms whose descriptors are evaluated together. The number is the same for all frames, so that this compiles once."""
PAIR_BLOCK = 1024
"""Pairs differentiated together. The number is the same for all frames, so that the function is compiled once."""


@dataclass(frozen=True)
class FrameArrays:
    """One frame as training sees it; N atoms, S slots, C channels (n, l, m).

    Attributes
    ----------
    density
        Density coefficients of every atom, shape (N, elements, C), float32.
    types
        Element indices, shape (N,).
    slopes
        Derivative by r_ij of the pair's contribution to the density coefficients, shape (N, S, 3, C), float32; zero in
        empty slots.
    vectors
        r_ij in Å, shape (N, S, 3), float32; zero in empty slots.
    reverse
        Flat index (atom * S + slot) of the pair (j, i) for every slot, shape (N, S). An empty slot holds its own index.
    """

    density: np.ndarray
    types: np.ndarray
    slopes: np.ndarray
    vectors: np.ndarray
    reverse: np.ndarray


@dataclass(frozen=True)
class Targets:
    """What is learnt from the labels of one frame: the rest after subtracting known parts. NaN for missing labels.

    The first axis has length 1 if all members learn what the mean of their linear parts leaves. It has one row for each
    member if each learns what its own linear part leaves, or if only some members have one.

    Attributes
    ----------
    energy
        In eV, shape (1 or M,), reference, repulsion and linear part subtracted.
    forces
        In eV/Å, shape (1 or M, N, 3), repulsion and linear part subtracted.
    stress
        In eV/Å³, shape (1 or M, 6), repulsion and linear part subtracted.
    """

    energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray

    def of_member(self, member: int) -> "Targets":
        """The targets of one member, with a first axis of length 1."""
        row = slice(member, member + 1) if len(self.energy) > 1 else slice(None)
        return Targets(self.energy[row], self.forces[row], self.stress[row])


@dataclass(frozen=True)
class Sample:
    """One frame, ready for training.

    ``arrays`` is None if they exceed the memory budget. They are then computed for each microbatch that needs them,
    from ``pairs``, or from ``frame`` if ``pairs`` is None. The mean of ``weight`` over the training frames is 1.
    """

    frame: Frame
    types: np.ndarray
    pairs: Pairs | None
    volume: float
    targets: Targets
    arrays: FrameArrays | None
    weight: float = 1.0


@dataclass(frozen=True)
class Packer:
    """Packs frames into microbatches of ``n_atoms`` atoms and ``n_frames`` frames (one of them padding).

    ``n_targets`` is the length of the first axis of the targets: 1, or the number of members.
    """

    config: ModelConfig
    slots: tuple[int, ...]
    n_atoms: int
    n_frames: int
    n_targets: int = 1

    def for_sums(self) -> "Packer":
        """A packer for sums over whole labels, where small frames need not be spread over many optimiser steps."""
        return replace(self, n_frames=max(self.n_frames, FRAMES_OF_SUMS), n_targets=1)

    def pack(self, samples: Sequence[Sample], weights: np.ndarray) -> Iterator[Batch]:
        """Yield microbatches with the samples in their order; ``weights`` has shape (members, samples)."""
        start, filled = 0, 0
        for k, sample in enumerate(samples):
            size = len(sample.types)
            if k > start and (filled + size > self.n_atoms or k - start == self.n_frames - 1):
                yield self._batch(samples[start:k], weights[:, start:k])
                start, filled = k, 0
            filled += size
        yield self._batch(samples[start:], weights[:, start:])

    def _batch(self, samples: Sequence[Sample], weights: np.ndarray) -> Batch:
        batch = self._empty(len(weights))
        start, n_slots = 0, sum(self.slots)
        for k, sample in enumerate(samples):
            arrays = sample.arrays or self.arrays(sample)
            rows = slice(start, start + len(sample.types))
            batch.density[rows] = arrays.density
            batch.types[rows] = arrays.types
            batch.slopes[rows] = arrays.slopes
            batch.vectors[rows] = arrays.vectors
            batch.reverse[rows] = arrays.reverse + start * n_slots
            batch.frame[rows] = k
            batch.n_atoms[k] = len(sample.types)
            batch.volume[k] = sample.volume
            batch.member_weight[:, k] = weights[:, k]
            _fill_targets(batch, sample, k, rows)
            start = rows.stop
        return batch

    def arrays(self, sample: Sample) -> FrameArrays:
        """Densities and slopes of a frame."""
        pairs = sample.pairs
        if pairs is None:
            pairs = pairs_of(sample.frame, sample.types, self.config.descriptor.r_cut)
        return precompute(self.config.descriptor, pairs, sample.types, self.slots)

    def features(self, samples: Sequence[Sample]) -> np.ndarray:
        """Descriptors of all atoms of these samples, shape (N, F), evaluated in blocks of one shape."""
        density = np.concatenate([(s.arrays or self.arrays(s)).density for s in samples])
        return features_of(self.config.descriptor, density)

    def _empty(self, n_members: int) -> Batch:
        n, b, s, t = self.n_atoms, self.n_frames, sum(self.slots), self.n_targets
        descriptor = self.config.descriptor
        n_channels = len(channels(descriptor)[0])
        f32 = np.float32
        return Batch(
            density=np.zeros((n, len(descriptor.elements), n_channels), f32),
            types=np.zeros(n, np.int32),
            slopes=np.zeros((n, s, 3, n_channels), f32),
            vectors=np.zeros((n, s, 3), f32),
            reverse=np.arange(n * s, dtype=np.int32).reshape(n, s),
            frame=np.full(n, b - 1, np.int32),
            energy=np.zeros((t, b), f32),
            energy_weight=np.zeros(b, f32),
            forces=np.zeros((t, n, 3), f32),
            force_weight=np.zeros(n, f32),
            stress=np.zeros((t, b, 6), f32),
            stress_weight=np.zeros(b, f32),
            n_atoms=np.ones(b, f32),
            volume=np.ones(b, f32),
            member_weight=np.zeros((n_members, b), f32),
        )


def features_of(config: DescriptorConfig, density: np.ndarray) -> np.ndarray:
    """Descriptors, shape (N, F), from density coefficients, (N, elements, C); in blocks of one shape."""
    padding = -len(density) % FEATURE_BLOCK
    padded = np.concatenate([density, np.zeros((padding, *density.shape[1:]), density.dtype)])
    blocks = np.split(padded, len(padded) // FEATURE_BLOCK)
    return np.concatenate([np.asarray(_features(config, block)) for block in blocks])[
        : len(density)
    ]


_features = jax.jit(partial(power_spectrum, only_forward=True), static_argnums=0)


def densities(
    config: DescriptorConfig, pairs: Pairs, types: np.ndarray, n_elements: int
) -> np.ndarray:
    """Density coefficients of all atoms of a structure, shape (N, elements, C)."""
    vectors = pairs.vectors.astype(np.float32)
    blocks = in_blocks(vectors, PAIR_BLOCK, 1.01 * config.r_cut)
    products = np.concatenate([np.asarray(_products(config, block)) for block in blocks])
    return _density(products[: len(vectors)], pairs, types, n_elements)


_products = jax.jit(pair_products, static_argnums=0)


def some_of(samples: Sequence[Sample]) -> Sequence[Sample]:
    """About 64 samples spread over the data, from which scales are taken."""
    return samples[:: max(1, len(samples) // 64)]


def packer_for(
    config: ModelConfig, slots: tuple[int, ...], sizes: Sequence[int], batch_size: int
) -> Packer:
    """A packer whose microbatches hold the largest frame, or several small ones."""
    largest = max(sizes)
    n_atoms = largest * max(1, min(MICROBATCH_ATOMS // largest, batch_size))
    return Packer(config, slots, n_atoms, min(batch_size, n_atoms // min(sizes)) + 1)


def _fill_targets(batch: Batch, sample: Sample, k: int, rows: slice) -> None:
    """Copy the targets. A missing label keeps the weight zero."""
    targets, weight = sample.targets, sample.weight
    if np.isfinite(targets.energy).all():
        batch.energy[:, k], batch.energy_weight[k] = targets.energy, weight
    if np.isfinite(targets.forces).all():
        batch.forces[:, rows], batch.force_weight[rows] = targets.forces, weight
    if np.isfinite(targets.stress).all():
        batch.stress[:, k], batch.stress_weight[k] = targets.stress, weight


def neighbour_counts(pairs: Pairs, types: np.ndarray, n_elements: int) -> np.ndarray:
    """Number of neighbours of every atom by their element, shape (N, elements)."""
    flat = pairs.centers * n_elements + types[pairs.neighbors]
    return np.bincount(flat, minlength=len(types) * n_elements).reshape(len(types), n_elements)


def precompute(
    config: DescriptorConfig, pairs: Pairs, types: np.ndarray, slots: tuple[int, ...]
) -> FrameArrays:
    """Densities and slopes of one frame.

    Parameters
    ----------
    config
        The descriptor.
    pairs, types
        Pairs inside the cutoff, sorted by center and then by the neighbour's type, and the type of every atom.
    slots
        Number of slots for every neighbour element, no smaller than the largest count.
    """
    n_atoms, n_slots = len(types), sum(slots)
    products, slopes = _products_and_slopes(config, pairs.vectors.astype(np.float32))
    slot = _slot_of_pairs(pairs, types, slots)
    return FrameArrays(
        _density(products, pairs, types, len(slots)),
        types.astype(np.int32),
        _into_slots(slopes, pairs.centers, slot, n_atoms, n_slots),
        _into_slots(pairs.vectors.astype(np.float32), pairs.centers, slot, n_atoms, n_slots),
        _reverse(pairs, slot, n_atoms, n_slots),
    )


def _products_and_slopes(
    config: DescriptorConfig, vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Contribution of every pair to the density, (P, C), and its derivative by the pair vector, (P, 3, C)."""
    blocks = [
        _block(config, block) for block in in_blocks(vectors, PAIR_BLOCK, 1.01 * config.r_cut)
    ]
    products, slopes = (
        np.concatenate([np.asarray(x) for x in part]) for part in zip(*blocks, strict=True)
    )
    return products[: len(vectors)], slopes[: len(vectors)]


def in_blocks(vectors: np.ndarray, size: int, length: float) -> list[np.ndarray]:
    """Pair vectors in blocks of equal size. The last block is filled up with vectors of this length in Å."""
    n_blocks = max(1, -(-len(vectors) // size))
    padded = np.zeros((n_blocks * size, 3), vectors.dtype)
    padded[:, 0] = length
    padded[: len(vectors)] = vectors
    return np.split(padded, n_blocks)


@partial(jax.jit, static_argnums=0)
def _block(config: DescriptorConfig, vectors: Array) -> tuple[Array, Array]:
    def along(direction: Array) -> tuple[Array, Array]:
        tangent = jnp.broadcast_to(direction, vectors.shape)
        return jax.jvp(lambda v: pair_products(config, v), (vectors,), (tangent,))

    return jax.vmap(along, out_axes=(None, 1))(jnp.eye(3, dtype=vectors.dtype))


def _density(products: np.ndarray, pairs: Pairs, types: np.ndarray, n_elements: int) -> np.ndarray:
    """Density coefficients, (N, elements, C): sums over the neighbours of each element."""
    density = np.zeros((len(types) * n_elements, products.shape[1]), products.dtype)
    segments = pairs.centers.astype(np.int64) * n_elements + types[pairs.neighbors]
    starts = np.flatnonzero(np.diff(segments, prepend=-1))
    if len(starts):
        density[segments[starts]] = np.add.reduceat(products, starts, axis=0)
    return density.reshape(len(types), n_elements, -1)


def _slot_of_pairs(pairs: Pairs, types: np.ndarray, slots: tuple[int, ...]) -> np.ndarray:
    """Slot of every pair within its center: the block of its element, and its rank in that block."""
    n_elements = len(slots)
    segment = pairs.centers * n_elements + types[pairs.neighbors]
    starts = np.searchsorted(segment, segment, side="left")
    offsets = np.cumsum((0, *slots[:-1]))
    return offsets[types[pairs.neighbors]] + np.arange(len(segment)) - starts


def _into_slots(
    values: np.ndarray, centers: np.ndarray, slot: np.ndarray, n_atoms: int, n_slots: int
) -> np.ndarray:
    slotted = np.zeros((n_atoms, n_slots, *values.shape[1:]), values.dtype)
    slotted[centers, slot] = values
    return slotted


def _reverse(pairs: Pairs, slot: np.ndarray, n_atoms: int, n_slots: int) -> np.ndarray:
    """Flat index of the pair (j, i) with the opposite vector, for every slot."""
    flat = pairs.centers.astype(np.int64) * n_slots + slot
    # Several images of j can be neighbours of i. The projection on a generic direction tells them apart.
    projection = pairs.vectors @ np.array((0.5377, 0.8339, 0.1241))
    forward = np.lexsort((projection, pairs.neighbors, pairs.centers))
    backward = np.lexsort((-projection, pairs.centers, pairs.neighbors))
    reverse = np.arange(n_atoms * n_slots, dtype=np.int32)
    reverse[flat[forward]] = flat[backward]
    return reverse.reshape(n_atoms, n_slots)
