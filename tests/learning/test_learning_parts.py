"""The parts: decisions, error bars from the stream, checks of the teacher, short trainings that share a compilation."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCom
from hypothesis import given, settings
from hypothesis import strategies as st
from pupils import SMALL, crystal

from neuralil_ase.errors import TeacherError
from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms
from neuralil_ase.evaluation.evaluate import predict_frames
from neuralil_ase.learning.decision import Descent, cell_error_bar, decide
from neuralil_ase.learning.first_model import first_potential
from neuralil_ase.learning.pupil import Pupil
from neuralil_ase.learning.records import Record
from neuralil_ase.learning.stream import PRIOR_SCALE, stream_calibration, with_thresholds
from neuralil_ase.learning.teacher import check_units, usual_stiffness
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Members, Prediction
from neuralil_ase.samples.linear import linear_of
from neuralil_ase.training.continuation import Continuation
from neuralil_ase.training.loop import compilations


def prediction(spreads: np.ndarray, forces: np.ndarray) -> Prediction:
    """Of two members that differ by these spreads along x, with error bars twice as large."""
    half = np.zeros((len(spreads), 3))
    half[:, 0] = spreads / np.sqrt(2)
    n = len(spreads)
    calibration = stream_calibration([], {"Cu": 0.0}, 0.0)
    members = Members(np.zeros((2, n)), np.stack([forces + half, forces - half]))
    return Prediction(
        np.array(["Cu"] * n),
        np.zeros(n),
        forces,
        np.zeros((n, 6)),
        100.0,
        members,
        None,
        calibration,
    )


ATOMS = bulk("Cu", cubic=True)


def test_the_worst_atom_decides() -> None:
    forces = np.zeros((4, 3))
    spreads = np.array([0.01, 0.02, 0.06, 0.01])
    assert decide(ATOMS, prediction(spreads, forces), PRIOR_SCALE * 0.061).kind is None
    found = decide(ATOMS, prediction(spreads, forces), PRIOR_SCALE * 0.059)
    assert found.kind == "unsure"
    assert "atom 2 (Cu)" in found.reason
    assert found.bar == pytest.approx(PRIOR_SCALE * 0.06)


def test_atoms_held_fixed_do_not_count() -> None:
    atoms = ATOMS.copy()
    atoms.set_constraint(FixAtoms([2]))
    spreads = np.array([0.01, 0.02, 5.0, 0.01])
    assert decide(atoms, prediction(spreads, np.zeros((4, 3))), 0.1).kind is None
    forces = np.zeros((4, 3))
    forces[2] = 3.0
    found = decide(atoms, prediction(np.zeros(4), forces), 0.1, descent=Descent(0.05))
    assert found.allowed == pytest.approx(0.25)


def test_a_fixed_centre_of_mass_holds_no_atom() -> None:
    atoms = ATOMS.copy()
    atoms.set_constraint(FixCom())
    spreads = np.array([0.01, 0.02, 5.0, 0.01])
    assert decide(atoms, prediction(spreads, np.zeros((4, 3))), 0.1).kind == "unsure"


def test_a_cell_that_no_frame_has_needs_a_certain_stress() -> None:
    """Forces vanish by symmetry in a crystal of any volume."""
    found = prediction(np.zeros(4), np.zeros((4, 3)))
    virials = np.zeros((2, 6))
    virials[0, :2] = 0.3, 0.4  # eV: members differ along x and y
    assert found.members is not None
    found = replace(found, members=replace(found.members, virials=virials))
    bar = PRIOR_SCALE * 0.4 / np.sqrt(2) / 4  # V times the stress over four atoms
    assert cell_error_bar(found) == pytest.approx(bar)
    assert decide(ATOMS, found, 0.9 * bar).kind is None
    assert decide(ATOMS, found, 1.1 * bar, is_strained=True).kind is None
    assert decide(ATOMS, found, 0.9 * bar, Descent(0.05), is_strained=True).kind is None
    unsure = decide(ATOMS, found, 0.9 * bar, is_strained=True)
    assert unsure.kind == "unsure"
    assert "error bar of the stress" in unsure.reason


def test_a_cell_is_known_by_its_learnt_frames() -> None:
    pupil = Pupil(None, SMALL, 0)
    assert pupil.is_strained(crystal())
    assert pupil.has_stress
    atoms = crystal()
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((16, 3)))
    pupil.add(framed(atoms), held_out=False, learnt=True)
    assert not pupil.is_strained(crystal(1))
    assert not pupil.has_stress
    other = crystal()
    other.set_cell(1.01 * other.cell)
    assert pupil.is_strained(other)


def test_an_optimiser_may_be_less_sure_far_from_its_end() -> None:
    forces = np.zeros((4, 3))
    forces[0, 1] = 1.0
    spreads = np.full(4, 0.12)
    assert decide(ATOMS, prediction(spreads, forces), 0.1).kind == "unsure"
    assert decide(ATOMS, prediction(spreads, forces), 0.1, descent=Descent(0.05)).kind is None
    assert (
        decide(ATOMS, prediction(3 * spreads, 0.01 * forces), 0.1, descent=Descent(0.05)).kind
        == "unsure"
    )


def test_a_minimum_that_was_not_confirmed_needs_a_better_model() -> None:
    found = [Descent(0.05, refused).allowed(0.01) for refused in range(4)]
    assert found == pytest.approx([0.25, 0.125, 0.0625, 0.05])
    assert Descent(0.05, 9).allowed(1.0) == pytest.approx(0.7)  # far from it nothing changes


def test_near_a_learnt_frame_errors_are_smaller_than_their_bars() -> None:
    """On the way to a minimum; in MD, where nothing confirms the end, error bars count everywhere."""
    sure = prediction(np.full(4, 0.3), np.zeros((4, 3)))
    descent = Descent(0.05)
    assert decide(ATOMS, sure, 0.1, descent, moved=0.2).kind == "unsure"
    near = decide(ATOMS, sure, 0.1, descent, moved=0.05)
    assert near.kind is None
    assert (near.allowed, near.error) == pytest.approx((4 * 0.25, near.bar / 4))
    assert decide(ATOMS, sure, 0.1, moved=0.05).kind == "unsure"


def record(errors: np.ndarray, spreads: np.ndarray) -> Record:
    symbols = ["Cu"] * len(errors)
    return Record("", "unsure", symbols=symbols, errors=errors.tolist(), spreads=spreads.tolist())


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 10), st.floats(0, 0.1), st.integers(0, 10**6))
def test_error_bars_become_as_large_as_the_errors(scale: float, floor: float, seed: int) -> None:
    """Of many tests with errors that are Gaussian with the variance that is assumed, whatever came before."""
    rng = np.random.default_rng(seed)
    records = [
        record(np.full(5, 2.0), np.full(5, 0.1))
    ]  # a model from two labels that are near each other
    for _ in range(36):
        spreads = rng.uniform(0.1, 0.3, 400)
        sigma = np.hypot(scale * spreads, floor)
        records.append(
            record(np.linalg.norm(rng.normal(0, 1, (400, 3)), axis=1) * sigma / np.sqrt(3), spreads)
        )
    found = stream_calibration(records, {"Cu": floor}, 0.0)
    assert found.force_scale["Cu"] == pytest.approx(scale, rel=0.2)


def test_without_tests_the_prior_stands_and_one_lucky_test_changes_little() -> None:
    assert stream_calibration([], {"Cu": 0.1}, 0.0).force_scale["Cu"] == PRIOR_SCALE
    lucky = record(np.zeros(5), np.full(5, 0.1))
    assert stream_calibration([lucky], {"Cu": 0.0}, 0.0).force_scale["Cu"] > 0.75 * PRIOR_SCALE


def stream(ratios: np.ndarray) -> float:
    """The scale after tests with these ratios of errors to spreads."""
    tests = [record(np.full(5, 0.1 * ratio), np.full(5, 0.1)) for ratio in ratios]
    return stream_calibration(tests, {"Cu": 0.0}, 0.0).force_scale["Cu"]


def test_error_bars_are_right_for_models_that_are_better_or_worse_by_chance() -> None:
    rng = np.random.default_rng(0)
    streams = rng.lognormal(0, 0.4, (200, 13))
    found = [last / stream(before) for *before, last in streams]
    assert 0.8 < np.sqrt(np.mean(np.square(found))) < 1.4


def test_error_bars_follow_a_model_that_becomes_sure() -> None:
    """After a surprise, and when the model knows the surroundings of the next frames."""
    assert stream(np.array([5.0, 0.5, 0.25, 0.2, 0.2, 0.2])) < 0.4
    assert stream(np.array([0.2, 0.2, 0.2, 0.2, 5.0])) > 2.0  # and are careful at once


def test_thresholds_of_a_monitor_belong_to_the_tolerance() -> None:
    found = with_thresholds(stream_calibration([], {"Cu": 0.0}, 0.0), 0.3)
    assert found.thresholds == pytest.approx({"low": 0.15, "high": 0.3})


def pair(atoms: Atoms, calc: Any, energy: float = 1.0, forces: float = 1.0) -> list[Atoms]:
    """Two labelled geometries, in units of one's choice."""
    found = []
    for rattle in (0.0, 0.05):
        copy = atoms.copy()
        copy.positions += np.random.default_rng(0).normal(0, rattle, copy.positions.shape)
        copy.calc = calc
        values = {
            "energy": energy * copy.get_potential_energy(),
            "forces": forces * copy.get_forces(),
        }
        copy.calc = SinglePointCalculator(copy, **values)
        found.append(copy)
    return found


SOLIDS = {s: bulk(s, cubic=True) * (2, 2, 2) for s in ("Cu", "Al", "Au", "Pt")}


@pytest.mark.parametrize("symbol", SOLIDS)
def test_units_that_are_right_pass(symbol: str) -> None:
    check_units(*pair(SOLIDS[symbol], EMT()))


@pytest.mark.parametrize("symbol", SOLIDS)
@pytest.mark.parametrize("factor", [1 / 27.2114, 23.06, 96.5])
def test_other_units_are_found(symbol: str, factor: float) -> None:
    with pytest.raises(TeacherError, match="stiffness"):
        check_units(*pair(SOLIDS[symbol], EMT(), factor, factor))


@pytest.mark.parametrize(
    "factors", [(1.0, -1.0), (1 / 27.2114, 1.0), (1.0, 0.5291772), (-1.0, 1.0)]
)
def test_forces_that_are_no_slope_are_found(factors: tuple[float, float]) -> None:
    with pytest.raises(TeacherError, match="not the slope of its energy"):
        check_units(*pair(SOLIDS["Cu"], EMT(), *factors))


def test_of_soft_matter_nothing_is_said() -> None:
    argon = bulk("Ar", cubic=True, a=5.3) * (2, 2, 2)
    check_units(*pair(argon, LennardJones(sigma=3.4, epsilon=0.0104, rc=8)))


