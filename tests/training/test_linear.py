"""The linear part: fitted weights, what they leave, and the potential that holds both parts."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from neuralil_ase import load_potential, train
from neuralil_ase.errors import ConfigError
from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms
from neuralil_ase.evaluation.evaluate import predict_frames
from neuralil_ase.model.potential import Potential, flatten, unflatten
from neuralil_ase.samples import least_squares
from neuralil_ase.samples.batches import Sample
from neuralil_ase.samples.equations import Choice
from neuralil_ase.samples.least_squares import LinearFit
from neuralil_ase.samples.linear import (
    LINEAR_FRAMES,
    Linear,
    linear_members,
    linear_of,
    what_is_left,
    with_linear,
)
from neuralil_ase.samples.normalisation import factor_of
from neuralil_ase.training.continuation import Continuation
from neuralil_ase.training.loop import Trainer
from neuralil_ase.training.prepare import Task, prepare
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.warm_start import Start

SMALL = TrainingSettings(
    members=4, widths=(4,), head_widths=(), r_cut=4.0, n_max=2, epochs=1, pair_term="none"
)


def alloy(count: int, seed: int = 0) -> list[Atoms]:
    """Rattled copper-gold cells of EMT, with stresses."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(count):
        atoms = bulk("Cu", cubic=True).repeat((1, 1, 1 + k % 2))
        atoms.set_chemical_symbols(rng.choice(["Cu", "Au"], len(atoms), p=[0.7, 0.3]))
        atoms.set_cell(atoms.cell * rng.uniform(0.97, 1.06), scale_atoms=True)
        atoms.rattle(0.08, rng=rng)
        atoms.calc = EMT()
        found.append(
            labelled(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())
        )
    return found


def labelled(atoms: Atoms, energy: float, forces: np.ndarray, stress: np.ndarray) -> Atoms:
    copy = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces, stress=stress)
    return copy


def task_of(structures: list[Atoms], **options: object) -> Task:
    return prepare(
        SMALL.updated(options).with_frames(len(structures)), frames_from_atoms(structures), []
    )


@pytest.fixture(scope="module")
def structures() -> list[Atoms]:
    return alloy(30)


@pytest.fixture(scope="module")
def task(structures: list[Atoms]) -> Task:
    return task_of(structures)


def fresh(task: Task) -> Potential:
    """The potential before any training."""
    trainer = Trainer(task)
    return trainer.potential(trainer.start().state.params)


