"""Many replicas of one system, stepped together: walkers, replica exchange, beads of a path integral.

Use it in your own loops over arrays. For single ``Atoms`` use the ASE calculator, for data sets ``predict_many``.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

from neuralil_ase.array_record import ArrayRecord
from neuralil_ase.engine.arrays import Dtype, System
from neuralil_ase.engine.concurrency import Lock, one_at_a_time
from neuralil_ase.engine.neighbors import DEFAULT_SKIN, NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.errors import StructureError
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.model.elements import element_types
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Prediction, Uncertainty, check_uncertainty

_UNITS = {
    "energy": "eV",
    "forces": "eV/Å",
    "virial": "eV",
    "energies_std": "eV",
    "forces_std": "eV/Å",
}


@dataclass(frozen=True, eq=False, repr=False)
class ReplicaPrediction(ArrayRecord, units=_UNITS):
    """Means and spreads over the M members of an ensemble, for R replicas of N atoms, float64.

    Attributes
    ----------
    energy
        In eV, shape (R,).
    forces
        In eV/Å, shape (R, N, 3).
    virial
        dE/dε in eV, shape (R, 6), order xx yy zz yz xz xy. Divided by the volume it is the stress, tension positive.
    energies_std
        Spread of the atomic energies in eV (ddof = 1), shape (R, N); None at uncertainty "off" and for one member.
    forces_std
        Spread of the forces in eV/Å (ddof = 1, norm over components), shape (R, N); None below uncertainty "forces"
        and for one member.
    """

    energy: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    energies_std: np.ndarray | None
    forces_std: np.ndarray | None


class Replicas:
    """Predicts replicas of one system in one call, with one common pair list.

    >>> import numpy as np
    >>> from ase.build import molecule
    >>> from neuralil_ase import Replicas
    >>> atoms = molecule("CH3CH2NH2")
    >>> walkers = Replicas(atoms)
    >>> positions = np.stack([atoms.positions, 1.01 * atoms.positions])
    >>> walkers.predict(positions).forces.shape
    (2, 10, 3)

    Parameters
    ----------
    atoms
        The system: its elements, periodicity and the default cell of the replicas.
    model
        Path of a model file, a loaded potential, or None for the potential that ships with the package.
    dtype, skin, uncertainty
        As for :class:`~neuralil_ase.NeuralILCalculator`.

    Raises
    ------
    ConfigError, ModelFileError, StructureError
        As from the calculator.
    """

    def __init__(
        self,
        atoms: Atoms,
        model: str | Path | Potential | None = None,
        *,
        dtype: Dtype = "float32",
        skin: float = DEFAULT_SKIN,
        uncertainty: Uncertainty = "off",
    ) -> None:
        self.uncertainty = check_uncertainty(uncertainty)
        self.potential = as_potential(model)
        self._types = element_types(atoms.numbers, self.potential.elements)
        self._cell, self._pbc = atoms.cell.array.copy(), atoms.pbc.copy()
        self._neighbor_list = NeighborList(self.potential.r_cut, skin)
        self._predictor = Predictor(self.potential, dtype)
        self._lock = Lock()

    @property
    def backend(self) -> str:
        """What computes, in words; see :attr:`neuralil_ase.NeuralILCalculator.backend`."""
        return self._predictor.backend_in_words

    @property
    def compilations(self) -> int:
        """Number of compilations caused so far; constant while atoms move and the number of replicas stays the same."""
        return self._predictor.compilations

    @property
    def neighbor_list_builds(self) -> int:
        """How often the pair list of a replica was built, summed over all replicas."""
        return self._neighbor_list.builds

    @one_at_a_time
    def predict(self, positions: np.ndarray, cells: np.ndarray | None = None) -> ReplicaPrediction:
        """Energies, forces and virials of all replicas.

        Parameters
        ----------
        positions
            In Å, shape (R, N, 3), wrapped or not. Pass the replicas in the same order every time: each has its own
            part of the pair list, kept until one of its atoms may have crossed the skin.
        cells
            Lattice vectors as rows in Å, shape (R, 3, 3), or (3, 3) for all; by default the cell of the system.

        Raises
        ------
        StructureError
            If arrays have a wrong shape, or the geometry of a replica is not finite or degenerate.
        """
        positions = np.asarray(positions, float)
        if positions.ndim != 3 or positions.shape[1:] != (len(self._types), 3):
            raise StructureError(
                f"positions have the shape {positions.shape}; replicas of this system need (R, {len(self._types)}, 3)"
            )
        n_replicas = len(positions)
        cells = self._cells(n_replicas, cells)
        pairs = self._neighbor_list.replica_pairs(positions, cells, self._pbc, self._types)
        system = System(np.tile(self._types, n_replicas), pairs, None)
        (found,) = self._predictor.predict([system], self.uncertainty)
        return self._by_replica(found, n_replicas)

    def _by_replica(self, found: Prediction, n_replicas: int) -> ReplicaPrediction:
        shape = n_replicas, len(self._types)
        return ReplicaPrediction(
            found.energies.reshape(shape).sum(axis=1),
            found.forces.reshape(*shape, 3),
            found.virials.reshape(*shape, 6).sum(axis=1),
            found.energies_std.reshape(shape) if found.holds("energies_std") else None,
            found.forces_std.reshape(shape) if found.holds("forces_std") else None,
        )

    def _cells(self, n_replicas: int, cells: np.ndarray | None) -> np.ndarray:
        given = self._cell if cells is None else np.asarray(cells, float)
        if given.shape not in ((3, 3), (n_replicas, 3, 3)):
            raise StructureError(
                f"cells have the shape {given.shape}; give one, (3, 3), or one for each replica, ({n_replicas}, 3, 3)"
            )
        return np.broadcast_to(given, (n_replicas, 3, 3))
