"""Mistakes in options, structures without a meaning, budgets at their end, interrupted walkers."""

from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from pupils import SMALL, Teacher, crystal
from test_learning_teachers import NoStress

from neuralil_ase import ExtrapolationMonitor, Learner, LearningCalculator
from neuralil_ase.errors import (
    ConfigError,
    DataError,
    MonitorError,
    QueryLimitError,
    StructureError,
    TeacherError,
)
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.learning import Walkers, learner, walkers
from neuralil_ase.learning.first_model import first_potential
from neuralil_ase.learning.provenance import TEACHER
from neuralil_ase.learning.teacher import changed_parameters, parameters_of
from neuralil_ase.model.potential import Potential
from neuralil_ase.training.continuation import Continuation


def labelled(atoms: Atoms, **values: Any) -> Atoms:
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, **values)
    return copy


def given() -> Potential:
    atoms = labelled(crystal(), energy=0.0, forces=np.zeros((16, 3)))
    return first_potential(frames_from_atoms([atoms]), SMALL)


@pytest.mark.parametrize(
    "options",
    [
        {"max_queries": -1}, {"max_queries": 1.5}, {"queries_per_hour": -2}, {"retries": 1.5},
        {"rattled": True}, {"check_every": -1}, {"tolerance": True}, {"tolerance": "0.1"},
        {"executor": 3}, {"data": "frames.xyz"}, {"data": [3]},
    ],
)  # fmt: skip
def test_options_of_another_kind_are_named(folder: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"{name} = .*: give"):
        LearningCalculator(EMT(), folder, settings=SMALL, **options)


@pytest.mark.parametrize(
    ("values", "missing"), [({"energy": 1.0}, "forces"), ({"forces": np.zeros((16, 3))}, "energy")]
)
def test_data_need_energies_and_forces(folder: Path, values: dict[str, Any], missing: str) -> None:
    with pytest.raises(DataError, match=f"structure 0 of data has no {missing}"):
        Learner(EMT(), folder, settings=SMALL, data=labelled(crystal(), **values))


def test_a_model_may_come_from_another_teacher(folder: Path) -> None:
    """Only labels of two teachers must not be mixed in one folder."""
    model = replace(given(), provenance={TEACHER: "Other"})
    assert Learner(EMT(), folder, settings=SMALL, model=model).potential is not None


def test_other_parameters_of_the_teacher_are_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Vasp(xc="PBE") and Vasp(xc="SCAN") are of one class."""
    atoms = crystal()
    atoms.calc = LearningCalculator(EMT(), folder, settings=SMALL)
    atoms.get_forces()
    for teacher, is_said in ((EMT(), False), (EMT(asap_cutoff=True), True)):
        caplog.clear()
        Learner(teacher, folder, settings=SMALL)
        assert ("asap_cutoff (before: False, now: True)" in caplog.text) is is_said


def test_parameters_without_a_readable_value_are_not_compared() -> None:
    teacher = EMT()
    teacher.parameters |= {"mixer": object(), "kpts": (2, 2, 1)}
    assert parameters_of(teacher) == {"asap_cutoff": "False", "kpts": "(2, 2, 1)"}
    assert parameters_of(object()) == {}
    assert changed_parameters({"a": "1"}, {"a": "1", "b": "2"}) == "b (before: not set, now: 2)"


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "has no atoms"),
        (Atoms("Cu", [[np.nan, 0, 0]]), "finite"),
    ],
)
def test_what_is_no_structure_is_not_asked(folder: Path, atoms: Atoms, message: str) -> None:
    teacher = Teacher()
    atoms.calc = LearningCalculator(teacher, folder, settings=SMALL)
    with pytest.raises(StructureError, match=message):
        atoms.get_forces()
    assert not teacher.asked


def test_an_atom_without_neighbours_can_be_learnt() -> None:
    atom = labelled(Atoms("Cu", [[0, 0, 0]]), energy=3.5, forces=np.zeros((1, 3)))
    frames = frames_from_atoms([atom])
    potential = first_potential(frames, SMALL)
    continuation = Continuation(potential, SMALL, 10)
    continuation.add(frames[0])
    (left,) = continuation.residuals(potential, [0])
    np.testing.assert_array_equal(left.forces, 0)


def test_a_monitor_needs_a_model(folder: Path) -> None:
    atoms = crystal()
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    with pytest.raises(MonitorError, match="no model yet: evaluate the atoms once"):
        ExtrapolationMonitor(atoms)


def test_a_trusted_run_goes_on_without_spot_checks_if_no_label_is_left(folder: Path) -> None:
    atoms, teacher = crystal(), Teacher()
    options: dict[str, Any] = {"max_queries": 2, "check_every": 1, "tolerance": 50.0}
    atoms.calc = LearningCalculator(teacher, folder, settings=SMALL, **options)
    for _ in range(3):
        atoms.positions[0] += 1e-3
        atoms.get_forces()
    assert len(teacher.asked) == 2
    assert [step.asked for step in atoms.calc.history] == [True, False, False]


def test_a_labelled_structure_can_be_rolled_back_to(folder: Path) -> None:
    atoms = crystal()
    atoms.calc = LearningCalculator(Teacher(failures=(3, 4)), folder, settings=SMALL)
    atoms.get_forces()
    atoms.positions[0] += 1.0
    with pytest.raises(TeacherError, match="SCF not converged"):
        atoms.get_forces()
    atoms.calc.roll_back(atoms)
    np.testing.assert_array_equal(atoms.positions, crystal().positions)


def test_a_failed_training_in_the_background_is_said(caplog: pytest.LogCaptureFixture) -> None:
    training: Future[None] = Future()
    training.set_exception(OSError("disk full"))
    learner.log_failure(training)
    assert "the model is as before: disk full" in caplog.text


class Leaving(Teacher):
    """Leaves the program."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        raise SystemExit(3)


