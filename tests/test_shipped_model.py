"""The potential that ships: what its card says, and that atoms pressed together come apart again."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read

from neuralil_ase import NeuralILCalculator

EXAMPLES = Path(__file__).parents[1] / "md_examples"
RANGE = np.linspace(0.5, 1.5, 51)
SCANS = {"OO": 1.2, "NH": 0.9, "HH": 1.2}
"""Pairs, and the distance in Å below which they must repel each other: inside the N-H bond, and far inside
the closest contact of a liquid for the others."""


@pytest.fixture(scope="module")
def calculator() -> NeuralILCalculator:
    return NeuralILCalculator()


@pytest.mark.parametrize("pair", SCANS)
def test_dimers_repel_down_to_half_an_angstrom(calculator: NeuralILCalculator, pair: str) -> None:
    for distance in scan(pair):
        dimer = Atoms(pair, [(0, 0, 0), (distance, 0, 0)], calculator=calculator)
        assert dimer.get_forces()[1, 0] > 0, distance


@pytest.mark.parametrize("pair", SCANS)
def test_the_liquid_repels_atoms_pressed_together(
    calculator: NeuralILCalculator, pair: str
) -> None:
    """An atom of the liquid is pushed towards its nearest neighbour of the other kind: the energy only rises."""
    liquid = read(EXAMPLES / "ean_start.extxyz")
    for first, second in closest_pairs(liquid, pair):
        atoms = liquid.copy()
        atoms.calc = calculator
        start = atoms.get_distance(first, second, mic=True)
        energies = []
        for distance in scan(pair, start)[::-1]:
            atoms.set_distance(first, second, distance, fix=0, mic=True)
            energies.append(atoms.get_potential_energy())
        assert (np.diff(energies) > 0).all()


def scan(pair: str, start: float = np.inf) -> np.ndarray:
    """Distances in Å from 0.5 to where the pair must still repel, or to where it starts."""
    return RANGE[np.minimum(SCANS[pair], start) >= RANGE]


def closest_pairs(atoms: Atoms, pair: str) -> list[tuple[int, int]]:
    """For three atoms of the first element, the nearest atom of the second."""
    symbols = np.array(atoms.get_chemical_symbols())
    found = []
    for first in np.flatnonzero(symbols == pair[0])[::5][:3]:
        others = np.flatnonzero((symbols == pair[1]) & (np.arange(len(atoms)) != first))
        distances = atoms.get_distances(first, others, mic=True)
        found.append((int(first), int(others[np.argmin(distances)])))
    return found


def test_its_card_says_what_it_is() -> None:
    potential = NeuralILCalculator().potential
    assert potential.elements == ("C", "H", "N", "O")
    assert potential.n_members >= 8
    assert {"train", "validation"} <= set(potential.provenance["accuracy"])
    assert potential.calibration is not None
    assert "low" in potential.calibration.thresholds


def test_single_precision_forces_are_those_of_double_precision() -> None:
    """At most 1e-3 eV/Å on the liquid, at rest and shaken until its forces are large."""
    atoms = read(EXAMPLES / "ean_start.extxyz")
    for shake in (0.0, 0.1):
        atoms.rattle(shake, seed=1)
        forces = {}
        for dtype in ("float32", "float64"):
            atoms.calc = NeuralILCalculator(dtype=dtype)
            forces[dtype] = atoms.get_forces()
        assert np.abs(forces["float32"] - forces["float64"]).max() < 1e-3