def by_linear(
    task: Task, linear: Linear, frames: list[Frame]
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """What the linear part adds, by the calculator's way: a potential with it, less the same without."""
    with_it, without = (with_linear(fresh(task), x) for x in (linear, None))
    pairs = zip(predict_frames(with_it, frames), predict_frames(without, frames), strict=True)
    return [(a.energy - b.energy, a.forces - b.forces, a.stress - b.stress) for a, b in pairs]


def difference(before: Sample, left: Sample, label: str, member: int = 0) -> np.ndarray:
    """What was subtracted from the targets of a member."""
    whole, rest = (getattr(sample.targets.of_member(member), label)[0] for sample in (before, left))
    return np.asarray(whole - rest)


def test_the_labels_are_what_the_linear_part_leaves(structures: list[Atoms], task: Task) -> None:
    assert task.linear is not None
    frames = frames_from_atoms(structures[:4])
    whole = prepare(replace(task.settings, linear="none"), frames_from_atoms(structures), [])
    parts = by_linear(task, task.linear, frames)
    for left, before, (energy, forces, stress) in zip(task.train, whole.train, parts, strict=False):
        assert difference(before, left, "energy") == pytest.approx(energy, abs=2e-4)
        np.testing.assert_allclose(difference(before, left, "forces"), forces, atol=2e-4)
        np.testing.assert_allclose(difference(before, left, "stress"), stress, atol=2e-5)


def test_a_linear_teacher_is_found(structures: list[Atoms], task: Task) -> None:
    """Labels made by a linear part leave next to nothing."""
    assert task.linear is not None
    teacher = Linear(2 * task.linear.weights, task.linear.bias + 1)
    parts = by_linear(task, teacher, frames_from_atoms(structures))
    taught = [labelled(a, *part) for a, part in zip(structures, parts, strict=True)]
    found = task_of(taught)
    left = [sample.targets for sample in found.train]
    for k, part in ((0, "energy"), (1, "forces"), (2, "stress")):
        size = np.concatenate([np.ravel(p[k]) for p in parts]).std()
        rest = np.concatenate([np.ravel(getattr(labels, part)) for labels in left])
        assert np.sqrt((rest**2).mean()) < 0.05 * size


def without_networks(task: Task) -> Potential:
    """The linear part alone."""
    whole = fresh(task)
    silent = {k: v if "/linear/" in k else 0 * v for k, v in flatten(whole.params).items()}
    return replace(whole, params=unflatten(silent))


def errors_and_spreads(potential: Potential, structures: list[Atoms]) -> tuple[float, float]:
    """Root mean square force error and spread, by atom."""
    frames = frames_from_atoms(structures)
    found = predict_frames(potential, frames)
    errors = np.concatenate([p.forces - f.forces for p, f in zip(found, frames, strict=True)])
    spreads = np.concatenate([p.forces_std for p in found])
    return float(np.sqrt((errors**2).sum(1).mean())), float(np.sqrt((spreads**2).mean()))


def test_most_of_emt_is_linear(task: Task, structures: list[Atoms]) -> None:
    """On frames that the fit has not seen."""
    error, _ = errors_and_spreads(without_networks(task), alloy(8, seed=5))
    labels = np.concatenate([atoms.get_forces() for atoms in structures])
    assert error < 0.25 * np.sqrt((labels**2).sum(1).mean())


def test_members_differ_where_the_data_do_not_determine_the_energy(task: Task) -> None:
    """Members with the same linear part would agree far from the data, however wrong it is there."""
    potential = without_networks(task)
    error, spread = errors_and_spreads(potential, alloy(8, seed=5))
    assert 0.3 < spread / error < 1.5
    far = []
    for atoms in alloy(6, seed=6):
        atoms.set_cell(0.9 * atoms.cell, scale_atoms=True)
        atoms.calc = EMT()
        far.append(labelled(atoms, atoms.get_potential_energy(), atoms.get_forces(), np.zeros(6)))
    error_there, spread_there = errors_and_spreads(potential, far)
    assert error_there > 5 * error
    assert spread_there > 5 * spread
    assert 0.3 < spread_there / error_there < 2


def fit_of(task: Task) -> LinearFit:
    """The fit to the whole labels of a task without a linear part."""
    return LinearFit(task.packer, task.train)


@pytest.fixture(scope="module")
def whole(structures: list[Atoms]) -> Task:
    """The task without a linear part."""
    return task_of(structures, linear="none")


def test_the_mean_of_the_members_is_the_solution(whole: Task) -> None:
    linear, alone = (fit_of(whole).solve(members, 0) for members in (4, 1))
    assert linear is not None
    assert alone is not None
    for of_members, solution in zip(linear, alone, strict=True):
        assert np.ptp(of_members, axis=0).max() > 0
        np.testing.assert_allclose(of_members.mean(axis=0), solution[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kept", ["energy", "forces"])
def test_one_kind_of_label_is_enough(kept: str) -> None:
    frames = [
        replace(f, stress=None, **{("forces" if kept == "energy" else "energy"): None})
        for f in frames_from_atoms(alloy(30))
    ]
    found = prepare(SMALL.with_frames(30), frames, [])
    assert found.linear is not None
    assert np.isfinite(found.linear.weights).all()


def test_isolated_atoms_stay_at_their_energies(structures: list[Atoms]) -> None:
    """The linear part of an isolated atom is 0 where its energy is known, so that no network has to undo it."""
    alone = {"Cu": -0.1, "Au": 0.2}
    found = task_of(structures, isolated_atoms=alone)
    assert found.linear is not None
    np.testing.assert_array_equal(found.linear.bias, 0.0)
    assert [len(s.types) for s in found.train[-2:]] == [1, 1]
    whole = task_of(structures, isolated_atoms=alone, linear="none")
    for left, before in zip(found.train[-2:], whole.train[-2:], strict=True):
        assert left.targets.energy == before.targets.energy


def test_few_frames_or_no_gain_mean_no_linear_part() -> None:
    assert task_of(alloy(2)).linear is None
    rng = np.random.default_rng(3)
    noise = [labelled(a, rng.normal(), rng.normal(size=(len(a), 3)), np.zeros(6)) for a in alloy(6)]
    assert task_of(noise).linear is None


def test_data_with_stresses_alone_have_no_linear_part(structures: list[Atoms]) -> None:
    frames = [replace(f, energy=None, forces=None) for f in frames_from_atoms(structures[:6])]
    assert prepare(SMALL.with_frames(6), frames, []).linear is None


def test_too_many_unknowns_are_said(
    structures: list[Atoms], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(least_squares, "MOST_UNKNOWNS", 10)
    with caplog.at_level("INFO"):
        assert task_of(structures).linear is None
    assert "no linear part:" in caplog.text


def test_a_trained_file_holds_it_and_training_goes_on(
    structures: list[Atoms], tmp_path: Path
) -> None:
    model = tmp_path / "model.safetensors"
    first = train(structures, model, settings=SMALL, report=False)
    linear = linear_of(load_potential(model))
    assert linear is not None
    assert first.potential.config.network.linear
    second = train(structures, settings=SMALL, start_from=model, report=False)
    kept = linear_of(second.potential)
    assert kept is not None
    np.testing.assert_array_equal(kept.weights, linear.weights)
    plain = train(structures, settings=SMALL, linear="none", report=False)
    assert linear_of(plain.potential) is None


def test_small_molecules_have_none_by_default() -> None:
    rng = np.random.default_rng(4)
    frames = []
    for _ in range(12):
        atoms = molecule("CH3OH")
        atoms.rattle(0.05, rng=rng)
        atoms.calc = SinglePointCalculator(
            atoms, energy=float(rng.normal()), forces=rng.normal(size=(len(atoms), 3))
        )
        frames.append(atoms)
    found = prepare(SMALL, frames_from_atoms(frames), [])
    assert found.settings.linear == "none"
    assert found.linear is None
    chosen = {"linear": "all"}
    assert prepare(SMALL.updated(chosen), frames_from_atoms(frames), []).settings.linear == "all"


def test_equations_that_determine_next_to_nothing_are_solved() -> None:
    """One structure, repeated: rounding errors of the equations are larger than the penalty."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(0, 1e7, (2, 40)), 50, axis=0)
    noise = rng.normal(0, 0.1, (40, 40))
    gram = rows.T @ rows + noise + noise.T
    root = Choice(100.0, 1e-4, 1).root(gram)
    np.testing.assert_allclose(root.T @ root, gram, atol=1e-11 * gram.max())
    well = Choice(100.0, 1e-4, 1)
    np.testing.assert_array_equal(well.root(np.eye(3)), np.linalg.cholesky(well.matrix(np.eye(3))))


def test_rounding_errors_are_not_scaled_to_features() -> None:
    rng = np.random.default_rng(0)
    equal = 5.0 * np.ones((50, 4)) + rng.normal(0, 5e-7, (50, 4))
    assert factor_of(equal).max() < 1e6
    varying = rng.normal(5, 0.1, (50, 4))
    assert factor_of(varying).max() < 20


def test_members_take_penalties_in_turn(whole: Task) -> None:
    fit = fit_of(whole)
    both = fit.solve(4, 0, (1.0, 100.0))
    assert both is not None
    assert not np.array_equal(both.weights[0], both.weights[2])
    for k, penalty in enumerate((1.0, 100.0)):
        alone = fit.solve(1, 0, (penalty,))
        assert alone is not None
        found = both.weights[k::2].mean(axis=0)
        np.testing.assert_allclose(found, alone.weights[0], rtol=1e-6, atol=1e-9)


def test_every_second_member_has_a_linear_part(structures: list[Atoms], whole: Task) -> None:
    """These members learn what the mean of their linear parts leaves, and the others learn whole labels."""
    half = task_of(structures, linear="half")
    assert half.linear is not None
    np.testing.assert_array_equal(half.linear.weights[1::2], 0.0)
    np.testing.assert_array_equal(half.linear.bias[1::2], 0.0)
    assert np.ptp(half.linear.weights[::2], axis=0).max() > 0
    mean = half.linear.common.of_member(0)
    left = what_is_left(whole.packer, mean, whole.train)
    for before, of_mean, found in zip(whole.train, left, half.train, strict=True):
        for member in range(4):
            expected = before.targets if member % 2 else of_mean.targets
            for label in ("energy", "forces", "stress"):
                of_member = getattr(found.targets.of_member(member), label)
                np.testing.assert_allclose(of_member, getattr(expected, label), atol=2e-5)


def test_a_model_with_two_kinds_of_members_goes_on_with_both(structures: list[Atoms]) -> None:
    first = train(structures, settings=SMALL, linear="half", report=False)
    before = linear_of(first.potential)
    second = train(structures, settings=SMALL, start_from=first.potential, report=False)
    after = linear_of(second.potential)
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(before.weights, after.weights)
    assert linear_members(second.potential) == "half"
    for wrong in ("all", "none"):
        with pytest.raises(ConfigError, match=r"linear \(model: half"):
            train(structures, settings=SMALL, linear=wrong, start_from=first.potential)


@pytest.fixture(scope="module")
def again(structures: list[Atoms], task: Task) -> Task:
    """A training that starts from the model of a learner."""
    learnt = replace(fresh(task), provenance={LINEAR_FRAMES: 30})
    start = Start(learnt, "the model of a learner")
    return prepare(task.settings, frames_from_atoms(structures), [], start)


def test_each_member_goes_on_with_its_own_linear_part(structures: list[Atoms], again: Task) -> None:
    assert again.linear is not None
    frames = frames_from_atoms(structures[:2])
    whole = prepare(replace(again.settings, linear="none"), frames_from_atoms(structures), [])
    for member in range(4):
        own = Linear(*(np.repeat(x[[member]], 4, axis=0) for x in again.linear))
        parts = by_linear(again, own, frames)
        pairs = zip(again.train, whole.train, parts, strict=False)
        for left, before, (energy, forces, stress) in pairs:
            found = partial(difference, before, left, member=member)
            assert found("energy") == pytest.approx(energy, abs=2e-4)
            np.testing.assert_allclose(found("forces"), forces, atol=2e-4)
            np.testing.assert_allclose(found("stress"), stress, atol=2e-5)


def test_what_is_left_are_the_errors_of_the_potential(structures: list[Atoms], again: Task) -> None:
    """Training and the calculator evaluate the same potential."""
    trainer = Trainer(again)
    run = trainer.start()
    energy, forces, stress = trainer.residuals(run.state.params, again.train)
    frames = frames_from_atoms(structures)
    found = predict_frames(trainer.potential(run.state.params), frames)
    pairs = list(zip(found, frames, strict=True))
    of_energies = [(p.energy - f.energy) / len(p.forces) for p, f in pairs if f.energy is not None]
    np.testing.assert_allclose(energy, of_energies, atol=1e-4)
    np.testing.assert_allclose(
        forces, np.concatenate([p.forces - f.forces for p, f in pairs]), atol=5e-4
    )
    np.testing.assert_allclose(stress, [p.stress - f.stress for p, f in pairs], atol=1e-4)


def test_members_of_other_models_keep_their_deviations(structures: list[Atoms], task: Task) -> None:
    """Trained away, spreads would be smaller where they are right."""
    start = Start(fresh(task), "a trained model")
    found = prepare(task.settings, frames_from_atoms(structures), [], start)
    assert found.packer.n_targets == 1
    for left, before in zip(found.train, task.train, strict=True):
        np.testing.assert_allclose(left.targets.forces, before.targets.forces, atol=1e-4)


@pytest.mark.parametrize("member", [0, 3])
def test_a_member_may_go_on_alone(again: Task, member: int) -> None:
    losses = []
    for task in (again, again.of_member(member)):
        trainer = Trainer(task)
        _, loss, *_ = trainer.step(trainer.start().state, np.array([0, 1]))
        losses.append(np.asarray(loss))
    assert losses[0][member] == pytest.approx(losses[1][0], rel=1e-5)


def test_members_of_a_learner_have_one_of_two_penalties(structures: list[Atoms]) -> None:
    """The stronger one makes the weights smaller."""
    potential = fresh(task_of(structures, linear="none"))
    learning = Continuation(potential, SMALL, 10)
    for frame in frames_from_atoms(structures[:12]):
        learning.add(frame)
    numbers = list(range(12))
    linear = linear_of(learning.fit_linear(potential, numbers, 12))
    assert linear is not None
    weak, strong = (linear.weights[k::2].mean(axis=0) for k in (0, 1))
    scale = linear.weights.std(axis=0) + 1e-12
    assert np.abs(strong / scale).mean() < 0.8 * np.abs(weak / scale).mean()


def test_a_learner_keeps_members_without_a_linear_part(structures: list[Atoms]) -> None:
    """Such a model is given, or asked for; its residuals are the errors of the potential."""
    given = fresh(task_of(structures, linear="half"))
    own = fresh(task_of(structures, linear="none"))
    frames = frames_from_atoms(structures[:12])
    for potential, is_fitted in ((given, False), (own, True)):
        learning = Continuation(potential, SMALL.updated({"linear": "half"}), 10)
        for frame in frames:
            learning.add(frame)
        numbers = list(range(len(frames)))
        found = learning.fit_linear(potential, numbers, 12) if is_fitted else potential
        assert linear_members(found) == "half"
        residuals = learning.residuals(found, numbers)
        for residual, predicted, frame in zip(
            residuals, predict_frames(found, frames), frames, strict=True
        ):
            np.testing.assert_allclose(residual.forces, predicted.forces - frame.forces, atol=5e-4)
