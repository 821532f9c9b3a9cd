"""Potentials in OpenMM, through OpenMM-ML: for its integrators, barostats and biases.

    potential = MLPotential("neuralil", model="model.safetensors")
    system = potential.createSystem(topology)

OpenMM-ML finds the name by the entry point ``openmmml.potentials``. Units are OpenMM's (kJ/mol, nm); energies include
the energy reference, as in ASE. The topology sets the periodicity, and the box must be valid in OpenMM (reduced lattice
vectors). ``createSystem`` and ``createMixedSystem`` work. OpenMM asks only for energy and forces of the mean.

``MonteCarloBarostat`` works: it needs only energies, no virial. It scales the centres of molecules, which OpenMM finds
from the bonds in the system's forces. This force has no bonds. Every atom is then its own molecule, and each trial
stretches all bonds. Bonds with zero force constant tell OpenMM the molecules:

    bonds = HarmonicBondForce()
    bonds.setUsesPeriodicBoundaryConditions(True)
    bonds.addBond(i, j, 0.1, 0.0)  # for each bond
    system.addForce(bonds)

For the spread, give OpenMM-ML a calculator and read the spread from this calculator:

    calculator = NeuralILCalculator("model.safetensors", uncertainty="forces")
    system = MLPotential("ase").createSystem(topology, calculator=calculator)
    ...
    calculator.forces_std  # of the last step
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from openmmml.mlpotential import MLPotentialImplFactory
from openmmml.models.asepotential import ASEPotentialImpl

from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.engine.arrays import Dtype
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.model.elements import element_types
from neuralil_ase.model.potential import Potential


class NeuralILPotentialFactory(MLPotentialImplFactory):  # type: ignore[misc]  # OpenMM-ML has no types
    """The factory that OpenMM-ML calls for ``MLPotential("neuralil", ...)``."""

    def createImpl(
        self,
        name: str,
        model: str | Path | Potential | None = None,
        dtype: Dtype = "float32",
    ) -> "NeuralILPotential":
        """A potential for :meth:`MLPotential.createSystem`.

        Parameters
        ----------
        name
            "neuralil".
        model
            Path of a model file, a loaded potential, or None for the potential that ships with the package.
        dtype
            As for the ASE calculator.

        Raises
        ------
        ModelFileError
            If the file cannot be read.
        """
        return NeuralILPotential(name, as_potential(model), dtype)


class NeuralILPotential(ASEPotentialImpl):  # type: ignore[misc]  # OpenMM-ML has no types
    """OpenMM-ML's force of an ASE calculator, with its own NeuralIL calculator for each system."""

    def __init__(self, name: str, potential: Potential, dtype: Dtype) -> None:
        super().__init__(name)
        self._potential, self._dtype = potential, dtype

    def addForces(
        self,
        topology: Any,
        system: Any,
        atoms: Iterable[int] | None,
        forceGroup: int,
    ) -> None:
        """Called by OpenMM-ML, for all atoms or those of a mixed system. Other options of ``createSystem`` are refused.

        Raises
        ------
        StructureError
            If the potential does not know an element.
        """
        listed = list(topology.atoms())
        chosen = listed if atoms is None else [listed[k] for k in atoms]
        numbers = [0 if atom.element is None else atom.element.atomic_number for atom in chosen]
        element_types(np.array(numbers, int), self._potential.elements)
        calculator = NeuralILCalculator(self._potential, dtype=self._dtype, uncertainty="off")
        super().addForces(topology, system, atoms, forceGroup, calculator=calculator)
