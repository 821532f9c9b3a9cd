"""The bias is the gradient of the spread, and drives an optimiser where it should."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import SumCalculator
from ase.optimize import FIRE
from ensembles import random_potential

from neuralil_ase import NeuralILCalculator
from neuralil_ase.bias import UncertaintyBias
from neuralil_ase.errors import ConfigError, MonitorError


@pytest.fixture
def ethylamine() -> Atoms:
    atoms = molecule("CH3CH2NH2", cell=[[6, 0.5, 0], [0, 5.5, 0.3], [0.2, 0, 5]], pbc=True)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture(scope="module")
def ensemble() -> NeuralILCalculator:
    return NeuralILCalculator(random_potential(n_members=3), dtype="float64", uncertainty="forces")


@pytest.mark.parametrize("strength", [-2.0, 0.7])
def test_forces_and_stress_are_derivatives_of_the_spread(
    ethylamine: Atoms, ensemble: NeuralILCalculator, strength: float
) -> None:
    ethylamine.calc = UncertaintyBias(ensemble, strength)
    spread = ensemble.prediction(ethylamine).energy_std
    assert ethylamine.get_potential_energy() == pytest.approx(strength * spread)
    numerical = calculate_numerical_forces(ethylamine, eps=1e-4)
    np.testing.assert_allclose(ethylamine.get_forces(), numerical, atol=1e-7)
    numerical = calculate_numerical_stress(ethylamine, eps=1e-5)
    np.testing.assert_allclose(ethylamine.get_stress(), numerical, atol=1e-8)


def test_an_optimiser_goes_up_in_spread(ethylamine: Atoms, ensemble: NeuralILCalculator) -> None:
    before = ensemble.prediction(ethylamine).energy_std
    ethylamine.calc = SumCalculator([ensemble, UncertaintyBias(ensemble, -20.0)])
    FIRE(ethylamine, logfile=None).run(steps=15)
    assert ensemble.prediction(ethylamine).energy_std > before + 0.1  # eV


def test_what_makes_no_sense_is_refused(ensemble: NeuralILCalculator) -> None:
    with pytest.raises(ConfigError, match="finite number, got nan"):
        UncertaintyBias(ensemble, float("nan"))
    with pytest.raises(MonitorError, match="this model has one; use an ensemble"):
        UncertaintyBias(NeuralILCalculator(random_potential(n_members=1)), 1.0)
