"""Makes everything a run needs from frames and settings: architecture, targets, precomputed arrays, scales."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from neuralil_ase.engine.neighbors import Pairs
from neuralil_ase.errors import ConfigError, DataError
from neuralil_ase.evaluation.dataset import Frame, elements_of, pairs_of, types_of
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.spectrum import channels
from neuralil_ase.progress import Progress
from neuralil_ase.samples.batches import (
    Packer,
    Sample,
    Targets,
    neighbour_counts,
    packer_for,
    precompute,
    some_of,
)
from neuralil_ase.samples.cutoff import sight_for, surroundings
from neuralil_ase.samples.least_squares import BEFORE_NETWORKS, LinearFit, some_labelled
from neuralil_ase.samples.linear import Linear, learns_own, linear_of, what_is_left, without_linear
from neuralil_ase.samples.normalisation import Scaling, inlets, scaling_of
from neuralil_ase.samples.reference import (
    energy_reference,
    isolated_energies,
    say_what_is_open,
)
from neuralil_ase.samples.repulsion import repulsion, zbl_radii
from neuralil_ase.training.checkpoint import fingerprint
from neuralil_ase.training.data import without_isolated_atoms
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.warm_start import Start, check_elements, reference_for


@dataclass(frozen=True)
class Task:
    """A training problem.

    Attributes
    ----------
    config, settings
        Architecture of the networks (without the linear part), and settings of the run.
    reference
        Energy of every element in eV, shape (elements,).
    linear
        The linear part, which is subtracted from the labels; None without one.
    scaling
        Scales of descriptor and energy.
    packer
        Makes microbatches.
    train, validation
        Samples. Isolated atoms follow the training frames.
    counts
        How often every member sees each training sample per epoch, shape (members, samples); ones without bootstrap.
    element_fractions
        Smallest and largest fraction of each element in the training frames.
    data
        Fingerprints of the data, see ``checkpoint.fingerprint``.
    start
        The potential that gives the first parameters; None for random ones.
    member
        Index of the member that is trained alone; None if all members are trained together.
    """

    config: ModelConfig
    settings: TrainingSettings
    reference: np.ndarray
    scaling: Scaling
    packer: Packer
    train: list[Sample]
    validation: list[Sample]
    counts: np.ndarray
    element_fractions: Mapping[str, tuple[float, float]]
    data: Mapping[str, str]
    start: Start | None = None
    member: int | None = None
    linear: Linear | None = None

    def of_member(self, member: int) -> "Task":
        """The task of one member, with the same first parameters and frames as in a common training."""
        config = replace(self.config, n_members=1)

        def own(samples: list[Sample]) -> list[Sample]:
            return [replace(s, targets=s.targets.of_member(member)) for s in samples]

        return replace(
            self,
            config=config,
            scaling=self.scaling.of_member(member),
            packer=replace(self.packer, config=config, n_targets=1),
            train=own(self.train),
            validation=own(self.validation),
            counts=self.counts[member : member + 1],
            member=member,
            linear=None if self.linear is None else self.linear.of_member(member),
        )

    @property
    def has_stress(self) -> bool:
        """Whether stresses are learnt: any training sample has one, and their weight is not 0."""
        return self.settings.stress_weight > 0 and any(
            np.isfinite(sample.targets.stress).all() for sample in self.train
        )


def prepare(
    settings: TrainingSettings,
    train: Sequence[Frame],
    validation: Sequence[Frame],
    start: Start | None = None,
    progress: bool = False,
) -> Task:
    """Find elements, cutoff, neighbour counts, repulsion radii and energy reference, and precompute arrays.

    With ``start``, the elements, repulsion radii and energy reference are taken from ``start``, and the settings must
    have its architecture. The energy reference is shifted if the energies of the data have another zero.

    Raises
    ------
    DataError
        If nothing can be learnt from the frames (no labels, or no neighbours inside the cutoff), or if they contain an
        element that ``start`` does not know.
    ConfigError
        If the network can only be trained with ``start``, or cannot be normalised.
    """
    data = fingerprint(train, validation)
    train, atoms = without_isolated_atoms(train, settings)
    frames = [*train, *validation]
    if start is not None:
        check_elements(start, frames)
    elements = elements_of(train) if start is None else start.potential.elements
    _check_validation(validation, elements)
    found = surroundings(train, elements)
    settings = settings.with_descriptor(sight_for(found), elements)
    settings = settings.with_frames(len(train), found.is_molecule)
    alone = isolated_energies(atoms, settings.isolated_atoms, elements)
    if start is None:
        say_what_is_open(train, elements, alone)
        reference = energy_reference(train, elements, alone)
    else:
        reference = reference_for(start, train)
    frames += [_alone(symbol, energy) for symbol, energy in alone.items()]
    types = [types_of(frame, elements) for frame in frames]
    pairs = Neighbourhoods(frames, types, settings.r_cut, settings.memory_budget)
    n_train, n_frames = len(train), len(train) + len(validation)
    config = (
        model_config(settings, elements, pairs, types[:n_train])
        if start is None
        else without_linear(start.potential.config)
    )
    inlets(config)  # raises an error, before the long work, if the network cannot be trained
    slots = _slots(pairs, types, elements)
    samples = _samples(config, settings, frames, types, pairs, reference, slots, progress)
    samples = _weighted(samples, n_train, n_frames)
    packer = packer_for(config, slots, [len(t) for t in types], settings.batch_size)
    linear = None
    if start is not None:
        linear = linear_of(start.potential)
    elif penalties := BEFORE_NETWORKS.get(settings.linear or "none"):
        known = [elements.index(symbol) for symbol in alone]
        labelled = some_labelled(samples[:n_train])
        fit = LinearFit(packer, labelled, known, progress)
        fit.raise_contacts(packer, labelled, progress)
        linear = fit.solve(settings.members, settings.seed, penalties)
    if linear is not None:
        is_own = start is not None and learns_own(start.potential)
        subtracted = linear if is_own else linear.common
        packer = replace(packer, n_targets=len(subtracted.bias))
        samples = what_is_left(packer, subtracted, samples)
    scaling = scaling_of_samples(packer, samples[:n_train])
    counts = np.ones((settings.members, n_train + len(alone)))
    counts[:, :n_train] = _counts(settings, n_train)
    return Task(
        config=config,
        settings=settings,
        reference=reference,
        scaling=scaling,
        packer=packer,
        train=[*samples[:n_train], *samples[n_frames:]],
        validation=samples[n_train:n_frames],
        counts=counts,
        element_fractions=_element_fractions(train, elements),
        data=data,
        start=start,
        linear=linear,
    )


def _alone(symbol: str, energy: float) -> Frame:
    """An isolated atom as a frame."""
    return Frame(
        f"the isolated atom {symbol}",
        np.array([symbol]),
        np.zeros((1, 3)),
        np.zeros((3, 3)),
        np.zeros(3, bool),
        energy,
        None,
        None,
    )


def _element_fractions(
    frames: Sequence[Frame], elements: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    fractions = {
        symbol: [float(np.mean(f.symbols == symbol)) for f in frames] for symbol in elements
    }
    return {symbol: (min(values), max(values)) for symbol, values in fractions.items()}


def _check_validation(validation: Sequence[Frame], elements: tuple[str, ...]) -> None:
    for frame in validation:
        unknown = sorted(set(frame.symbols.tolist()) - set(elements))
        if unknown:
            raise DataError(
                f"the validation frame {frame.source} holds {', '.join(unknown)}, which no training frame holds (only "
                f"{', '.join(elements)}). Move some frames with this element to the training data, or leave them out"
            )


def _weighted(samples: Sequence[Sample], n_train: int, n_frames: int) -> list[Sample]:
    """Samples with weights whose mean over the training frames is 1. Isolated atoms, the last samples, weigh 1 each."""
    mean = float(np.mean([sample.frame.weight for sample in samples[:n_train]]))
    weighted = [replace(s, weight=s.frame.weight / mean) for s in samples[:n_frames]]
    return [*weighted, *samples[n_frames:]]


def model_config(
    settings: TrainingSettings,
    elements: tuple[str, ...],
    pairs: Iterable[Pairs],
    types: Sequence[np.ndarray],
) -> ModelConfig:
    """The architecture given by the settings. Repulsion radii come from the first ``len(types)`` items of ``pairs``."""
    if settings.network == "heteroscedastic":
        raise ConfigError(
            "the network 'heteroscedastic' is the published architecture of deep ensembles. It can be trained from an "
            "imported model (start_from), but not from random parameters: gradients vanish too "
            "easily in the swish function before σ². For a new model with aleatoric layers use 'core' with head_widths"
        )
    aleatoric = () if settings.network == "resnet" else settings.head_widths
    use_zbl = settings.pair_term == "zbl"
    return ModelConfig(
        DescriptorConfig(
            elements,
            settings.n_max,
            settings.r_cut,
            settings.cross_terms,
            settings.radial_scaling or 0,
        ),
        NetworkConfig(
            settings.network,
            settings.widths,
            aleatoric,
            settings.activation,
            settings.embed_d,
            settings.shared_layers,
        ),
        settings.members,
        settings.pair_term,
        zbl_radii(pairs, types, elements, settings.r_cut) if use_zbl else (),
    )


class Neighbourhoods:
    """Yields the pairs of one frame after another. Pairs that fit in the memory budget are computed only once.

    Parameters
    ----------
    frames, types
        The frames and the types of their atoms.
    r_cut
        Cutoff in Å.
    budget
        Bytes that may be kept.
    """

    def __init__(
        self, frames: Sequence[Frame], types: Sequence[np.ndarray], r_cut: float, budget: int
    ) -> None:
        self._frames, self._types, self._r_cut = frames, types, r_cut
        self._kept: list[Pairs] = []
        self._free = budget

    def __iter__(self) -> Iterator[Pairs]:
        for k, (frame, types) in enumerate(zip(self._frames, self._types, strict=True)):
            if k < len(self._kept):
                yield self._kept[k]
                continue
            found = pairs_of(frame, types, self._r_cut)
            size = sum(values.nbytes for values in found)
            if k == len(self._kept) and size <= self._free:
                self._kept.append(found)
                self._free -= size
            yield found


def _slots(
    pairs: Iterable[Pairs], types: Sequence[np.ndarray], elements: tuple[str, ...]
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
    pairs: Iterable[Pairs],
    reference: np.ndarray,
    slots: tuple[int, ...],
    progress: bool,
) -> list[Sample]:
    n_channels = len(channels(config.descriptor)[0])
    size = 12 * sum(slots) * n_channels * sum(len(t) for t in types)
    keep = size <= settings.memory_budget
    samples: list[Sample] = []
    with Progress(len(frames), "frame", "preparing", progress) as bar:
        for frame, t, p in zip(frames, types, pairs, strict=True):
            targets = make_targets(config, frame, t, p, reference)
            arrays = precompute(config.descriptor, p, t, slots) if keep else None
            samples.append(Sample(frame, t, None, frame.volume or 1.0, targets, arrays))
            bar.update(len(samples))
    return samples


def scaling_of_samples(packer: Packer, samples: Sequence[Sample]) -> Scaling:
    """Scales of descriptor and energy."""
    features = packer.features(some_of(samples))
    labelled = [s.targets.forces for s in samples if np.isfinite(s.targets.forces).all()]
    rms = np.full(1, np.nan)
    if labelled:
        rms = np.sqrt(np.mean(np.concatenate(labelled, axis=1) ** 2, axis=(1, 2)))
    return scaling_of(features, np.broadcast_to(rms, packer.n_targets))


def _counts(settings: TrainingSettings, n_samples: int) -> np.ndarray:
    shape = (settings.members, n_samples)
    if not settings.bootstrap:
        return np.ones(shape)
    rng = np.random.default_rng((settings.seed, 1))
    return rng.multinomial(n_samples, np.full(n_samples, 1 / n_samples), settings.members).astype(
        float
    )


def make_targets(
    config: ModelConfig, frame: Frame, types: np.ndarray, pairs: Pairs, reference: np.ndarray
) -> Targets:
    """Targets of the network for one frame, without energy reference and repulsion."""
    energy, forces, virial = repulsion(config, types, pairs)
    target = np.nan if frame.energy is None else frame.energy - reference[types].sum() - energy
    target_forces = np.full((len(types), 3), np.nan)
    if frame.forces is not None:
        target_forces = frame.forces - forces
    stress = np.full(6, np.nan)
    if frame.stress is not None and frame.volume is not None:
        stress = frame.stress - virial / frame.volume
    return Targets(np.array([target], float), target_forces[None], stress[None])
