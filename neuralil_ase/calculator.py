"""The ASE calculator: it reads arrays from ``Atoms``, calls the predictor and fills ASE's results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)

from neuralil_ase.engine.arrays import Dtype, System
from neuralil_ase.engine.concurrency import Lock, one_at_a_time
from neuralil_ase.engine.force_constants import ForceConstants, pair_motion
from neuralil_ase.engine.neighbors import DEFAULT_SKIN, NeighborList, identical
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.errors import StructureError
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.model.elements import element_types
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import (
    UNCERTAINTIES,
    Prediction,
    Uncertainty,
    check_uncertainty,
)

NO_VOLUME = "stress needs a cell with a volume; give the structure three lattice vectors"


class NeuralILCalculator(Calculator):
    """Energy, forces, stress and their uncertainties from a NeuralIL ensemble.

    >>> from ase.build import molecule
    >>> from neuralil_ase import NeuralILCalculator
    >>> atoms = molecule("CH3CH2NH2")
    >>> atoms.calc = NeuralILCalculator()
    >>> atoms.get_forces().shape
    (10, 3)
    >>> prediction = atoms.calc.prediction(atoms, uncertainty="forces")
    >>> prediction.forces_std.shape  # eV/Å, one spread per atom
    (10,)

    Parameters
    ----------
    model
        Path of a model file, a loaded :class:`~neuralil_ase.Potential`, or None for the potential that ships with the
        package: ethylammonium nitrate, a surrogate of GFN1-xTB (not of DFT).
    dtype
        Precision of descriptor and networks, "float32" or "float64". Differences of positions are
        always taken, and energies always summed, in float64.
    skin
        Extra radius in Å of the pair list; the list is rebuilt when an atom may have crossed it.
    uncertainty
        Content of every prediction. "off": only means. "energy": also the energy of each member and the spread
        of the atomic energies. "forces": also the forces of each member. :meth:`prediction` can return more
        for a single structure.
    label, directory, atoms
        As for every ASE calculator.

    Notes
    -----
    ``results`` holds only ASE's properties (energy, free_energy, energies in eV, forces in eV/Å, stress and
    stresses in eV/Å³, tension positive). All are computed at every evaluation; stress needs three lattice vectors.
    Means over members are not weighted. Uncertainties are in :meth:`prediction`, because unknown keys in
    ``results`` would break ``get_properties``, single-point copies and calculators that add results.

    Raises
    ------
    ConfigError
        If an option is not valid.
    ModelFileError
        If the model file cannot be read.
    StructureError
        On evaluation, if the structure has an element that the model does not know, or is not finite.
    """

    implemented_properties = [  # noqa: RUF012 - ASE's convention; set here, never extended in place
        "energy", "free_energy", "energies", "forces", "stress", "stresses",
    ]  # fmt: skip
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012 - ASE's convention
    name = "neuralil"

    def __init__(
        self,
        model: str | Path | Potential | None = None,
        *,
        dtype: Dtype = "float32",
        skin: float = DEFAULT_SKIN,
        uncertainty: Uncertainty = "energy",
        label: str | None = None,
        directory: str = ".",
        atoms: Atoms | None = None,
    ) -> None:
        self.uncertainty = check_uncertainty(uncertainty)
        self.potential = as_potential(model)
        self._predictor = Predictor(self.potential, dtype)
        self._neighbor_list = NeighborList(self.potential.r_cut, skin)
        self._last: _Predicted | None = None
        self._lock = Lock()
        super().__init__(label=label, directory=directory, atoms=atoms)

    @property
    def backend(self) -> str:
        """What computes energies and forces, in words: "compiled, AVX2", or "JAX on cpu:" with the reason.

        Raises
        ------
        ProcessError
            If JAX may find an accelerator, but cannot start.
        """
        return self._predictor.backend_in_words

    @property
    def compilations(self) -> int:
        """Number of compilations this calculator has caused; constant while atoms move."""
        return self._predictor.compilations

    @property
    def neighbor_list_builds(self) -> int:
        """How often the pair list was built."""
        return self._neighbor_list.builds

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last evaluation, for ASE. The comparison is exact for any ``tol``.

        ASE asks three times in every MD step, and its own comparison with a tolerance costs as much as two thirds of
        the evaluation of 225 atoms.
        """
        last = self.atoms
        if last is None:
            return list(all_changes)
        pairs = {
            "positions": (last.positions, atoms.positions),
            "numbers": (last.numbers, atoms.numbers),
            "cell": (last.cell.array, atoms.cell.array),
            "pbc": (last.pbc, atoms.pbc),
        }
        return [name for name, (old, new) in pairs.items() if not identical(old, new)]

    @one_at_a_time
    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Compare, evaluate and read, for ASE, under one lock: every thread gets the results of its own atoms."""
        return super().get_property(name, atoms, allow_calculation)

    @one_at_a_time
    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> Any:
        """Like :meth:`get_property`, for several properties."""
        return super().calculate_properties(atoms, properties)

    @one_at_a_time
    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Evaluate all properties; called by ASE.

        Raises
        ------
        StructureError, PredictionError, ProcessError
            As from :meth:`prediction`; ``results`` is then empty.
        PropertyNotImplementedError
            If the stress is asked for, and the cell has no volume.
        """
        self.results = {}  # if this fails, no results of another structure may remain
        # ASE's method would also look for the directory at every step, which is not used here.
        if atoms is not None:
            self.atoms = atoms.copy()
        prediction = self.prediction(self.atoms)
        self.results = _ase_results(prediction)
        if "stress" in properties and "stress" not in self.results:
            raise PropertyNotImplementedError(NO_VOLUME)

    @one_at_a_time
    def prediction(
        self, atoms: Atoms | None = None, uncertainty: Uncertainty | None = None
    ) -> Prediction:
        """The prediction for a structure: means, members and spreads.

        For the last structure this costs nothing if the structure was evaluated with at least this uncertainty.

        Parameters
        ----------
        atoms
            The structure; by default the one evaluated last.
        uncertainty
            The uncertainty for this call; by default the setting of the calculator.

        Returns
        -------
        Prediction
            See its documentation for fields, shapes and units.

        Raises
        ------
        StructureError
            If there is no structure yet, or if it holds an element that the model does not know, or its geometry is not
            finite or degenerate.
        ConfigError
            If there is no such uncertainty.
        PredictionError
            If energies or forces are not finite.
        ProcessError
            If JAX is needed, and cannot start or was used before this process was forked.
        """
        uncertainty = self.uncertainty if uncertainty is None else check_uncertainty(uncertainty)
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise StructureError("no structure has been evaluated yet: pass atoms to prediction()")
        if self._last is None or not self._last.serves(atoms, uncertainty):
            system = to_system(atoms, self.potential, self._neighbor_list)
            (prediction,) = self._predictor.predict([system], uncertainty)
            self._last = _Predicted.of(atoms, uncertainty, prediction)
        return self._last.prediction

    @one_at_a_time
    def descriptors(self, atoms: Atoms | None = None) -> np.ndarray:
        """Power spectrum of every atom, shape (N, features), in Å^-3, float64."""
        return self._predictor.descriptors(self._system(atoms))

    @one_at_a_time
    def hessian(self, atoms: Atoms | None = None) -> np.ndarray:
        """Second derivatives of the mean energy in eV/Å², shape (N, 3, N, 3), by automatic differentiation.

        It includes all atoms and ignores constraints. It can be passed to ``ase.vibrations.VibrationsData(atoms,
        hessian)``. If FixAtoms leaves only the atoms ``free``, pass ``hessian[free][:, :, free]`` with
        ``indices=free``. Use dtype="float64" if small frequencies matter. For many atoms, and for the matrices of all
        members, use :meth:`force_constants`.
        """
        return self.force_constants(atoms).hessian()

    @one_at_a_time
    def force_constants(
        self,
        atoms: Atoms | None = None,
        *,
        members: bool = False,
        displacements: np.ndarray | None = None,
        strain: np.ndarray | None = None,
    ) -> ForceConstants:
        """Sparse second derivatives of the energy by positions and strain, exact; cost and memory linear in atoms.

        Parameters
        ----------
        atoms
            The structure; by default the one evaluated last.
        members
            Whether to return the derivatives of each member, instead of the derivatives of the mean energy.
        displacements, strain
            For third derivatives: the result is then differentiated by t, where atom i moves to
            r_i + t displacements[i], shape (N, 3), in Å, or all vectors r become (1 + t strain) r, shape (3, 3).

        Returns
        -------
        ForceConstants
            See its documentation for blocks, matrices and products.

        Raises
        ------
        StructureError
            If displacements or strain have another shape.
        """
        atoms = self._structure(atoms)
        system = to_system(atoms, self.potential, self._neighbor_list)
        moving = pair_motion(system.pairs, len(system.types), displacements, strain)
        return self._predictor.force_constants(
            system, atoms.positions, atoms.cell.array, by_member=members, motion=moving
        )

    @one_at_a_time
    def neighbor_virials(self, atoms: Atoms | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The terms of a heat flux; see ``neuralil_ase.response.heat_flux``.

        Returns
        -------
        energies : ndarray, shape (N,)
            Atomic energies of the mean in eV, without the energy reference.
        virials : ndarray, shape (N, 3, 3)
            W_k = Σ_i r_ik ⊗ dU_i/dr_ik in eV, r_ik = r_k - r_i: nine components, assigned to the neighbour k. Their sum
            is dE/dε. ``stresses`` has six components, assigned to the centre i.
        """
        return self._predictor.neighbor_virials(self._system(atoms))

    def members(self) -> "list[NeuralILCalculator]":
        """One calculator for each member, in the same precision. They share parameters and pair list with this one.

        The mean of their energies, forces and all other derivatives is the result of this calculator.
        """
        found = []
        for index in range(self.potential.n_members):
            calculator = NeuralILCalculator(
                self.potential.member(index), dtype=self._predictor.dtype, uncertainty="off"
            )
            # The list stays valid while the geometries of members differ by less than its skin.
            calculator._neighbor_list, calculator._lock = self._neighbor_list, self._lock
            found.append(calculator)
        return found

    def _structure(self, atoms: Atoms | None) -> Atoms:
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise StructureError("no structure has been evaluated yet: pass atoms")
        return atoms

    def _system(self, atoms: Atoms | None) -> System:
        return to_system(self._structure(atoms), self.potential, self._neighbor_list)


class _Predicted(NamedTuple):
    """The last geometry, and its results."""

    positions: np.ndarray
    numbers: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    uncertainty: Uncertainty
    prediction: Prediction

    @classmethod
    def of(cls, atoms: Atoms, uncertainty: Uncertainty, prediction: Prediction) -> "_Predicted":
        positions, numbers = atoms.positions.copy(), atoms.numbers.copy()
        return cls(
            positions, numbers, atoms.cell.array.copy(), atoms.pbc.copy(), uncertainty, prediction
        )

    def serves(self, atoms: Atoms, uncertainty: Uncertainty) -> bool:
        return (
            UNCERTAINTIES.index(uncertainty) <= UNCERTAINTIES.index(self.uncertainty)
            and identical(self.positions, atoms.positions)
            and identical(self.numbers, atoms.numbers)
            and identical(self.cell, atoms.cell.array)
            and identical(self.pbc, atoms.pbc)
        )


def to_system(atoms: Atoms, potential: Potential, neighbor_list: NeighborList) -> System:
    """Element indices, pair list and volume of a structure.

    Raises
    ------
    StructureError
        If the potential does not know an element, or the geometry is not finite or degenerate.
    """
    types = element_types(atoms.numbers, potential.elements)
    positions = np.asarray(atoms.positions, float)  # ASE takes float32 arrays as they are
    pairs = neighbor_list.pairs(positions, atoms.cell.array, atoms.pbc, types)
    # A missing lattice vector makes the determinant exactly zero.
    return System(types, pairs, atoms.cell.volume or None)


def _ase_results(prediction: Prediction) -> dict[str, Any]:
    energy = prediction.energy
    results: dict[str, Any] = {
        "energy": energy,
        "free_energy": energy,
        "energies": prediction.energies.copy(),
        "forces": prediction.forces.copy(),
    }
    if prediction.volume is not None:
        results["stresses"] = stresses = prediction.stresses
        results["stress"] = stresses.sum(axis=0)
    return results
