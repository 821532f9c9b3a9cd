"""Records with arrays: they compare by content, print in a few words, and stay as they are."""

import copy
import importlib
import pickle
import pkgutil
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.spectrum.band_structure import BandStructure
from ase.vibrations import VibrationsData
from systems import calculator, ensemble, structure

import neuralil_ase
from neuralil_ase import Event, Labelled, ReplicaPrediction, TrainingResult
from neuralil_ase.array_record import ArrayRecord, same_content
from neuralil_ase.engine.force_constants import ForceConstants
from neuralil_ase.evaluation.calibrate import Calibrated
from neuralil_ase.evaluation.calibration import held_out_errors
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.evaluate import evaluate
from neuralil_ase.evaluation.labels import Keys, read_labels
from neuralil_ase.monitor import Band, Check, Reading
from neuralil_ase.response import (
    Bands,
    ElasticConstants,
    EquationOfState,
    Estimate,
    HeatFlux,
    ThermalAverage,
    Vibrations,
)

RNG = np.random.default_rng(5)
ROOMS = ("evaluation", "response", "learning", "farm", "replicas", "prediction", "model.potential")
WITHOUT_ARRAYS = {"Labelled", "Event", "Check", "Request"}
"""Records of structures and predictions, which compare with ``==`` themselves."""


def labelled(name: str, **labels: Any) -> Atoms:
    atoms = structure(name)
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=0.1 * atoms.positions, **labels)
    return atoms


def estimate(*shape: int) -> Estimate:
    members = RNG.normal(size=(8, *shape))
    return Estimate(members.mean(axis=0) if shape else float(members.mean()), members, "eV/Å³", 1.3)


@lru_cache
def examples() -> dict[str, Any]:
    """One of each, with far more atoms and frames than fit on a line where that is cheap."""
    structures = [labelled("triclinic", stress=np.ones(6)), labelled("molecule")] * 30
    evaluation = evaluate(ensemble(), frames_from_atoms(structures))
    prediction = evaluation.predictions[0]
    path = bulk("Cu").cell.bandpath("GX", npoints=4)
    arrays = [RNG.normal(size=(7, 3)) for _ in range(4)]
    blocks = RNG.normal(size=(2, 5, 3, 3))
    indices = np.arange(5)
    reading = Reading("max_force_std", "eV/Å", 0.7, 3, 0.2, 0.4)
    members = prediction.members
    assert members is not None
    found: list[Any] = [
        ensemble(),
        evaluation,
        evaluation.comparison,
        evaluation.frames[0],
        prediction,
        members,
        held_out_errors(evaluation.comparison),
        Calibrated(ensemble(), evaluation, {"force spread": {"crps": 0.1}}),
        read_labels(structures[0], "here", Keys()),
        estimate(),
        Bands(BandStructure(path, np.ones((1, 4, 3))), estimate(4, 3)),
        ElasticConstants(estimate(6, 6), estimate(6, 6)),
        EquationOfState(estimate(), estimate(), estimate(), np.ones(7), estimate(7)),
        ThermalAverage(estimate(9), estimate(9), np.ones(9), np.full(8, 30.0), 100),
        Vibrations(VibrationsData(bulk("Cu"), np.ones((1, 3, 1, 3))), estimate(3), 3),
        HeatFlux(*arrays, np.ones((7, 3, 3))),
        ReplicaPrediction(np.ones(2), np.ones((2, 7, 3)), np.ones((2, 6)), None, None),
        ForceConstants(3, indices, indices, np.ones((5, 3), int), blocks, np.ones((2, 3, 3, 3, 3))),
        TrainingResult(
            ensemble(), [{"epoch": k, "loss": 1.0} for k in range(99)], "finished",
            evaluation.frames[:50], evaluation.frames[50:], {"validation": evaluation.card},
        ),
        Labelled([*structures, None], {60: "no convergence"}),
        Event(7, None, Band.HIGH, True, True, (reading,), structures[0], tuple(structures)),
        Check(7, None, prediction, (reading,), True),
    ]  # fmt: skip
    return {type(record).__name__: record for record in found}


NAMES = (
    "Potential", "Evaluation", "Comparison", "Frame", "Prediction", "Members", "HeldOut", "Labels", "Estimate", "Bands",
    "ElasticConstants", "EquationOfState", "ThermalAverage", "Vibrations", "HeatFlux", "ReplicaPrediction",
    "ForceConstants", "TrainingResult", "Calibrated", "Labelled", "Event", "Check",
)  # fmt: skip


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, np.ndarray):
        return value[:0] if value.dtype.kind in "UOb" else value + 1
    if isinstance(value, ArrayRecord):
        name = next(f.name for f in fields(value) if changes(getattr(value, f.name)))  # type: ignore[arg-type]
        return replace(value, **{name: other(getattr(value, name))})  # type: ignore[type-var]
    if isinstance(value, list):
        return value[:-1]
    return value + 1


