"""Training that goes on from a potential: which one it is, what it fixes, what it cannot learn."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from neuralil_ase.errors import ConfigError, DataError
from neuralil_ase.model_file import load_potential
from neuralil_ase.potential import Params, Potential, cast_params, flatten
from neuralil_ase.training.dataset import Frame
from neuralil_ase.training.settings import TrainingSettings


@dataclass(frozen=True)
class Start:
    """The potential that a run begins with.

    Its architecture, repulsion radii and energy reference stay as they are; its parameters are the first ones of
    the run, which therefore begins with exactly its predictions (to float32 rounding).

    Attributes
    ----------
    potential
        The potential, normalisation folded into its layers as in every model file.
    name
        Of the file, without its folder.
    """

    potential: Potential
    name: str

    @property
    def params(self) -> Params:
        """Parameters in the precision of training."""
        return cast_params(self.potential.params, np.float32)

    @cached_property
    def sha256(self) -> str:
        """Hash of all that the predictions depend on: architecture, parameters, energy reference."""
        digest = hashlib.sha256(repr(self.potential.config).encode())
        arrays = flatten(self.potential.params)
        for name in sorted(arrays):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
        digest.update(np.asarray(self.potential.energy_reference, np.float64).tobytes())
        return digest.hexdigest()

    @property
    def provenance(self) -> dict[str, str]:
        """What the model file says about it."""
        return {"file": self.name, "sha256": self.sha256}


def start_of(model: str | Path | Potential, output: str | Path | None = None) -> Start:
    """A model file or a potential in memory as the start of a run that writes to ``output``.

    Raises
    ------
    ModelFileError
        If the file cannot be read.
    ConfigError
        If it has a trained pair term, as some published potentials have, or is the file to be written.
    """
    if isinstance(model, Potential):
        start = Start(model, "a potential in memory")
    elif output is not None and Path(model).resolve() == Path(output).resolve():
        raise ConfigError(
            f"training that goes on from {model} must not overwrite it: a run that is cut short could not be resumed. "
            "Give the new model another name"
        )
    else:
        start = Start(load_potential(model), Path(model).name)
    pair_term = start.potential.config.pair_term
    if pair_term not in ("zbl", "none"):
        raise ConfigError(
            f"training cannot go on from {start.name}: its pair term {pair_term!r} came with a published file and "
            "is not trained here. Start from a model with pair term 'zbl' or 'none', or train a new one"
        )
    return start


def settings_from(
    start: Start, settings: TrainingSettings, given: Mapping[str, Any]
) -> TrainingSettings:
    """The settings with the architecture of the start.

    Parameters
    ----------
    start
        The potential to go on from.
    settings
        All settings. Those that differ from the defaults count as given, too.
    given
        Options that were named explicitly; only their names matter.

    Raises
    ------
    ConfigError
        Naming the options that ask for another architecture or energy reference.
    """
    fixed, defaults = _fixed_by(start.potential), TrainingSettings()
    wrong = [
        f"{name} (model: {value}, asked for: {getattr(settings, name)})"
        for name, value in fixed.items()
        if name in given or getattr(settings, name) != getattr(defaults, name)
        if getattr(settings, name) != value
    ]
    if wrong:
        raise ConfigError(
            f"training that goes on from {start.name} keeps its architecture and energy reference, but the options "
            f"contradict them: {'; '.join(wrong)}. Leave these options out, or train a new model without start_from"
        )
    del fixed["isolated_atoms"]  # kept as the energy reference, whatever it was made from
    return replace(settings, **fixed)


def check_elements(start: Start, frames: Sequence[Frame]) -> None:
    """All elements in the data must be known to the start.

    Raises
    ------
    DataError
        Naming the first frame with another element.
    """
    known = set(start.potential.elements)
    for frame in frames:
        unknown = sorted(set(frame.symbols.tolist()) - known)
        if unknown:
            raise DataError(
                f"{frame.source} holds {', '.join(unknown)}, but {start.name}, which training is to go on from, knows "
                f"only {', '.join(start.potential.elements)}. Leave such frames out, or train a new model on all data"
            )


def _fixed_by(potential: Potential) -> dict[str, Any]:
    """Settings that the potential answers, by name."""
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
        "members": config.n_members,
        "pair_term": config.pair_term,
        "isolated_atoms": dict(reference),
    }
