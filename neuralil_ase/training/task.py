"""From frames and settings to everything a run needs: architecture, targets, precomputed arrays, scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from tqdm import tqdm

from neuralil_ase.engine.neighbors import Pairs
from neuralil_ase.errors import ConfigError, DataError
from neuralil_ase.evaluation.dataset import Frame, elements_of, pairs_of, types_of
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.spectrum import channels, power_spectrum
from neuralil_ase.training.batches import Packer, Sample, packer_for
from neuralil_ase.training.folding import Scaling, inlets, scaling_of
from neuralil_ase.training.labels import (
    energy_reference,
    make_labels,
    neighbour_distance,
    zbl_radii,
)
from neuralil_ase.training.precompute import neighbour_counts, precompute
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.start import Start, check_elements, reference_for


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
    start
        The potential whose parameters come first; None to begin with random ones.
    """

    config: ModelConfig
    settings: TrainingSettings
    reference: np.ndarray
    scaling: Scaling
    packer: Packer
    train: list[Sample]
    validation: list[Sample]
    counts: np.ndarray
    start: Start | None = None

    @property
    def has_stress(self) -> bool:
        """Whether any training sample has a stress, and it counts."""
        return self.settings.stress_weight > 0 and any(
            np.isfinite(sample.labels.stress).all() for sample in self.train
        )


def prepare(
    settings: TrainingSettings,
    train: Sequence[Frame],
    validation: Sequence[Frame],
    start: Start | None = None,
    progress: bool = False,
) -> Task:
    """Find elements, cutoff, neighbour counts, repulsion radii and energy reference, and precompute.

    Elements and radii are those of ``start``, where there is one, and so is the reference unless the data have another
    zero of energy; the settings must have its architecture.

    Raises
    ------
    DataError
        If nothing can be learnt from the frames: no labels, or no neighbours inside the cutoff; or if they hold an
        element that ``start`` does not know.
    ConfigError
        If the network is one that is not trained anew, or that training cannot normalise.
    """
    frames = [*train, *validation]
    if start is not None:
        check_elements(start, frames)
    elements = elements_of(train) if start is None else start.potential.elements
    settings = settings.with_epochs(len(train))
    settings = settings.with_descriptor(neighbour_distance(train, elements))
    types = [types_of(frame, elements) for frame in frames]
    pairs = [pairs_of(frame, t, settings.r_cut) for frame, t in zip(frames, types, strict=True)]
    n_train = len(train)
    if start is None:
        config = model_config(settings, elements, pairs[:n_train], types[:n_train])
        reference = energy_reference(train, elements, settings.isolated_atoms)
    else:
        config, reference = start.potential.config, reference_for(start, train)
    inlets(config)  # refuses what cannot be trained, before the long work
    slots = _slots(pairs, types, elements)
    samples = _samples(config, settings, frames, types, pairs, reference, slots, progress)
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
        start,
    )


def model_config(
    settings: TrainingSettings,
    elements: tuple[str, ...],
    pairs: Sequence[Pairs],
    types: Sequence[np.ndarray],
) -> ModelConfig:
    """The architecture that the settings ask for, with repulsion radii from the data."""
    if settings.network == "heteroscedastic":
        raise ConfigError(
            "the network 'heteroscedastic' is the published architecture of deep ensembles, which is trained on from "
            "an imported model (start_from), not anew: its swish in front of σ² dies too easily. For a new deep "
            "ensemble leave the network at 'core', whose head_widths lead to the variances"
        )
    heads = () if settings.network == "resnet" else settings.head_widths
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
    progress: bool,
) -> list[Sample]:
    n_channels = len(channels(config.descriptor)[0])
    size = 12 * sum(slots) * n_channels * sum(len(t) for t in types)
    keep = size <= settings.memory_budget
    return [
        Sample(
            t,
            p,
            frame.volume or 1.0,
            make_labels(config, frame, t, p, reference),
            precompute(config.descriptor, p, t, slots) if keep else None,
        )
        for frame, t, p in tqdm(
            zip(frames, types, pairs, strict=True),
            desc="preparing",
            total=len(frames),
            unit="frame",
            disable=not progress,
            dynamic_ncols=True,
        )
    ]


def _scaling(packer: Packer, samples: Sequence[Sample]) -> Scaling:
    """From at most 64 samples, spread over the data."""
    chosen = samples[:: max(1, len(samples) // 64)]
    density = np.concatenate([(s.arrays or packer.arrays(s)).density for s in chosen])
    describe = jax.jit(power_spectrum, static_argnums=0)
    features = np.asarray(describe(packer.config.descriptor, density))
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
