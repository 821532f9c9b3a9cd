"""Runs of ASE with a calculator that learns: MD, optimisers, cells, what they return and what they leave."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, LBFGS, GPMin, MDMin
from ase.optimize.precon import PreconLBFGS
from pupils import SMALL, Teacher, crystal, truth

from neuralil_ase import (
    Confirmed,
    ExtrapolationMonitor,
    Learner,
    LearningCalculator,
    NeuralILCalculator,
)
from neuralil_ase.errors import ConfigError, UncertaintyError
from neuralil_ase.learning import decision, spot_checks
from neuralil_ase.learning.walkers import Walkers
from neuralil_ase.monitor import ShortestDistance


def md(atoms: Atoms, steps: int, T: float = 300, seed: int = 1) -> VelocityVerlet:
    thermalize_momenta(atoms, temperature_K=T, rng=np.random.default_rng(seed))
    dynamics = VelocityVerlet(atoms, 4 * units.fs)
    dynamics.run(steps)
    return dynamics


def test_md_from_nothing_asks_seldom_and_is_right(folder: Path) -> None:
    """Of 80 steps few are the teacher's; the error is small and near what is promised."""
    atoms, teacher = crystal(rattle=0), Teacher()
    atoms.calc = LearningCalculator(teacher, folder, settings=SMALL)
    md(atoms, 80)
    assert len(teacher.asked) == len(atoms.calc.records) < 30
    errors = atoms.calc.prediction(atoms).forces - truth(atoms).get_forces()
    rms = np.sqrt((errors**2).sum(axis=1).mean())
    size = np.sqrt((truth(atoms).get_forces() ** 2).sum(axis=1).mean())
    assert rms < 0.3 * size
    assert rms < 2 * np.sqrt((atoms.calc.prediction(atoms).forces_error_bar ** 2).mean())
    for record in atoms.calc.records:
        frame = read(folder / "labels" / f"{record.digest}.extxyz")
        np.testing.assert_allclose(frame.get_forces(), truth(frame).get_forces(), atol=1e-5)


def test_what_is_returned_is_the_teachers_where_it_was_asked_and_else_the_models(
    folder: Path,
) -> None:
    atoms = crystal(rattle=0.05)
    atoms.calc = calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    np.testing.assert_allclose(atoms.get_forces(), truth(atoms).get_forces(), atol=1e-7)
    assert calc.history[-1].asked
    atoms.positions[0] += 1e-3
    forces = atoms.get_forces()
    assert not calc.history[-1].asked
    model = NeuralILCalculator(folder / "model.safetensors")
    np.testing.assert_allclose(forces, model.get_forces(atoms), atol=1e-6)
    assert atoms.get_stress().shape == (6,)


def test_the_models_results_where_they_are_wanted(folder: Path) -> None:
    atoms = crystal()
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL, on_query="model")
    forces = atoms.get_forces()
    assert atoms.calc.history[-1].asked
    np.testing.assert_allclose(forces, atoms.calc.prediction(atoms).forces, atol=1e-9)


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 2), vacuum=6)
    add_adsorbate(atoms, "O", 1.5, "fcc")
    atoms.pbc = True
    atoms.rattle(0.05, seed=3)
    atoms.set_constraint(FixAtoms([a.index for a in atoms if a.tag == 2]))
    return atoms


@pytest.mark.slow  # that a cell is relaxed to the teacher's stress is tried at every commit
@pytest.mark.parametrize("on_query", ["teacher", "model"])
def test_an_optimisation_ends_where_the_teachers_own_would(folder: Path, on_query: Any) -> None:
    """Forces below fmax by the teacher itself, in fewer calls than it needs alone."""
    plain, alone = slab(), Teacher()
    plain.calc = alone
    BFGS(plain, logfile=None).run(fmax=0.05)
    atoms, teacher = slab(), Teacher()
    atoms.calc = LearningCalculator(teacher, folder, settings=SMALL, on_query=on_query)
    assert BFGS(Confirmed(atoms), logfile=None).run(fmax=0.05, steps=300)
    found = truth(atoms)
    found.set_constraint(atoms.constraints)
    assert np.linalg.norm(found.get_forces(), axis=1).max() < 0.05
    assert found.get_potential_energy() == pytest.approx(plain.get_potential_energy(), abs=0.01)
    assert len(teacher.asked) < len(alone.asked)
    assert atoms.calc.records[-1].kind == "confirm"


