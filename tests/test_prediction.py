"""The record of one evaluation: estimators by hand, errors, immutability."""

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from neuralil_ase.errors import NeuralILError, UncertaintyError
from neuralil_ase.prediction import Prediction

RNG = np.random.default_rng(0)
MEMBER_ENERGIES = np.array([1.0, 2.0, 6.0])
MEMBER_FORCES = np.zeros((3, 2, 3))
MEMBER_FORCES[:, 0] = [[1.0, 0, 0], [3.0, 0, 2.0], [5.0, 0, 4.0]]
MEMBER_STRESSES = RNG.normal(size=(3, 6))


def full(**changes: Any) -> Prediction:
    fields: dict[str, Any] = {
        "energy": 3.0,
        "energies": np.array([1.0, 2.0]),
        "forces": MEMBER_FORCES.mean(axis=0),
        "stress": MEMBER_STRESSES.mean(axis=0),
        "stresses": np.zeros((2, 6)),
        "member_energies": MEMBER_ENERGIES.copy(),
        "energies_std": np.array([0.1, 0.2]),
        "member_forces": MEMBER_FORCES.copy(),
        "member_stresses": MEMBER_STRESSES.copy(),
    }
    return Prediction(**(fields | changes))


def test_spread_of_the_energy_has_ddof_one() -> None:
    """Mean 3, squares 4 + 1 + 9 = 14, divided by 2."""
    assert full().energy_std == pytest.approx(np.sqrt(7), rel=1e-14)
    assert type(full().energy_std) is float


def test_spread_of_a_force_is_the_norm_of_the_component_deviations() -> None:
    """x: 1, 3, 5 with variance 4; z: 0, 2, 4 with variance 4; hence sqrt(8)."""
    np.testing.assert_allclose(full().forces_std, [np.sqrt(8), 0], rtol=1e-14)


def test_spread_of_the_stress_is_componentwise() -> None:
    mean = MEMBER_STRESSES.mean(axis=0)
    expected = np.sqrt(((MEMBER_STRESSES - mean) ** 2).sum(axis=0) / 2)
    np.testing.assert_allclose(full().stress_std, expected, rtol=1e-13)


def test_identical_members_have_no_spread() -> None:
    same = full(member_energies=np.full(3, -1.25), member_forces=np.ones((3, 2, 3)))
    assert same.energy_std == 0
    assert (same.forces_std == 0).all()


@pytest.mark.parametrize(
    ("field", "missing", "message"),
    [
        (
            "stress",
            "stress",
            "holds no stress: the cell has no volume; give .* three lattice vectors",
        ),
        ("stresses", "stresses", "holds no stresses: the cell has no volume"),
        (
            "member_energies",
            "member_energies",
            r'no member_energies: ask for .*uncertainty="energy"',
        ),
        ("energy_std", "member_energies", r'ask for prediction\(atoms, uncertainty="energy"\)'),
        ("energies_std", "energies_std", "no energies_std: the model has one member, or ask for"),
        ("member_forces", "member_forces", r'no member_forces: ask for .*uncertainty="forces"'),
        ("forces_std", "member_forces", r'ask for prediction\(atoms, uncertainty="forces"\)'),
        (
            "member_stresses",
            "member_stresses",
            "no member_stresses: the cell has no volume.*or ask",
        ),
        ("stress_std", "member_stresses", "the cell has no volume.*or ask"),
        ("energy_aleatoric_std", None, "no energy_aleatoric_std: only members with heads"),
        ("forces_aleatoric_std", None, "no forces_aleatoric_std: only members with heads"),
    ],
)
def test_what_is_not_held_says_how_to_get_it(field: str, missing: str | None, message: str) -> None:
    record = full(**({missing: None} if missing else {}))
    assert not record.holds(field)
    with pytest.raises(UncertaintyError, match=message):
        getattr(record, field)


def test_a_single_member_has_no_spread() -> None:
    record = full(member_energies=MEMBER_ENERGIES[:1], member_forces=MEMBER_FORCES[:1])
    for name in ("energy_std", "forces_std"):
        assert not record.holds(name)
        with pytest.raises(
            UncertaintyError, match=f"no {name}: the model has one member, .*ensemble"
        ):
            getattr(record, name)


def test_what_is_held_is_said_to_be() -> None:
    names = (
        "energy",
        "forces",
        "stress",
        "member_energies",
        "energy_std",
        "forces_std",
        "stress_std",
    )
    assert all(full().holds(name) for name in names)


def test_errors_serve_generic_code() -> None:
    """``hasattr`` and ``except NeuralILError`` both work; a misspelled name stays an AttributeError."""
    record = full(member_forces=None)
    assert not hasattr(record, "forces_std")
    assert issubclass(UncertaintyError, NeuralILError)
    with pytest.raises(AttributeError, match="forces_sdt"):
        _ = record.forces_sdt  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["energies", "forces", "stress", "member_energies", "member_forces"]
)
def test_arrays_are_read_only(name: str) -> None:
    record = full()
    with pytest.raises(ValueError, match="read-only"):
        getattr(record, name)[0] = 0


def test_fields_cannot_be_replaced() -> None:
    with pytest.raises(FrozenInstanceError):
        full().energy = 0.0  # type: ignore[misc]
