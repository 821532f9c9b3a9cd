"""Nothing half written, nothing lost: files under full disks, kills and restarts."""

import errno
import os
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet
from lj_ensemble import argon

from neuralil_ase.errors import MonitorError, OutputError
from neuralil_ase.monitor import ExtrapolationMonitor, read_log


def watched_run(steps=6, threshold=1e-9, start=None, **options):
    atoms = argon() if start is None else start
    dynamics = VelocityVerlet(atoms, 4 * units.fs)
    files = {"log": "log.txt", "save": "frames.extxyz"}
    options = files | {"min_distance": 0, "warn": False} | options
    monitor = ExtrapolationMonitor(dynamics, threshold, **options)
    dynamics.attach(monitor)
    dynamics.run(steps)
    return monitor, atoms


class FullDisk:
    """os.write that takes `room` bytes in all, like a disk that fills up in mid-record."""

    def __init__(self, room, only=""):
        self.room = room
        self.real = os.write
        self.only = only

    def __call__(self, handle, data):
        if self.only not in os.readlink(f"/proc/self/fd/{handle}"):
            return self.real(handle, data)
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.real(handle, bytes(data)[: self.room])
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 700, 9000])
def test_full_disk_leaves_whole_frames_and_loses_none(room, in_folder, monkeypatch):
    reference, _ = watched_run(steps=3, log="whole.txt", save="whole.extxyz")
    disk = FullDisk(room, only="frames.extxyz")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk)
        atoms = argon()
        dynamics = VelocityVerlet(atoms, 4 * units.fs)
        monitor = ExtrapolationMonitor(
            dynamics, 1e-9, log="log.txt", save="frames.extxyz", min_distance=0, warn=False
        )
        dynamics.attach(monitor)
        with pytest.raises(MonitorError, match=r"No space left.*1 frame\(s\) wait in memory") as e:
            dynamics.run(3)
        assert "cannot write frames.extxyz" in str(e.value)
        written = Path("frames.extxyz").read_bytes() if Path("frames.extxyz").exists() else b""
        assert written.count(b"\n") % 34 == 0
        failed_at = monitor.last_event.step
        with pytest.raises(MonitorError, match="wait in memory"):
            monitor.flush()
    monitor.flush()  # there is room again
    frames = read("frames.extxyz", ":")
    assert [frame.info["monitor_step"] for frame in frames] == list(range(failed_at + 1))
    dynamics.run(3 - dynamics.nsteps)
    assert Path("frames.extxyz").read_bytes() == Path("whole.extxyz").read_bytes()
    assert monitor.n_saved == reference.n_saved == 4


@pytest.mark.parametrize("room", [0, 10, 400])
def test_full_disk_for_the_log_keeps_rows(room, in_folder, monkeypatch):
    atoms = argon()
    dynamics = VelocityVerlet(atoms, 4 * units.fs)
    monitor = ExtrapolationMonitor(dynamics, 10.0, log="log.txt")
    dynamics.attach(monitor)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", FullDisk(room))
        with pytest.raises(MonitorError, match=r"1 row\(s\) wait in memory"):
            dynamics.run(20)
        assert Path("log.txt").read_bytes().endswith(b"\n")
    dynamics.run(2)
    steps = read_log("log.txt")["step"]
    assert steps.tolist() == list(range(dynamics.nsteps + 1))


def test_full_disk_for_both_tells_of_both(in_folder, monkeypatch):
    atoms = argon()
    dynamics = VelocityVerlet(atoms, 4 * units.fs)
    monitor = ExtrapolationMonitor(dynamics, 1e-9, log="log.txt", save="f.extxyz", warn=False)
    dynamics.attach(monitor)
    monkeypatch.setattr(os, "write", FullDisk(0))
    with pytest.raises(MonitorError, match=r"f\.extxyz") as problem:
        dynamics.run(2)
    assert any("log.txt" in note for note in problem.value.__notes__)


def test_header_that_cannot_be_written_is_an_error_before_the_run(in_folder, monkeypatch):
    monkeypatch.setattr(os, "write", FullDisk(0))
    with pytest.raises(OutputError, match=r"cannot write log\.txt: No space left"):
        ExtrapolationMonitor(argon(), 0.1, log="log.txt")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from ase import units
from ase.md.verlet import VelocityVerlet
from lj_ensemble import argon
from neuralil_ase.monitor import ExtrapolationMonitor

real, writes = os.write, []
def write(handle, data):
    if os.readlink(f"/proc/self/fd/{{handle}}").endswith("/" + {victim!r}):
        writes.append(0)
        if len(writes) == {nth}:
            real(handle, bytes(data)[: int({fraction} * len(data))])
            os.kill(os.getpid(), signal.SIGKILL)
    return real(handle, data)
os.write = write

dynamics = VelocityVerlet(argon(), 4 * units.fs)
monitor = ExtrapolationMonitor(dynamics, 1e-9, log="log.txt", save="frames.extxyz",
                               min_distance={min_distance}, warn=False)
dynamics.attach(monitor)
dynamics.run(6)
"""


def killed_run(victim, nth, fraction, min_distance=0):
    tests = str(Path(__file__).parent)
    script = textwrap.dedent(KILLED).format(
        tests=tests, victim=victim, nth=nth, fraction=fraction, min_distance=min_distance
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert done.returncode == -9


@pytest.mark.parametrize(
    "fraction", [0.001, *(pytest.param(k, marks=pytest.mark.slow) for k in (0.0, 0.5, 0.9999))]
)
def test_kill_inside_a_frame_is_mended_on_restart(fraction, in_folder):
    killed_run("frames.extxyz", nth=4, fraction=fraction)
    warned = pytest.warns(UserWarning, match=r"half a frame, as after a kill; .* moved to")
    with warned if fraction else nullcontext():
        monitor, _ = watched_run(steps=6, append=True, first_step=0)
    frames = read("frames.extxyz", ":")
    # Three whole frames from the killed run, then those of the run that began anew.
    steps = [frame.info["monitor_step"] for frame in frames]
    assert steps == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6]
    assert monitor.n_saved == 10
    assert read_log("log.txt")["step"].tolist() == list(range(7))


def test_frames_that_are_computed_again_are_not_saved_again(in_folder):
    killed_run("frames.extxyz", nth=4, fraction=0.5, min_distance=1e-6)
    with pytest.warns(UserWarning, match="as after a kill"):
        watched_run(steps=6, append=True, first_step=0, min_distance=1e-6)
    steps = [frame.info["monitor_step"] for frame in read("frames.extxyz", ":")]
    assert steps == list(range(7))


@pytest.mark.parametrize("fraction", [0.3, pytest.param(0.99, marks=pytest.mark.slow)])
def test_kill_inside_a_log_row_is_mended_on_restart(fraction, in_folder):
    killed_run("log.txt", nth=5, fraction=fraction)  # the header is the first write
    assert read_log("log.txt")["step"].tolist() == [0, 1, 2]
    with pytest.warns(UserWarning, match="is not complete, as after a kill"):
        watched_run(steps=4, append=True)
    log = np.loadtxt("log.txt")
    assert log[:, 0].tolist() == [0, 1, 2, 3, 4]  # begun anew: the structure is that of step 0
    assert Path("log.txt").read_text().count("# step") == 1
    assert b"\n" not in Path("log.txt.1").read_bytes()  # the half row
    assert np.loadtxt("log.txt.2").shape == (3, 10)  # the rows that were computed again


def test_restarted_run_equals_the_uninterrupted_one(in_folder):
    whole, _ = watched_run(steps=8, log="whole.txt", save="whole.extxyz")
    _, atoms = watched_run(steps=5)
    restarted = atoms.copy()
    restarted.calc = argon().calc
    monitor, _ = watched_run(steps=3, start=restarted, append=True)
    assert monitor.records["step"].tolist() == list(range(9))
    for name, column in whole.records.items():
        # The log holds nine digits.
        np.testing.assert_allclose(monitor.records[name], column, rtol=1e-7, err_msg=name)
    log = np.loadtxt("log.txt")
    np.testing.assert_allclose(log, np.loadtxt("whole.txt"), rtol=1e-7)
    assert "resumed" not in monitor.summary()
    assert monitor.summary().startswith("9 checks, steps 0 to 8")


def test_rows_after_first_step_are_computed_again(in_folder):
    watched_run(steps=6)
    with pytest.warns(UserWarning, match="first_step = 3 puts this structure at step 3, but"):
        watched_run(steps=2, append=True, first_step=3)
    assert read_log("log.txt")["step"].tolist() == [0, 1, 2, 3, 4, 5]


def test_new_run_sets_old_files_aside(in_folder):
    watched_run(steps=1)
    first = Path("frames.extxyz").read_bytes()
    watched_run(steps=2)
    watched_run(steps=3)
    assert Path("frames.extxyz.1").read_bytes() == first
    assert len(read("frames.extxyz.2", ":", format="extxyz")) == 3
    assert len(read("frames.extxyz", ":")) == 4
    assert {p.name for p in Path().iterdir() if not p.name.endswith(".lock")} == {
        *(f"{name}{n}" for name in ("log.txt", "frames.extxyz") for n in ("", ".1", ".2"))
    }


def test_resuming_with_other_criteria_is_refused(in_folder):
    from neuralil_ase.monitor import MaxEnergySpread

    watched_run(steps=1)
    before = Path("log.txt").read_bytes()
    with pytest.raises(MonitorError, match=r"other criteria \(columns max_force_std"):
        watched_run(threshold=None, criteria=[MaxEnergySpread(0.1)], append=True)
    assert Path("log.txt").read_bytes() == before


@pytest.mark.parametrize("name", ["log.txt", "frames.extxyz"])
def test_foreign_files_are_not_touched(name, in_folder):
    Path(name).write_text("my notes\n")
    with pytest.raises(MonitorError, match="is not a"):
        watched_run(append=True)
    assert Path(name).read_text() == "my notes\n"
    if name == "log.txt":
        with pytest.raises(MonitorError, match="not a monitor log"):
            read_log(name)


def test_missing_folder_and_folder_in_place_of_file(in_folder):
    with pytest.raises(OutputError, match=r"log: the folder .*nowhere does not exist"):
        watched_run(log="nowhere/log.txt")
    Path("frames.extxyz").mkdir()
    with pytest.raises(OutputError, match=r"save: frames.extxyz is a folder"):
        watched_run()
