"""The energy of every element that is taken off the labels before the network learns the rest."""

from collections.abc import Mapping, Sequence

import numpy as np

from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.dataset import Frame, types_of


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
