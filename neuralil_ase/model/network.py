"""Flax modules from descriptor and element to the outputs of one atom.

Written as in arXiv:2106.16220 (Core), arXiv:2302.08805 (residual networks and deep ensembles). Every network
maps ``(features (N, F), types (N,))`` to ``(N, 1)``, the atomic energy in eV, or, for the heteroscedastic
kind, to ``(N, 3)``: atomic energy, σ² of the energy in eV², σ² of a force component in eV²/Å².
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from neuralil_ase.model.config import NetworkConfig

VARIANCES = ("sigma2e", "sigma2f")
"""Stems of the names of layers that lead to the variances alone, in the order of the outputs; "sigma2" begins both."""


def is_variance(parameter: str) -> bool:
    """Whether the parameter of this slash-separated name acts on the variances alone."""
    return "/sigma2" in parameter


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function of this name."""
    return getattr(jax.nn, name)


class Embedded(nn.Module):
    """Append the trainable vector of the element to the descriptor, then apply a body."""

    body: nn.Module
    n_elements: int
    embed_d: int

    @nn.compact
    def __call__(self, features: Array, types: Array) -> Array:
        if self.embed_d == 0:
            return self.body(features)
        embedding = nn.Embed(
            self.n_elements,
            self.embed_d,
            name="embed",
            dtype=features.dtype,
            param_dtype=features.dtype,
        )
        return self.body(jnp.concatenate([features, embedding(types)], axis=-1))


class Core(nn.Module):
    """Dense layers with layer normalisation from the second on; arXiv:2106.16220, section 2.

    With ``head_widths``, more such layers go from the first layer to σ²_E and σ²_F.
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
            nn.Dense(1, name=f"{name}_denormalizer", param_dtype=dtype) for name in VARIANCES
        )
        return jnp.concatenate([energy, *(nn.softplus(outlet(h)) for outlet in outlets)], axis=-1)


class ResidualBlock(nn.Module):
    """Two dense layers of the inner width, then one to the outer width, added to the (projected) input.

    The input passes unchanged where it already has both widths. No normalisation at width 1.
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

        variances = [nn.softplus(head(name, use_bias=False)) for name in VARIANCES]
        return jnp.concatenate([head("energy", use_bias=True), *variances], axis=-1)


def build_network(config: NetworkConfig, n_elements: int) -> nn.Module:
    """The module of a validated description."""
    body: nn.Module
    if config.kind == "core":
        body = Core(config.widths, config.activation, config.head_widths)
    elif config.kind == "resnet":
        body = ResNetCore(config.widths, config.activation)
    else:
        body = Heteroscedastic(config.widths, config.head_widths, config.activation)
    return Embedded(body, n_elements, config.embed_d)


def member_axes(config: NetworkConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The axis of every parameter that runs over the members: 0, or None where all members share it.

    With ``shared_layers`` the element embedding and that many first layers carry no member axis; vmap then
    evaluates them once for the whole ensemble.
    """
    if config.shared_layers == 0:
        return _filled(params, 0)
    numbers = range(config.shared_layers)
    shared = {"embed"} | {f"{kind}_{k}" for kind in ("Dense", "LayerNorm") for k in numbers}
    return {
        name: member_axes(config, value)
        if name == "body"
        else _filled(value, None if name in shared else 0)
        for name, value in params.items()
    }


def _filled(tree: Mapping[str, Any], axis: int | None) -> dict[str, Any]:
    return jax.tree.map(lambda _: axis, dict(tree))
