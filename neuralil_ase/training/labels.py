"""What the network has to learn: labels minus the energy of atoms and the short-range repulsion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from ase.data import atomic_numbers, covalent_radii
from jax import Array

from neuralil_ase.engine.derivatives import forces_from_pairs, virials_from_pairs
from neuralil_ase.engine.neighbors import Pairs, shortest_distances
from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.dataset import Frame, pairs_of, types_of
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.graph import Graph, pad_graph
from neuralil_ase.model.pair_terms import zbl
from neuralil_ase.training.precompute import coarse_bucket
from neuralil_ase.training.settings import CUTOFFS


@dataclass(frozen=True)
class Labels:
    """Targets of one frame; NaN where the data hold none.

    Attributes
    ----------
    energy
        In eV, reference and repulsion subtracted.
    forces
        In eV/Å, shape (N, 3), repulsion subtracted.
    stress
        In eV/Å³, shape (6,), repulsion subtracted.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray


def neighbour_distance(frames: Sequence[Frame], elements: tuple[str, ...]) -> float:
    """Median distance in Å from an atom to its nearest neighbour, of the element for which it is largest.

    From at most 64 frames, spread over the data. Atoms without a neighbour within half the longest cutoff that a run
    chooses by itself count as if they had one there.
    """
    types, distances = [], []
    for frame in frames[:: max(1, len(frames) // 64)]:
        types.append(types_of(frame, elements))
        pairs = pairs_of(frame, types[-1], CUTOFFS[1] / 2)
        distances.append(np.full(len(types[-1]), CUTOFFS[1] / 2))
        np.minimum.at(distances[-1], pairs.centers, np.linalg.norm(pairs.vectors, axis=1))
    all_types, all_distances = np.concatenate(types), np.concatenate(distances)
    return max(float(np.median(all_distances[all_types == k])) for k in np.unique(all_types))


def energy_reference(
    frames: Sequence[Frame],
    elements: tuple[str, ...],
    isolated_atoms: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Energy of every element in eV: as given, or fitted to the energies per atom by least squares.

    Compositions that do not vary leave the fit undetermined; the solution of smallest norm is taken.

    Raises
    ------
    DataError
        If isolated-atom energies are given, but not for every element.
    """
    if isolated_atoms is not None:
        missing = sorted(set(elements) - set(isolated_atoms))
        if missing:
            raise DataError(f"isolated_atoms lacks the energy of {', '.join(missing)}")
        return np.array([isolated_atoms[symbol] for symbol in elements], dtype=float)
    with_energy = [frame for frame in frames if frame.energy is not None]
    if not with_energy:
        return np.zeros(len(elements))
    counts = np.array(
        [np.bincount(types_of(f, elements), minlength=len(elements)) for f in with_energy], float
    )
    sizes = counts.sum(axis=1)
    energies = np.array([frame.energy for frame in with_energy], dtype=float)
    return np.linalg.lstsq(counts / sizes[:, None], energies / sizes, rcond=1e-9)[0]


def zbl_radii(
    pairs: Sequence[Pairs], types: Sequence[np.ndarray], elements: tuple[str, ...], r_cut: float
) -> tuple[float, ...]:
    """Distance in Å below which each pair of elements is repelled, in the order of ``np.triu_indices``.

    It is the shortest distance in the data, so that the repulsion disturbs nothing the data know, but at least 0.7
    times the sum of the covalent radii; that sum itself for pairs that never come inside the cutoff.
    """
    n = len(elements)
    radii = covalent_radii[[atomic_numbers[symbol] for symbol in elements]]
    bond = radii[:, None] + radii[None, :]
    distance = shortest_distances(zip(pairs, types, strict=True), n)
    radius = np.where(np.isfinite(distance), np.maximum(distance, 0.7 * bond), bond)
    return tuple(np.minimum(radius, r_cut)[np.triu_indices(n)].round(4).tolist())


def make_labels(
    config: ModelConfig, frame: Frame, types: np.ndarray, pairs: Pairs, reference: np.ndarray
) -> Labels:
    """Targets of one frame for the network alone."""
    energy, forces, virial = _repulsion(config, types, pairs)
    target = np.nan if frame.energy is None else frame.energy - reference[types].sum() - energy
    target_forces = np.full((len(types), 3), np.nan)
    if frame.forces is not None:
        target_forces = frame.forces - forces
    stress = np.full(6, np.nan)
    if frame.stress is not None and frame.volume is not None:
        stress = frame.stress - virial / frame.volume
    return Labels(float(target), target_forces, stress)


def _repulsion(
    config: ModelConfig, types: np.ndarray, pairs: Pairs
) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and virial of the repulsion between the few pairs inside its radii."""
    none = 0.0, np.zeros((len(types), 3)), np.zeros(6)
    if config.pair_term != "zbl":
        return none
    close = np.linalg.norm(pairs.vectors, axis=1) < max(config.zbl_radii)
    graph = pad_graph(
        pairs.vectors[close], pairs.centers[close], pairs.neighbors[close], types,
        n_atoms=coarse_bucket(len(types)), n_pairs=coarse_bucket(int(close.sum())),
        r_cut=config.descriptor.r_cut, dtype=np.float64,
    )  # fmt: skip

    with jax.enable_x64(True):
        energy, forces, virials = _zbl_derivatives(config, graph)
    virial = np.asarray(virials).sum(axis=0)
    return float(energy), np.asarray(forces)[: len(types)], virial


@jax.jit(static_argnums=0)
def _zbl_derivatives(config: ModelConfig, graph: Graph) -> tuple[Array, Array, Array]:
    def total(vectors: Array) -> Array:
        moved = graph._replace(vectors=vectors)
        return zbl(moved, config.descriptor.elements, config.zbl_radii).sum()

    energy, gradient = jax.value_and_grad(total)(graph.vectors)
    return energy, forces_from_pairs(gradient, graph), virials_from_pairs(gradient, graph)