def test_an_optimiser_forgets_what_it_knew_of_the_model_before(folder: Path) -> None:
    """BFGS would take the difference of two models for a curvature."""
    atoms = slab()
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    steps: list[tuple[Any, bool]] = []

    class Recording(BFGS):
        def step(self, *arguments: Any) -> None:
            steps.append((atoms.calc.potential, self.pos0 is None))
            super().step(*arguments)

    optimizer = Confirmed(atoms).optimizer(Recording, logfile=None)
    assert isinstance(optimizer, BFGS)
    assert optimizer.run(fmax=0.1, steps=200)
    models = [None, *(model for model, _ in steps)]
    assert len({id(model) for model in models}) > 2
    for before, (model, is_new) in zip(models, steps, strict=False):
        assert is_new == (model is not before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LBFGS, MDMin, GPMin])
def test_other_optimisers_forget_as_well(folder: Path, kind: type) -> None:
    atoms = crystal(rattle=0.1)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    assert Confirmed(atoms).optimizer(kind, logfile=None).run(fmax=0.1, steps=200)
    assert np.linalg.norm(truth(atoms).get_forces(), axis=1).max() < 0.1


@pytest.mark.filterwarnings("ignore:The system is likely too small")
def test_an_optimiser_that_cannot_be_confirmed_is_named(folder: Path) -> None:
    atoms = crystal(rattle=0.1)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    with pytest.raises(ConfigError, match="PreconLBFGS asks atoms for their forces itself"):
        Confirmed(atoms).optimizer(PreconLBFGS, logfile=None)


def test_a_cell_is_relaxed_to_the_teachers_stress(folder: Path) -> None:
    atoms = crystal(rattle=0.05)
    atoms.set_cell(1.02 * atoms.cell, scale_atoms=True)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    system = FrechetCellFilter(atoms)
    assert BFGS(Confirmed(system), logfile=None).run(fmax=0.2, steps=300)
    found = truth(atoms)
    system.atoms.calc = found.calc
    assert np.linalg.norm(system.get_forces(), axis=1).max() < 0.2


@pytest.mark.slow
def test_images_of_a_band_are_confirmed(folder: Path) -> None:
    """An atom that hops over a bridge: the teacher's own forces on the band are below fmax at the end."""
    first = fcc111("Cu", (1, 1, 2), vacuum=6)
    add_adsorbate(first, "O", 1.2, "fcc")
    first.pbc = True
    first.set_constraint(FixAtoms([0, 1]))
    last = first.copy()
    last.positions[2] = first.positions[2] + (first.positions[1] - first.positions[0]) * (1, 1, 0)
    learner = Learner(Teacher(), folder, settings=SMALL)
    images = [first, first.copy(), first.copy(), last]
    for image in images:
        image.calc = LearningCalculator(learner=learner)
    band = NEB(images, method="improvedtangent")
    band.interpolate()
    assert FIRE(Confirmed(band), logfile=None).run(fmax=0.1, steps=200)
    for image in images:
        image.calc = truth(image).calc
    assert np.linalg.norm(band.get_forces(), axis=1).max() < 0.1


@pytest.mark.parametrize("on_query", ["teacher", "model"])
def test_a_structure_without_forces_is_confirmed_at_once(folder: Path, on_query: Any) -> None:
    """An optimiser cannot move it, so that it is never evaluated again."""
    atoms = bulk("Cu", a=3.6)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL, on_query=on_query)
    assert BFGS(Confirmed(atoms), logfile=None).run(fmax=0.05, steps=20)
    assert atoms.calc.is_confirmed


