"""Interruptions and second runs: a learner is as it was, or continues with all that it knew."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from pupils import SMALL, Teacher, crystal

from neuralil_ase import LearningCalculator
from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import QueryLimitError, StructureError
from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms
from neuralil_ase.evaluation.evaluate import predict_frames
from neuralil_ase.learning.pupil import Pupil
from neuralil_ase.learning.records import Folder, Record
from neuralil_ase.model.potential import Potential
from neuralil_ase.samples.linear import learns_own
from neuralil_ase.training.continuation import Continuation


def labelled(atoms: Atoms) -> Atoms:
    """A copy with EMT's results."""
    copy = atoms.copy()
    copy.calc = EMT()
    copy.get_forces()
    return copy


def framed(atoms: Atoms, name: str = "") -> Frame:
    """The frame of a structure with EMT's labels, with this name."""
    return replace(frames_from_atoms([labelled(atoms)])[0], source=name)


def alloy(seed: int, gold: int) -> Atoms:
    atoms = crystal(seed)
    atoms.symbols[:gold] = "Au"
    return atoms


def learning(folder: Path, teacher: Any = None, **options: Any) -> LearningCalculator:
    return LearningCalculator(teacher or Teacher(), folder, settings=SMALL, **options)


def stop(*_: Any) -> Any:
    raise KeyboardInterrupt


def taught(count: int = 3) -> Pupil:
    """A pupil after its first lesson."""
    pupil = Pupil(None, SMALL, 0)
    for seed in range(count):
        pupil.add(framed(crystal(seed)), held_out=False)
    pupil.lesson(0.01)
    return pupil


def residual(pupil: Pupil, atoms: Atoms) -> float:
    assert pupil.potential is not None
    frame = framed(atoms)
    (found,) = predict_frames(pupil.potential, [frame])
    assert found.forces is not None
    return float(np.sqrt(np.mean((found.forces - frame.forces) ** 2)))


def test_an_interrupted_lesson_leaves_the_pupil_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C lands in training most often. The linear part had been fitted again by then."""
    pupil = taught()
    before, floors = pupil.potential, pupil.floors()
    pupil.add(framed(crystal(8), "new"), held_out=False)
    with monkeypatch.context() as patch:
        patch.setattr(Continuation, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            pupil.lesson(0.01)
    assert pupil.potential is before
    assert pupil.waiting == ["new"]
    assert pupil.learnt == [""] * 3
    assert floors is not None
    again = pupil.floors()
    assert again is not None
    wrong = residual(pupil, crystal(8))
    squares = 3 * floors[0]["Cu"] ** 2 + 3 * wrong**2  # of norms over x, y, z, in four frames
    mean = np.sqrt(squares / 4)
    assert again[0]["Cu"] == pytest.approx(mean, rel=1e-3)
    assert pupil.lesson(0.01).kept
    assert pupil.waiting == []
    assert residual(pupil, crystal(8)) < 0.5 * wrong


def test_an_interrupted_first_lesson_leaves_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pupil = Pupil(None, SMALL, 0)
    pupil.add(framed(crystal()), held_out=False)
    with monkeypatch.context() as patch:
        patch.setattr(Continuation, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            pupil.lesson(0.01)
    assert pupil.potential is None
    assert pupil.lesson(0.01).cycles > 0
    assert pupil.potential is not None


def test_an_interrupted_addition_loses_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    pupil = taught()
    with monkeypatch.context() as patch:
        patch.setattr(Continuation, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            pupil.add(framed(crystal(8), "new"), held_out=False)
    assert pupil.names[-1] == "new"
    pupil.add(framed(crystal(9), "newer"), held_out=False)
    assert pupil.lesson(0.01).kept
    assert residual(pupil, crystal(8)) < 0.05


def test_a_refused_update_does_not_move_the_energy_reference(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another composition changes it; the log says that the model stays as it was. All labels are of one teacher: a
    warning that they have another zero would mislead."""
    caplog.set_level("INFO")
    pupil = Pupil(None, SMALL, 0)
    for seed in range(3):
        pupil.add(framed(alloy(seed, 4)), held_out=False)
    pupil.lesson(0.01)
    pupil.add(framed(alloy(5, 4)), held_out=True)
    pupil.add(framed(alloy(6, 12), "another composition"), held_out=False)
    before = pupil.potential
    assert before is not None

    def spoiled(_: Continuation, potential: Potential, *__: object) -> Potential:
        return replace(potential, params=jax.tree.map(lambda value: 3 * value, potential.params))

    with monkeypatch.context() as patch:
        patch.setattr(Continuation, "update", spoiled)
        assert not pupil.lesson(0.01).kept
    assert pupil.potential is before
    assert pupil.lesson(0.01).kept
    assert pupil.potential.energy_reference.tolist() != before.energy_reference.tolist()
    said = [r.levelname for r in caplog.records if "energy reference is shifted" in r.message]
    assert set(said) == {"INFO"}


