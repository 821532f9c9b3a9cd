"""A potential: its description, the parameters of all members, and graph → atomic outputs.

The functions here are pure. ``Potential`` carries NumPy arrays only, so that it pickles, copies and compares
without touching a device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.network import build_network, member_axes
from neuralil_ase.model.pair_terms import morse, zbl

Params = dict[str, Any]


@dataclass(frozen=True)
class Potential:
    """An ensemble of NeuralIL members that share one descriptor.

    Attributes
    ----------
    config
        The architecture.
    params
        Nested dictionary of arrays: "network" and, with a trained pair term, "pair". The leading axis of every
        leaf runs over the members, but for layers that all members share.
    energy_reference
        Energy in eV added for every atom of each element, shape (elements,), float64. The network gives the
        rest, so that float32 is spent on what varies.
    provenance
        Free JSON data: what the potential was trained on, by what, and how good it is.
    calibration
        How to make error bars from its spreads; None if it was never calibrated.
    """

    config: ModelConfig
    params: Params
    energy_reference: np.ndarray
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        check_params(self.config, self.params)
        n_elements = len(self.config.descriptor.elements)
        if np.shape(self.energy_reference) != (n_elements,):
            raise ConfigError(
                f"energy_reference must hold one energy for each of the {n_elements} elements, "
                f"got shape {np.shape(self.energy_reference)}"
            )

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols the potential knows, in the order of its types."""
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
        """The potential of one member alone; its parameters are views, and it has no calibration of its own."""
        axes = {"network": member_axes(self.config.network, self.params["network"])}
        if "pair" in self.params:
            axes["pair"] = jax.tree.map(lambda _: 0, self.params["pair"])
        params = jax.tree.map(
            lambda leaf, axis: leaf if axis is None else leaf[index : index + 1],
            self.params, axes, is_leaf=lambda x: x is None,
        )  # fmt: skip
        return replace(
            self, config=replace(self.config, n_members=1), params=params, calibration=None
        )


def network_outputs(
    config: ModelConfig, params: Params, features: Array, types: ArrayLike
) -> Array:
    """Apply the networks of all members to descriptors they share.

    Parameters
    ----------
    config, params
        The potential.
    features
        Descriptors, shape (N, n_features), or (members, N, n_features) to keep the members' derivatives apart.
    types
        Element index of every atom, shape (N,).

    Returns
    -------
    Array, shape (members, N, outputs)
        Output 0 is the atomic energy in eV; for the heteroscedastic kind 1 and 2 are σ² of energy and force.
    """
    apply = _apply(config)
    in_axes = (
        member_axes(config.network, params["network"]),
        0 if features.ndim == 3 else None,
        None,
    )
    return jax.vmap(apply, in_axes, axis_size=config.n_members)(params["network"], features, types)


def pair_energies(config: ModelConfig, params: Params, graph: Graph) -> Array | None:
    """Atomic energies of the pair term in eV: (1, N) when all members share it, (members, N), or None."""
    if config.pair_term == "none":
        return None
    if config.pair_term == "zbl":
        return zbl(graph, config.descriptor.elements, config.zbl_radii)[None]
    is_repulsive = config.pair_term == "repulsive-morse"
    return jax.vmap(lambda p: morse(p, graph, config.descriptor.r_cut, is_repulsive))(
        params["pair"]
    )


def cast_params(params: Params, dtype: np.typing.DTypeLike) -> Params:
    """A copy of the parameters in another precision."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)


def init_params(config: ModelConfig, seed: int) -> Params:
    """Fresh float32 parameters of all members, each from its own random key.

    Raises
    ------
    ConfigError
        If the pair term is one that is imported with its parameters, not trained here.
    """
    if config.pair_term in ("morse", "repulsive-morse"):
        raise ConfigError(
            f"pair term {config.pair_term!r} comes with published files; train with 'zbl'"
        )
    keys = jax.random.split(jax.random.key(seed), config.n_members)
    stacked = _init_members(config, keys)
    axes = member_axes(config.network, stacked)
    network = jax.tree.map(
        lambda leaf, axis: np.asarray(leaf if axis == 0 else leaf[0]),
        stacked, axes, is_leaf=lambda x: x is None,
    )  # fmt: skip
    return {"network": network}


def check_params(config: ModelConfig, params: Params) -> None:
    """Compare names and shapes of parameters with what the architecture needs.

    Raises
    ------
    ConfigError
        Naming the parameters that are missing, unexpected, of the wrong shape or not finite.
    """
    expected, found = param_shapes(config), flatten(params)
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ConfigError(
            f"the parameters do not belong to this architecture: missing {missing}, unexpected {extra}"
        )
    for name, shape in expected.items():
        if np.shape(found[name]) != shape:
            raise ConfigError(
                f"parameter {name} has shape {np.shape(found[name])}, expected {shape}"
            )
        if not np.isfinite(found[name]).all():
            raise ConfigError(f"parameter {name} holds values that are not finite")


@lru_cache(maxsize=64)
def param_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its slash-separated name, the member axis included."""
    member = jax.eval_shape(lambda: _init_member(config, jax.random.key(0)))
    axes = flatten(member_axes(config.network, member))
    shapes = {
        f"network/{name}": (() if axes[name] is None else (config.n_members,)) + leaf.shape
        for name, leaf in flatten(member).items()
    }
    if config.pair_term in ("morse", "repulsive-morse"):
        shapes["pair/embedding"] = (config.n_members, len(config.descriptor.elements), 3)
        shapes["pair/switch"] = (config.n_members, 1, 1)
    return shapes


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to slash-separated names."""
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


def _apply(config: ModelConfig) -> Callable[[Params, Array, ArrayLike], Any]:
    network = build_network(config.network, len(config.descriptor.elements))
    return lambda params, features, types: network.apply({"params": params}, features, types)


@partial(jax.jit, static_argnums=0)
def _init_members(config: ModelConfig, keys: Array) -> Params:
    return jax.vmap(lambda key: _init_member(config, key))(keys)


def _init_member(config: ModelConfig, key: Array) -> Params:
    network = build_network(config.network, len(config.descriptor.elements))
    features = jnp.zeros((1, config.descriptor.n_features), jnp.float32)
    return network.init(key, features, jnp.zeros(1, jnp.int32))["params"]