def test_what_cannot_be_confirmed_is_said(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Confirmed got int"):
        Confirmed(3)
    atoms = crystal(rattle=0.05)
    atoms.calc = Teacher()
    with pytest.raises(ConfigError, match="found no LearningCalculator"):
        Confirmed(atoms)
    images = [crystal(rattle=0.05) for _ in range(4)]
    calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    for image in images:
        image.calc = calc
    with pytest.raises(ConfigError, match="images share one"):
        Confirmed(NEB(images, allow_shared_calculator=True, method="improvedtangent"))


def test_the_same_script_does_the_same_again(tmp_path: Path) -> None:
    positions = []
    for name in "ab":
        atoms = crystal(rattle=0)
        atoms.calc = LearningCalculator(Teacher(), tmp_path / name, settings=SMALL)
        md(atoms, 30)
        positions.append(atoms.positions)
    np.testing.assert_array_equal(*positions)


def test_a_later_run_goes_on_with_what_was_learnt(folder: Path) -> None:
    atoms = crystal(rattle=0)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    md(atoms, 60)
    before = len(atoms.calc.records)
    again, teacher = crystal(rattle=0), Teacher()
    again.calc = LearningCalculator(teacher, folder, settings=SMALL)
    md(again, 60)
    assert len(teacher.asked) < before / 2
    assert len(again.calc.records) == before + len(teacher.asked)


def test_a_later_run_may_begin_with_a_spot_check(folder: Path) -> None:
    atoms = crystal(rattle=0)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    md(atoms, 10)
    again, teacher = crystal(rattle=0.002, seed=3), Teacher()
    again.calc = LearningCalculator(teacher, folder, settings=SMALL, check_every=1)
    again.get_forces()
    assert len(teacher.asked) == 1
    assert again.calc.records[-1].held_out


@pytest.mark.slow
def test_a_model_that_is_given_is_trusted_where_it_knows(tmp_path: Path) -> None:
    atoms = crystal(rattle=0)
    atoms.calc = LearningCalculator(Teacher(), tmp_path / "first", settings=SMALL)
    md(atoms, 60)
    other, teacher = crystal(rattle=0.03), Teacher()
    model = tmp_path / "first" / "model.safetensors"
    data = [read(file) for file in sorted((tmp_path / "first" / "labels").glob("*"))]
    other.calc = LearningCalculator(
        teacher, tmp_path / "second", model=model, data=data, settings=SMALL
    )
    other.get_forces()
    assert not teacher.asked


@pytest.mark.slow
def test_background_training_gives_the_same_kind_of_run(folder: Path) -> None:
    atoms, teacher = crystal(rattle=0), Teacher()
    atoms.calc = LearningCalculator(teacher, folder, settings=SMALL, background=True)
    md(atoms, 60)
    atoms.calc.learner.settle()
    assert len(teacher.asked) < 40
    names = atoms.calc.potential.provenance["learnt_from"]
    assert len(names) == len(atoms.calc.records)


def test_a_monitor_follows_as_ever(folder: Path) -> None:
    atoms = crystal(rattle=0)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    with pytest.raises(UncertaintyError, match="no model yet"):
        atoms.calc.prediction(atoms)
    atoms.get_forces()
    dynamics = VelocityVerlet(atoms, 4 * units.fs)
    monitor = ExtrapolationMonitor(dynamics, warn=False)
    dynamics.attach(monitor, interval=5)
    dynamics.run(10)
    assert len(monitor.records["step"]) == 3


def test_a_criterion_that_objects_is_heard(folder: Path) -> None:
    atoms, teacher = crystal(rattle=0.01), Teacher()
    too_near = ShortestDistance(low=1.0, usual={"Cu-Cu": 2.7})
    atoms.calc = LearningCalculator(teacher, folder, settings=SMALL, criteria=[too_near])
    atoms.get_forces()
    atoms.positions[0] += 1e-3
    atoms.get_forces()
    assert "distance_fraction" in atoms.calc.records[-1].reason


def test_a_young_model_is_not_trusted_far_away(folder: Path) -> None:
    """Whatever its error bars, while it knows two frames."""
    atoms = crystal(rattle=0)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL, tolerance=1e3)
    atoms.get_forces()
    for shift, asked in ((0.1, False), (0.2, True), (0.3, False), (0.5, True)):
        atoms.positions[3] = crystal(rattle=0).positions[3] + (shift, 0, 0)
        atoms.get_forces()
        assert atoms.calc.history[-1].asked == asked
    assert "has learnt 3 frames is trusted only within 0.18 Å" in atoms.calc.records[-1].reason