def test_a_run_goes_on_after_its_first_training_was_interrupted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook: the labels are there, and the next evaluation learns them before it asks for others."""
    teacher = Teacher()
    calculator = learning(folder, teacher)
    with monkeypatch.context() as patch:
        patch.setattr(Continuation, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            calculator.get_forces(crystal())
    assert len(teacher.asked) == 2
    calculator.get_forces(crystal(0))
    assert [record.kind for record in calculator.records[:2]] == ["first", "rattled"]
    assert len(set(teacher.asked)) == len(teacher.asked)
    assert calculator.potential is not None


def test_a_structure_whose_learning_was_interrupted_is_not_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calculator = learning(folder, tolerance=100.0)
    calculator.get_forces(crystal())
    far = crystal()
    far.positions[0] += 0.5
    with monkeypatch.context() as patch:
        patch.setattr(Continuation, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            calculator.get_forces(far)
    found = calculator.get_forces(far)
    assert calculator.potential is not None
    assert calculator.potential.provenance["training_frames"] == 3
    np.testing.assert_allclose(found, labelled(far).get_forces(), atol=1e-6)


def test_training_in_the_background_holds_up_no_evaluation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calculator = learning(folder, background=True, tolerance=100.0)
    calculator.get_forces(crystal())
    begun, may_end = threading.Event(), threading.Event()
    original = Pupil.lesson

    def slow(pupil: Pupil, target: float) -> Any:
        begun.set()
        assert may_end.wait(60)
        return original(pupil, target)

    monkeypatch.setattr(Pupil, "lesson", slow)
    far = crystal()
    far.positions[0] += 0.5
    calculator.get_forces(far)  # too far for a young model: it is learnt in the background
    assert begun.wait(60)
    near = crystal()
    near.positions[1] += 0.01
    answers: list[np.ndarray] = []
    evaluation = threading.Thread(target=lambda: answers.append(calculator.get_forces(near)))
    evaluation.start()
    evaluation.join(60)
    is_free = bool(answers)
    is_training = calculator.learner.is_training
    may_end.set()
    evaluation.join()
    calculator.learner.settle()
    assert is_free
    assert is_training


def test_a_given_model_whose_only_label_is_a_passed_spot_check(folder: Path) -> None:
    """Nothing is there to learn; this crashed, and every start after it."""
    first = learning(folder.with_name("first"), data=[labelled(crystal(k)) for k in range(12)])
    first.get_forces(crystal())
    model = first.potential
    options: dict[str, Any] = {"model": model, "tolerance": np.float64(1.0), "check_every": 3}
    calculator = learning(folder, **options)
    atoms = crystal()
    for step in range(5):
        atoms.positions[0, 0] += 0.001 * step
        calculator.get_forces(atoms)
    assert [(r.kind, r.held_out) for r in calculator.records] == [("check", True)]
    assert calculator.potential is not None
    assert calculator.potential.provenance["learnt_from"] == []
    del calculator
    again = learning(folder, **options)
    again.get_forces(atoms)
    assert len(again.records) == 1


def test_a_restart_knows_the_model_that_was_given(folder: Path) -> None:
    """Its error bars, its tolerance, and that its members learnt what their own linear parts leave."""
    first = learning(folder.with_name("first"), data=[labelled(crystal(k)) for k in range(6)])
    first.get_forces(crystal())
    given = first.potential
    assert given is not None
    assert given.calibration is not None
    calculator = learning(folder, model=given)
    usual = calculator.learner.tolerance
    far = crystal(20, 0.3)
    calculator.get_forces(far)
    assert [record.kind for record in calculator.records] == ["unsure"]
    model = calculator.potential
    assert learns_own(model)
    assert Calibration.from_dict(model.provenance["error_bars_of_given_model"]) == given.calibration
    assert "given_model" not in calculator.learner.card()
    del calculator
    again = learning(folder)
    assert again.learner.tolerance == pytest.approx(usual)
    near = far.copy()
    near.positions[0, 0] += 0.3
    assert again.learner.too_far(near, False) is None  # not a model that began from nothing
    again.get_forces(crystal(21, 0.3))
    assert learns_own(again.potential)
    assert "error_bars_of_given_model" in again.potential.provenance


def test_a_model_that_began_from_nothing_stays_young_whatever_is_given_later(folder: Path) -> None:
    calculator = learning(folder)
    calculator.get_forces(crystal())
    model, tolerance = calculator.potential, calculator.learner.tolerance
    del calculator
    again = learning(folder, model=replace(model, provenance={}))
    again.learner.catch_up()
    assert again.learner.tolerance == tolerance
    assert again.learner.too_far(crystal(30, 0.3), False) is not None


def test_frames_of_a_model_that_began_again_are_not_held_out_later(folder: Path) -> None:
    """They were learnt: as tests of updates they would be far too good."""
    calculator = learning(folder, check_every=2, tolerance=50.0)
    atoms = crystal()
    for _ in range(4):
        atoms.positions[0, 0] += 0.001
        calculator.get_forces(atoms)
    assert [record.held_out for record in calculator.records] == [False, False, True]
    assert len(calculator.potential.provenance["learnt_from"]) == 2
    other = crystal()
    other.symbols[0] = "Au"
    calculator.get_forces(other)
    names = [record.digest for record in calculator.records]
    assert calculator.potential.provenance["learnt_from"] == names
    assert calculator.potential.provenance["held_out_frames"] == 0
    del calculator
    again = learning(folder, check_every=0, tolerance=50.0)
    again.get_forces(crystal(3))
    assert again.potential.provenance["held_out_frames"] == 0


class Charged(Teacher):
    """Its energy depends on the charge, as that of a program for electrons."""

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        super().calculate(atoms, *args, **kwargs)
        self.results["energy"] += 10 * float(atoms.info.get("charge", 0))


@pytest.mark.parametrize("charge", [0, 1 / 3])
def test_another_charge_in_a_second_run_is_another_surface(folder: Path, charge: float) -> None:
    atoms = crystal()
    if charge:
        atoms.info["charge"] = charge
        atoms.set_initial_magnetic_moments(np.full(16, 1 / 7))
    learning(folder, Charged()).get_forces(atoms)
    calculator = learning(folder, Charged())
    calculator.get_forces(atoms)
    other = atoms.copy()
    other.info["charge"] = 1
    with pytest.raises(StructureError, match=r"another value of info\['charge'\] before"):
        learning(folder.with_name("x"), Charged(), data=[_with_charge(atoms)]).get_forces(other)
    del calculator
    with pytest.raises(StructureError, match=r"another value of info\['charge'\] before"):
        learning(folder, Charged()).get_forces(other)


def test_a_charge_that_no_file_can_hold_damages_no_label(folder: Path) -> None:
    atoms = crystal()
    atoms.info["charge"] = "plus\none"
    found = learning(folder).get_forces(atoms)
    np.testing.assert_allclose(found, labelled(crystal()).get_forces(), atol=1e-6)


def _with_charge(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    copy.calc = Charged()
    copy.get_forces()
    return copy


def test_data_are_learnt_with_the_energy_whose_slopes_the_forces_are(folder: Path) -> None:
    """VASP's "energy" is extrapolated to no smearing, its "free_energy" belongs to the forces."""
    data = []
    for seed in range(6):
        atoms = labelled(crystal(seed))
        energy = atoms.get_potential_energy()
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy + 100, free_energy=energy, forces=atoms.get_forces()
        )
        data.append(atoms)
    calculator = learning(folder, data=data)
    found = calculator.get_potential_energy(crystal(2))
    assert found == pytest.approx(labelled(crystal(2)).get_potential_energy(), abs=0.5)


