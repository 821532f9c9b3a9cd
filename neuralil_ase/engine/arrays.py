"""Input and output arrays of a prediction. Uses no JAX."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from neuralil_ase.engine.neighbors import Pairs

Dtype = Literal["float32", "float64"]


class System(NamedTuple):
    """One structure on the host.

    Attributes
    ----------
    types
        Element indices, shape (N,).
    pairs
        Pairs of the structure inside the cutoff.
    volume
        Volume of the cell in Å³; None if the cell has no volume.
    """

    types: np.ndarray
    pairs: Pairs
    volume: float | None


class Derivatives(NamedTuple):
    """Results for the atoms of a graph: N atoms, padding included, and M members.

    Attributes
    ----------
    outputs
        Atomic energies in eV and, with aleatoric layers, σ²_E and σ²_F: shape (M, N, outputs); the mean
        over members, (1, N, outputs), at uncertainty "off".
    forces
        Of the mean over members, in eV/Å, shape (N, 3).
    virials
        dE/dε in eV, symmetrised, in Voigt order xx yy zz yz xz xy, each pair with its center: shape (N, 6).
    member_forces, member_virials
        Shapes (M, N, 3) and (M, N, 6); at uncertainty "forces", else None.
    """

    outputs: Any
    forces: Any
    virials: Any
    member_forces: Any
    member_virials: Any


def merge(systems: Sequence[System]) -> System:
    """Combine systems into one without a volume: their atoms and pairs one after another."""
    if len(systems) == 1:
        return systems[0]
    sizes = [len(system.types) for system in systems]
    starts = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
    pairs = Pairs(
        np.concatenate([s.pairs.vectors for s in systems]),
        np.concatenate([s.pairs.centers + start for s, start in zip(systems, starts, strict=True)]),
        np.concatenate(
            [s.pairs.neighbors + start for s, start in zip(systems, starts, strict=True)]
        ),
    )
    return System(np.concatenate([s.types for s in systems]), pairs, None)
