"""Actions: what is warned, saved, called, and what happens when one of them fails."""

import logging
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.mep.neb import NEBOptimizer
from lj_ensemble import LJEnsemble, argon

from neuralil_ase.errors import ConfigError, MonitorError
from neuralil_ase.monitor import (
    Band,
    ExtrapolationMonitor,
    ExtrapolationWarning,
    MaxForceSpread,
    NoveltyFilter,
    annotate,
    sorted_distances,
)


class Scripted(MaxForceSpread):
    """Reads a given series of values in place of the spread, at atom 3."""

    def read(self, atoms, prediction):
        reading = super().read(atoms, prediction)
        value = SERIES[len(READ)] if len(READ) < len(SERIES) else 0.0
        READ.append(value)
        return type(reading)(**{**vars(reading), "value": value, "atom": 3})


SERIES: list[float] = []
READ: list[float] = []


def scripted(values, *, low=1.0, high=2.0, **options):
    SERIES[:], READ[:] = values, []
    atoms = argon()
    dynamics = VelocityVerlet(atoms, 4 * units.fs)
    options = {"warn": False, "min_distance": 0} | options
    monitor = ExtrapolationMonitor(dynamics, criteria=[Scripted(low, high)], **options)
    dynamics.attach(monitor)
    dynamics.run(len(values) - 1)
    return monitor


def saved():
    return [(f.info["monitor_step"], f.info["monitor_band"]) for f in read("f.extxyz", ":")]


def test_warning_names_step_value_atom_element_threshold_and_unit():
    with pytest.warns(ExtrapolationWarning) as caught:
        scripted([0.5, 1.25, 1.5, 2.5, 0.5, 1.75], warn=True)
    messages = [str(w.message) for w in caught]
    assert messages == [  # once for each rise, not for each step
        "step 1: max_force_std = 1.25 eV/Å at atom 3 (Ar), above the threshold of 1 eV/Å",
        "step 3: max_force_std = 2.5 eV/Å at atom 3 (Ar), above the threshold of 2 eV/Å",
        "step 5: max_force_std = 1.75 eV/Å at atom 3 (Ar), above the threshold of 1 eV/Å",
    ]


