"""Splits a network after its first layer, where second derivatives are cheap.

The features p of an atom are some hundreds of numbers. The first layer turns them into some tens, z = W p + b. Every
derivative of the energy passes through z: d²E/dp² = Wᵀ (d²E/dz²) W for any following layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from neuralil_ase.model.config import ModelConfig, NetworkConfig
from neuralil_ase.model.network import build_network, member_axes
from neuralil_ase.model.potential import Params

_Path = tuple[str, ...]


class FirstLayer(NamedTuple):
    """The networks of M members in two parts, for N atoms with F features.

    Attributes
    ----------
    weights
        dz/dp, shape (M, W, F). z holds the outputs of all W units that read the descriptor.
    inputs
        z of every atom, shape (M, N, W).
    energies
        A function from z, shape (M, N, W), to atomic energies in eV, shape (M, N), without the pair term.
    slopes
        dE/dp of the linear part, which does not pass through z, shape (M, N, F); None without a linear part.
    """

    weights: Array
    inputs: Array
    energies: Callable[[Array], Array]
    slopes: Array | None


def first_layer(
    config: ModelConfig, params: Params, features: Array, types: ArrayLike
) -> FirstLayer:
    """Split the networks of all members after the layers that read the descriptor.

    Parameters
    ----------
    config, params
        The potential.
    features
        Descriptors, shape (N, F), in Å^-3.
    types
        Element index of every atom, shape (N,).
    """
    network = build_network(config.network, len(config.descriptor.elements))
    over_members = member_axes(config)
    n_features = features.shape[-1]
    readers = _readers(config.network, n_features)

    def run(member: Params, given: Array | None) -> tuple[Array, Array]:
        """z and atomic energies. With ``given``, the layers that read the descriptor return their part of it."""
        if not readers:
            z = features if given is None else given
            outputs: Any = network.apply({"params": member}, z, types)
            return z, outputs[..., 0]
        seen: list[Array] = []

        def layer(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if isinstance(module, nn.LayerNorm):
                return _layer_norm(module, *args)
            if module.path not in readers:
                return call(*args, **kwargs)
            start = sum(z.shape[-1] for z in seen)
            stop = start + module.features
            seen.append(call(*args, **kwargs) if given is None else given[..., start:stop])
            return seen[-1]

        with nn.intercept_methods(layer):
            outputs = network.apply({"params": member}, features, types)
        return jnp.concatenate(seen, axis=-1), outputs[..., 0]

    def weights_of(member: Params) -> Array:
        if not readers:
            return jnp.eye(n_features, dtype=features.dtype)
        kernels = [_at(member, path)["kernel"][:n_features] for path in readers]
        return jnp.concatenate(kernels, axis=1).T

    def all_members(function: Callable[..., Any], *axes: int | None) -> Callable[..., Any]:
        mapped = jax.vmap(function, (over_members, *axes), axis_size=config.n_members)
        return lambda *args: mapped(params["network"], *args)

    inputs = all_members(lambda member: run(member, None)[0])()
    energies = all_members(lambda member, z: run(member, z)[1], 0)
    linear = None
    if config.network.linear:
        linear = _at(params, ("network", "linear"))["kernel"].swapaxes(1, 2)[:, types]
    return FirstLayer(all_members(weights_of)(), inputs, energies, linear)


def _readers(network: NetworkConfig, n_features: int) -> tuple[_Path, ...]:
    """The dense layers that read the descriptor, in the order of their calls.

    Empty if a residual block also passes the descriptor on unchanged. z is then the descriptor itself.
    """
    if network.kind == "core":
        return (("body", "Dense_0"),)
    widths = network.widths if network.kind == "heteroscedastic" else (*network.widths, 1)
    folder = "trunk" if network.kind == "heteroscedastic" else "blocks"
    n_inputs = n_features + network.embed_d
    if len(widths) < 2 or n_inputs == widths[0] == widths[1]:
        return ()
    return tuple(("body", folder, "block_0", name) for name in ("Dense_0", "Dense_3"))


def _layer_norm(module: nn.LayerNorm, x: Array) -> Array:
    """The layer with matrix products instead of sums over few columns.

    On a CPU, second derivatives of the sums take three times as long.
    """
    mean = jnp.full((x.shape[-1], x.shape[-1]), 1 / x.shape[-1], x.dtype)
    centred = x - x @ mean
    deviation = jax.lax.rsqrt((centred * centred) @ mean + module.epsilon)
    parameters = module.variables["params"]
    return centred * deviation * parameters["scale"] + parameters["bias"]


def _at(tree: Any, path: _Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree
