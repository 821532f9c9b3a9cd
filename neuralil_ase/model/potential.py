"""A potential: its description and the parameters of all members, as NumPy arrays.

It can be pickled, copied and read from a file without JAX. ``network`` and ``pair_terms`` hold the formulas.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from neuralil_ase.array_record import ArrayRecord, count
from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.parameters import parameters

Params = dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Potential(ArrayRecord):
    """An ensemble of NeuralIL members that share one descriptor.

    Attributes
    ----------
    config
        The architecture.
    params
        Nested dictionary of arrays: "network" and, with a trained pair term, "pair". The first axis of every array
        runs over the members, except in layers that all members share.
    energy_reference
        Energy in eV that is added for every atom of each element, shape (elements,), float64. The network gives the
        rest, so that float32 is sufficient for it.
    provenance
        Any JSON data: the training data, the program, and the accuracy.
    calibration
        The calibration that turns spreads into error bars; None if the potential is not calibrated.
    """

    config: ModelConfig
    params: Params
    energy_reference: np.ndarray
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_params(self.config, self.params)
        n_elements = len(self.config.descriptor.elements)
        if np.shape(self.energy_reference) != (n_elements,):
            raise ConfigError(
                f"energy_reference must hold one energy for each of the {n_elements} elements, "
                f"got shape {np.shape(self.energy_reference)}"
            )

    def __repr__(self) -> str:
        state = "not calibrated" if self.calibration is None else "calibrated"
        members = count(self.n_members, "member")
        return f"Potential: {' '.join(self.elements)}, {members}, cutoff {self.r_cut:g} Å, {state}"

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols that the potential knows, in the order of its types."""
        return self.config.descriptor.elements

    @property
    def r_cut(self) -> float:
        """Cutoff radius in Å."""
        return self.config.descriptor.r_cut

    @property
    def n_members(self) -> int:
        """Number of members of the ensemble."""
        return self.config.n_members

    def member(self, index: int) -> "Potential":
        """The potential of one member. Its parameters are views, and it has no calibration."""
        listed = parameters(self.config)
        params = unflatten(
            {
                name: leaf if listed[name].is_shared else leaf[index : index + 1]
                for name, leaf in flatten(self.params).items()
            }
        )
        return replace(
            self, config=replace(self.config, n_members=1), params=params, calibration=None
        )


def cast_params(params: Params, dtype: np.typing.DTypeLike) -> Params:
    """A copy of the parameters in another precision."""
    return unflatten({name: np.array(leaf, dtype) for name, leaf in flatten(params).items()})


def check_params(config: ModelConfig, params: Params) -> None:
    """Check that names and shapes of parameters belong to the architecture.

    Raises
    ------
    ConfigError
        If parameters are missing, unexpected, of the wrong shape or not finite. The message names them.
    """
    expected, found = parameters(config), flatten(params)
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ConfigError(
            f"the parameters do not belong to this architecture: missing {missing}, unexpected {extra}"
        )
    for name, parameter in expected.items():
        if np.shape(found[name]) != parameter.shape:
            raise ConfigError(
                f"parameter {name} has shape {np.shape(found[name])}, expected {parameter.shape}"
            )
        if not np.isfinite(found[name]).all():
            raise ConfigError(f"parameter {name} holds values that are not finite")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Convert nested dictionaries to one with slash-separated names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return tree