def test_warning_through_a_logger(caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error", ExtrapolationWarning)
        scripted([0.5, 1.5], warn=logging.getLogger("md").warning)
    assert "step 1: max_force_std = 1.5" in caplog.text


def test_warning_turned_into_an_error_comes_after_saving(in_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        with pytest.raises(ExtrapolationWarning, match="step 1"):
            scripted([0.5, 1.5], warn=True, save="f.extxyz")
    assert saved() == [(1, "candidate")]


def test_candidates_are_saved_and_exploded_frames_are_not(in_folder):
    monitor = scripted([0.5, 1.5, 2.5, float("nan"), 1.5], save="f.extxyz")
    assert saved() == [(1, "candidate"), (4, "candidate")]
    assert monitor.records["saved"].tolist() == [0, 1, 0, 0, 1]
    assert monitor.records["band"].tolist() == [0, 1, 2, 2, 1]


def test_single_threshold_saves_the_frame_that_stops(in_folder):
    monitor = scripted([0.5, 1.5, 1.5], high=None, save="f.extxyz", stop=True)
    assert saved() == [(1, "candidate")]
    assert monitor.stopped


def test_frames_before_an_explosion_are_saved_in_order(in_folder):
    scripted([0.1, 0.2, 0.3, 0.4, 2.5], save="f.extxyz", before=2, stop=True)
    assert saved() == [(2, "before"), (3, "before")]
    reason = read("f.extxyz", 0).info["monitor_reasons"]
    assert reason.startswith("before step 4: max_force_std = 2.5 eV/Å")


def test_ring_buffer_with_patience_holds_no_exploded_frame(in_folder):
    scripted([0.1, 2.5, 1.5, 2.5, 1.5], save="f.extxyz", before=5, patience=5)
    assert not (in_folder / "f.extxyz").exists()
    scripted([0.1, 2.5, 1.5, 2.5, 1.5, 1.5], save="f.extxyz", before=9, patience=5)
    assert saved() == [(0, "before"), (2, "before"), (4, "before"), (5, "candidate")]


def test_no_frame_is_saved_twice(in_folder):
    scripted([0.1, 1.5, 0.1, 1.5, 1.5], save="f.extxyz", before=4)
    steps = [step for step, _ in saved()]
    assert steps == [0, 1, 2, 3, 4]


def test_at_most_m_frames_and_the_flagged_one_first(in_folder):
    monitor = scripted([0.1, 0.1, 0.1, 1.5, 1.5], save="f.extxyz", before=3, max_saved=2)
    assert saved() == [(2, "before"), (3, "candidate")]
    assert monitor.n_saved == 2
    assert "2 frames saved (the most allowed)" in monitor.summary()


def test_saved_frame_carries_spreads_reasons_and_results(in_folder):
    monitor = scripted([0.5, 1.5], save="f.extxyz")
    frame = read("f.extxyz")
    event = monitor.last_event.frame
    fresh = LJEnsemble().prediction(event, "forces")
    np.testing.assert_allclose(frame.arrays["forces_std"], fresh.forces_std, atol=1e-8)
    np.testing.assert_allclose(frame.arrays["energies_std"], fresh.energies_std, atol=1e-8)
    np.testing.assert_allclose(frame.get_forces(), fresh.forces, atol=1e-8)
    np.testing.assert_allclose(frame.get_stress(), fresh.stress, atol=1e-12)
    np.testing.assert_allclose(frame.positions, event.positions, atol=1e-8)
    np.testing.assert_allclose(frame.get_momenta(), event.get_momenta(), atol=1e-8)
    assert frame.get_potential_energy() == pytest.approx(fresh.energy)
    assert frame.info["energy_std"] == pytest.approx(fresh.energy_std)
    assert frame.info["monitor_atoms"] == 3
    assert frame.info["monitor_reasons"] == (
        "max_force_std = 1.5 eV/Å at atom 3 (Ar), above the threshold of 1 eV/Å"
    )


def test_run_from_a_saved_frame_does_not_inherit_its_labels(in_folder):
    scripted([0.5, 1.5], save="f.extxyz")
    atoms = read("f.extxyz")
    atoms.calc = LJEnsemble()
    monitor = ExtrapolationMonitor(atoms, 1e-9, save="g.extxyz", warn=False, min_distance=0)
    monitor()
    frame = read("g.extxyz")
    assert frame.info["monitor_step"] == 0
    assert frame.info["monitor_reasons"].endswith("1e-09 eV/Å")


def test_exception_in_the_users_function_comes_after_saving(in_folder):
    def label(event):
        raise ZeroDivisionError("no convergence")

    with pytest.raises(ZeroDivisionError, match="no convergence") as problem:
        scripted([0.5, 1.5], save="f.extxyz", log="log.txt", function=label)
    (note,) = problem.value.__notes__
    assert re.search(r"at step 1 \(max_force_std = 1.5 .*\); 1 frame\(s\) were saved before", note)
    assert saved() == [(1, "candidate")]
    assert np.loadtxt("log.txt").shape == (2, 10)


def test_exception_without_saving_says_so():
    def label(event):
        raise KeyError("x")

    with pytest.raises(KeyError) as problem:
        scripted([0.5, 1.5], function=label)
    (note,) = problem.value.__notes__
    assert "no frame was saved, and monitor.last_event holds the frame" in note


def test_users_function_sees_each_flagged_check_and_what_was_saved(in_folder):
    seen = []
    scripted([0.5, 1.5, 1.5, 2.5], save="f.extxyz", max_saved=1, function=seen.append)
    assert [(e.step, e.band, e.saved) for e in seen] == [
        (1, Band.CANDIDATE, 1),
        (2, Band.CANDIDATE, 0),
        (3, Band.HIGH, 0),
    ]
    assert [e.rising for e in seen] == [True, False, True]


def test_rollback_without_a_trusted_frame_is_an_error():
    with pytest.raises(MonitorError, match="step 0: nothing to roll back to"):
        scripted([2.5, 0.1], rollback=True)


def test_near_duplicates_are_left_out(in_folder):
    scripted([1.5] * 6, save="f.extxyz", min_distance=0.5)
    assert saved() == [(0, "candidate")]


def test_novelty_looks_at_the_watched_atoms():
    frame = argon()
    novelty = NoveltyFilter(0.05)
    novelty.remember(frame, [3])
    assert not novelty.is_new(frame, [3])
    pushed = frame.copy()
    pushed.positions[3] += 1.0
    assert novelty.is_new(pushed, [3])
    far = int(np.argmax(frame.get_distances(3, range(len(frame)), mic=True)))
    assert NoveltyFilter(0.0).is_new(frame, [3])
    unchanged = frame.copy()
    unchanged.positions[3] += 1e-4
    assert not novelty.is_new(unchanged, [3])
    novelty.remember(frame, None)
    assert not novelty.is_new(unchanged, [far])


def test_novelty_does_not_depend_on_the_order_of_atoms():
    frame = argon()
    order = np.random.default_rng(0).permutation(len(frame))
    novelty = NoveltyFilter(1e-6)
    novelty.remember(frame)
    assert not novelty.is_new(frame[order])


def test_fingerprints_may_be_of_atoms_or_of_the_frame():
    frame = argon()
    whole = NoveltyFilter(0.1, lambda atoms: np.array([atoms.get_volume()]))
    whole.remember(frame)
    assert not whole.is_new(frame)
    larger = frame.copy()
    larger.set_cell(frame.cell * 1.1, scale_atoms=True)
    assert whole.is_new(larger)
    wrong = NoveltyFilter(0.1, lambda atoms: np.zeros((3, 2)))
    with pytest.raises(MonitorError, match=r"shape \(3, 2\) for 32 atoms"):
        wrong.is_new(frame)


def test_descriptors_of_the_calculator_are_used(in_folder):
    SERIES[:], READ[:] = [1.5] * 4, []
    atoms = argon()
    asked = []

    class WithDescriptors(LJEnsemble):
        def descriptors(self, frame):
            asked.append(self)
            return sorted_distances(frame)

    atoms.calc = WithDescriptors()
    dynamics = VelocityVerlet(atoms, 4 * units.fs)
    monitor = ExtrapolationMonitor(
        dynamics, criteria=[Scripted(1.0)], save="f.extxyz", warn=False, min_distance=0.5
    )
    dynamics.attach(monitor)
    dynamics.run(2)
    assert len(asked) >= 3
    assert monitor.n_saved == 1
    # The calculator of the run is left alone: its pair list belongs to the present positions.
    assert not any(calculator is atoms.calc for calculator in asked)
    assert len({id(calculator) for calculator in asked}) == 1


def test_sorted_distances_against_all_distances():
    atoms = argon()
    fingerprint = sorted_distances(atoms, cutoff=5.0, nearest=16)
    assert fingerprint.shape == (32, 16)
    distances = np.sort(atoms.get_all_distances(mic=True)[5])[1:]
    near = distances[distances < 5.0]
    expected = np.zeros(16)
    expected[: len(near)] = 1 / near - 1 / 5.0
    np.testing.assert_allclose(fingerprint[5], expected, atol=1e-12)


def test_sorted_distances_by_element():
    water = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [0, 1.1, 0]])
    fingerprint = sorted_distances(water, cutoff=4.0, nearest=2)
    d_hh = np.hypot(0.96, 1.1)
    expected = 1 / np.array([[0.96, 1.1, np.inf, np.inf], [d_hh, np.inf, 0.96, np.inf]])
    expected = np.maximum(expected - 0.25, 0)
    np.testing.assert_allclose(fingerprint[:2], expected, atol=1e-12)


