"""The repulsion of close atoms: its range, chosen from the data, and the part that is subtracted from the labels."""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers, covalent_radii
from jax import Array

from neuralil_ase.engine.neighbors import Pairs, shortest_distances
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.pair_terms import zbl
from neuralil_ase.prediction import to_voigt
from neuralil_ase.samples.batches import in_blocks

CLOSE = 0.85
"""Distance, divided by the sum of the covalent radii, below which atoms always repel each other.

Atoms of hot metals come this close. A network alone has the largest errors where atoms come closer than in the data.
With 0.85 instead of 0.7, the RMSE of held-out forces falls from 65 to 44 meV/Å in copper and from 245 to 205 in
molybdenum (folds with the closest contacts). With 1 it falls to 19 in copper, but energies of surfaces have errors of
10 meV/atom."""

ZBL_BLOCK = 256
"""Close pairs evaluated together. The number is the same for all frames, so that the function is compiled once."""


def zbl_radii(
    pairs: Iterable[Pairs], types: Sequence[np.ndarray], elements: tuple[str, ...], r_cut: float
) -> tuple[float, ...]:
    """Distance in Å below which each pair of elements is repelled, in the order of ``np.triu_indices``.

    It is the shortest distance in the data or ``CLOSE`` times the sum of the covalent radii, whichever is larger. For a
    pair of elements that never comes inside the cutoff, it is the sum of the covalent radii.
    """
    n = len(elements)
    radii = covalent_radii[[atomic_numbers[symbol] for symbol in elements]]
    bond = radii[:, None] + radii[None, :]
    distance = shortest_distances(zip(pairs, types, strict=False), n)
    radius = np.where(np.isfinite(distance), np.maximum(distance, CLOSE * bond), bond)
    return tuple(np.minimum(radius, r_cut)[np.triu_indices(n)].round(4).tolist())


def repulsion(
    config: ModelConfig, types: np.ndarray, pairs: Pairs
) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces (eV/Å, shape (N, 3)) and virial (eV, Voigt order) of the short-range repulsion."""
    forces = np.zeros((len(types), 3))
    if config.pair_term != "zbl":
        return 0.0, forces, np.zeros(6)
    close = np.linalg.norm(pairs.vectors, axis=1) < max(config.zbl_radii)
    vectors, i, j = (values[close] for values in pairs)
    blocks = in_blocks(vectors, ZBL_BLOCK, 1.01 * config.descriptor.r_cut)
    ends = np.zeros((len(blocks), ZBL_BLOCK, 2), np.int32)
    ends.reshape(-1, 2)[: len(vectors)] = np.stack([types[i], types[j]], axis=1)
    with jax.enable_x64(True):
        parts = [_zbl_of_pairs(config, *block) for block in zip(blocks, ends, strict=True)]
    energies, gradients = zip(*parts, strict=True)
    gradient = np.concatenate([np.asarray(x) for x in gradients])[: len(vectors)]
    np.add.at(forces, i, gradient)
    np.subtract.at(forces, j, gradient)
    return sum(map(float, energies)), forces, to_voigt(vectors.T @ gradient)


@partial(jax.jit, static_argnums=0)
def _zbl_of_pairs(config: ModelConfig, vectors: Array, ends: Array) -> tuple[Array, Array]:
    """Energy of pairs between atoms of the types ``ends``, (P, 2), and its gradient by their vectors."""
    first = 2 * jnp.arange(len(vectors), dtype=jnp.int32)

    def total(moved: Array) -> Array:
        graph = Graph(moved, first, first + 1, ends.reshape(-1))
        return zbl(graph, config.descriptor.elements, config.zbl_radii).sum()

    return jax.value_and_grad(total)(vectors)