def test_a_teacher_that_leaves_does_not_hold_the_walkers(folder: Path) -> None:
    group = Walkers(Learner(Leaving(), folder, settings=SMALL))
    runs = [crystal(seed) for seed in range(3)]
    for atoms in runs:
        atoms.calc = group.calculator()
    with pytest.raises(SystemExit):
        group.run([atoms.get_forces for atoms in runs])


def test_walkers_use_the_last_calls_of_the_teacher(folder: Path) -> None:
    """The first frame and its copy leave one call for the frames of the other two."""
    teacher = Teacher()
    options: dict[str, Any] = {"max_queries": 3, "tolerance": 1e-4}
    group = Walkers(Learner(teacher, folder, settings=SMALL, **options))
    runs = [crystal(seed) for seed in range(3)]
    for atoms in runs:
        atoms.calc = group.calculator()
    with pytest.raises(QueryLimitError, match="max_queries is 3"):
        group.run([atoms.get_forces for atoms in runs])
    assert len(teacher.asked) == 3


def test_walkers_end_after_an_interrupt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Walkers(Learner(Teacher(), folder, settings=SMALL))
    seat, ended = group.calculator().learner, []

    def endless() -> None:
        try:
            while True:
                seat.catch_up()
        except CancelledError as reason:
            ended.append(str(reason))

    def interrupted(futures: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(walkers, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        group.run([endless, endless])
    assert ended == ["the walkers were interrupted"] * 2


@pytest.mark.parametrize("with_model", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_teacher_without_stress_relaxes_no_cell(folder: Path, with_model: bool) -> None:
    """Unless a model is given, which may have learnt stresses before. Forces are there in both cases."""
    atoms = crystal()
    options = {"model": given(), "tolerance": 1e3} if with_model else {}
    atoms.calc = LearningCalculator(NoStress(), folder, settings=SMALL, **options)
    assert np.isfinite(atoms.get_forces()).all()
    if with_model:
        assert np.isfinite(atoms.get_stress()).all()
        return
    with pytest.raises(PropertyNotImplementedError, match="the teacher gives no stress"):
        FrechetCellFilter(atoms).get_forces()


@pytest.mark.slow
def test_a_new_element_ends_the_trust_in_the_given_model(folder: Path) -> None:
    """It begins anew, at once even with training in the background."""
    atoms = crystal(rattle=0)
    atoms.symbols[0] = "Au"
    options: dict[str, Any] = {"model": given(), "background": True, "tolerance": 1e3}
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL, **options)
    assert np.isfinite(atoms.get_stress()).all()
    atoms.positions[0, 0] += 0.5
    atoms.get_forces()
    assert "trusted only within" in atoms.calc.records[-1].reason
    atoms.calc.learner.settle()
