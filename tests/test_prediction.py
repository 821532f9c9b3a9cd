"""What is predicted: estimators by hand, errors, comparison, display, immutability."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace
from itertools import product

import numpy as np
import pytest
from systems import calculator, structure

from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import NeuralILError, UncertaintyError
from neuralil_ase.prediction import UNCERTAINTIES, Aleatoric, Members, Prediction

RNG = np.random.default_rng(0)
ENERGIES = np.array([[0.5, 0.5], [0.5, 1.5], [2.0, 4.0]])  # of members, who have 1, 2 and 6 eV
FORCES = np.zeros((3, 2, 3))
FORCES[:, 0] = [[1.0, 0, 0], [3.0, 0, 2.0], [5.0, 0, 4.0]]
VIRIALS = RNG.normal(size=(3, 6))
VOLUME = 20.0
CALIBRATION = Calibration(
    {"O": 2.0, "H": 1.0}, {"O": 0.3, "H": 0.1}, energy_scale=3.0, energy_floor=0.2
)
NAMES = (
    "energy", "stress", "stresses", "member_energies", "energy_std", "energies_std", "member_forces", "forces_std",
    "member_stresses", "stress_std", "energy_aleatoric_std", "forces_aleatoric_std", "energy_error_bar",
    "forces_error_bar",
)  # fmt: skip


def full(**changes: object) -> Prediction:
    virials = np.zeros((2, 6))
    virials[0] = VIRIALS.mean(axis=0)
    fields: dict[str, object] = {
        "symbols": np.array(["O", "H"]),
        "energies": ENERGIES.mean(axis=0),
        "forces": FORCES.mean(axis=0),
        "virials": virials,
        "volume": VOLUME,
        "members": Members(ENERGIES, FORCES, VIRIALS),
        "aleatoric": Aleatoric(0.7, np.array([0.1, 0.2])),
        "calibration": CALIBRATION,
    }
    return Prediction(**(fields | changes))  # type: ignore[arg-type]


def test_energy_and_stress_are_sums() -> None:
    assert full().energy == pytest.approx(3.0, rel=1e-14)
    assert type(full().energy) is float
    np.testing.assert_allclose(full().stress, VIRIALS.mean(axis=0) / VOLUME, rtol=1e-14)
    np.testing.assert_array_equal(full().stresses.sum(axis=0), full().stress)


def test_spread_of_the_energy_has_ddof_one() -> None:
    """Mean 3, squares 4 + 1 + 9 = 14, divided by 2."""
    np.testing.assert_allclose(full().member_energies, [1, 2, 6])
    assert full().energy_std == pytest.approx(np.sqrt(7), rel=1e-14)
    assert type(full().energy_std) is float


def test_spread_of_the_atomic_energies_is_that_of_each_atom() -> None:
    """0.5, 0.5, 2: mean 1, squares 0.25 + 0.25 + 1. 0.5, 1.5, 4: mean 2, squares 2.25 + 0.25 + 4."""
    np.testing.assert_allclose(full().energies_std, np.sqrt([0.75, 3.25]), rtol=1e-14)


def test_spread_of_a_force_is_the_norm_of_the_component_deviations() -> None:
    """x: 1, 3, 5 with variance 4; z: 0, 2, 4 with variance 4; hence sqrt(8)."""
    np.testing.assert_allclose(full().forces_std, [np.sqrt(8), 0], rtol=1e-14)


def test_spread_of_the_stress_is_componentwise() -> None:
    mean = VIRIALS.mean(axis=0)
    expected = np.sqrt(((VIRIALS - mean) ** 2).sum(axis=0) / 2) / VOLUME
    np.testing.assert_allclose(full().stress_std, expected, rtol=1e-13)
    np.testing.assert_allclose(full().member_stresses, VIRIALS / VOLUME, rtol=1e-14)


def test_error_bars_come_from_spread_and_calibration() -> None:
    record = full(aleatoric=None)
    np.testing.assert_allclose(record.forces_error_bar, [np.hypot(2 * np.sqrt(8), 0.3), 0.1])
    assert record.energy_error_bar == pytest.approx(np.hypot(3 * np.sqrt(7), 0.2 * np.sqrt(2)))


def test_identical_members_have_no_spread() -> None:
    same = full(members=Members(np.full((3, 2), -1.25), np.ones((3, 2, 3)), np.ones((3, 6))))
    assert same.energy_std == 0
    for name in ("energies_std", "forces_std", "stress_std"):
        assert (getattr(same, name) == 0).all()


WITHOUT = {
    "volume": full(volume=None),
    "members": full(members=None),
    "forces of members": full(members=Members(ENERGIES)),
    "a second member": full(members=Members(ENERGIES[:1], FORCES[:1], VIRIALS[:1])),
    "aleatoric": full(aleatoric=None),
    "members and aleatoric": full(members=None, aleatoric=None),
    "calibration": full(calibration=None),
    "energies in the calibration": full(
        calibration=replace(CALIBRATION, energy_scale=None, energy_floor=None)
    ),
}


@pytest.mark.parametrize(
    ("missing", "names", "message"),
    [
        ("volume", "stress stresses member_stresses stress_std", "the cell has no volume; give the structure three"),
        ("members", "member_energies energy_std energies_std energy_error_bar",
         r'ask for prediction\(atoms, uncertainty="energy"\), or build the calculator with it'),
        ("members", "member_forces forces_std member_stresses stress_std forces_error_bar", 'uncertainty="forces"'),
        ("forces of members", "member_forces forces_std member_stresses stress_std forces_error_bar",
         r'ask for prediction\(atoms, uncertainty="forces"\), or build the calculator with it'),
        ("a second member", "energy_std energies_std forces_std stress_std energy_error_bar forces_error_bar",
         "the model has one member, and a spread needs two; use an ensemble"),
        ("aleatoric", "energy_aleatoric_std forces_aleatoric_std",
         r"only models with aleatoric layers \(head_widths\) predict it, and this model has none"),
        ("members and aleatoric", "energy_aleatoric_std forces_aleatoric_std",
         r'only models with aleatoric layers \(head_widths\) predict it; for these, ask for .*uncertainty="energy"'),
        ("calibration", "energy_error_bar forces_error_bar", "not calibrated; run neuralil-ase calibrate MODEL DATA"),
        ("energies in the calibration", "energy_error_bar", "calibrated without energies"),
    ],
)  # fmt: skip
def test_what_is_not_held_says_how_to_get_it(missing: str, names: str, message: str) -> None:
    record = WITHOUT[missing]
    for name in names.split():
        assert not record.holds(name)
        with pytest.raises(UncertaintyError, match=message) as raised:
            getattr(record, name)
        if missing != "energies in the calibration":
            assert str(raised.value).startswith(f"this prediction holds no {name}: ")


def test_what_is_held_is_said_to_be() -> None:
    for name in NAMES:
        assert full().holds(name)
    assert WITHOUT["a second member"].holds("member_forces")


def test_errors_serve_generic_code() -> None:
    """``hasattr`` and ``except NeuralILError`` both work; a misspelled name stays an AttributeError."""
    record = WITHOUT["forces of members"]
    assert not hasattr(record, "forces_std")
    assert issubclass(UncertaintyError, NeuralILError)
    with pytest.raises(AttributeError, match="forces_sdt"):
        _ = record.forces_sdt  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="forces_sdt"):
        record.holds("forces_sdt")


@pytest.mark.parametrize("record", [full(), *WITHOUT.values()])
def test_every_record_can_be_shown_compared_copied_and_changed(record: Prediction) -> None:
    text = repr(record)
    assert text.startswith("Prediction for HO (2 atoms")
    for name in NAMES:
        assert (f"  {name} " in text) == record.holds(name)
        assert name in text
    assert record == record
    for other in (replace(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
        assert record == other
        assert repr(other) == text
    assert record != replace(record, forces=record.forces + 1e-15)
    assert record != replace(record, volume=7.0)
    assert record != "a prediction"
    assert replace(record, volume=7.0).volume == 7.0


def test_records_with_other_parts_differ() -> None:
    for (first, one), (second, other) in product(WITHOUT.items(), repeat=2):
        assert (one == other) == (first == second)
    assert full() != replace(full(), members=Members(ENERGIES + 1e-12, FORCES, VIRIALS))
    with pytest.raises(TypeError, match="unhashable"):
        hash(full())


def test_the_display_has_units_and_names_the_atom() -> None:
    text = repr(full(aleatoric=None))
    for line in (
        "energy                3 eV",
        "energy_std            2.6457513 eV",
        "forces                up to 3.606 eV/Å (atom 0)",
        "forces_std            up to 2.828 eV/Å (atom 0)",
        "member_forces         shape (3, 2, 3), eV/Å",
        "not held: energy_aleatoric_std, forces_aleatoric_std (only models with aleatoric layers",
    ):
        assert f"  {line}" in text
    assert len(text.splitlines()) < 20


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
@pytest.mark.parametrize("name", ["molecule", "triclinic"])
def test_real_predictions_at_every_level(uncertainty: str, name: str) -> None:
    """Each of them once raised where it was shown, compared or changed."""
    record = calculator(uncertainty).prediction(structure(name))  # type: ignore[arg-type]
    assert f"({len(structure(name))} atoms" in repr(record)
    assert record == replace(record)
    assert record.holds("forces_std") == (uncertainty == "forces")
    assert record.holds("energy_std") == (uncertainty != "off")
    assert record.holds("stress") == (name == "triclinic")


def test_arrays_are_read_only_and_those_given_stay_as_they_were() -> None:
    forces = np.ones((2, 3))
    record = full(forces=forces)
    forces[0] = 2  # may still be written by its owner
    for array in (record.energies, record.forces, record.virials, record.member_forces):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_fields_cannot_be_replaced() -> None:
    with pytest.raises(FrozenInstanceError):
        full().energies = np.zeros(2)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        full().energy = 0.0  # type: ignore[misc]
