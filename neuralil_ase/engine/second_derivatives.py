"""Second derivatives of the energy by pair vectors, one centre at a time.

The energy is a sum over centres, E = Σ_i E_i, and E_i depends only on the vectors r_ik to the neighbours of i. All
second derivatives are therefore in one block for each centre, B_i[k, l] = d²E_i / dr_ik dr_il. The cost is linear in
the number of atoms. With c the density coefficients of the centre, p(c) its features and z = W p + b the first layer,

    B[k, l] = Q_k (d²E/dz²) Q_lᵀ + J_k G J_lᵀ + δ_kl Σ_c (dE/dc) d²c/dr_k²

with J_k = dc/dr_k, Q_k = J_k (dp/dc)ᵀ Wᵀ and G = Σ_p (dE/dp) d²p/dc². This is exact, because p is quadratic in c, and c
is a sum over pairs. All members have the same J. A pair term adds to the blocks with k = l.

A batch of centres is a graph of stars: first the centres, then one atom for each element of the model, which represents
all neighbours of that element. Every centre has K pairs; missing ones are padded with pairs longer than the cutoff.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import optimization_barrier

from neuralil_ase.model.config import DescriptorConfig, ModelConfig
from neuralil_ase.model.descriptors import pair_product_derivatives
from neuralil_ase.model.first_layer import FirstLayer, first_layer
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.pair_terms import pair_energies
from neuralil_ase.model.potential import Params
from neuralil_ase.model.spectrum import power_spectrum, pull_back_spectrum


class StarDerivatives(NamedTuple):
    """Second derivatives of the energies of B centres with K neighbours; S members, or 1 for their mean.

    Attributes
    ----------
    by_position
        By the positions of the K neighbours and, last, of the centre, in eV/Å²: shape (S, B, K + 1, K + 1, 3, 3).
    by_strain
        d²E_i/dε_ab dε_cd, when all vectors r become (1 + ε) r, in eV: shape (S, B, 3, 3, 3, 3).
    """

    by_position: Array
    by_strain: Array


def star_derivatives(
    config: ModelConfig, by_member: bool, params: Params, stars: Graph
) -> StarDerivatives:
    """Second derivatives by positions and by strain, of every member or of the mean over members."""
    blocks = pair_blocks(config, by_member, params, stars)
    vectors = jnp.asarray(stars.vectors).reshape(*blocks.shape[1:3], 3)
    strained = jnp.einsum("nkb,snkalc->snablc", vectors, blocks)
    by_strain = jnp.einsum("snablc,nld->snabcd", strained, vectors)
    by_pair = blocks.transpose(0, 1, 2, 4, 3, 5)
    # If a neighbour moves, its pair vector changes by the same amount. If the centre moves, all pair vectors change by
    # the opposite amount.
    with_column = jnp.concatenate([by_pair, -by_pair.sum(3, keepdims=True)], axis=3)
    by_position = jnp.concatenate([with_column, -with_column.sum(2, keepdims=True)], axis=2)
    return StarDerivatives(by_position, by_strain)


def third_derivatives(
    config: ModelConfig, by_member: bool, params: Params, stars: Graph, motion: Array
) -> StarDerivatives:
    """Slope of :func:`star_derivatives` by t as all pair vectors move to r + t · motion; motion has shape (B K, 3)."""

    def moved(vectors: Array) -> StarDerivatives:
        return star_derivatives(config, by_member, params, stars._replace(vectors=vectors))

    return jax.jvp(moved, (jnp.asarray(stars.vectors),), (motion,))[1]


def pair_blocks(config: ModelConfig, by_member: bool, params: Params, stars: Graph) -> Array:
    """d²E_i / dr_ik dr_il of B centres by their K pair vectors, in eV/Å²: shape (S, B, K, 3, K, 3)."""
    descriptor, n_elements = config.descriptor, len(config.descriptor.elements)
    n_centers = len(stars.types) - n_elements
    vectors, types = jnp.asarray(stars.vectors), jnp.asarray(stars.types)
    k = len(vectors) // n_centers
    values, first, second = (
        x.reshape(n_centers, k, *x.shape[1:]) for x in pair_product_derivatives(descriptor, vectors)
    )
    neighbours = types[stars.neighbors].reshape(n_centers, k)
    is_element = jax.nn.one_hot(neighbours, n_elements, dtype=vectors.dtype)
    density = jnp.einsum("nke,nkc->nec", is_element, values)
    slopes = jnp.einsum("nke,nkxc->nkxec", is_element, first).reshape(
        n_centers, 3 * k, *density.shape[1:]
    )
    features = power_spectrum(descriptor, density, only_forward=True)
    layer = first_layer(config, params, features, types[:n_centers])
    by_features, curvature = _network_derivatives(layer, by_member)
    to_inputs = _input_slopes(descriptor, density, slopes, layer.weights)
    through_network = _congruence(curvature, to_inputs, by_member)

    # p is quadratic in c, so that its pull-back is linear in c: along a direction it is G times the direction.
    directions = jnp.concatenate([slopes, density[:, None]], axis=1)
    bent = jax.vmap(lambda c: _pull_back(descriptor, c, by_features), 1, 2)(directions)
    by_density = bent[:, :, -1]
    through_spectrum = jnp.einsum("nrec,snqec->snrq", slopes, bent[:, :, :-1])
    blocks = (through_network + through_spectrum).reshape(-1, n_centers, k, 3, k, 3)
    by_own = jnp.einsum("snec,nke->snkc", by_density, is_element)
    diagonal = jnp.einsum("snkc,nkxyc->snkxy", by_own, second)
    if config.pair_term != "none":
        diagonal += _pair_term(config, by_member, params, stars).reshape(-1, n_centers, k, 3, 3)
    return blocks + jnp.einsum("snkxy,kl->snkxly", diagonal, jnp.eye(k, dtype=vectors.dtype))


_pull_back = partial(pull_back_spectrum, only_forward=True)


def _input_slopes(config: DescriptorConfig, density: Array, slopes: Array, weights: Array) -> Array:
    """Q: slopes of the inputs z, weights (M, W, F), along slopes (B, R, elements, channels): (B, R, M, W)."""
    n_members, width, _ = weights.shape
    rows = weights.reshape(n_members * width, 1, -1)

    def pulled_back(density: Array) -> Array:
        return _pull_back(config, density[None], rows)[:, 0]

    by_density = optimization_barrier(jax.vmap(pulled_back)(density))
    found = optimization_barrier(jnp.einsum("nrec,nwec->nrw", slopes, by_density))
    return found.reshape(*slopes.shape[:2], n_members, width)


def _congruence(curvature: Array, q: Array, by_member: bool) -> Array:
    """Q H Qᵀ with H of shape (M, B, W, W) and Q (B, R, M, W): (M, B, R, R), or their sum over members, (1, B, R, R)."""
    answers = optimization_barrier(jnp.einsum("mnvw,nrmw->nrmv", curvature, q))
    if by_member:
        return jnp.einsum("nrmw,nqmw->mnrq", q, answers)
    return jnp.einsum("nrmw,nqmw->nrq", q, answers)[None]


def _network_derivatives(layer: FirstLayer, by_member: bool) -> tuple[Array, Array]:
    """dE/dp, shape (S, B, F), and d²E/dz², (M, B, W, W); both divided by the number of members for the mean."""
    n_members, _, width = layer.inputs.shape
    weight = 1.0 if by_member else 1 / n_members
    gradient = jax.grad(lambda z: weight * layer.energies(z).sum())
    by_inputs = gradient(layer.inputs)
    curvature = _forward(gradient, layer.inputs, width)
    by_features = jnp.einsum("mnw,mwf->mnf", by_inputs, layer.weights)
    if layer.slopes is not None:
        by_features += weight * layer.slopes
    if not by_member:
        by_features = by_features.sum(0, keepdims=True)
    return by_features, curvature.transpose(1, 2, 3, 0)


def _pair_term(config: ModelConfig, by_member: bool, params: Params, stars: Graph) -> Array:
    """d²E/dr² of every pair in the pair term: shape (S or 1, B K, 3, 3)."""

    def slopes(vectors: Array) -> Array:
        def energies(vectors: Array) -> Array:
            pair = pair_energies(config, params, stars._replace(vectors=vectors))
            assert pair is not None
            return pair.sum(1) if by_member else pair.mean(0, keepdims=True).sum(1)

        return jax.jacrev(energies)(vectors)

    return _forward(slopes, jnp.asarray(stars.vectors), 3).transpose(1, 2, 3, 0)


def _forward(function: Callable[[Array], Array], x: Array, width: int) -> Array:
    """Derivatives by each of the last axis's entries, the same entry of all rows at once: shape (width, …).

    For functions whose rows depend on their own row of ``x`` alone, all other derivatives are zero.
    """

    def along(unit: Array) -> Array:
        return jax.jvp(function, (x,), (jnp.broadcast_to(unit, x.shape),))[1]

    return jax.vmap(along)(jnp.eye(width, dtype=x.dtype))
