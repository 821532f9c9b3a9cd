"""Flax modules from descriptor and element to the outputs of one atom.

They follow arXiv:2106.16220 (Core) and arXiv:2302.08805 (residual networks and deep ensembles). Every network
maps ``(features (N, F), types (N,))`` to ``(N, 1)``, the atomic energy in eV. With aleatoric layers it maps to
``(N, 3)``: atomic energy, σ² of the energy in eV², σ² of a force component in eV²/Å².
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from neuralil_ase.errors import ConfigError
from neuralil_ase.model.config import ModelConfig, NetworkConfig
from neuralil_ase.model.parameters import ALEATORIC, parameters
from neuralil_ase.model.potential import Params, flatten, unflatten


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function of this name."""
    return getattr(jax.nn, name)


class Embedded(nn.Module):
    """Append the trainable vector of the element to the descriptor, then apply a body.

    With ``linear``, add a linear function of the descriptor to the energy; it has its own weights for each element.
    """

    body: nn.Module
    n_elements: int
    embed_d: int
    linear: bool

    @nn.compact
    def __call__(self, features: Array, types: Array) -> Array:
        outputs = self.body(self._embedded(features, types))
        if not self.linear:
            return outputs
        dense = nn.Dense(self.n_elements, name="linear", param_dtype=features.dtype)
        energy = jnp.take_along_axis(dense(features), types[:, None], axis=-1)
        return outputs.at[..., :1].add(energy)

    def _embedded(self, features: Array, types: Array) -> Array:
        if self.embed_d == 0:
            return features
        embedding = nn.Embed(
            self.n_elements,
            self.embed_d,
            name="embed",
            dtype=features.dtype,
            param_dtype=features.dtype,
        )
        return jnp.concatenate([features, embedding(types)], axis=-1)


class Core(nn.Module):
    """Dense layers, with layer normalisation from the second layer on; arXiv:2106.16220, section 2.

    With ``head_widths``, aleatoric layers lead from the first layer to σ²_E and σ²_F.
    """

    widths: tuple[int, ...]
    activation: str
    head_widths: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act, dtype = activation(self.activation), x.dtype
        h = x = act(nn.Dense(self.widths[0], name="Dense_0", param_dtype=dtype)(x))
        for k, width in enumerate(self.widths[1:], 1):
            x = nn.Dense(width, name=f"Dense_{k}", param_dtype=dtype)(x)
            x = act(nn.LayerNorm(name=f"LayerNorm_{k}", param_dtype=dtype)(x))
        x = act(nn.Dense(1, name=f"Dense_{len(self.widths)}", param_dtype=dtype)(x))
        energy = nn.Dense(1, name="denormalizer", param_dtype=dtype)(x)
        if not self.head_widths:
            return energy
        for k, width in enumerate(self.head_widths):
            h = nn.Dense(width, name=f"sigma2_Dense_{k}", param_dtype=dtype)(h)
            h = act(nn.LayerNorm(name=f"sigma2_LayerNorm_{k}", param_dtype=dtype)(h))
        outlets = (
            nn.Dense(1, name=f"{name}_denormalizer", param_dtype=dtype) for name in ALEATORIC
        )
        return jnp.concatenate([energy, *(nn.softplus(outlet(h)) for outlet in outlets)], axis=-1)


class ResidualBlock(nn.Module):
    """Two dense layers of the inner width, then one to the outer width, added to the (projected) input.

    The input is added without projection if it already has both widths. There is no normalisation at width 1.
    """

    inner: int
    outer: int
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act, dtype = activation(self.activation), x.dtype

        def dense(k: int, width: int, value: Array) -> Array:
            return nn.Dense(width, name=f"Dense_{k}", param_dtype=dtype)(value)

        def norm(k: int, value: Array) -> Array:
            if value.shape[-1] == 1:
                return value
            return nn.LayerNorm(name=f"LayerNorm_{k}", param_dtype=dtype)(value)

        h = act(norm(0, dense(0, self.inner, x)))
        h = act(norm(1, dense(1, self.inner, h)))
        h = norm(2, dense(2, self.outer, h))
        is_identity = x.shape[-1] == self.inner == self.outer
        return act(h + (x if is_identity else norm(3, dense(3, self.outer, x))))


