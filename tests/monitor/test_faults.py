"""What others do to the files of a run, and what a run does to its atoms: nothing is lost in silence."""

import os
import subprocess
import sys
import textwrap
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.io import read
from ase.md.verlet import VelocityVerlet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lj_ensemble import LJEnsemble, argon

from neuralil_ase.errors import ConfigError, MonitorError, NeuralILError, OutputError
from neuralil_ase.monitor import ExtrapolationMonitor, read_log

LOG, SAVED = Path("log.txt"), Path("f.extxyz")
IN_FOLDER = [HealthCheck.function_scoped_fixture]


def watched(atoms=None, threshold=1e-9, **options):
    atoms = argon() if atoms is None else atoms
    dynamics = VelocityVerlet(atoms, 4 * units.fs)
    options = {"log": LOG, "save": SAVED, "min_distance": 0, "warn": False} | options
    monitor = ExtrapolationMonitor(dynamics, threshold, **options)
    dynamics.attach(monitor)
    return monitor, dynamics


def saved():
    return [frame.info["monitor_step"] for frame in read(SAVED, ":")]


def steps(path=LOG):
    return read_log(path)["step"].tolist()


def contents():
    """What all files hold, locks apart."""
    return {p.name: p.read_bytes() for p in Path().iterdir() if p.suffix != ".lock"}


# Two runs on the same files


@pytest.mark.parametrize("options", [{"log": None}, {"save": None}, {}])
def test_the_later_of_two_monitors_has_the_files(options, in_folder):
    """As when a cell of a notebook runs again; the former one says so instead of adding rows."""
    first, old = watched(**options)
    old.run(1)
    second, new = watched(**options)
    with pytest.raises(
        MonitorError, match=r"written by a later run of this process.*wait in memory"
    ):
        old.run(1)
    new.run(2)
    assert second.records["step"].tolist() == [0, 1, 2]
    if "log" not in options:
        assert steps() == [0, 1, 2]
        assert steps("log.txt.1") == [0, 1]
    if "save" not in options:
        assert saved() == [0, 1, 2]
    assert first.records["step"].tolist() == [0, 1, 2]  # in memory


