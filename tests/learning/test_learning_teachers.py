"""Teachers that stop halfway, lack the stress, work in other units than the model, or share a calculator."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from pupils import SMALL, Teacher, crystal
from test_learning_parts import ATOMS, prediction

from neuralil_ase import Learner, farm
from neuralil_ase.errors import ConfigError, TeacherError
from neuralil_ase.learning.desk import Desk
from neuralil_ase.learning.records import Folder
from neuralil_ase.learning.request import Request
from neuralil_ase.learning.teacher import check_scale

REQUEST = Request(ATOMS, "unsure", "a test", prediction(np.full(4, 0.1), np.zeros((4, 3))))


def desk(folder: Path, teacher: Any, **options: Any) -> Desk:
    given = {"executor": None, "retries": 0, "max_queries": None, "queries_per_hour": None}
    return Desk(teacher, Folder(folder), **given | options)


def test_a_teacher_that_failed_begins_anew(folder: Path) -> None:
    """EMT would not look at the elements again, and would give another reason."""
    teacher, frames = EMT(), [Atoms("CuU", [[0, 0, 0], [0, 0, 2.5]])]
    for _ in range(2):
        found = farm.label(frames, lambda: teacher, None, folder)
        assert "No EMT-potential for U" in found.failures[0]


def test_a_failure_without_a_model_does_not_offer_a_way_back(folder: Path) -> None:
    with pytest.raises(TeacherError, match="SCF not converged") as failed:
        desk(folder, Teacher(failures=(1,))).label([REQUEST], None)
    assert "roll_back" not in str(failed.value)
    with pytest.raises(TeacherError, match="roll_back"):
        desk(folder, Teacher(failures=(1,))).label([REQUEST], 0.1)


def test_workers_do_not_share_a_calculator(folder: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(ConfigError, match="give a function that makes a calculator"):
            Learner(EMT(), folder, settings=SMALL, executor=executor)
        requests = [Request(crystal(seed), "unsure", "a test") for seed in range(4)]
        found = desk(folder, EMT, executor=executor).label(requests, 0.1)
    for atoms in found:
        copy = atoms.copy()
        copy.calc = EMT()
        np.testing.assert_allclose(atoms.get_forces(), copy.get_forces(), atol=1e-7)


class Curious(Teacher):
    """A teacher that keeps what it is given."""

    given: Atoms

    def calculate(self, atoms: Any = None, *args: Any, **options: Any) -> None:
        self.given = atoms.copy()
        super().calculate(atoms, *args, **options)


def test_a_teacher_sees_charge_spin_and_magnetic_moments(folder: Path) -> None:
    teacher, atoms = Curious(), crystal(0)
    atoms.info["charge"] = 1
    atoms.set_initial_magnetic_moments(np.full(len(atoms), 0.5))
    atoms.set_initial_charges(np.full(len(atoms), 0.25))
    atoms.set_constraint(FixAtoms([0]))
    desk(folder, teacher).label([Request(atoms, "unsure", "a test")], None)
    assert teacher.given.info["charge"] == 1
    np.testing.assert_array_equal(teacher.given.get_initial_magnetic_moments(), 0.5)
    np.testing.assert_array_equal(teacher.given.get_initial_charges(), 0.25)
    assert not teacher.given.constraints


class NoStress(Teacher):
    """A teacher without stress."""

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 - ASE's convention


def test_a_missing_stress_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    asking = desk(folder, NoStress())
    for seed in range(2):
        asking.label([Request(crystal(seed), "unsure", "a test")], 0.1)
    assert caplog.text.count("gives no stress") == 1


def test_the_log_says_error_and_error_bar_of_each_query(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "neuralil_ase.learning.desk"):
        desk(folder, Teacher()).label([REQUEST], 0.1)
    assert "query 1: evaluation 0, a test; the largest force error" in caplog.text
    assert "error bar 0.200" in caplog.text


def test_a_given_model_finds_other_units() -> None:
    forces = np.random.default_rng(0).normal(size=(4, 3))

    def check(factor: float, spread: float = 0.1, noise: float = 0.1) -> None:
        label = ATOMS.copy()
        wrong = factor * (forces + np.random.default_rng(1).normal(0, noise, (4, 3)))
        label.calc = SinglePointCalculator(label, energy=0.0, forces=wrong)
        check_scale([prediction(np.full(4, spread), forces), None], [label, label])

    for factor in (1 / 27.2, 23.06):
        with pytest.raises(TeacherError, match="the directions of the model's"):
            check(factor)
        check(factor, spread=0.5)  # the model is not sure
        check(factor, noise=5.0)  # other directions
    check(5.0)
