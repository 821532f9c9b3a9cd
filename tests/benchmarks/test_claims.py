"""What claims.py measures: kinks are seen, and errors are taken over the usual cells."""

import claims
import numpy as np
import pytest
from ase.build import molecule
from ensembles import random_potential

from neuralil_ase import NeuralILCalculator
from neuralil_ase.model.config import NetworkConfig

ATOMS = molecule("CH3CH2NH2")


def calculator(activation: str) -> NeuralILCalculator:
    network = NetworkConfig("core", widths=(32, 32), activation=activation)
    return NeuralILCalculator(random_potential(network=network), dtype="float64")


def test_kinks_spoil_second_derivatives_and_the_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LENGTH_FS", 5.0)
    smooth, kinked = calculator("swish"), calculator("relu")
    monkeypatch.setattr(claims, "DISPLACEMENT", 0.03)  # a small network has few kinks
    assert claims.hessian_error(ATOMS, smooth, 3) < 0.02
    assert claims.hessian_error(ATOMS, kinked, 3) > 0.2
    assert 0 < claims.fluctuation(ATOMS, smooth, 0.25) < claims.fluctuation(ATOMS, smooth, 0.5)


def test_errors_are_those_of_the_cells_that_are_usual_in_the_first_run() -> None:
    first = {"blind": False, "features": 9, "r_cut": 3.5, "options": {"activation": "swish"}}
    first["frames"] = [[k, 0.0, 10.0 + 100 * (k >= 10)] for k in range(15)]
    blind = first | {"blind": True, "frames": [[k, 0.0, 20.0 + k] for k in range(15)]}
    wide = first | {"options": {}, "r_cut": 4.0}
    found = claims.force_errors([first, blind, wide])
    expected = {"swish": 10.0, "blind, 9 features": float(np.mean(20.0 + np.arange(10))), "4 Å": 10}
    assert found == pytest.approx(expected)
