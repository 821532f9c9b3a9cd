"""A bias along the spread of the ensemble, towards or away from uncertain structures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.errors import ConfigError, MonitorError


class UncertaintyBias(Calculator):
    """An ASE calculator whose energy is ``strength`` times the spread of the energy.

    Let E_m and F_m be the energies and forces of the M members, and σ the standard deviation of the energies (ddof 1).
    The force of the bias is exact and needs no second derivatives:

        -strength dσ/dr = strength Σ_m (E_m - mean E) F_m / ((M - 1) σ)

    A positive strength keeps a run at structures with a small spread. A negative strength drives the run to
    structures that are worth labelling (hyperactive learning: van der Oord et al., npj Comput. Mater. 9, 168 (2023)).
    Such a run has no end of its own: stop it at the thresholds of the model (``md_examples/uncertainty_search.py``).
    For walls or metadynamics along the spread, see ``neuralil_ase.hosts.plumed_cv``.

    >>> from ase.calculators.mixing import SumCalculator
    >>> from neuralil_ase import NeuralILCalculator
    >>> from neuralil_ase.bias import UncertaintyBias
    >>> calculator = NeuralILCalculator(uncertainty="forces")  # one evaluation serves both
    >>> biased = SumCalculator([calculator, UncertaintyBias(calculator, strength=-1.0)])

    Parameters
    ----------
    calculator
        The ensemble. Give it ``uncertainty="forces"``, so that energy and bias share one evaluation.
    strength
        Dimensionless: eV of bias per eV of spread.

    Raises
    ------
    ConfigError
        If the strength is not finite.
    MonitorError
        If the model has a single member and hence no spread.
    """

    implemented_properties = [  # noqa: RUF012 - ASE's convention; set here, never extended in place
        "energy", "free_energy", "forces", "stress",
    ]  # fmt: skip

    def __init__(self, calculator: NeuralILCalculator, strength: float) -> None:
        if not np.isfinite(strength):
            raise ConfigError(f"the strength of a bias must be a finite number, got {strength}")
        if calculator.potential.n_members < 2:
            raise MonitorError(
                "a bias follows the spread over members, and this model has one; use an ensemble"
            )
        super().__init__()
        self.calculator = calculator
        self.strength = float(strength)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Spread, its gradient, and its stress in a cell with a volume; called by ASE."""
        Calculator.calculate(self, atoms, properties, system_changes)
        prediction = self.calculator.prediction(self.atoms, uncertainty="forces")
        spread = prediction.energy_std
        deviations = prediction.member_energies - prediction.member_energies.mean()
        # At zero spread all members agree, and the gradient of the spread is taken as zero.
        weights = deviations / max((len(deviations) - 1) * spread, 1e-12) * self.strength
        results: dict[str, Any] = {
            "energy": self.strength * spread,
            "free_energy": self.strength * spread,
            "forces": np.tensordot(weights, prediction.member_forces, axes=1),
        }
        if prediction.holds("member_stresses"):
            results["stress"] = np.tensordot(weights, prediction.member_stresses, axes=1)
        self.results = results
