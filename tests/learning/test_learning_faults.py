"""What can go wrong: kills, failures of the teacher, full disks, budgets, wrong units, damaged files."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from pupils import SMALL, Teacher, crystal

from neuralil_ase import LearningCalculator, NeuralILCalculator
from neuralil_ase.errors import (
    ConfigError,
    DataError,
    OutputError,
    QueryLimitError,
    TeacherError,
)
from neuralil_ase.learning import records
from neuralil_ase.learning.pupil import Lesson, Pupil
from neuralil_ase.learning.records import Folder


class Killed(BaseException):
    """Ends a run at once, as a signal would; nothing in the package catches it."""


def steps(folder: Path, teacher: Any, count: int = 25, **options: Any) -> Atoms:
    """MD of hot copper, which asks some times."""
    atoms = crystal(rattle=0)
    atoms.calc = LearningCalculator(teacher, folder, settings=SMALL, **options)
    thermalize_momenta(atoms, temperature_K=600, rng=np.random.default_rng(1))
    VelocityVerlet(atoms, 5 * units.fs).run(count)
    return atoms


def check_nothing_is_lost(folder: Path, teacher: Teacher) -> None:
    """No structure was asked twice; each label has one record, and the model knows them all."""
    assert max(Counter(teacher.asked).values()) == 1
    names = {file.stem for file in (folder / "labels").glob("*.extxyz")}
    kept = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    assert sorted(r["digest"] for r in kept) == sorted(names)
    assert len(names) == len(teacher.asked)
    model = Folder(folder).load()
    assert model is not None
    assert set(model.provenance["learnt_from"]) == names


@pytest.mark.parametrize("nth", [2, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 3))])
@pytest.mark.parametrize(
    ("where", "name"), [(records, "append_record"), (Pupil, "lesson"), (Folder, "save")]
)
def test_a_kill_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, nth: int
) -> None:
    """Between label and record, between record and training, between training and model."""
    calls, original, teacher = [], getattr(where, name), Teacher()

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        if len(calls) == nth:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed)
        with pytest.raises(Killed):
            steps(folder, teacher)
    steps(folder, teacher)
    check_nothing_is_lost(folder, teacher)


def test_a_label_whose_update_was_refused_is_learnt_by_the_next_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The user is told, and the model does not say that it has learnt from it."""
    atoms, other = crystal(), crystal(7)
    calculator = LearningCalculator(Teacher(), folder, settings=SMALL)
    calculator.get_forces(atoms)
    with monkeypatch.context() as patch:
        patch.setattr(Pupil, "lesson", lambda *_: Lesson(False, 1, 0.1, 0.2))
        calculator.get_forces(other)
    assert "force error 0.1000 to 0.2000 eV/Å: refused, the model stays as it was" in caplog.text
    name = calculator.records[-1].digest
    assert name not in calculator.potential.provenance["learnt_from"]
    assert calculator.potential.provenance["training_frames"] == 2
    del calculator
    teacher = Teacher()
    calculator = LearningCalculator(teacher, folder, settings=SMALL)
    calculator.get_forces(other)
    assert teacher.asked == []
    assert name in calculator.potential.provenance["learnt_from"]
    assert calculator.potential.provenance["training_frames"] == 3


SCRIPT = """
import os, sys
sys.path.insert(0, TESTS)
from pathlib import Path
from pupils import Teacher
from test_learning_faults import steps

class Dying(Teacher):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        with open("asked", "ab") as file:
            file.write(self.asked[-1].hex().encode() + b"\\n")
        if len(self.asked) == NTH:
            os.kill(os.getpid(), 9)

steps(Path("learned"), Dying())
"""


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with_by_the_same_script(tmp_path: Path) -> None:
    """kill -9, then once more to the end."""

    def script(nth: int) -> int:
        code = f"TESTS, NTH = {str(Path(__file__).parent)!r}, {nth}\n{SCRIPT}"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=300)
        return done.returncode

    assert script(4) == -9
    kept = {f.name: f.read_bytes() for f in (tmp_path / "learned" / "labels").glob("*.extxyz")}
    assert len(kept) == 3
    assert script(10**6) == 0
    for name, content in kept.items():
        assert (tmp_path / "learned" / "labels" / name).read_bytes() == content
    asked = (tmp_path / "asked").read_text().split()
    # What died before its label was written may be asked again; all that was written is not.
    assert len(asked) - len(set(asked)) <= 1