def test_annotate_survives_extxyz_and_traj(in_folder):
    atoms = argon()
    atoms.info["energy"] = 5.0  # would collide with the result of the same name
    prediction = atoms.calc.prediction(atoms, "forces")
    frame = annotate(atoms, prediction, per_atom_info=True, as_charges=True)
    assert "forces_std" not in atoms.arrays
    assert atoms.info == {"energy": 5.0}
    write("a.traj", frame)
    np.testing.assert_array_equal(read("a.traj").info["forces_std"], prediction.forces_std)
    np.testing.assert_array_equal(read("a.traj").get_initial_charges(), prediction.forces_std)
    write("a.extxyz", annotate(atoms, prediction))
    back = read("a.extxyz")
    np.testing.assert_allclose(back.arrays["forces_std"], prediction.forces_std, atol=1e-8)
    assert back.get_potential_energy() == pytest.approx(prediction.energy)


def test_recipe_for_viewers_of_pdb_files(in_folder):
    atoms = argon()
    frame = annotate(atoms, atoms.calc.prediction(atoms, "forces"))
    frame.set_array("bfactor", 1e3 * frame.arrays["forces_std"])
    write("a.pdb", frame)
    found = read("a.pdb").arrays["bfactor"]
    np.testing.assert_allclose(found, 1e3 * frame.arrays["forces_std"], atol=0.005001)


def test_structures_that_ship_can_be_opened_in_ovito():
    """It reads an entry "origin" as a vector."""
    examples = Path(__file__).parents[2] / "md_examples"
    for frame in read(examples / "ean_start.extxyz", ":"):
        assert "origin" not in frame.info


def test_annotate_at_the_energy_level_leaves_out_forces():
    atoms = argon()
    frame = annotate(atoms, atoms.calc.prediction(atoms, "energy"), as_charges=True)
    assert "energies_std" in frame.arrays
    assert "forces_std" not in frame.arrays
    assert not frame.has("initial_charges")


