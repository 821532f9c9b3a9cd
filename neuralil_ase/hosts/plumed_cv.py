"""The spread of a potential, or the energy of any other ASE calculator, as a collective variable of PLUMED.

PLUMED computes its variables itself. The programs that call PLUMED (ASE, i-PI, LAMMPS) pass positions, cell, masses,
charges and the potential energy, but no other result of a calculator. PLUMED's module PYCV, however, computes a
variable with a Python function. This module makes such a function from a calculator. A file ``spread.py``:

    from ase.io import read
    from neuralil_ase import NeuralILCalculator, UncertaintyBias
    from neuralil_ase.hosts.plumed_cv import CalculatorVariable, plumedInit

    calculator = NeuralILCalculator("model.safetensors", uncertainty="forces")
    spread = CalculatorVariable(UncertaintyBias(calculator, 1.0), read("start.extxyz"), length=1.0)

and the PLUMED input, here with an upper wall that keeps a run where the spread is below 0.2 eV:

    UNITS LENGTH=A ENERGY=eV
    LOAD FILE=PythonCVInterface.so
    s: PYCVINTERFACE ATOMS=1-225 IMPORT=spread CALCULATE=spread
    UPPER_WALLS ARG=s AT=0.2 KAPPA=100

``PythonCVInterface.so`` is the plugin of PYCV (Giorgino, J. Open Source Softw. 4, 1773 (2019)). ``import plumed``
must find a PLUMED with this module. The wheels of hillclimber on PyPI hold one: ``pip install --no-deps hillclimber``;
``plumed.get_pycv_path()`` is then the path of the plugin. ``IMPORT=__main__`` finds the function in an ASE script.
"""

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from neuralil_ase.errors import ConfigError

plumedInit = {"Value": {"derivative": True, "period": None}}
"""What PYCV reads from the imported file: one value, with derivatives and without a period."""
FARTHEST = 5.0
"""A larger ratio between the sizes of the structures in PLUMED and in ASE is a sign of a wrong unit."""


class CalculatorVariable:
    """The energy of an ASE calculator as a collective variable; call it with PYCV's action.

    Parameters
    ----------
    calculator
        Its energy in eV is the value; its forces and stress give the derivatives. ``UncertaintyBias(calculator, 1.0)``
        makes the value the standard deviation of the energy over the members.
    atoms
        A structure with the elements and the periodicity of the system. PLUMED must be given the same atoms in the
        same order.
    length
        Å in one unit of length of the PLUMED input: 10 for PLUMED's default, nm; 1 after ``UNITS LENGTH=A``.

    Raises
    ------
    ConfigError
        If the length is not a positive number.
    """

    def __init__(self, calculator: Calculator, atoms: Atoms, length: float = 10.0) -> None:
        if not (np.isfinite(length) and length > 0):
            raise ConfigError(
                f"length must be the number of Å in PLUMED's unit of length, got {length}"
            )
        self._atoms = atoms.copy()
        self._atoms.set_constraint()
        self._atoms.calc = calculator
        self._length = float(length)
        self._is_checked = False

    def __call__(self, action: Any) -> tuple[float, np.ndarray, np.ndarray]:
        """Value and derivatives for PLUMED.

        Parameters
        ----------
        action
            PYCV's ``PythonCVInterface``.

        Returns
        -------
        float
            The energy in eV.
        ndarray, shape (N, 3)
            Its gradient in eV per unit of length of PLUMED.
        ndarray, shape (3, 3)
            Its derivative by the box in PLUMED's convention, in eV: minus the derivative by strain.

        Raises
        ------
        ConfigError
            If the action has other atoms than the structure, or the first positions have another unit of length.
        """
        positions = np.array(action.getPositions(), float) * self._length
        if not self._is_checked:
            self._check(action, positions)
        self._atoms.positions = positions
        if self._atoms.pbc.any():
            self._atoms.cell = np.array(action.getPbc().getBox(), float) * self._length
        value, forces = self._atoms.get_potential_energy(), self._atoms.get_forces()
        if self._atoms.cell.rank == 3:
            strained = self._atoms.get_volume() * self._atoms.get_stress(voigt=False)
        else:
            strained = -positions.T @ forces
        return float(value), -forces * self._length, -strained

    def _check(self, action: Any, positions: np.ndarray) -> None:
        """Check once that PLUMED sends the same atoms, in the given unit of length."""
        n = len(self._atoms)
        indices = [int(k) for k in action.absoluteIndexes()]
        if indices != list(range(n)):
            raise ConfigError(
                f"the variable needs all {n} atoms of its structure in their order, but PLUMED gave it "
                f"{len(indices)}: write ATOMS=1-{n}"
            )
        ratio = _size(positions) / max(_size(self._atoms.positions), 1e-9)
        if n > 1 and not 1 / FARTHEST < ratio < FARTHEST:
            raise ConfigError(
                f"the structure in PLUMED is {ratio:.3g} times as large as the one that was given. Usually length="
                f"{self._length:g} Å is not the unit of length of the PLUMED input: use 10 for nm, PLUMED's default, "
                "or 1 after UNITS LENGTH=A"
            )
        self._is_checked = True


def _size(positions: np.ndarray) -> float:
    """Root mean square distance from the centre."""
    return float(np.sqrt(np.mean(np.sum((positions - positions.mean(axis=0)) ** 2, axis=1))))
