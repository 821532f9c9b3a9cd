"""Descriptors of atoms → their outputs, and the derivatives of energies by the descriptors.

Every atom is independent here. On a CPU independent members come one after another, and large systems in chunks of
atoms, forward and backward: activations then stay in the processor's cache. Elsewhere all go through at once.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from neuralil_ase.config import ModelConfig
from neuralil_ase.potential import Params, network_outputs

CHUNK = 128
"""Atoms in a chunk; 48 to 256 differ by little."""
CHUNKED_ABOVE = 1024
"""Atoms above which chunks pay; graph.bucket makes larger systems multiples of CHUNK."""

Gradients = Callable[[Array, Array], tuple[Array, Array]]


def feature_gradients(
    config: ModelConfig,
    by_member: bool,
    params: Params,
    features: Array,
    types: Array,
    sequential: bool,
) -> tuple[Array, Array]:
    """Outputs (M, N, outputs), and dE/dfeatures: of every member, (M, N, F), or of their mean, (1, N, F).

    Parameters
    ----------
    config, params
        The potential.
    by_member
        Whether to keep the members' derivatives apart.
    features, types
        Descriptors, shape (N, F), and element indices, shape (N,).
    sequential
        Whether to take members and chunks of atoms in turn, for a CPU.
    """
    independent = sequential and config.n_members > 1 and config.network.shared_layers == 0
    if by_member and independent:
        outputs, cotangents = jax.lax.map(
            lambda member: _in_chunks(_of_one(config, member), features, types), params["network"]
        )
        return outputs[:, 0], cotangents[:, 0]
    gradients = _by_member if by_member else _of_mean_in_turn if independent else _of_mean
    function = gradients(config, params)
    return _in_chunks(function, features, types) if sequential else function(features, types)


def _of_mean(config: ModelConfig, params: Params) -> Gradients:
    def energy(features: Array, types: Array) -> tuple[Array, Array]:
        outputs = network_outputs(config, params, features, types)
        return outputs[..., 0].sum() / config.n_members, outputs

    def gradients(features: Array, types: Array) -> tuple[Array, Array]:
        cotangent, outputs = jax.grad(energy, has_aux=True)(features, types)
        return outputs, cotangent[None]

    return gradients


def _of_one(config: ModelConfig, member: Params) -> Gradients:
    """Of one member, whose parameters have no member axis."""
    network = jax.tree.map(lambda leaf: leaf[None], member)
    return _of_mean(replace(config, n_members=1), {"network": network})


def _of_mean_in_turn(config: ModelConfig, params: Params) -> Gradients:
    def gradients(features: Array, types: Array) -> tuple[Array, Array]:
        def add(total: Array, member: Params) -> tuple[Array, Array]:
            outputs, cotangent = _of_one(config, member)(features, types)
            return total + cotangent, outputs[0]

        start = jnp.zeros((1, *features.shape), features.dtype)
        total, outputs = jax.lax.scan(add, start, params["network"])
        return outputs, total / config.n_members

    return gradients


def _by_member(config: ModelConfig, params: Params) -> Gradients:
    """Of all members at once, each with a copy of the features, so that the derivatives stay apart."""

    def energies(features: Array, types: Array) -> tuple[Array, Array]:
        outputs = network_outputs(config, params, features, types)
        return outputs[..., 0].sum(), outputs

    def gradients(features: Array, types: Array) -> tuple[Array, Array]:
        repeated = jnp.broadcast_to(features, (config.n_members, *features.shape))
        cotangents, outputs = jax.grad(energies, has_aux=True)(repeated, types)
        return outputs, cotangents

    return gradients


def _in_chunks(function: Gradients, features: Array, types: Array) -> tuple[Array, Array]:
    if len(types) <= CHUNKED_ABOVE or len(types) % CHUNK:
        return function(features, types)
    parts = features.reshape(-1, CHUNK, features.shape[-1]), types.reshape(-1, CHUNK)
    outputs, cotangents = jax.lax.map(lambda part: function(*part), parts)

    def joined(x: Array) -> Array:  # (chunks, members, CHUNK, columns) -> (members, N, columns)
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], len(types), x.shape[-1])

    return joined(outputs), joined(cotangents)
