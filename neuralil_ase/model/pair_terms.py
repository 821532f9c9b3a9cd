"""Pair energies added to the network: screened nuclear repulsion, and the Morse terms of the published files."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers
from jax import Array

from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.potential import Params
from neuralil_ase.model.screening import screened_coulomb

SOFTENING = 0.02
"""Length in Å. ZBL uses sqrt(r² + SOFTENING²): two atoms at one position have a finite energy and no force."""


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


def zbl(graph: Graph, elements: Sequence[str], radii: Sequence[float]) -> Array:
    """Ziegler-Biersack-Littmark repulsion, shape (N,), in eV. Each atom gets half of the energy of a pair.

    Parameters
    ----------
    graph
        The graph.
    elements
        Chemical symbol of every type.
    radii
        Distance in Å from which the repulsion of each pair of elements is zero; it is switched off smoothly (C²).
        Ordered as ``np.triu_indices(len(elements))``.
    """
    i, j = graph.types[graph.centers], graph.types[graph.neighbors]
    dtype = graph.vectors.dtype
    z = jnp.asarray([atomic_numbers[symbol] for symbol in elements], dtype)
    r = jnp.sqrt(jnp.sum(graph.vectors**2, axis=-1) + SOFTENING**2)
    t = jnp.minimum(r / jnp.asarray(_symmetric(radii, len(elements)), dtype)[i, j], 1)
    envelope = 1 - t**3 * (10 - 15 * t + 6 * t**2)
    energies = screened_coulomb(z[i], z[j], r, jnp.exp)
    return _per_atom(0.5 * energies * envelope, graph)


def morse(parameters: Mapping[str, Any], graph: Graph, r_cut: float, is_repulsive: bool) -> Array:
    """Morse term of one member of a published model, shape (N,), in eV.

    E_i = ½ Σ_j S(r_ij) φ_i(r_ij), with the mixing radius and the switch of the original code.

    Parameters
    ----------
    parameters
        "embedding" (elements, 3), from which a, b and d of every element follow, and "switch" (1, 1).
    graph
        The graph.
    r_cut
        Cutoff radius in Å.
    is_repulsive
        True for φ = d exp(-2a(2 rm - b)) with (a, b, d) = 0.01 + v²; False for φ = d x (x - 2),
        x = exp(-a(rm - b)), with (a, b, d) = softplus(v).
    """
    v = jnp.asarray(parameters["embedding"])
    a, b, d = (0.01 + v**2 if is_repulsive else jax.nn.softplus(v)).T
    i, j = graph.types[graph.centers], graph.types[graph.neighbors]
    r_squared = jnp.sum(graph.vectors**2, axis=-1)
    r = _safe_sqrt(r_squared)
    mixed = a[j] * r + jnp.log(a[i] * d[i] / (a[j] * d[j])) / 4 + (a[i] * b[i] - a[j] * b[j]) / 2
    rm = mixed / (a[i] + a[j])
    if is_repulsive:
        phi = d[i] * jnp.exp(-2 * a[i] * (2 * rm - b[i]))
    else:
        x = jnp.exp(-a[i] * (rm - b[i]))
        phi = d[i] * x * (x - 2)
    switch_on = 0.5 * (1 + jax.nn.sigmoid(jnp.ravel(parameters["switch"])[0])) * r_cut
    t = (r_squared - switch_on**2) / (r_cut**2 - switch_on**2)
    # step(1 - t) instead of 1 - step(t): value and derivative are then exactly zero beyond the cutoff.
    return _per_atom(0.5 * _smooth_step(1 - t) * phi, graph)


def _symmetric(upper: Sequence[float], n: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    matrix[np.triu_indices(n)] = upper
    return np.maximum(matrix, matrix.T)


def _per_atom(pair_values: Array, graph: Graph) -> Array:
    return jax.ops.segment_sum(
        pair_values, graph.centers, len(graph.types), indices_are_sorted=True
    )


def _safe_sqrt(x: Array) -> Array:
    """Square root whose derivative at zero is zero instead of infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _smooth_step(t: Array) -> Array:
    """f(t) / (f(t) + f(1-t)), f(t) = exp(-1/t) for t > 0, else 0: from 0 to 1 with all derivatives zero."""

    def f(u: Array) -> Array:
        positive = u > 0
        return jnp.where(positive, jnp.exp(-1 / jnp.where(positive, u, 1)), 0)

    return f(t) / (f(t) + f(1 - t))