class Moody(Teacher):
    """Says five times as much from the third call on."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        if len(self.asked) > 2:
            self.results["forces"] = 5 * self.results["forces"]


def test_a_surprise_at_a_spot_check_is_learnt_and_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    atoms = crystal(rattle=0.1)
    atoms.calc = LearningCalculator(Moody(), folder, settings=SMALL, check_every=1, tolerance=3)
    atoms.get_forces()
    atoms.positions[0] += 1e-3
    np.testing.assert_allclose(atoms.get_forces(), 5 * truth(atoms).get_forces(), atol=1e-6)
    assert "a spot check at evaluation 2 found an error" in caplog.text
    assert [r.held_out for r in atoms.calc.records] == [False] * 3


@pytest.mark.slow
def test_a_new_element_begins_a_new_model(folder: Path) -> None:
    copper, gold = crystal(), crystal()
    gold.symbols[:4] = "Au"
    calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    calc.get_potential_energy(copper)
    calc.get_potential_energy(gold)
    assert calc.potential.elements == ("Au", "Cu")
    copper.positions[0] += 1e-3
    energy = calc.get_potential_energy(copper)
    assert energy == pytest.approx(truth(copper).get_potential_energy(), abs=0.1)


@pytest.mark.parametrize(("near_by", "expected"), [(0.0, 3), (9.0, 1)])
def test_a_long_way_to_a_minimum_is_labelled_now_and_then(
    folder: Path, monkeypatch: pytest.MonkeyPatch, near_by: float, expected: int
) -> None:
    """Else a soft structure would wander for ever under error bars that are too small; less often near a label."""
    monkeypatch.setattr(spot_checks, "CHECK_OF_OPTIMISER", 3)
    monkeypatch.setattr(decision, "NEAR", 1e3)  # all is trusted
    monkeypatch.setattr(decision, "NEAR_BY", near_by)
    atoms = crystal()
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    FIRE(Confirmed(atoms), logfile=None).run(fmax=1e-3, steps=14)
    checks = [r for r in atoms.calc.records if r.kind == "check"]
    assert expected <= len(checks) <= 1.5 * expected
    assert not any(r.held_out for r in checks)


def test_spot_checks_are_held_out_and_are_few(folder: Path) -> None:
    """The second waits, because a third of the frames is held out already."""
    atoms = crystal(rattle=0)
    options: dict[str, Any] = {"check_every": 2, "tolerance": 50.0, "settings": SMALL}
    atoms.calc = LearningCalculator(Teacher(), folder, **options)
    md(atoms, 50, T=10)
    checks = [r.evaluation for r in atoms.calc.records if r.kind == "check"]
    assert checks == [3, 43]
    assert all(r.held_out == (r.kind == "check") for r in atoms.calc.records)
    assert atoms.calc.potential.provenance["held_out_frames"] == 2


def test_walkers_share_what_they_learn(tmp_path: Path) -> None:
    """Together they need fewer labels than apart, and the threads' speed does not matter."""

    def together(folder: Path) -> tuple[list[np.ndarray], int]:
        walkers = Walkers(Learner(Teacher(), folder, settings=SMALL), most=2)
        runs = [crystal(seed, rattle=0.02) for seed in range(3)]
        for atoms in runs:
            atoms.calc = walkers.calculator()
        walkers.run([partial(md, atoms, 20, 300, seed) for seed, atoms in enumerate(runs)])
        return [atoms.positions for atoms in runs], len(walkers.learner.records)

    first, count = together(tmp_path / "a")
    second, again = together(tmp_path / "b")
    assert count == again < 40
    np.testing.assert_array_equal(first, second)


def test_a_walker_that_fails_does_not_hold_the_others(folder: Path) -> None:
    walkers = Walkers(Learner(Teacher(), folder, settings=SMALL))
    atoms = crystal()
    atoms.calc = walkers.calculator()

    def broken() -> None:
        raise ValueError("of the user's own")

    with pytest.raises(ValueError, match="of the user's own"):
        walkers.run([broken, partial(md, atoms, 5)])
    assert atoms.calc.evaluations >= 6


def test_the_run_in_words_and_as_a_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atoms = crystal(rattle=0)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL, progress=True)
    md(atoms, 20)
    assert "21 evaluations in this run" in atoms.calc.summary()
    assert "rms force error" in atoms.calc.summary()
    atoms.calc.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    assert "taught_by" in atoms.calc.learner.card()


@pytest.mark.slow
def test_full_training_from_the_folder_is_that_of_train(folder: Path, tmp_path: Path) -> None:
    from neuralil_ase import train

    atoms = crystal(rattle=0)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    md(atoms, 20)
    options: dict[str, Any] = {"epochs": 2, "members": 2, "widths": (8,), "report": False}
    ours = atoms.calc.learner.retrain(tmp_path / "ours.safetensors", **options).potential
    files = sorted((folder / "labels").glob("*.extxyz"))
    theirs = train(files, tmp_path / "theirs.safetensors", **options).potential
    np.testing.assert_array_equal(
        ours.params["network"]["body"]["Dense_0"]["kernel"],
        theirs.params["network"]["body"]["Dense_0"]["kernel"],
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_query": "both"}, "on_query"),
        ({"tolerance": 0.0}, "above 0"),
        ({"rattled": -1}, "rattled = -1"),
        ({"settings": SMALL.updated({"members": 1})}, "spread of an ensemble"),
    ],
)
def test_options_that_cannot_be_are_refused(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        LearningCalculator(Teacher(), folder, **options)


def test_a_learner_comes_with_its_own_teacher(folder: Path) -> None:
    learner = Learner(Teacher(), folder)
    with pytest.raises(ConfigError, match="either, not both"):
        LearningCalculator(Teacher(), learner=learner)