HOLDER = """
import sys
sys.path.insert(0, {tests!r})
from lj_ensemble import argon
from neuralil_ase.monitor import ExtrapolationMonitor
monitor = ExtrapolationMonitor(argon(), 1e-9, log="log.txt", save="f.extxyz", warn=False)
monitor()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("append", [pytest.param(False, marks=pytest.mark.slow), True])
def test_another_process_is_refused_and_changes_nothing(append, in_folder):
    script = textwrap.dedent(HOLDER).format(tests=str(Path(__file__).parent))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", script], **pipes)
    assert other.stdout.readline() == "ready\n"
    before = contents()
    with pytest.raises(OutputError, match=rf"log\.txt is being written by process {other.pid}"):
        watched(append=append)
    with pytest.raises(OutputError, match=r"f\.extxyz is being written by process"):
        watched(log=None, append=append)
    with pytest.raises(OutputError, match=r"f\.extxyz is being written by process"):
        watched(log="fresh.txt", append=append)
    assert contents() == before
    other.communicate("", timeout=60)
    watched(append=append)[1].run(1)
    assert steps() == [0, 1]


def test_log_and_save_in_one_file_are_refused(in_folder):
    Path("link").symlink_to("log.txt")
    for name in ("log.txt", "./log.txt", "link"):
        with pytest.raises(ConfigError, match="log and save are the same file"):
            watched(save=name)


# Files that are deleted, replaced or changed


@pytest.mark.parametrize("what", ["delete", "empty", "replace", "replace by older"])
def test_a_log_that_others_spoil_is_written_again_in_whole(what, in_folder):
    _, dynamics = watched(save=None)
    dynamics.run(1)
    older = LOG.read_bytes()
    dynamics.run(2)
    if what == "delete":
        LOG.unlink()
    elif what == "empty":
        os.truncate(LOG, 0)
    else:
        Path("other").write_bytes(b"my notes\n" if what == "replace" else older)
        os.replace("other", LOG)
    with pytest.warns(
        UserWarning, match=r"log\.txt was .* written again, with all rows of this run"
    ):
        dynamics.run(1)
    dynamics.run(1)
    assert steps() == [0, 1, 2, 3, 4, 5]
    watched(log="whole.txt", save=None)[1].run(5)
    assert Path("whole.txt").read_bytes() == LOG.read_bytes()
    kept = {"replace": b"my notes\n", "replace by older": older}.get(what)
    assert (Path("log.txt.1").read_bytes() if kept else None) == kept


def test_a_resumed_log_that_is_deleted_comes_back_with_its_earlier_rows(in_folder):
    _, dynamics = watched()
    dynamics.run(2)
    restarted = dynamics.atoms.copy()
    restarted.calc = LJEnsemble()
    _, dynamics = watched(restarted, append=True)
    dynamics.run(1)
    whole = LOG.read_bytes()
    LOG.unlink()
    with pytest.warns(UserWarning, match="deleted or emptied"):
        dynamics.run(1)
    assert LOG.read_bytes().startswith(whole)
    assert steps() == [0, 1, 2, 3, 4]


def test_remarks_in_the_log_are_kept_and_rows_of_others_are_refused(in_folder):
    monitor, dynamics = watched(save=None)
    dynamics.run(1)
    row = LOG.read_bytes().splitlines(keepends=True)[-1]
    with open(LOG, "ab") as file:
        file.write("# thermostat switched, 300 K \u2192 310 K\n\n".encode())
    dynamics.run(1)
    assert steps() == [0, 1, 2]
    assert "310 K" in LOG.read_text()
    with open(LOG, "ab") as file:
        file.write(row)
    with pytest.raises(
        MonitorError, match=r"bytes were added to this log by another program.*1 row\(s\) wait"
    ):
        dynamics.run(1)
    content = LOG.read_bytes()
    LOG.write_bytes(content[: -len(row)])
    monitor.flush()
    assert steps() == [0, 1, 2, 3]


@pytest.mark.parametrize("what", ["moved away", "deleted", "emptied", "cut", "folder deleted"])
def test_saved_frames_that_others_take_away(what, in_folder):
    """Moving the file away to label its frames is not even a fault."""
    Path("work").mkdir()
    path = Path("work/f.extxyz")
    monitor, dynamics = watched(save=path, log=None)
    dynamics.run(2)
    content = path.read_bytes()
    if what == "moved away":
        path.rename("round_1.extxyz")
    elif what == "deleted":
        path.unlink()
    elif what == "emptied":
        os.truncate(path, 0)
    elif what == "cut":
        os.truncate(path, len(content) - 7)
    else:
        path.unlink()
        Path("work/.f.extxyz.lock").unlink()
        Path("work").rmdir()
    if what == "cut":
        with pytest.warns(UserWarning, match="ends with half a frame"):
            dynamics.run(1)
        assert content.endswith(Path("work/f.extxyz.1").read_bytes() + content[-7:])
    elif what == "folder deleted":
        with pytest.raises(MonitorError, match=r"cannot write .*No such file.*1 frame\(s\) wait"):
            dynamics.run(1)
        Path("work").mkdir()
        monitor.flush()
    else:
        dynamics.run(1)
    expected = [0, 1, 3] if what == "cut" else [3]
    assert [frame.info["monitor_step"] for frame in read(path, ":")] == expected
    assert monitor.n_saved == len(expected)


def test_a_full_file_that_is_moved_away_makes_room(in_folder):
    monitor, dynamics = watched(max_saved=2)
    dynamics.run(3)
    assert saved() == [0, 1]
    SAVED.rename("round_1.extxyz")
    dynamics.run(3)
    assert saved() == [4, 5]
    assert monitor.n_saved == 2


@pytest.mark.parametrize("spoil", ["log", "info"])
def test_warnings_turned_into_errors_lose_and_double_nothing(spoil, in_folder):
    atoms = argon()
    _, dynamics = watched(atoms)
    dynamics.run(1)
    if spoil == "log":
        LOG.unlink()
    else:
        atoms.info["comment"] = "two\nlines"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="written again" if spoil == "log" else "do not hold"):
            dynamics.run(1)
    atoms.info.clear()
    dynamics.run(1)
    assert steps() == saved() == [0, 1, 2, 3]


def test_saved_frames_replaced_by_something_else(in_folder):
    monitor, dynamics = watched()
    dynamics.run(1)
    Path("notes").write_text("my notes\n")
    os.replace("notes", SAVED)
    with pytest.raises(
        MonitorError, match=r"line 1 should begin a frame.*1 frame\(s\) wait in memory"
    ):
        dynamics.run(1)
    assert SAVED.read_text() == "my notes\n"
    SAVED.unlink()
    monitor.flush()
    assert saved() == [2]
    assert steps() == [0, 1, 2]


def test_saved_frames_replaced_by_other_frames_are_added_to(in_folder):
    monitor, dynamics = watched(max_saved=4)
    dynamics.run(1)
    content = SAVED.read_bytes()
    Path("other").write_bytes(content[: content.index(b"\n32\n") + 1])
    os.replace("other", SAVED)
    dynamics.run(6)
    assert len(saved()) == monitor.n_saved == 4


# Paths that cannot be files


@pytest.mark.parametrize(
    "name", ["x" * 256, "a\0b", "circle", "file/a", "x/" * 3000, "none/a", "folder"]
)
@pytest.mark.parametrize("purpose", ["log", "save"])
def test_impossible_paths_are_refused_at_the_start(name, purpose, in_folder):
    Path("folder").mkdir()
    Path("file").touch()
    Path("circle").symlink_to("circle")
    before = sorted(os.listdir())
    with pytest.raises(OutputError, match=f"^{purpose}: "):
        watched(**({"log": None, "save": None} | {purpose: name}))
    assert sorted(os.listdir()) == before


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a device file")
def test_devices_and_pipes_are_refused_and_do_not_hang(in_folder):
    os.mkfifo("pipe")
    for name in ("/dev/null", "pipe"):
        with pytest.raises(OutputError, match=r"log: .* is a device or a pipe"):
            watched(log=name)


@pytest.mark.parametrize("place", ["folder", "file"])
def test_places_that_may_not_be_written_to_are_refused_at_the_start(place, in_folder, monkeypatch):
    """Not after hours, when the first frame is to be saved."""
    SAVED.write_text("")
    real = os.access
    forbidden = in_folder if place == "folder" else SAVED

    def access(path, mode, **options):
        return Path(path).absolute() != forbidden.absolute() and real(path, mode, **options)

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(OutputError, match="save: you may not write to"):
        watched(log=None)


def test_symbolic_links_lead_to_the_file(in_folder):
    Path("far").mkdir()
    LOG.symlink_to("far/log.txt")
    SAVED.symlink_to("far/f.extxyz")
    _, dynamics = watched()
    dynamics.run(1)
    restarted = dynamics.atoms.copy()
    restarted.calc = LJEnsemble()
    watched(restarted, append=True)[1].run(1)
    assert LOG.is_symlink()
    assert SAVED.is_symlink()
    assert steps("far/log.txt") == [0, 1, 2]


# Damaged content


@pytest.mark.parametrize(
    "damage",
    [b"1 2 3\n", b"x" * 200 + b"\n", b"\xff\xfe\n", b"nan " * 10 + b"\n", b"\0" * 100 + b"\n"],
)
def test_a_damaged_row_is_named_and_nothing_is_touched(damage, in_folder):
    watched()[1].run(3)
    lines = LOG.read_bytes().splitlines(keepends=True)
    assert len(lines) == 11
    lines.insert(10, damage)
    LOG.write_bytes(b"".join(lines))
    before = contents()
    for attempt in (lambda: read_log(LOG), lambda: watched(append=True)):
        with pytest.raises(MonitorError, match=r"log\.txt: line 11 .*append=False"):
            attempt()
    assert contents() == before
    watched()[1].run(1)
    assert steps() == [0, 1]
    assert Path("log.txt.1").read_bytes() == before["log.txt"]


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"5 -1 20 ", b"5 -1 20 \0\0\0"])
def test_what_a_power_cut_leaves_at_the_end_is_moved_aside(tail, in_folder):
    _, dynamics = watched()
    dynamics.run(2)
    with open(LOG, "ab") as file:
        file.write(tail)
    assert steps() == [0, 1, 2]
    restarted = dynamics.atoms.copy()
    restarted.calc = LJEnsemble()
    with pytest.warns(
        UserWarning, match=r"last line of log\.txt is not complete.* moved to log\.txt\.1"
    ):
        _, dynamics = watched(restarted, append=True)
    assert Path("log.txt.1").read_bytes() == tail
    dynamics.run(1)
    assert steps() == [0, 1, 2, 3]


@pytest.mark.parametrize("kept", [0, 1, 20, 37, 300])
def test_a_kill_inside_the_header_is_no_hindrance(kept, in_folder):
    watched()
    LOG.write_bytes(LOG.read_bytes()[:kept])
    watched(append=True)[1].run(1)
    assert steps() == [0, 1]


def test_logs_edited_on_windows_can_be_read(in_folder):
    watched()[1].run(1)
    LOG.write_bytes(LOG.read_bytes().replace(b"\n", b"\r\n"))
    assert steps() == [0, 1]


@pytest.mark.filterwarnings("ignore:.*moved to:UserWarning")  # half a record at the end
@settings(max_examples=40, deadline=None, suppress_health_check=IN_FOLDER)
@given(data=st.data())
def test_any_damage_is_read_or_refused_and_never_overwritten(data, in_folder):
    """Bytes changed, removed or put in at random, in the log or among the frames."""
    if not Path("whole").exists():
        watched()[1].run(2)
        Path("whole").mkdir()
        for path in (LOG, SAVED):
            path.rename(Path("whole") / path)
    for path in Path().glob("*.*"):
        if path.is_file():
            path.unlink()
    victim = data.draw(st.sampled_from([LOG, SAVED]))
    for path in (LOG, SAVED):
        path.write_bytes((Path("whole") / path).read_bytes())
    content = victim.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = min(len(content), start + data.draw(st.integers(0, 40)))
    spoilt = content[:start] + data.draw(st.binary(max_size=8)) + content[end:]
    victim.write_bytes(spoilt)
    atoms = read(Path("whole") / SAVED, 1)
    atoms.calc = LJEnsemble()
    with suppress(NeuralILError):
        watched(atoms, append=True)[1].run(1)
    everything = b"".join(path.read_bytes() for path in sorted(Path().glob(f"{victim}*")))
    # The run goes on from step 1: rows of its steps are computed again, and take the place of those before.
    again = (b"1 -1 ", b"2 -1 ")
    lines = [line for line in spoilt.splitlines() if len(line) > 20 and not line.startswith(again)]
    assert all(line in everything for line in lines)


# What a structure carries, and what happens to it


@settings(max_examples=30, deadline=None, suppress_health_check=IN_FOLDER)
@given(
    info=st.dictionaries(
        st.text(max_size=6) | st.integers(),
        st.text(max_size=12)
        | st.integers()
        | st.floats()
        | st.none()
        | st.binary(max_size=3)
        | st.lists(st.lists(st.integers(), max_size=2), max_size=2),
        max_size=4,
    )
)
@pytest.mark.filterwarnings("ignore:.*the saved frames do not hold", "ignore:Skipping unhashable")
def test_frames_can_be_read_whatever_the_structure_carries(info, in_folder):
    """ASE writes line breaks, quotes and empty text so that they spoil the frame."""
    atoms = molecule("CH4")
    atoms.info = dict(info)
    atoms.calc = LJEnsemble()
    monitor, dynamics = watched(atoms, log=None)
    dynamics.run(0)
    assert saved() == [0]
    frame = read(SAVED)
    assert (frame.numbers == atoms.numbers).all()
    assert (frame.pbc == atoms.pbc).all()
    assert "monitor_reasons" in frame.info
    assert frame.arrays["forces_std"].shape == (5,)
    assert monitor.n_saved == 1


def test_entries_that_extxyz_cannot_hold_are_named(in_folder):
    atoms = molecule("CH4")
    atoms.info = {"comment": "two\nlines", "charge": 0}
    atoms.set_array("name", np.array(["a b", "", "c", "d", "e"]))
    atoms.calc = LJEnsemble()
    _, dynamics = watched(atoms, log=None)
    with pytest.warns(
        UserWarning, match=r"do not hold '(comment|name)', '(comment|name)' of the structure"
    ):
        dynamics.run(0)
    frame = read(SAVED, 0)
    assert frame.info["charge"] == 0
    assert "comment" not in frame.info


@pytest.mark.parametrize("change", ["removed", "added"])
def test_rollback_after_atoms_came_or_went_changes_nothing(change, in_folder):
    atoms = argon()
    monitor = ExtrapolationMonitor(
        atoms, 10.0, rollback=True, warn=False, dyn=VelocityVerlet(atoms, units.fs)
    )
    monitor()
    atoms.set_cell(atoms.cell.array * 0.5, scale_atoms=True)
    if change == "removed":
        del atoms[3]
    else:
        atoms.append("Ar")
    before = atoms.copy()
    with pytest.raises(
        MonitorError,
        match=r"cannot roll back to step 0: .* 32 atoms then and has 3[13] now.*nothing was changed",
    ):
        monitor()
    assert atoms == before
    assert monitor.stopped


def test_rollback_puts_swapped_elements_back():
    """As a Monte Carlo run of an alloy exchanges them."""
    atoms = argon()
    atoms.numbers[0] = 36
    monitor = ExtrapolationMonitor(
        atoms, 10.0, rollback=True, warn=False, dyn=VelocityVerlet(atoms, units.fs)
    )
    monitor()
    trusted = atoms.copy()
    atoms.numbers[[0, 5]] = atoms.numbers[[5, 0]]
    atoms.positions *= 0.5
    monitor()
    assert monitor.stopped
    assert (atoms.numbers == trusted.numbers).all()
    assert (atoms.positions == trusted.positions).all()


def test_saved_frames_of_another_system_can_be_gone_on_with(in_folder):
    """Their fingerprints have another length, and their marks may point beyond their atoms."""
    atoms = molecule("CH4")
    atoms.calc = LJEnsemble()
    watched(atoms, log=None, min_distance=1e-6)[1].run(1)
    earlier, text = len(saved()), SAVED.read_text()
    SAVED.write_text(text.replace("monitor_atoms=", "monitor_atoms=99"))
    monitor, dynamics = watched(log=None, min_distance=1e-6, append=True)
    dynamics.run(1)
    assert monitor.n_saved == earlier + 2


def test_the_calculator_may_be_used_in_another_thread(in_folder, small_potential):
    from neuralil_ase import NeuralILCalculator

    calculator = NeuralILCalculator(small_potential)
    atoms, other = molecule("CH3CH2NH2"), molecule("CH3CH2OH")
    atoms.calc = calculator
    alone = NeuralILCalculator(small_potential).prediction(atoms, uncertainty="forces")
    monitor = ExtrapolationMonitor(atoms, 1e-9, log=LOG, save=SAVED, warn=False, min_distance=0)
    end = threading.Event()

    def busy():
        while not end.is_set():
            other.rattle(0.01)
            calculator.prediction(other, uncertainty="energy")

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(30):
            monitor()
    finally:
        end.set()
        thread.join()
    np.testing.assert_allclose(monitor.records["max_force_std"], alone.forces_std.max(), rtol=1e-3)
    np.testing.assert_allclose(monitor.records["energy_eV"], alone.energy, atol=1e-4)
    assert len(saved()) == 30
