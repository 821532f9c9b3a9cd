"""``evaluate`` and ``calibrate`` with public names: models and data in every form, names of labels, errors."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from systems import ensemble, structure

from neuralil_ase import calibrate, evaluate, predict_many, save_potential
from neuralil_ase.errors import ConfigError, DataError, ModelFileError
from neuralil_ase.evaluation.dataset import frames_from_atoms

COUNT = 32


@lru_cache
def labelled() -> tuple[Atoms, ...]:
    """Rattled cells whose labels are predictions with errors of a known size."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(COUNT):
        atoms = structure("triclinic")
        atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
        found.append(atoms)
    for atoms, prediction in zip(found, predict_many(ensemble(), found), strict=True):
        forces = prediction.forces + rng.normal(0, 0.2, prediction.forces.shape)
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=prediction.energy + rng.normal(0, 0.1),
            forces=forces,
            stress=prediction.stress,
        )
    return tuple(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    save_potential(ensemble(), folder / "model.safetensors")
    ase.io.write(folder / "data.extxyz", labelled())
    return folder


def test_a_model_and_its_data_are_given_in_any_form(folder: Path) -> None:
    model, data = folder / "model.safetensors", folder / "data.extxyz"
    first = evaluate(model, data)
    assert first.card["frames"] == COUNT
    assert first.card["force_meV_per_A"]["rmse"] == pytest.approx(200, rel=0.1)
    for potential in (str(model), ensemble()):
        for files in (str(data), [data], [f"{data}@:10", f"{data}@10:"]):
            assert evaluate(potential, files).comparison == first.comparison
    in_memory = evaluate(ensemble(), list(labelled()))
    assert in_memory == evaluate(ensemble(), frames_from_atoms(labelled()))
    (one, *_) = labelled()
    assert evaluate(ensemble(), one) == evaluate(ensemble(), [one])
    np.testing.assert_allclose(in_memory.comparison.forces, first.comparison.forces, atol=1e-7)


def test_labels_have_the_names_and_units_that_training_knows() -> None:
    renamed = []
    for atoms in labelled():
        copy = atoms.copy()
        copy.info |= {
            "E": atoms.get_potential_energy(),
            "P": -atoms.get_stress() / (0.1 * units.GPa),
        }
        copy.arrays["F"] = atoms.get_forces()
        renamed.append(copy)
    names = {"energy_key": "E", "forces_key": "F", "stress_key": "P"}
    found = evaluate(ensemble(), renamed, **names, stress_unit="kB", stress_sign=-1)
    expected = evaluate(ensemble(), list(labelled())).card
    assert found.card["energy_meV_per_atom"] == expected["energy_meV_per_atom"]
    assert found.card["force_meV_per_A"] == expected["force_meV_per_A"]
    assert found.card["stress_meV_per_A3"]["mae"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("model", "data", "keys", "error", "message"),
    [
        ("none.safetensors", [], {}, ModelFileError, "does not exist"),
        (ensemble(), "none.extxyz", {}, DataError, "there is no data file none.extxyz"),
        (ensemble(), [], {}, DataError, "no data were given; give files, or structures with labels"),
        (ensemble(), [structure("tiny"), "data.extxyz"], {}, DataError,
         "the data are of the kinds Atoms, str; give files, or structures"),
        (ensemble(), None, {}, DataError, "the data are of the kinds NoneType; give files"),
        (ensemble(), [structure("tiny")], {}, DataError, "neither energies nor forces were found"),
        (ensemble(), list(labelled()), {"energy_kye": "E"}, ConfigError,
         r"unknown options \['energy_kye'\]; known are energy_key, forces_key, .*stress_sign"),
        (ensemble(), list(labelled()), {"forces_key": 3}, ConfigError, "forces_key must be of type str, got 3"),
        (ensemble(), list(labelled()), {"stress_unit": "Pa"}, ConfigError, "unknown stress_unit 'Pa'; choose one of"),
        (ensemble(), list(labelled()), {"stress_sign": 0}, ConfigError, "stress_sign must be 1 or -1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_said(
    model: Any, data: Any, keys: dict[str, Any], error: type[Exception], message: str
) -> None:
    for function in (evaluate, calibrate):
        with pytest.raises(error, match=message):
            function(model, data, **keys)


def test_calibrated_error_bars_belong_to_the_data(folder: Path) -> None:
    found = calibrate(folder / "model.safetensors", folder / "data.extxyz")
    record = found.potential.calibration
    assert record is not None
    assert (record.n_frames, record.n_atoms) == (COUNT, 6 * COUNT)
    assert record.data == "data.extxyz"
    assert found.quality["force error bar"]["rms_error_over_rms_sigma"] == pytest.approx(1, abs=0.1)
    assert found.quality["energy error bar"]["coverage_95"] > 0.8
    assert found.evaluation == evaluate(folder / "model.safetensors", folder / "data.extxyz")
    assert ensemble().calibration is None
    in_memory = calibrate(ensemble(), list(labelled())).potential.calibration
    assert in_memory is not None
    assert in_memory.data == f"{COUNT} structures"
    again = calibrate(found.potential, list(labelled())[:31], description="others")
    assert again.potential.calibration is not None
    assert again.potential.calibration.data == "others"
    assert again.potential.calibration.shortest_distances == record.shortest_distances


def test_what_cannot_be_calibrated_is_said() -> None:
    with pytest.raises(DataError, match="one member has no spread to calibrate; train an ensemble"):
        calibrate(ensemble().member(0), list(labelled()))
    energies = [atoms.copy() for atoms in labelled()]
    for atoms, source in zip(energies, labelled(), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=source.get_potential_energy())
    with pytest.raises(DataError, match="no held-out frame has forces"):
        calibrate(ensemble(), energies)
    with pytest.raises(DataError, match=r"too few held-out atoms to calibrate: C \(5\), H \(15\)"):
        calibrate(ensemble(), list(labelled())[:5])