class ResNet(nn.Module):
    """A chain of residual blocks between consecutive widths: (64, 32, 16, 1) has 64→32, 32→16 and 16→1."""

    widths: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for k, (inner, outer) in enumerate(pairwise(self.widths)):
            x = ResidualBlock(inner, outer, self.activation, name=f"block_{k}")(x)
        return x


class ResNetCore(nn.Module):
    """Residual network to one number, and the final affine layer; arXiv:2302.08805."""

    widths: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResNet((*self.widths, 1), self.activation, name="blocks")(x)
        return nn.Dense(1, name="denormalizer", param_dtype=x.dtype)(x)


class Heteroscedastic(nn.Module):
    """One member of a deep ensemble: a residual trunk with heads for energy, σ²_E and σ²_F; arXiv:2302.08805."""

    widths: tuple[int, ...]
    head_widths: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResNet(self.widths, self.activation, name="trunk")(x)

        def head(name: str, use_bias: bool) -> Array:
            h = ResNet((*self.head_widths, 1), self.activation, name=f"{name}_head")(x)
            return nn.Dense(1, use_bias, name=f"{name}_denormalizer", param_dtype=x.dtype)(h)

        aleatoric = [nn.softplus(head(name, use_bias=False)) for name in ALEATORIC]
        return jnp.concatenate([head("energy", use_bias=True), *aleatoric], axis=-1)


def build_network(config: NetworkConfig, n_elements: int) -> nn.Module:
    """The flax module for a validated description."""
    body: nn.Module
    if config.kind == "core":
        body = Core(config.widths, config.activation, config.head_widths)
    elif config.kind == "resnet":
        body = ResNetCore(config.widths, config.activation)
    else:
        body = Heteroscedastic(config.widths, config.head_widths, config.activation)
    return Embedded(body, n_elements, config.embed_d, config.linear)


def member_axes(config: ModelConfig) -> dict[str, Any]:
    """The member axis of every parameter of the networks: 0, or None if all members share the parameter.

    With ``shared_layers``, the element embedding and the shared first layers have no member axis. vmap then evaluates
    them once for the whole ensemble.
    """
    axes = {name: None if p.is_shared else 0 for name, p in parameters(config).items()}
    return unflatten(axes)["network"]


def network_outputs(
    config: ModelConfig, params: Params, features: Array, types: ArrayLike
) -> Array:
    """Apply the networks of all members to the same descriptors.

    Parameters
    ----------
    config, params
        The potential.
    features
        Descriptors, shape (N, n_features), or (members, N, n_features) for separate derivatives of each member.
    types
        Element index of every atom, shape (N,).

    Returns
    -------
    Array, shape (members, N, outputs)
        Output 0 is the atomic energy in eV; with aleatoric layers, outputs 1 and 2 are σ² of energy and force.
    """
    apply = _apply(config)
    in_axes = (
        member_axes(config),
        0 if features.ndim == 3 else None,
        None,
    )
    return jax.vmap(apply, in_axes, axis_size=config.n_members)(params["network"], features, types)


def init_params(config: ModelConfig, seed: int) -> Params:
    """Fresh float32 parameters of all members, each from its own random key.

    Raises
    ------
    ConfigError
        If the pair term belongs to published files and cannot be trained.
    """
    if config.pair_term in ("morse", "repulsive-morse"):
        raise ConfigError(
            f"pair term {config.pair_term!r} comes with published files; train with 'zbl'"
        )
    keys = jax.random.split(jax.random.key(seed), config.n_members)
    stacked = _init_members(config, keys)
    listed = parameters(config)
    return unflatten(
        {
            name: np.asarray(leaf[0] if listed[name].is_shared else leaf)
            for name, leaf in flatten({"network": stacked}).items()
        }
    )


def _apply(config: ModelConfig) -> Callable[[Params, Array, ArrayLike], Any]:
    network = build_network(config.network, len(config.descriptor.elements))
    return lambda params, features, types: network.apply({"params": params}, features, types)


# This function runs once. Compiling it with optimisation would take six times as long.
@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _init_members(config: ModelConfig, keys: Array) -> Params:
    return jax.vmap(lambda key: _init_member(config, key))(keys)


def _init_member(config: ModelConfig, key: Array) -> Params:
    network = build_network(config.network, len(config.descriptor.elements))
    features = jnp.zeros((1, config.descriptor.n_features), jnp.float32)
    return network.init(key, features, jnp.zeros(1, jnp.int32))["params"]