def test_a_run_may_start_from_a_frame_of_its_data(folder: Path) -> None:
    """The calculator of that frame is then replaced, and the frame moves."""
    data = [labelled(crystal(seed)) for seed in range(4)]
    atoms = data[-1]
    atoms.calc = learning(folder, data=data)
    atoms.positions[0, 0] += 0.001
    assert np.isfinite(atoms.get_forces()).all()
    assert len(atoms.calc.records) == 0 or atoms.calc.records[0].kind != "first"


def test_a_tolerance_by_numpy_is_a_number(folder: Path) -> None:
    """Records of passed spot checks could not be written, and float32 made no calibration."""
    calculator = learning(folder, tolerance=np.float32(50), check_every=2)
    atoms = crystal()
    for _ in range(4):
        atoms.positions[0, 0] += 0.001
        calculator.get_forces(atoms)
    assert calculator.records[-1].held_out
    lines = (folder / "queries.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["held_out"] is True


def test_a_clock_that_was_ahead_blocks_no_query(folder: Path) -> None:
    calculator = learning(folder)
    calculator.get_forces(crystal())
    del calculator
    path = folder / "queries.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["time"] += 30 * 86400
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = learning(folder, queries_per_hour=1)
    again.get_forces(crystal(9, 0.3))
    assert len(again.records) == 3
    with pytest.raises(QueryLimitError, match="called 1 times within the last hour"):
        again.get_forces(crystal(10, 0.4))


def test_a_label_without_a_record_keeps_its_time(folder: Path) -> None:
    learning(folder).get_forces(crystal())
    (folder / "queries.jsonl").unlink()
    found = Folder(folder).records
    assert [record.kind for record in found] == ["found", "found"]
    files = {file.stem: file.stat().st_mtime for file in (folder / "labels").iterdir()}
    assert {record.digest: record.time for record in found} == files


def test_refused_labels_are_not_read_again(folder: Path) -> None:
    folder_of_labels = Folder(folder)
    (folder / "labels" / "a.extxyz").write_text("")
    folder_of_labels.append(Record("a", "first"))
    folder_of_labels.refuse(["a"])
    assert folder_of_labels.answered == []
