"""Frames → padded microbatches of one shape, so that a run compiles its functions once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuralil_ase.engine.neighbors import Pairs
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.spectrum import channels
from neuralil_ase.training.labels import Labels
from neuralil_ase.training.objective import Batch
from neuralil_ase.training.precompute import FrameArrays, precompute

MICROBATCH_ATOMS = 256
"""Atoms evaluated together: the arrays of eight members then stay in the caches of a CPU."""


@dataclass(frozen=True)
class Sample:
    """One frame, ready for training; ``arrays`` is None where memory does not allow to keep them."""

    types: np.ndarray
    pairs: Pairs
    volume: float
    labels: Labels
    arrays: FrameArrays | None


@dataclass(frozen=True)
class Packer:
    """Packs frames into microbatches of ``n_atoms`` atoms and ``n_frames`` frames (one of them padding)."""

    config: ModelConfig
    slots: tuple[int, ...]
    n_atoms: int
    n_frames: int

    def pack(self, samples: Sequence[Sample], weights: np.ndarray) -> Iterator[Batch]:
        """Microbatches that hold the samples in their order; ``weights`` has shape (members, samples)."""
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
            _fill_labels(batch, sample.labels, k, rows)
            start = rows.stop
        return batch

    def arrays(self, sample: Sample) -> FrameArrays:
        """Densities and slopes of a frame."""
        return precompute(self.config.descriptor, sample.pairs, sample.types, self.slots)

    def _empty(self, n_members: int) -> Batch:
        n, b, s = self.n_atoms, self.n_frames, sum(self.slots)
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
            energy=np.zeros(b, f32),
            energy_weight=np.zeros(b, f32),
            forces=np.zeros((n, 3), f32),
            force_weight=np.zeros(n, f32),
            stress=np.zeros((b, 6), f32),
            stress_weight=np.zeros(b, f32),
            n_atoms=np.ones(b, f32),
            volume=np.ones(b, f32),
            member_weight=np.zeros((n_members, b), f32),
        )


def packer_for(
    config: ModelConfig, slots: tuple[int, ...], sizes: Sequence[int], batch_size: int
) -> Packer:
    """A packer whose microbatches hold the largest frame, or several small ones."""
    largest = max(sizes)
    n_atoms = largest * max(1, min(MICROBATCH_ATOMS // largest, batch_size))
    return Packer(config, slots, n_atoms, min(batch_size, n_atoms // min(sizes)) + 1)


def _fill_labels(batch: Batch, labels: Labels, k: int, rows: slice) -> None:
    """Copy labels; a missing one keeps weight zero."""
    if np.isfinite(labels.energy):
        batch.energy[k], batch.energy_weight[k] = labels.energy, 1
    if np.isfinite(labels.forces).all():
        batch.forces[rows], batch.force_weight[rows] = labels.forces, 1
    if np.isfinite(labels.stress).all():
        batch.stress[k], batch.stress_weight[k] = labels.stress, 1
