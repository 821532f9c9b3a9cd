"""From frames and settings to everything a run needs: architecture, targets, precomputed arrays, scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuralil_ase.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.errors import DataError
from neuralil_ase.neighbors import Pairs
from neuralil_ase.training.batches import Packer, Sample, packer_for
from neuralil_ase.training.dataset import Frame
from neuralil_ase.training.folding import Scaling, inlets, scaling_of
from neuralil_ase.training.labels import (
    elements_of,
    energy_reference,
    make_labels,
    pairs_of,
    types_of,
    zbl_radii,
)
from neuralil_ase.training.precompute import columns, neighbour_counts, precompute
from neuralil_ase.training.settings import TrainingSettings


@dataclass(frozen=True)
class Task:
    """A training problem.

    Attributes
    ----------
    config, settings
        Architecture and options.
    reference
        Energy of every element in eV, shape (elements,).
    scaling
        Scales of descriptor and energy.
    packer
        Makes microbatches.
    train, validation
        Samples.
    counts
        How often every member sees each training sample, shape (members, samples); ones without bootstrap.
    """

    config: ModelConfig
    settings: TrainingSettings
    reference: np.ndarray
    scaling: Scaling
    packer: Packer
    train: list[Sample]
    validation: list[Sample]
    counts: np.ndarray

    @property
    def has_stress(self) -> bool:
        """Whether any training sample has a stress, and it counts."""
        return self.settings.stress_weight > 0 and any(
            np.isfinite(sample.labels.stress).all() for sample in self.train
        )


def prepare(
    settings: TrainingSettings, train: Sequence[Frame], validation: Sequence[Frame]
) -> Task:
    """Find elements, neighbour counts, repulsion radii and energy reference, and precompute.

    Raises
    ------
    DataError
        If nothing can be learnt from the frames: no labels, or no neighbours inside the cutoff.
    """
    settings = settings.with_epochs(len(train))
    elements = elements_of(train)
    frames = [*train, *validation]
    types = [types_of(frame, elements) for frame in frames]
    pairs = [pairs_of(frame, t, settings.r_cut) for frame, t in zip(frames, types, strict=True)]
    n_train = len(train)
    config = model_config(settings, elements, pairs[:n_train], types[:n_train])
    inlets(config)  # refuses what cannot be trained, before the long work
    reference = energy_reference(train, elements, settings.isolated_atoms)
    slots = _slots(pairs, types, elements)
    samples = _samples(config, settings, frames, types, pairs, reference, slots)
    packer = packer_for(config, slots, [len(t) for t in types], settings.batch_size)
    return Task(
        config,
        settings,
        reference,
        _scaling(packer, samples[:n_train]),
        packer,
        samples[:n_train],
        samples[n_train:],
        _counts(settings, n_train),
    )


def model_config(
    settings: TrainingSettings,
    elements: tuple[str, ...],
    pairs: Sequence[Pairs],
    types: Sequence[np.ndarray],
) -> ModelConfig:
    """The architecture that the settings ask for, with repulsion radii from the data."""
    heads = settings.head_widths
    if settings.network == "heteroscedastic" and not heads:
        heads = (16,)
    use_zbl = settings.pair_term == "zbl"
    return ModelConfig(
        DescriptorConfig(elements, settings.n_max, settings.r_cut, settings.cross_terms),
        NetworkConfig(
            settings.network,
            settings.widths,
            heads,
            settings.activation,
            settings.embed_d,
            settings.shared_layers,
        ),
        settings.members,
        settings.pair_term,
        zbl_radii(pairs, types, elements, settings.r_cut) if use_zbl else (),
    )


def _slots(
    pairs: Sequence[Pairs], types: Sequence[np.ndarray], elements: tuple[str, ...]
) -> tuple[int, ...]:
    counts = [
        neighbour_counts(p, t, len(elements)).max(axis=0) for p, t in zip(pairs, types, strict=True)
    ]
    slots = np.max(counts, axis=0)
    if slots.sum() == 0:
        raise DataError(
            "no atom has a neighbour inside the cutoff; are the positions in Å, and is r_cut large enough?"
        )
    return tuple(int(count) for count in slots)


def _samples(
    config: ModelConfig,
    settings: TrainingSettings,
    frames: Sequence[Frame],
    types: Sequence[np.ndarray],
    pairs: Sequence[Pairs],
    reference: np.ndarray,
    slots: tuple[int, ...],
) -> list[Sample]:
    n_columns = columns(config.descriptor).shape[1]
    size = 12 * sum(slots) * n_columns * sum(len(t) for t in types)
    keep = size <= settings.memory_budget
    return [
        Sample(
            t,
            p,
            frame.volume or 1.0,
            make_labels(config, frame, t, p, reference),
            precompute(config.descriptor, p, t, slots) if keep else None,
        )
        for frame, t, p in zip(frames, types, pairs, strict=True)
    ]


def _scaling(packer: Packer, samples: Sequence[Sample]) -> Scaling:
    """From at most 64 samples, spread over the data."""
    chosen = samples[:: max(1, len(samples) // 64)]
    features = np.concatenate([(s.arrays or packer.arrays(s)).features for s in chosen])
    forces = np.concatenate([sample.labels.forces for sample in samples])
    finite = forces[np.isfinite(forces)]
    return scaling_of(features, float(np.sqrt(np.mean(finite**2))) if finite.size else np.nan)


def _counts(settings: TrainingSettings, n_samples: int) -> np.ndarray:
    shape = (settings.members, n_samples)
    if not settings.bootstrap:
        return np.ones(shape)
    rng = np.random.default_rng((settings.seed, 1))
    return rng.multinomial(n_samples, np.full(n_samples, 1 / n_samples), settings.members).astype(
        float
    )
