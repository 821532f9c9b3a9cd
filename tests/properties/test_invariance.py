"""Symmetries that energy, forces, stress and spreads keep to float64 rounding, for random structures."""

from typing import NamedTuple

import numpy as np
import pytest
from ase import Atoms
from ase.build import make_supercell
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from systems import R_CUT, TRICLINIC, calculator, ensemble, random_atoms, structure

from neuralil_ase import NeuralILCalculator, Prediction

few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
PBC = ((True, True, True), (True, True, False), (False, True, False), (False, False, False))


class Case(NamedTuple):
    """A random structure, and a generator for what is done to it."""

    atoms: Atoms
    rng: np.random.Generator


@st.composite
def cases(draw: st.DrawFn, only_periodic: bool = False) -> Case:
    """Two to eight atoms of any elements in a triclinic cell, some directions periodic."""
    seed = draw(st.integers(0, 10_000))
    n_atoms = draw(st.integers(2, 7))
    symbols = draw(st.lists(st.sampled_from("CHNO"), min_size=n_atoms, max_size=n_atoms))
    pbc = PBC[0] if only_periodic else draw(st.sampled_from(PBC))
    rng = np.random.default_rng(seed)
    cell = TRICLINIC * rng.uniform(0.95, 1.2)
    return Case(random_atoms(seed, "".join(symbols), cell, pbc, spacing=0.7), rng)


def predict(atoms: Atoms) -> Prediction:
    return calculator("forces").prediction(atoms)


def close(found: np.ndarray | float, expected: np.ndarray | float, scale: float = 1.0) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11 * scale)


def full_stress(prediction: Prediction) -> np.ndarray:
    xx, yy, zz, yz, xz, xy = prediction.stress
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def assert_same(found: Prediction, expected: Prediction) -> None:
    for name in (
        "energy",
        "energies",
        "forces",
        "stress",
        "member_energies",
        "energies_std",
        "forces_std",
    ):
        close(getattr(found, name), getattr(expected, name))


@few
@given(cases())
def test_translation(case: Case) -> None:
    moved = case.atoms.copy()
    moved.translate(case.rng.uniform(-20, 20, 3))
    assert_same(predict(moved), predict(case.atoms))


@few
@given(cases(), st.booleans())
def test_rotation(case: Case, is_improper: bool) -> None:
    """Proper and improper: energies and spreads stay, forces and stress turn along."""
    turn = Rotation.random(None, case.rng).as_matrix() * (-1 if is_improper else 1)
    turned = case.atoms.copy()
    turned.set_cell(case.atoms.cell.array @ turn)
    turned.positions = case.atoms.positions @ turn
    found, expected = predict(turned), predict(case.atoms)
    close(found.energies, expected.energies)
    close(found.forces, expected.forces @ turn)
    close(full_stress(found), turn.T @ full_stress(expected) @ turn)
    close(found.forces_std, expected.forces_std)


@few
@given(cases())
def test_permutation(case: Case) -> None:
    order = case.rng.permutation(len(case.atoms))
    found, expected = predict(case.atoms[order]), predict(case.atoms)
    close(found.energy, expected.energy)
    close(found.energies, expected.energies[order])
    close(found.forces, expected.forces[order])
    close(found.stresses, expected.stresses[order])
    close(found.member_forces, expected.member_forces[:, order])


@few
@given(cases())
def test_wrapping(case: Case) -> None:
    """Whole lattice vectors along periodic directions, other ones for every atom."""
    shifts = case.rng.integers(-3, 4, (len(case.atoms), 3)) * case.atoms.pbc
    unwrapped = case.atoms.copy()
    unwrapped.positions += shifts @ case.atoms.cell.array
    assert_same(predict(unwrapped), predict(case.atoms))


@few
@given(cases(only_periodic=True))
def test_choice_of_lattice_vectors(case: Case) -> None:
    """Integer combinations of determinant ±1 span the same lattice, left-handed ones included."""
    combination = np.eye(3, dtype=int)
    for _ in range(3):
        a, b = case.rng.choice(3, 2, replace=False)
        combination[a] += case.rng.choice([-1, 1]) * combination[b]
    if case.rng.random() < 0.5:
        combination = combination[[1, 0, 2]]
    other = case.atoms.copy()
    other.set_cell(combination @ case.atoms.cell.array, scale_atoms=False)
    assert_same(predict(other), predict(case.atoms))


@few
@given(cases())
def test_net_force_vanishes_for_every_member(case: Case) -> None:
    prediction = predict(case.atoms)
    assert np.abs(prediction.member_forces.sum(axis=1)).max() < 1e-12
    close(prediction.stresses.sum(axis=0), prediction.stress)


@pytest.mark.parametrize("name", ["tiny", "one atom"])
def test_supercells_are_extensive(name: str) -> None:
    """The same crystal, 1, 4 or 8 cells of it: energy per atom, forces and stress are the same."""
    atoms = structure(name)
    expected = predict(atoms)
    for matrix in (np.diag([2, 1, 2]), np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 2]])):
        large = make_supercell(atoms, matrix)
        count = len(large) // len(atoms)
        assert count == 4
        found = predict(large)
        close(found.energy, count * expected.energy, scale=count)
        close(found.member_energies, count * expected.member_energies, scale=count)
        close(found.stress, expected.stress)
        for symbol in set(atoms.symbols):
            (index,) = np.flatnonzero(atoms.symbols == symbol)
            close(
                found.forces[large.symbols == symbol], np.tile(expected.forces[index], (count, 1))
            )


def test_distant_structures_do_not_know_of_each_other() -> None:
    """Energy adds up, spreads of forces stay."""
    first, second = structure("molecule"), structure("molecule")
    second.positions += [3 * R_CUT + 10, 0, 0]
    second.rotate(40, "x", center="COM")
    found = NeuralILCalculator(ensemble(), dtype="float64", uncertainty="energy").prediction(
        first + second
    )
    parts = [calculator().prediction(part) for part in (first, second)]
    close(found.energy, sum(part.energy for part in parts))
    close(found.forces, np.vstack([part.forces for part in parts]))
    close(found.member_energies, sum(part.member_energies for part in parts))
