"""One gradient with respect to the pair vectors gives forces, virials and pair forces.

With r_ij = r_j - r_i and g_ij = dE/dr_ij over all directed pairs, the chain rule gives

    F_i = Σ_j g_ij - Σ_j g_ji          dE/dε = Σ_ij r_ij ⊗ g_ij

so that positions and strain never enter the compiled function.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from neuralil_ase.config import ModelConfig
from neuralil_ase.descriptors import descriptors
from neuralil_ase.graph import Graph
from neuralil_ase.potential import Params, network_outputs, pair_energies

Level = Literal["off", "energy", "forces"]


class Derivatives(NamedTuple):
    """What one evaluation returns from the device; N padded atoms, M members.

    Attributes
    ----------
    outputs
        Atomic energies in eV and, for the heteroscedastic kind, σ²_E and σ²_F: shape (M, N, outputs); the mean
        over members, (1, N, outputs), at level "off".
    forces
        Of the mean over members, in eV/Å, shape (N, 3).
    virials
        dE/dε in eV, symmetrised, in Voigt order xx yy zz yz xz xy, each pair with its center: shape (N, 6).
    member_forces, member_virials
        Shapes (M, N, 3) and (M, N, 6); at level "forces", else None.
    """

    outputs: Array
    forces: Array
    virials: Array
    member_forces: Array | None
    member_virials: Array | None


def evaluate(config: ModelConfig, level: Level, params: Params, graph: Graph) -> Derivatives:
    """Energies, forces and virials of a padded graph."""
    member_forces = member_virials = None
    if level == "forces":
        outputs, member_gradients = _member_gradients(config, params, graph)
        gradient = member_gradients.mean(axis=0)
        member_forces = jax.vmap(forces_from_pairs, (0, None))(member_gradients, graph)
        member_virials = jax.vmap(virials_from_pairs, (0, None))(member_gradients, graph)
    else:
        outputs, gradient = _mean_gradient(config, params, graph)
    if level == "off":
        outputs = outputs.mean(axis=0, keepdims=True)
    forces, virials = forces_from_pairs(gradient, graph), virials_from_pairs(gradient, graph)
    return Derivatives(outputs, forces, virials, member_forces, member_virials)


def hessian(config: ModelConfig, n_atoms: int, params: Params, graph: Graph) -> Array:
    """Second derivatives of the mean energy in eV/Å², shape (n_atoms, 3, n_atoms, 3), without the padding.

    Forward differentiation of the gradient, some columns at a time, so that memory stays linear in pairs.
    """
    vectors = jnp.asarray(graph.vectors)

    def gradient(moves: Array) -> Array:
        moved = graph._replace(vectors=vectors + moves[graph.neighbors] - moves[graph.centers])
        return -forces_from_pairs(_mean_gradient(config, params, moved)[1], graph)[:n_atoms]

    def column(index: Array) -> Array:
        unit = jnp.zeros(still.size, still.dtype).at[index].set(1).reshape(still.shape)
        return jax.jvp(gradient, (still,), (unit,))[1]

    still = jnp.zeros((len(graph.types), 3), vectors.dtype)
    columns = jax.lax.map(column, jnp.arange(3 * n_atoms), batch_size=4)
    return columns.reshape(n_atoms, 3, n_atoms, 3)


def atomic_outputs(config: ModelConfig, params: Params, graph: Graph) -> Array:
    """All outputs of all members, the pair term included: shape (M, N, outputs)."""
    outputs = network_outputs(config, params, descriptors(config.descriptor, graph), graph.types)
    return _add_pair_energies(outputs, pair_energies(config, params, graph))


def forces_from_pairs(gradient: Array, graph: Graph) -> Array:
    """Scatter g_ij, shape (P, 3), to forces on atoms, shape (N, 3)."""
    n_atoms = len(graph.types)
    on_centers = jax.ops.segment_sum(gradient, graph.centers, n_atoms, indices_are_sorted=True)
    return on_centers - jax.ops.segment_sum(gradient, graph.neighbors, n_atoms)


def virials_from_pairs(gradient: Array, graph: Graph) -> Array:
    """Sum r_ij ⊗ g_ij over each center's pairs, symmetrised, in Voigt order: shape (N, 6)."""
    r, g = graph.vectors, gradient
    x, y = jnp.array((0, 1, 2, 1, 0, 0)), jnp.array((0, 1, 2, 2, 2, 1))
    products = (r[:, x] * g[:, y] + r[:, y] * g[:, x]) / 2
    return jax.ops.segment_sum(products, graph.centers, len(graph.types), indices_are_sorted=True)


def _mean_gradient(config: ModelConfig, params: Params, graph: Graph) -> tuple[Array, Array]:
    """Outputs, and dE/dr_ij of the mean over members: one backward pass for the whole ensemble."""

    def mean_energy(vectors: Array) -> tuple[Array, Array]:
        outputs = atomic_outputs(config, params, graph._replace(vectors=vectors))
        return outputs[..., 0].sum() / config.n_members, outputs

    gradient, outputs = jax.grad(mean_energy, has_aux=True)(jnp.asarray(graph.vectors))
    return outputs, gradient


def _member_gradients(config: ModelConfig, params: Params, graph: Graph) -> tuple[Array, Array]:
    """Outputs, and dE_m/dr_ij of every member, shape (M, P, 3).

    The networks are differentiated with respect to the shared descriptor first, each member by itself; the M
    cotangents then go through one linearised descriptor.
    """

    def describe(vectors: Array) -> Array:
        return descriptors(config.descriptor, graph._replace(vectors=vectors))

    def member_energies(features: Array) -> tuple[Array, Array]:
        outputs = network_outputs(config, params, features, graph.types)
        return outputs[..., 0].sum(), outputs

    vectors = jnp.asarray(graph.vectors)
    features, pull_back = jax.vjp(describe, vectors)
    repeated = jnp.broadcast_to(features, (config.n_members, *features.shape))
    cotangents, outputs = jax.grad(member_energies, has_aux=True)(repeated)
    (gradients,) = jax.lax.map(pull_back, cotangents)  # one after another: faster on a CPU than vmap
    pair, pair_gradients = _pair_gradients(config, params, graph)
    return _add_pair_energies(outputs, pair), gradients + pair_gradients


def _pair_gradients(
    config: ModelConfig, params: Params, graph: Graph
) -> tuple[Array | None, Array]:
    """Pair energies, and their gradients by member, shape (1 or M, P, 3)."""
    if config.pair_term == "none":
        return None, jnp.zeros((1, 1, 3), graph.vectors.dtype)

    def summed(vectors: Array) -> tuple[Array, Array]:
        pair = pair_energies(config, params, graph._replace(vectors=vectors))
        assert pair is not None
        return pair.sum(axis=1), pair

    _, pull_back, pair = jax.vjp(summed, jnp.asarray(graph.vectors), has_aux=True)
    (gradients,) = jax.vmap(pull_back)(jnp.eye(len(pair), dtype=pair.dtype))
    return pair, gradients


def _add_pair_energies(outputs: Array, pair: Array | None) -> Array:
    return outputs if pair is None else outputs.at[..., 0].add(pair)
