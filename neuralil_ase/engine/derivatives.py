"""One gradient with respect to the pair vectors gives forces, virials and pair forces.

With r_ij = r_j - r_i and g_ij = dE/dr_ij over all directed pairs, the chain rule gives

    F_i = Σ_j g_ij - Σ_j g_ji          dE/dε = Σ_ij r_ij ⊗ g_ij

so that positions and strain never enter the compiled function. These functions are the reference of the compiled core
(``compiled``), and they replace the core if it cannot be used.
"""

import jax
import jax.numpy as jnp
from jax import Array

from neuralil_ase.engine.arrays import Derivatives
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.descriptors import descriptors, descriptors_with_pull_back
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.network import network_outputs
from neuralil_ase.model.pair_terms import pair_energies
from neuralil_ase.model.potential import Params
from neuralil_ase.prediction import VOIGT, Uncertainty


def energies_and_forces(
    config: ModelConfig, uncertainty: Uncertainty, params: Params, graph: Graph
) -> Derivatives:
    """Energies, forces and virials of a padded graph."""
    by_member = uncertainty == "forces"
    outputs, gradients = _pair_gradients(config, by_member, params, graph)
    forces = jax.vmap(forces_from_pairs, (0, None))(gradients, graph)
    virials = jax.vmap(virials_from_pairs, (0, None))(gradients, graph)
    member_forces, member_virials = (forces, virials) if by_member else (None, None)
    if uncertainty == "off":
        outputs = outputs.mean(axis=0, keepdims=True)
    return Derivatives(
        outputs, forces.mean(axis=0), virials.mean(axis=0), member_forces, member_virials
    )


def atomic_outputs(config: ModelConfig, params: Params, graph: Graph) -> Array:
    """All outputs of all members, the pair term included: shape (M, N, outputs)."""
    outputs = network_outputs(config, params, descriptors(config.descriptor, graph), graph.types)
    return _add_pair_energies(outputs, pair_energies(config, params, graph))


def neighbor_virials(config: ModelConfig, params: Params, graph: Graph) -> tuple[Array, Array]:
    """Atomic energies of the mean, (N,), and Σ_i r_ik ⊗ dE_i/dr_ik at every neighbour k, (N, 3, 3), in eV."""
    outputs, gradients = _pair_gradients(config, False, params, graph)
    products = jnp.asarray(graph.vectors)[:, :, None] * gradients[0][:, None, :]
    virials = jax.ops.segment_sum(products, graph.neighbors, len(graph.types))
    return outputs[..., 0].mean(axis=0), virials


def forces_from_pairs(gradient: Array, graph: Graph) -> Array:
    """Scatter g_ij, shape (P, 3), to forces on atoms, shape (N, 3)."""
    n_atoms = len(graph.types)
    on_centers = jax.ops.segment_sum(gradient, graph.centers, n_atoms, indices_are_sorted=True)
    return on_centers - jax.ops.segment_sum(gradient, graph.neighbors, n_atoms)


def virials_from_pairs(gradient: Array, graph: Graph) -> Array:
    """Sum r_ij ⊗ g_ij over each center's pairs, symmetrised, in Voigt order: shape (N, 6)."""
    r, g = graph.vectors, gradient
    x, y = (jnp.array(axes) for axes in VOIGT)
    products = (r[:, x] * g[:, y] + r[:, y] * g[:, x]) / 2
    return jax.ops.segment_sum(products, graph.centers, len(graph.types), indices_are_sorted=True)


def _pair_gradients(
    config: ModelConfig, by_member: bool, params: Params, graph: Graph
) -> tuple[Array, Array]:
    """Outputs (M, N, outputs), and dE/dr_ij: of every member, (M, P, 3), or of their mean, (1, P, 3).

    If only the mean is needed, there is one backward pass for the whole ensemble. Otherwise the cotangents of all
    members use the same linearised descriptor.
    """
    features, pull_back = descriptors_with_pull_back(config.descriptor, graph)
    outputs, cotangents = _feature_gradients(config, by_member, params, features, graph)
    gradients = pull_back(cotangents)
    if config.pair_term == "none":
        return outputs, gradients
    energies, pair_gradients = _pair_term(config, by_member, params, graph)
    return outputs.at[..., 0].add(energies), gradients + pair_gradients


def _feature_gradients(
    config: ModelConfig, by_member: bool, params: Params, features: Array, graph: Graph
) -> tuple[Array, Array]:
    """Outputs (M, N, outputs), and dE/dfeatures: of every member, (M, N, F), or of their mean, (1, N, F)."""

    def energy(features: Array) -> tuple[Array, Array]:
        outputs = network_outputs(config, params, features, graph.types)
        return outputs[..., 0].sum() / (1 if by_member else config.n_members), outputs

    # A copy of the features for every member keeps their derivatives apart.
    copies = jnp.broadcast_to(features, (config.n_members, *features.shape))
    cotangents, outputs = jax.grad(energy, has_aux=True)(copies if by_member else features)
    return outputs, cotangents if by_member else cotangents[None]


def _pair_term(
    config: ModelConfig, by_member: bool, params: Params, graph: Graph
) -> tuple[Array, Array]:
    """Pair energies, (1 or M, N), and their gradients by member or of the mean, (1 or M, P, 3)."""

    def summed(vectors: Array) -> tuple[Array, Array]:
        pair = pair_energies(config, params, graph._replace(vectors=vectors))
        assert pair is not None
        return pair.sum(axis=1), pair

    _, pull_back, pair = jax.vjp(summed, jnp.asarray(graph.vectors), has_aux=True)
    count = len(pair)
    cotangents = jnp.eye(count) if by_member else jnp.full((1, count), 1 / count)
    (gradients,) = jax.vmap(pull_back)(cotangents.astype(pair.dtype))
    return pair, gradients


def _add_pair_energies(outputs: Array, pair: Array | None) -> Array:
    return outputs if pair is None else outputs.at[..., 0].add(pair)