@pytest.mark.slow
def test_twenty_kills_at_random_moments_cost_no_label(tmp_path: Path) -> None:
    """Against the run that nobody kills: as many labels, none asked twice, the same error on other frames."""
    rng = np.random.default_rng(0)

    def begun(name: str) -> subprocess.Popen[bytes]:
        (tmp_path / name).mkdir(exist_ok=True)
        code = f"TESTS, NTH = {str(Path(__file__).parent)!r}, {10**6}\n{SCRIPT}"
        return subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path / name)

    began = time.monotonic()
    assert begun("whole").wait(600) == 0
    length = time.monotonic() - began
    killed = 0
    for _ in range(20):
        process = begun("killed")
        try:
            process.wait(rng.uniform(0.1, 1.0) * length)
        except subprocess.TimeoutExpired:
            process.kill()
            killed += process.wait() == -9
    assert killed >= 5  # later runs have less to do, and some end before they are killed
    assert begun("killed").wait(600) == 0
    errors, counts = {}, {}
    for name in ("whole", "killed"):
        folder = tmp_path / name / "learned"
        names = {file.stem for file in (folder / "labels").glob("*.extxyz")}
        asked = (tmp_path / name / "asked").read_text().split()
        # A label that was not yet written when the process died is asked again.
        assert len(asked) - len(set(asked)) <= killed * (name == "killed")
        assert len(set(asked)) == len(names)
        lines = (folder / "queries.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["digest"] for line in lines) == sorted(names)
        model = Folder(folder).load()
        assert model is not None
        assert set(model.provenance["learnt_from"]) == names
        atoms = crystal(seed=5, rattle=0.08)
        found = NeuralILCalculator(model).prediction(atoms).forces
        atoms.calc = EMT()
        errors[name] = float(np.sqrt(((found - atoms.get_forces()) ** 2).mean()))
        counts[name] = len(names)
    assert counts["killed"] <= 1.5 * counts["whole"]
    assert errors["killed"] <= 1.5 * errors["whole"]


def test_failures_of_the_teacher_are_recorded_and_tried_again(folder: Path) -> None:
    teacher = Teacher(failures=(2, 4))
    atoms = steps(folder, teacher)
    failed = [r for r in atoms.calc.records if r.failure]
    assert [r.failure for r in failed] == ["RuntimeError: SCF not converged"] * 2
    assert "2 failed" in atoms.calc.summary()
    assert len(atoms.calc.records) == len(teacher.asked)


def test_a_teacher_that_goes_on_failing_ends_the_run_with_the_reason(folder: Path) -> None:
    atoms = crystal(rattle=0)
    atoms.calc = LearningCalculator(Teacher(failures=tuple(range(4, 99))), folder, settings=SMALL)
    thermalize_momenta(atoms, temperature_K=600, rng=np.random.default_rng(1))
    with pytest.raises(TeacherError, match=r"failed 2 times for a frame .*SCF not converged"):
        VelocityVerlet(atoms, 5 * units.fs).run(25)
    assert not atoms.calc.results
    there = atoms.positions.copy()
    atoms.calc.roll_back(atoms)
    assert np.abs(atoms.positions - there).max() > 0
    atoms.get_forces()  # of a structure that was trusted


def test_there_is_nothing_to_roll_back_to_at_first(folder: Path) -> None:
    atoms = crystal()
    with pytest.raises(TeacherError, match="nothing to roll back to"):
        LearningCalculator(Teacher(), folder).roll_back(atoms)


def test_the_budget_ends_a_run_in_order(folder: Path) -> None:
    teacher = Teacher()
    with pytest.raises(QueryLimitError, match="max_queries is 3"):
        steps(folder, teacher, max_queries=3)
    assert len(teacher.asked) == 3
    steps(folder, teacher)
    check_nothing_is_lost(folder, teacher)


def test_the_budget_of_an_hour(folder: Path) -> None:
    with pytest.raises(QueryLimitError, match="within the last hour"):
        steps(folder, Teacher(), queries_per_hour=3)


def test_a_full_disk_ends_the_run_and_the_next_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, count = Teacher(), []

    def full(*args: Any, **kwargs: Any) -> None:
        count.append(0)
        if len(count) > 1:
            raise OutputError("cannot write: No space left on device")
        original(*args, **kwargs)

    original = records.save_potential
    with monkeypatch.context() as patch:
        patch.setattr(records, "save_potential", full)
        with pytest.raises(OutputError, match="No space left"):
            steps(folder, teacher)
    steps(folder, teacher)
    check_nothing_is_lost(folder, teacher)


class Hartree(EMT):
    """Another unit."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        for name in ("energy", "free_energy", "forces"):
            self.results[name] = self.results[name] / units.Hartree


class Gradient(EMT):
    """Another sign."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        self.results["forces"] = -self.results["forces"]


@pytest.mark.parametrize(
    ("teacher", "message"), [(Hartree, "Hartree"), (Gradient, "not the slope")]
)
def test_a_teacher_in_other_units_is_refused_before_the_first_step(
    folder: Path, teacher: type, message: str
) -> None:
    atoms = crystal(rattle=0.02)
    atoms.calc = LearningCalculator(teacher(), folder, settings=SMALL)
    with pytest.raises(TeacherError, match=message):
        atoms.get_forces()
    assert not list((folder / "labels").glob("*"))
    assert len(list((folder / "refused").glob("*.extxyz"))) == 2
    assert not (folder / "model.safetensors").exists()
    atoms.calc = LearningCalculator(teacher(), folder, settings=SMALL, check_teacher=False)
    assert atoms.get_forces().shape == (16, 3)


class OnlyEnergy(Calculator):
    implemented_properties = ["energy"]  # noqa: RUF012 - ASE's convention


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (OnlyEnergy(), "has no forces"),
        ("EMT", "not an ASE calculator"),
        (None, "not an ASE calculator"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_at_once(
    folder: Path, teacher: Any, message: str
) -> None:
    with pytest.raises(TeacherError, match=message):
        LearningCalculator(teacher, folder)


class Other(Teacher):
    """Another calculator."""


def test_labels_of_two_teachers_are_not_mixed(folder: Path) -> None:
    steps(folder, Teacher(), 1)
    with pytest.raises(ConfigError, match="by Teacher, and the teacher is now Other"):
        LearningCalculator(Other(), folder)


def test_half_a_record_is_moved_aside_and_its_label_is_learnt(folder: Path) -> None:
    teacher = Teacher()
    steps(folder, teacher, 10)
    log = folder / "queries.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    steps(folder, teacher, 10)
    assert (folder / "queries.jsonl.1").exists()
    check_nothing_is_lost(folder, teacher)


def test_a_damaged_record_is_named(folder: Path) -> None:
    steps(folder, Teacher(), 1)
    log = folder / "queries.jsonl"
    log.write_text("{}\n" + log.read_text())
    with pytest.raises(DataError, match="line 1 of"):
        LearningCalculator(Teacher(), folder)


def test_a_damaged_label_is_named(folder: Path) -> None:
    steps(folder, Teacher(), 1)
    next((folder / "labels").glob("*")).write_text("16\n")
    with pytest.raises(DataError, match="remove the file"):
        steps(folder, Teacher(), 1)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        LearningCalculator(Teacher(), tmp_path / "file")