def changes(value: Any) -> bool:
    kinds = (np.ndarray, ArrayRecord, list, int, float)
    return isinstance(value, kinds) and not isinstance(value, bool | Band)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_record_is_compared_shown_and_changed(name: str) -> None:
    record = examples()[name]
    text = repr(record)
    assert text.startswith(name)
    assert len(text) < (1000 if name == "Prediction" else 500), text  # a table of all properties
    twin = pickle.loads(pickle.dumps(record))
    assert twin is not record
    assert (twin == record) is True
    assert (twin != record) is False
    assert (record == copy.deepcopy(record)) is True
    assert (record == "something else") is False
    if not is_dataclass(record):
        return
    assert (replace(record) == record) is True  # type: ignore[type-var]
    for field in fields(record):
        value = getattr(record, field.name)
        if changes(value) and name != "Potential":
            assert (replace(record, **{field.name: other(value)}) == record) is False, field.name  # type: ignore[type-var]


def test_no_public_record_with_arrays_is_forgotten() -> None:
    classes = {
        value for n in neuralil_ase.__all__ if isinstance(value := getattr(neuralil_ase, n), type)
    }
    for room in ROOMS:
        module = importlib.import_module(f"neuralil_ase.{room}")
        names = [m.name for m in pkgutil.iter_modules(getattr(module, "__path__", []))]
        for part in [module, *(importlib.import_module(f"neuralil_ase.{room}.{n}") for n in names)]:
            classes |= {value for value in vars(part).values() if isinstance(value, type)}
    for cls in classes:
        kinds = str(getattr(cls, "__annotations__", {}))
        if (
            is_dataclass(cls)
            and "numpy.ndarray" in kinds
            and cls.__module__.startswith("neuralil_ase")
        ):
            assert issubclass(cls, ArrayRecord), cls
    assert {cls.__name__ for cls in classes if issubclass(cls, ArrayRecord)} <= {
        *NAMES,
        "ArrayRecord",
        "Aleatoric",
    }


def test_potentials_differ_by_any_parameter_and_by_their_calibration() -> None:
    one = ensemble()
    params = copy.deepcopy(one.params)
    params["network"]["embed"]["embedding"][..., 0] += 1e-6
    assert one != replace(one, params=params)
    assert one != replace(one, energy_reference=one.energy_reference + 1e-9)
    assert one != replace(one, provenance={"origin": "elsewhere"})
    assert one != one.member(0)
    assert one.member(1) == one.member(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_the_words_name_units() -> None:
    found = {name: repr(record) for name, record in examples().items()}
    assert found["Potential"] == "Potential: C H N O, 3 members, cutoff 3 Å, not calibrated"
    assert found["ReplicaPrediction"] == (
        "ReplicaPrediction: energy (2,) eV, forces (2, 7, 3) eV/Å, virial (2, 6) eV, energies_std None, forces_std None"
    )
    assert found["Frame"] == "Frame: structure 0, 6 atoms, labels: energy forces stress"
    assert found["Evaluation"].startswith("Evaluation: 60 frames, energy MAE ")
    assert found["TrainingResult"].startswith(
        "TrainingResult: finished after 99 epochs, 50 frames for training, 10 for validation, (Potential: C H N O, "
    )
    assert found["Labelled"] == "Labelled: 61 frames, 1 of them failed"
    assert repr(Estimate(1.25, np.array([1.0, 1.5]), "Å", 2.0)) == (
        "Estimate: 1.25 ± 0.707 Å, 2 members, calibrated"
    )
    assert (
        repr(Estimate(np.ones(3), np.ones((1, 3)), "eV"))
        == "Estimate: (3,) eV, 1 member, not calibrated"
    )


def test_missing_numbers_are_equal_and_kinds_are_told_apart() -> None:
    nan = float("nan")
    for value in (nan, np.array([1.0, nan]), {"a": [nan, None]}, (1, "a"), np.array(["H", "O"])):
        assert same_content(value, copy.deepcopy(value))
    assert not same_content(np.zeros(3), None)
    assert not same_content([1, 2], (1, 2))
    assert not same_content({"a": 1}, {"b": 1})
    assert not same_content([1], [1, 2])
    assert not same_content(np.zeros((1, 3)), np.zeros(3))


def test_arrays_in_records_are_read_only() -> None:
    for record in (ensemble(), examples()["Frame"], calculator().prediction(structure("tiny"))):
        array = next(v for v in vars(record).values() if isinstance(v, np.ndarray))
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[0]
