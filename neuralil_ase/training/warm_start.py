"""Training that starts from a potential: which settings it fixes, and which data it cannot learn."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from neuralil_ase.errors import ConfigError, DataError
from neuralil_ase.evaluation.dataset import Frame, types_of
from neuralil_ase.evaluation.evaluate import OWN_PREDICTION, predict_frames
from neuralil_ase.files.model_file import load_potential
from neuralil_ase.model.potential import Params, Potential, cast_params, flatten
from neuralil_ase.samples.linear import linear_members, with_linear
from neuralil_ase.samples.reference import energy_reference
from neuralil_ase.training.settings import TrainingSettings

logger = logging.getLogger(__name__)
OTHER_ZERO = 0.05
"""Smallest shift, in eV/atom, that counts as another zero of energy. The network learns smaller shifts."""
LEFT_BY_SHIFT = 0.3
"""Largest fraction of the energy errors (root mean square) that may remain after the shift."""


@dataclass(frozen=True)
class Start:
    """The potential that a run begins with.

    The run keeps the architecture and repulsion radii of this potential. It also keeps the energy reference, unless the
    energies of the data have another zero (:func:`reference_for`). The parameters of the potential are the initial
    parameters of the run. The run therefore begins with the forces of the potential (to float32 rounding).

    Attributes
    ----------
    potential
        The potential, with the normalisation folded into its layers as in every model file.
    name
        Name of the file, without its folder.
    """

    potential: Potential
    name: str

    @property
    def params(self) -> Params:
        """Parameters of the networks in the precision of training."""
        return cast_params(with_linear(self.potential, None).params, np.float32)

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that the predictions depend on: architecture, parameters, energy reference."""
        digest = hashlib.sha256(repr(self.potential.config).encode())
        arrays = flatten(self.potential.params)
        for name in sorted(arrays):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
        digest.update(np.asarray(self.potential.energy_reference, np.float64).tobytes())
        return digest.hexdigest()

    @property
    def provenance(self) -> dict[str, str]:
        """What the new model file says about its start."""
        return {"file": self.name, "sha256": self.sha256}


def start_of(model: str | Path | Potential) -> Start:
    """A model file or a potential in memory as the start of a run.

    Raises
    ------
    ModelFileError
        If the file cannot be read.
    ConfigError
        If the potential has a trained pair term, as some published potentials have.
    """
    if isinstance(model, Potential):
        start = Start(model, "a potential in memory")
    else:
        start = Start(load_potential(model), Path(model).name)
    pair_term = start.potential.config.pair_term
    if pair_term not in ("zbl", "none"):
        raise ConfigError(
            f"training cannot start from {start.name}: its pair term {pair_term!r} came with a published file and "
            "cannot be trained. Start from a model with pair term 'zbl' or 'none', or train a new model"
        )
    return start


def settings_from(
    start: Start, settings: TrainingSettings, given: Mapping[str, Any]
) -> TrainingSettings:
    """The settings with the architecture of the start.

    Parameters
    ----------
    start
        The potential to start from.
    settings
        All settings. Settings that differ from the defaults also count as given.
    given
        Options that were given explicitly; only their names matter.

    Raises
    ------
    ConfigError
        If options contradict the architecture or energy reference. The message names them.
    """
    fixed, defaults = _fixed_by(start.potential), TrainingSettings()
    wrong = [
        f"{name} (model: {value}, requested: {getattr(settings, name)})"
        for name, value in fixed.items()
        if name in given or getattr(settings, name) != getattr(defaults, name)
        if getattr(settings, name) != value
    ]
    if wrong:
        raise ConfigError(
            f"training that starts from {start.name} keeps its architecture and energy reference, but the options "
            f"contradict them: {'; '.join(wrong)}. Leave these options out, or train a new model without start_from"
        )
    del fixed["isolated_atoms"]  # part of the energy reference, which is kept
    return replace(settings, **fixed)


def check_elements(start: Start, frames: Sequence[Frame]) -> None:
    """Check that the start knows all elements in the data.

    Raises
    ------
    DataError
        If an element is unknown. The message names the first such frame.
    """
    known = set(start.potential.elements)
    for frame in frames:
        unknown = sorted(set(frame.symbols.tolist()) - known)
        if unknown:
            raise DataError(
                f"{frame.source} holds {', '.join(unknown)}, but the model to start from, {start.name}, knows only "
                f"{', '.join(start.potential.elements)}. Leave such frames out, or train a new model on all data"
            )


def reference_for(
    start: Start, frames: Sequence[Frame], is_same_source: bool = False
) -> np.ndarray:
    """Energy of every element in eV: the reference of the start, shifted if the energies have another zero.

    Another code, functional or pseudopotential shifts all energies by a constant per element, which the networks should
    not have to learn. The shift is the least-squares fit to the energy errors per atom of the start. The shift is
    applied only if it is large and explains nearly all of the errors. It would not explain the errors of the potential
    itself. With ``is_same_source``, all labels of the start are by the same code, and a new composition only shows the
    energy of its elements: this is no reason for a warning.
    """
    reference, elements = start.potential.energy_reference, start.potential.elements
    known = [frame for frame in frames if frame.energy is not None]
    if not known:
        return reference
    predictions = predict_frames(start.potential, known, "off")
    missed = [
        replace(frame, energy=frame.energy - prediction.energy)  # type: ignore[operator]  # all known have one
        for frame, prediction in zip(known, predictions, strict=True)
    ]
    shift = energy_reference(missed, elements)
    sizes = np.array([len(frame.symbols) for frame in missed])
    errors = np.array([frame.energy for frame in missed]) / sizes
    moved = np.array([shift[types_of(frame, elements)].sum() for frame in missed]) / sizes
    left, before = (np.sqrt(np.mean(x**2)) for x in (errors - moved, errors))
    if np.sqrt(np.mean(moved**2)) < OTHER_ZERO or left > LEFT_BY_SHIFT * before:
        _say_if_these_are_its_own(start, errors)
        return reference
    logger.log(
        logging.INFO if is_same_source else logging.WARNING,
        "the energies of the data differ by %.4g eV/atom from those of %s, by the same amount in all frames of a "
        "composition: they have another zero. The energy reference is shifted to it (%s eV)",
        np.sqrt(np.mean(moved**2)),
        start.name,
        ", ".join(f"{symbol} {by:+.4g}" for symbol, by in zip(elements, shift, strict=True)),
    )
    return reference + shift


def _say_if_these_are_its_own(start: Start, errors: np.ndarray) -> None:
    if len(errors) > 1 and np.abs(errors).max() < OWN_PREDICTION:
        logger.warning(
            "the energies of the data are the predictions of %s itself: nothing can be learnt from them. Do the labels "
            "of the reference method have another name?",
            start.name,
        )


def _fixed_by(potential: Potential) -> dict[str, Any]:
    """The settings that the potential fixes, by name."""
    config = potential.config
    descriptor, network = config.descriptor, config.network
    reference = zip(potential.elements, potential.energy_reference.tolist(), strict=True)
    return {
        "network": network.kind,
        "widths": network.widths,
        "head_widths": network.head_widths,
        "activation": network.activation,
        "embed_d": network.embed_d,
        "shared_layers": network.shared_layers,
        "n_max": descriptor.n_max,
        "r_cut": descriptor.r_cut,
        "cross_terms": descriptor.cross_terms,
        "radial_scaling": descriptor.radial_scaling,
        "members": config.n_members,
        "pair_term": config.pair_term,
        "linear": linear_members(potential),
        "isolated_atoms": dict(reference),
    }