def test_the_rule_of_stiffness_is_that_of_bonds() -> None:
    """A stretch of N2 by both atoms: k/2 Σ(Δr)² with k = 0.45 Eh/bohr² at its reference length of 2.87 bohr."""
    nitrogen = molecule("N2")
    nitrogen.positions[:] = [[0, 0, 0], [0, 0, 2.87 * 0.529177]]
    step = np.array([[0, 0, -0.01], [0, 0, 0.01]])
    assert usual_stiffness(nitrogen, step) == pytest.approx(
        2 * 0.45 * 27.2114 / 0.529177**2, rel=1e-4
    )


def labelled(count: int) -> list[Frame]:
    found = []
    for seed in range(count):
        atoms = crystal(seed)
        atoms.calc = EMT()
        values = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **values)
        found.append(atoms)
    return frames_from_atoms(found)


def test_updates_learn_and_compile_once() -> None:
    frames = labelled(6)
    potential = first_potential(frames[:2], SMALL)
    continuation = Continuation(potential, SMALL.updated({"batch_size": 2}), 50)
    for frame in frames[:2]:
        continuation.add(frame)

    def size(numbers: list[int]) -> float:
        left = continuation.residuals(potential, numbers)
        return float(np.sqrt(np.mean([r.forces**2 for r in left])))

    before = size([0, 1])
    potential = continuation.update(potential, [0, 1], np.ones(2), 0)
    size([0, 1])
    compiled = compilations()
    assert compiled >= 3  # of the gradient, the update and the residuals
    assert size([0, 1]) < before / 2
    for frame in frames[2:]:
        continuation.add(frame)
    potential = continuation.update(potential, [0, 1, 2, 4], np.array([1, 1, 5, 1]), 1)
    size([3, 5])
    assert compilations() == compiled


def test_residuals_are_those_of_the_potential() -> None:
    frames = labelled(3)
    frames[1] = replace(frames[1], energy=None)
    potential = first_potential(frames, SMALL)
    continuation = Continuation(potential, SMALL, 10)
    for frame in frames:
        continuation.add(frame)
    found = continuation.residuals(potential, [2, 1])
    for left, frame, said in zip(
        found,
        (frames[2], frames[1]),
        predict_frames(potential, [frames[2], frames[1]]),
        strict=True,
    ):
        np.testing.assert_allclose(left.forces, said.forces - frame.forces, atol=2e-5)
        if frame.energy is not None:
            assert left.energy == pytest.approx((said.energy - frame.energy) / 16, abs=1e-5)
    assert np.isnan(found[1].energy)


def test_another_zero_of_energy_leaves_forces_alone() -> None:
    frames = labelled(2)
    potential = first_potential(frames, SMALL)
    continuation = Continuation(potential, SMALL, 10)
    continuation.add(frames[0])
    (before,) = continuation.residuals(potential, [0])
    continuation.move_reference(potential.energy_reference + 1.0)
    moved = replace(potential, energy_reference=potential.energy_reference + 1.0)
    (after,) = continuation.residuals(moved, [0])
    np.testing.assert_allclose(before.forces, after.forces, atol=1e-6)
    assert after.energy == pytest.approx(before.energy + 1.0, abs=1e-4)


