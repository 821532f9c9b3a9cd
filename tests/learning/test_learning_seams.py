"""Where the parts of learning meet: copies of calculators, walkers whose teacher fails, minima, what is remembered."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS
from pupils import SMALL, Teacher, crystal, truth
from test_runs import Moody

from neuralil_ase import Confirmed, Learner, LearningCalculator, NeuralILCalculator
from neuralil_ase.errors import ConfigError, TeacherError
from neuralil_ase.learning import Walkers, history
from neuralil_ase.learning.decision import Decision, Descent
from neuralil_ase.learning.history import Step, remember
from neuralil_ase.learning.report import draw
from neuralil_ase.learning.request import Request
from neuralil_ase.learning.spot_checks import SpotChecks


def moved(atoms: Atoms, by: float) -> Atoms:
    """The same atoms, one of them moved."""
    atoms.positions[0, 0] += by
    return atoms


def walkers_of(folder: Path, teacher: Any) -> tuple[Walkers, Atoms]:
    """Walkers after the first labels, and the structure of one of them."""
    group = Walkers(Learner(teacher, folder, settings=SMALL, retries=0))
    atoms = crystal(rattle=0.02)
    atoms.calc = group.calculator()
    atoms.get_forces()
    return group, atoms


def test_deep_copies_of_a_calculator_walk_apart(folder: Path) -> None:
    """All need a label at the same time."""
    group, first = walkers_of(folder, Teacher())
    second = copy.deepcopy(first)
    third = copy.deepcopy(second)
    runs = [moved(atoms, by) for atoms, by in ((first, 0.3), (second, 0.5), (third, 0.7))]
    found = group.run([atoms.get_forces for atoms in runs])
    for atoms, forces in zip(runs, found, strict=True):
        np.testing.assert_allclose(forces, truth(atoms).get_forces(), atol=1e-5)


def test_two_runs_with_one_calculator_are_told(folder: Path) -> None:
    group, first = walkers_of(folder, Teacher())
    second = first.copy()
    second.calc = LearningCalculator(learner=first.calc.learner)
    with pytest.raises(ConfigError, match="two runs use one calculator"):
        group.run([moved(first, 0.3).get_forces, moved(second, 0.5).get_forces])


class Hopeless(Teacher):
    """Fails whenever the first atom is here."""

    place = np.inf

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        super().calculate(atoms, *args, **kwargs)
        if abs(atoms.positions[0, 0] - self.place) < 1e-6:
            raise RuntimeError("SCF not converged")


def test_a_frame_that_cannot_be_labelled_ends_only_its_own_run(folder: Path) -> None:
    teacher, found = Hopeless(), {}
    group, first = walkers_of(folder, teacher)
    runs = [moved(first.copy(), by) for by in (0.3, 0.5, 0.7)]
    for atoms in runs:
        atoms.calc = group.calculator()
    teacher.place = runs[1].positions[0, 0]

    def job(number: int) -> None:
        found[number] = runs[number].get_forces()

    with pytest.raises(TeacherError, match="SCF not converged"):
        group.run([partial(job, number) for number in range(3)])
    assert sorted(found) == [0, 2]
    for number, forces in found.items():
        np.testing.assert_allclose(forces, truth(runs[number]).get_forces(), atol=1e-5)
    assert len(teacher.asked) == 5  # nothing was asked twice
    assert len(group.learner.potential.provenance["learnt_from"]) == 4


def test_a_surprise_says_how_many_evaluations_may_be_wrong(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    atoms = crystal()
    atoms.calc = LearningCalculator(Moody(), folder, settings=SMALL, check_every=3, tolerance=3)
    for _ in range(4):
        atoms.get_forces()
        moved(atoms, 1e-3)
    assert "a spot check at evaluation 4 found an error" in caplog.text
    assert ": 2 trusted evaluations before it may be wrong" in caplog.text


def test_a_surprise_resets_the_wait_and_a_label_the_count() -> None:
    checks = SpotChecks(3)
    label = crystal()
    label.calc = SinglePointCalculator(label, energy=0.0, forces=np.ones((16, 3)))
    right: Any = SimpleNamespace(forces=np.ones((16, 3)))
    wrong: Any = SimpleNamespace(forces=np.zeros((16, 3)))

    def check(prediction: Any, trusted: int, is_labelled: bool = True) -> str | None:
        for _ in range(trusted):
            checks.trusted()
        checks.asked("check")
        if not is_labelled:
            return None
        checks.labelled()
        return checks.surprise(Decision("check", "", prediction, 0.1, 0.1), label)

    assert check(right, 2) is None
    assert checks.wait == 6
    check(right, 5, is_labelled=False)  # another frame was labelled instead
    assert "a tolerance of 0.100: 6 trusted evaluations before it" in str(check(wrong, 1))
    assert checks.wait == 3
    assert str(check(wrong, 0)).endswith("a tolerance of 0.100")


def test_a_copy_is_confirmed_like_its_original(folder: Path) -> None:
    """Its results were made before it was; the teacher is asked about them only once."""
    atoms, teacher = crystal(rattle=0), Teacher()
    atoms.calc = LearningCalculator(teacher, folder, settings=SMALL, tolerance=1e3)
    atoms.get_forces()
    moved(atoms, 1e-3).get_forces()
    twin = copy.deepcopy(atoms)
    assert BFGS(Confirmed(twin), logfile=None).run(fmax=0.2, steps=0)
    assert twin.calc.is_confirmed
    assert [step.asked for step in twin.calc.history] == [True, True]
    assert [step.asked for step in atoms.calc.history] == [True, False]
    again = copy.deepcopy(twin)
    assert BFGS(Confirmed(again), logfile=None).run(fmax=0.2, steps=0)
    assert again.calc.evaluations == 2
    assert len(teacher.asked) == 3


class Stubborn(Learner):
    """Learns nothing after the first labels. The teacher then says that all forces are large."""

    def ask(self, requests: Sequence[Request], check: Any = None) -> list[Atoms]:
        if self.potential is None:
            return super().ask(requests, check)
        found = [request.atoms.copy() for request in requests]
        for atoms in found:
            atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.ones((16, 3)))
        return found


@pytest.mark.parametrize("on_query", ["teacher", "model"])
def test_a_minimum_that_is_not_confirmed_counts_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, on_query: Any
) -> None:
    """However often the optimiser asks for the gradient there. What the model did not learn is added to it nearby."""
    refused: list[int] = []
    original = LearningCalculator.descending

    def descending(calculator: LearningCalculator, descent: Descent) -> Any:
        refused.append(descent.refused)
        return original(calculator, descent)

    monkeypatch.setattr(LearningCalculator, "descending", descending)
    atoms = crystal(rattle=0)
    learner = Stubborn(Teacher(), folder, settings=SMALL)
    atoms.calc = LearningCalculator(learner=learner, on_query=on_query)
    atoms.get_forces()
    system = Confirmed(atoms)
    moved(atoms, 1e-3)
    for _ in range(3):
        assert not system.converged(system.get_gradient(), 0.5)
    system.get_value()
    assert refused[-1] == 1
    minimum = atoms.copy()
    moved(atoms, 2e-3)
    left = system.get_gradient() + NeuralILCalculator(learner.potential).get_forces(atoms).ravel()
    model = NeuralILCalculator(learner.potential).get_forces(minimum).ravel()
    np.testing.assert_allclose(left, -1.0 + model, atol=1e-6)
    assert not system.converged(system.get_gradient(), 0.5)
    system.get_value()
    assert refused[-1] == 1


def test_a_long_run_is_remembered_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """All queries, and trusted steps at equal distances; the picture has the right numbers."""
    monkeypatch.setattr(history, "MOST_STEPS", 8)
    steps: list[Step] = []
    queries = (1, 9, 50, 77)
    for number in range(1, 101):
        remember(steps, Step(number, 0.1, 0.2, 300.0, number in queries))
        assert len(steps) <= 8 + len(queries) + 1
        assert steps[-1].evaluation == number
        if number == 8:
            assert len(steps) == 8
    assert [s.evaluation for s in steps] == [1, 9, 16, 32, 48, 50, 64, 77, 80, 96, 100]
    figure = draw(steps, [], None)
    lines = {axes.get_ylabel(): axes.lines[0] for axes in figure.axes if axes.lines}
    counts = lines["queries of this run"]
    assert (counts.get_xdata()[-1], counts.get_ydata()[-1]) == (100, 4)
    assert list(lines["temperature (K)"].get_xdata()) == [s.evaluation for s in steps]
