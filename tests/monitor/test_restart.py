"""A restart finds its place in the log, whatever it restarts from, or says that it cannot."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.io.trajectory import Trajectory
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interruptions import interrupted_at
from lj_ensemble import LJEnsemble, argon

from neuralil_ase import monitor as monitor_room
from neuralil_ase.errors import MonitorError
from neuralil_ase.monitor import ExtrapolationMonitor, MaxEnergySpread, MaxForceSpread, read_log
from neuralil_ase.monitor.restart import matching_step

FRAMES = Path("run.traj")


def verlet(atoms):
    return VelocityVerlet(atoms, 4 * units.fs)


def langevin(atoms):
    rng = np.random.default_rng(3)
    return Langevin(atoms, 4 * units.fs, temperature_K=80, friction=0.02, fixcm=False, rng=rng)


def bussi(atoms):
    return Bussi(atoms, 4 * units.fs, 60, 100 * units.fs, rng=np.random.default_rng(4))


def bfgs(atoms):
    return BFGS(atoms, logfile=None)


def cell_fire(atoms):
    return FIRE(FrechetCellFilter(atoms), logfile=None)


def run(dynamics, steps):
    if isinstance(dynamics, VelocityVerlet | Langevin | Bussi):
        dynamics.run(steps)
    else:
        dynamics.run(fmax=1e-9, steps=steps)


def part(atoms, make, steps, *, checks=10, frames=20, before=None, **options):
    """One part of a run: checks every 10 steps, frames every 20."""
    dynamics = make(atoms)
    if before is not None:
        before(dynamics)
    options = {"threshold": 10.0, "log": "md.log", "append": True} | options
    monitor = ExtrapolationMonitor(dynamics, options.pop("threshold"), **options)
    with Trajectory(FRAMES, "a", atoms) as trajectory:
        dynamics.attach(monitor, interval=checks)
        dynamics.attach(trajectory.write, interval=frames)
        run(dynamics, steps)
    return monitor


def last_frame(**calculator):
    atoms = read(FRAMES)
    atoms.calc = LJEnsemble(**calculator)
    return atoms


def steps():
    return read_log("md.log")["step"].tolist()


@pytest.mark.parametrize("make", [verlet, langevin, bussi, bfgs, cell_fire])
def test_a_trajectory_behind_the_log(make, in_folder):
    """Killed at step 57: the last frame is of step 40, the last row of step 50."""
    part(argon(), make, 57)
    assert steps() == [0, 10, 20, 30, 40, 50]
    energies = read_log("md.log")["energy_eV"]
    whole = Path("md.log").read_bytes()
    monitor = part(last_frame(), make, 30)
    assert steps() == [0, 10, 20, 30, 40, 50, 60, 70]
    assert monitor.records["energy_eV"][4] == pytest.approx(energies[4], abs=1e-9)
    assert monitor.last.step == 70
    text = Path("md.log").read_text()
    assert (
        "# resumed at step 40; the rows from there to step 50, computed again since, are in md.log.1"
        in text
    )
    assert Path("md.log.1").read_bytes() == whole
    np.testing.assert_allclose(np.loadtxt("md.log")[:, 0], steps())


def test_time_goes_on_where_the_rows_do(in_folder):
    part(argon(), verlet, 57)
    part(last_frame(), lambda atoms: VelocityVerlet(atoms, 2 * units.fs), 20)
    times = read_log("md.log")["time_fs"]
    np.testing.assert_allclose(times, [0, 40, 80, 120, 160, 180, 200], rtol=1e-9)


def test_a_run_that_goes_on_at_the_last_row_drops_nothing(in_folder):
    part(argon(), verlet, 40)
    part(last_frame(), verlet, 20)
    assert steps() == [0, 10, 20, 30, 40, 50, 60]
    assert not Path("md.log.1").exists()
    assert "# resumed at step 40\n" in Path("md.log").read_text()


def test_several_restarts_one_after_another(in_folder):
    part(argon(), verlet, 57)
    for _ in range(3):
        part(last_frame(), verlet, 33)
    # Each part begins at its last frame: 40, 60 (40 + 20), 80.
    assert steps() == list(range(0, 111, 10))
    assert [p.name for p in sorted(Path().glob("md.log.*"))] == ["md.log.1", "md.log.2", "md.log.3"]


def test_new_velocities_do_not_hide_the_place(in_folder):
    part(argon(), langevin, 57)
    atoms = last_frame()
    thermalize_momenta(atoms, temperature_K=200, rng=np.random.default_rng(0))
    part(atoms, verlet, 10)
    assert steps() == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("form", ["extxyz", "vasp", "json"])
def test_other_formats_of_the_structure(form, in_folder):
    part(argon(), verlet, 57)
    text = StringIO()
    write(text, read(FRAMES), format=form)
    atoms = read(StringIO(text.getvalue()), format=form)
    atoms.calc = LJEnsemble()
    part(atoms, verlet, 10)
    assert steps() == [0, 10, 20, 30, 40, 50]


class Noisy(LJEnsemble):
    """As float32 networks are, or another order of summation."""

    def prediction(self, atoms=None, uncertainty="energy"):
        found = super().prediction(atoms, uncertainty)
        rng = np.random.default_rng(abs(hash(self._kept[0])) % 2**32)
        for member in found.members:
            member["energies"] = member["energies"] + 1e-7 * rng.normal(size=len(self._kept[1]))[0]
            member["energy"] = member["energies"].sum()
            member["forces"] = member["forces"] + 1e-7 * rng.normal(size=member["forces"].shape)
        return found


def test_another_precision_of_the_calculator(in_folder):
    part(argon(), verlet, 57)
    atoms = last_frame()
    atoms.calc = Noisy()
    part(atoms, verlet, 10)
    assert steps() == [0, 10, 20, 30, 40, 50]


def test_float64_after_float32_of_a_real_potential(in_folder, small_potential):
    from ase.build import molecule

    from neuralil_ase import NeuralILCalculator

    atoms = molecule("CH3CH2NH2")
    thermalize_momenta(atoms, temperature_K=30, rng=np.random.default_rng(0))
    atoms.calc = NeuralILCalculator(small_potential, dtype="float32")

    def make(atoms):
        return VelocityVerlet(atoms, 0.05 * units.fs)

    part(atoms, make, 57, threshold=1e3)
    atoms = read(FRAMES)
    atoms.calc = NeuralILCalculator(small_potential, dtype="float64", skin=0.1)
    part(atoms, make, 10, threshold=1e3)
    assert steps() == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("count", [0, 40, 1000])
def test_a_dynamics_with_a_count_of_its_own(count, in_folder):
    """A thermostat that follows a schedule may begin at the step where the last part ended."""
    part(argon(), verlet, 57)
    atoms = last_frame()
    dynamics = verlet(atoms)
    dynamics.nsteps = count
    monitor = ExtrapolationMonitor(dynamics, 10.0, log="md.log", append=True)
    monitor()  # ASE does this only at step 0
    dynamics.attach(monitor, interval=10)
    dynamics.run(20)
    assert steps() == [0, 10, 20, 30, 40, 50, 60]


def test_a_second_monitor_on_a_dynamics_that_goes_on(in_folder):
    dynamics = verlet(argon())
    dynamics.attach(ExtrapolationMonitor(dynamics, 10.0, log="md.log"), interval=10)
    dynamics.run(20)
    dynamics.observers.clear()
    monitor = ExtrapolationMonitor(dynamics, 10.0, log="md.log", append=True)
    monitor()
    dynamics.attach(monitor, interval=10)
    dynamics.run(20)
    assert steps() == [0, 10, 20, 30, 40]


def test_bare_atoms_count_on(in_folder):
    frames = [argon(seed=seed) for seed in range(5)]
    atoms = argon()
    monitor = ExtrapolationMonitor(atoms, 10.0, log="md.log")
    for frame in frames[:4]:
        atoms.positions = frame.positions
        monitor()
    monitor = ExtrapolationMonitor(atoms, 10.0, log="md.log", append=True)
    for frame in frames[2:]:
        atoms.positions = frame.positions
        monitor()
    assert steps() == [0, 1, 2, 3, 4]


def neb():
    first, last = argon(), argon()
    for atoms in (first, last):
        del atoms.arrays["momenta"]
    del first[0], last[1]
    for atoms in (first, last):
        atoms.positions = atoms.positions[np.argsort(atoms.positions @ [1, 100, 1e4])]
    images = [first, *(first.copy() for _ in range(3)), last]
    for image in images:
        image.calc = LJEnsemble()
    band = NEB(images, method="improvedtangent")
    band.interpolate(mic=True)
    return band


def test_a_band_finds_the_step_of_all_its_images(in_folder):
    band = neb()
    optimiser = BFGS(band, logfile=None)
    kept = []
    optimiser.attach(ExtrapolationMonitor(optimiser, 1e99, log="md.log"))
    optimiser.attach(lambda: kept.append(band.get_positions()))
    optimiser.run(fmax=1e-9, steps=6)
    again = neb()
    again.set_positions(kept[4])
    optimiser = BFGS(again, logfile=None)
    monitor = ExtrapolationMonitor(optimiser, 1e99, log="md.log", append=True)
    optimiser.attach(monitor)
    optimiser.run(fmax=1e-9, steps=1)
    assert steps() == [step for step in range(6) for _ in range(3)]
    assert monitor.last.image in (1, 2, 3)
    mixed = neb()  # images of different steps are no step
    mixed.set_positions(
        np.where(np.arange(len(kept[0]))[:, None] < len(kept[0]) // 2, kept[1], kept[4])
    )
    optimiser = BFGS(mixed, logfile=None)
    monitor = ExtrapolationMonitor(optimiser, 1e99, log="md.log", append=True)
    with pytest.raises(MonitorError, match="is in no row of the log"):
        monitor()


def between(atoms):
    verlet(atoms).run(5)
    return atoms


def other_model(atoms):
    atoms.calc = LJEnsemble(seed=7)
    return atoms


def moved(atoms):
    atoms.positions[0] += 0.01
    return atoms


@pytest.mark.parametrize("change", [between, other_model, moved])
def test_a_structure_that_is_not_in_the_log_is_refused(change, in_folder):
    part(argon(), verlet, 57)
    before = Path("md.log").read_bytes()
    for _ in range(2):  # not only the first time
        with pytest.raises(
            MonitorError,
            match=r"md\.log: the structure .* is in no row of the log; the nearest is step \d+ with .*Give first_step=",
        ):
            part(change(last_frame()), verlet, 10)
    assert Path("md.log").read_bytes() == before
    part(change(last_frame()), verlet, 10, first_step=45)
    assert steps() == [0, 10, 20, 30, 40, 45, 55]
    part(last_frame(), verlet, 10, append=False)
    assert steps() == [0, 10]


def test_refused_again_when_the_run_is_called_again(in_folder):
    part(argon(), verlet, 57)
    dynamics = verlet(moved(last_frame()))
    dynamics.attach(ExtrapolationMonitor(dynamics, 10.0, log="md.log", append=True), interval=10)
    for _ in range(2):
        with pytest.raises(MonitorError, match="in no row"):
            dynamics.run(10)


def test_a_first_step_that_the_log_contradicts_is_told(in_folder):
    part(argon(), verlet, 57)
    with pytest.warns(UserWarning, match="first_step = 57 puts .* step 57, but .* step 40 in the"):
        part(last_frame(), verlet, 10, first_step=57)
    assert steps() == [0, 10, 20, 30, 40, 50, 57, 67]


def test_a_log_without_rows_begins_at_first_step(in_folder):
    ExtrapolationMonitor(argon(), 10.0, log="md.log")
    part(argon(), verlet, 10)
    assert steps() == [0, 10]
    part(argon(), verlet, 10, log="other.log", first_step=100)
    assert read_log("other.log")["step"].tolist() == [100, 110]


def test_other_thresholds_are_noted_in_the_log(in_folder):
    part(argon(), verlet, 20, threshold=(5.0, 6.0))
    part(last_frame(), verlet, 10, threshold=(7.0, 8.0))
    text = Path("md.log").read_text()
    assert text.index("candidate from 5") < text.index("# resumed") < text.index("candidate from 7")


def test_criteria_that_were_not_due_at_a_row_do_not_count(in_folder):
    criteria = [MaxForceSpread(10.0), MaxEnergySpread(10.0)]
    part(argon(), verlet, 57, threshold=None, criteria=criteria, every=3)
    assert np.isnan(read_log("md.log")["max_force_std"][4])
    part(last_frame(), verlet, 10, threshold=None, criteria=criteria, every=3)
    assert steps() == [0, 10, 20, 30, 40, 50]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_the_right_row_among_many(data):
    """Rows of one trajectory at random, compared with themselves under noise of rounding."""
    atoms = data.draw(st.integers(1, 10_000))
    size = data.draw(st.integers(1, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scale = 0.03 * np.sqrt(atoms)
    log = {
        "step": 10.0 * np.arange(size),
        "image": np.full(size, -1.0),
        "energy_eV": -52.0 * atoms + scale * rng.normal(size=size),
        "energy_std_eV": scale * rng.uniform(0.05, 0.2, size=size),
        "max_force_std": rng.uniform(0.05, 0.5, size=size),
        "max_force_std_atom": np.zeros(size),
    }
    chosen = data.draw(st.integers(0, size - 1))
    row = {name: column[chosen] for name, column in log.items()}
    row["energy_eV"] += atoms * rng.uniform(-2e-7, 2e-7)
    row["energy_std_eV"] += atoms * rng.uniform(-1e-8, 1e-8)
    row["max_force_std"] *= 1 + rng.uniform(-1e-4, 1e-4)
    assert matching_step([row], log, atoms) == 10 * chosen
    without = {name: np.delete(column, chosen) for name, column in log.items()}
    assert matching_step([row], without, atoms) is None


def test_rows_without_an_energy_match_nothing():
    log = {name: np.array([np.nan]) for name in ("energy_eV", "energy_std_eV")}
    log |= {"step": np.zeros(1), "image": -np.ones(1)}
    row = {"image": -1, "energy_eV": 0.0, "energy_std_eV": 0.0}
    assert matching_step([row], log, 3) is None
    row["energy_eV"] = np.nan
    assert matching_step([row], log, 3) is None


def test_a_structure_at_rest_goes_on_at_its_latest_row():
    log = {"energy_eV": np.array([1.0, 2.0, 2.0, 2.0]), "energy_std_eV": np.full(4, 0.1)}
    log |= {"step": np.arange(4.0), "image": -np.ones(4)}
    row = {"image": -1, "energy_eV": 2.0, "energy_std_eV": 0.1}
    assert matching_step([row], log, 3) == 3


def saved_steps():
    return [atoms.info["monitor_step"] for atoms in read("flagged.extxyz", ":")]


@pytest.mark.parametrize("count", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_ctrl_c_at_any_line_of_a_check_leaves_files_that_a_restart_goes_on_with(
    count, tmp_path, monkeypatch
):
    """Interrupted anywhere, then continued from the last frame of the trajectory to step 60."""
    watched = {"threshold": 1e-9, "save": "flagged.extxyz", "warn": False, "min_distance": 0}
    whole = tmp_path / "whole"
    whole.mkdir()
    monkeypatch.chdir(whole)
    with interrupted_at(0, within=monitor_room) as uninterrupted:
        part(argon(), verlet, 60, **watched)
    expected, energies = saved_steps(), read_log("md.log")["energy_eV"]
    assert expected == steps() == list(range(0, 61, 10))
    for line in np.linspace(1, uninterrupted.lines, count).astype(int):
        folder = tmp_path / str(line)
        folder.mkdir()
        monkeypatch.chdir(folder)
        with interrupted_at(line, within=monitor_room) as interruption:
            part(argon(), verlet, 60, **watched)
        assert interruption.reached
        kept = len(read(FRAMES, ":")) if FRAMES.exists() and FRAMES.stat().st_size else 0
        rest = 60 - 20 * (kept - 1) if kept else 60
        part(last_frame() if kept else argon(), verlet, rest, **watched)
        assert steps() == expected, line
        np.testing.assert_allclose(read_log("md.log")["energy_eV"], energies, atol=1e-9)
        assert sorted(set(saved_steps())) == expected, line