def test_summary_and_plot(in_folder):
    monitor = scripted([0.5, 1.5, 2.5], save="f.extxyz", log="log.txt")
    text = monitor.summary()
    assert "3 checks, steps 0 to 2: 1 trusted, 1 candidates, 1 high; 1 frames saved" in text
    assert re.search(r"max_force_std +eV/Å +1\.5 +2\.5 +2 +3 \(Ar\) +1 +2\n", text)
    assert "ddof = 1" in text
    figure = monitor.plot("run.png")
    assert (in_folder / "run.png").read_bytes().startswith(b"\x89PNG")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["max_force_std (eV/Å)", "energy ± spread (eV)", "temperature (K)"]
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [0.5, 1.5, 2.5])
    np.testing.assert_allclose(line.get_xdata(), [0, 0.004, 0.008])


def test_summary_and_plot_before_the_first_check():
    monitor = ExtrapolationMonitor(argon(), 1.0)
    assert monitor.summary() == "ExtrapolationMonitor: no check yet"
    with pytest.raises(MonitorError, match="nothing to plot"):
        monitor.plot()


def test_bare_atoms_count_their_own_calls():
    atoms = argon()
    monitor = ExtrapolationMonitor(atoms, 10.0)
    for _ in range(3):
        monitor()
    assert monitor.records["step"].tolist() == [0, 1, 2]
    assert np.isnan(monitor.records["time_fs"]).all()


def test_calculator_may_come_after_the_monitor():
    atoms = argon()
    calculator, atoms.calc = atoms.calc, None
    monitor = ExtrapolationMonitor(atoms, 10.0)
    with pytest.raises(MonitorError, match="no calculator"):
        monitor()
    atoms.calc = calculator
    monitor()
    assert len(monitor.records["step"]) == 1


def test_one_member_is_refused_at_once_or_at_the_first_check():
    atoms = argon()
    atoms.calc = LJEnsemble(n_members=1)
    with pytest.raises(MonitorError, match="single member"):
        ExtrapolationMonitor(atoms, 0.1)
    atoms.calc.potential = None
    monitor = ExtrapolationMonitor(atoms, 0.1)
    with pytest.raises(MonitorError, match="single member"):
        monitor()


def test_calculator_without_prediction_is_refused():
    from ase.calculators.lj import LennardJones

    atoms = argon()
    atoms.calc = LennardJones()
    with pytest.raises(MonitorError, match="LennardJones offers no prediction"):
        ExtrapolationMonitor(atoms, 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "high"}, "give one number in eV/Å"),
        ({"threshold": (1, 2, 3)}, "give one number in eV/Å"),
        ({"threshold": -1.0}, "not a threshold"),
        ({"threshold": 1.0, "criteria": [MaxForceSpread(1.0)]}, "belongs to the default criterion"),
        ({"criteria": []}, "criteria is empty"),
        ({"criteria": [MaxForceSpread(1.0), MaxForceSpread(2.0)]}, "label="),
        ({"threshold": 1.0, "patience": 0}, "patience = 0: give a whole number, 1 or above"),
        ({"threshold": 1.0, "every": 1.5}, "every = 1.5"),
        ({"threshold": 1.0, "max_saved": True}, "max_saved = True"),
        ({"threshold": 1.0, "before": -1}, "before = -1: give a whole number, 0 or above"),
        ({"threshold": 1.0, "before": 2}, "save= names no file"),
        ({"threshold": 1.0, "min_distance": -0.1}, "min_distance = -0.1"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ExtrapolationMonitor(argon(), **options)


def test_stop_needs_dynamics_that_can_stop():
    atoms = argon()
    with pytest.raises(MonitorError, match="stop and rollback need the dynamics"):
        ExtrapolationMonitor(atoms, 0.1, stop=True)
    dynamics = VelocityVerlet(atoms, units.fs)
    assert ExtrapolationMonitor(atoms, 0.1, stop=True, dyn=dynamics) is not None
    images = [argon() for _ in range(3)]
    ode = NEBOptimizer(NEB(images, method="improvedtangent"), logfile=None)
    with pytest.raises(MonitorError, match="NEBOptimizer cannot be stopped"):
        ExtrapolationMonitor(ode, 0.1, stop=True)


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(MonitorError, match="cannot follow a dict"):
        ExtrapolationMonitor({}, 0.1)
    images = [argon() for _ in range(3)]
    with pytest.raises(MonitorError, match="parallel=True"):
        ExtrapolationMonitor(NEB(images, parallel=True, method="improvedtangent"), 0.1)
    with pytest.raises(MonitorError, match="no moving image"):
        ExtrapolationMonitor(NEB(images[:2], method="improvedtangent"), 0.1)