def test_the_linear_part_is_fitted_again_as_frames_come_in() -> None:
    pupil = Pupil(None, SMALL, 0)
    found = []
    for k in range(4):
        pupil.add(framed(asked(k)), held_out=False)
        if k >= 2:
            pupil.lesson(1e9)
            assert pupil.potential is not None
            linear = linear_of(pupil.potential)
            assert linear is not None
            found.append((pupil.linear_frames, linear.weights))
    assert [frames for frames, _ in found] == [3, 4]
    assert np.abs(found[1][1] - found[0][1]).max() > 0
    floors = pupil.floors()
    assert floors is not None
    after, _ = floors
    assert after["Cu"] < 0.3 * pupil.force_size


def test_the_linear_part_of_a_given_model_stays() -> None:
    frames = frames_from_atoms([asked(seed) for seed in range(4)])
    given = first_potential(frames, SMALL)
    for linear_frames, chosen in ((None, SMALL), (0, SMALL.updated({"linear": "none"}))):
        pupil = Pupil(given, chosen, linear_frames)
        for seed in range(4):
            pupil.add(framed(asked(seed)), held_out=False)
        pupil.lesson(1e9)
        assert pupil.potential is not None
        assert linear_of(pupil.potential) is None


def test_a_frame_that_is_held_out_is_not_near() -> None:
    """It has taught nothing; neither has a frame with another cell, or without periodic boundaries."""
    pupil = Pupil(first_potential(frames_from_atoms([asked(0)]), SMALL), SMALL, None)
    pupil.add(framed(asked(0)), held_out=False, learnt=True)
    pupil.add(framed(asked(1)), held_out=True)
    assert pupil.moved(crystal(0)) == 0
    learnt = np.linalg.norm(crystal(1).positions - crystal(0).positions, axis=1).max()
    assert pupil.moved(crystal(1)) == pytest.approx(learnt)
    strained = crystal(0)
    strained.set_cell(1.02 * strained.cell)  # the atoms stay
    assert pupil.moved(strained) == pytest.approx(0.02 * 7.3)
    cluster = crystal(0)
    cluster.pbc = False
    assert pupil.moved(cluster) == np.inf
    assert pupil.is_strained(cluster)


def test_a_region_that_is_new_is_learnt_although_a_held_out_frame_gets_worse() -> None:
    """A run there would otherwise ask at every step: the frames it asked about were never learnt."""
    pupil = Pupil(None, SMALL, 0)
    for seed in range(3):
        pupil.add(framed(asked(seed, 0.02)), held_out=False)
    pupil.lesson(0.01)
    near, far = asked(3, 0.02), asked(4, 0.3)
    before = force_error(pupil, near), force_error(pupil, far)
    pupil.add(framed(near), held_out=True)
    pupil.add(framed(far), held_out=False)
    assert pupil.lesson(0.01).kept
    assert force_error(pupil, near) > 2 * before[0]
    assert force_error(pupil, far) < 0.1 * before[1]


def test_a_refused_update_leaves_the_model_and_its_frames_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pupil = Pupil(None, SMALL, 0)
    for seed in range(3):
        pupil.add(framed(asked(seed)), held_out=False)
    pupil.lesson(0.01)
    pupil.add(framed(asked(3)), held_out=True)
    pupil.add(framed(asked(4), "the new one"), held_out=False)
    before = pupil.potential
    held = force_error(pupil, asked(3))
    with monkeypatch.context() as patch:
        patch.setattr(Continuation, "update", spoiled)
        lesson = pupil.lesson(0.01)
    assert not lesson.kept
    assert lesson.after > lesson.before
    assert pupil.potential is before
    assert force_error(pupil, asked(3)) == pytest.approx(held, rel=1e-4)
    assert pupil.waiting == ["the new one"]
    assert pupil.moved(crystal(4)) > 0.1
    assert pupil.lesson(0.01).kept
    assert pupil.waiting == []
    assert pupil.moved(crystal(4)) == 0


def spoiled(_: Continuation, potential: Potential, *arguments: object) -> Potential:
    """An update after which all forces of the networks have the wrong size."""
    return replace(potential, params=jax.tree.map(lambda value: 3 * value, potential.params))


def force_error(pupil: Pupil, atoms: Atoms) -> float:
    """Root mean square of the model on a labelled frame."""
    assert pupil.potential is not None
    frames = frames_from_atoms([atoms])
    (found,) = predict_frames(pupil.potential, frames)
    return float(np.sqrt(np.mean((found.forces - frames[0].forces) ** 2)))


def framed(atoms: Atoms, name: str = "") -> Frame:
    """The frame of a labelled structure, with this name."""
    return replace(frames_from_atoms([atoms])[0], source=name)


def asked(seed: int, rattle: float = 0.1) -> Atoms:
    atoms = crystal(seed, rattle)
    atoms.calc = EMT()
    atoms.get_forces()
    return atoms
