"""One writer for each output, whoever else tries, and however the first one ends."""

import errno
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neuralil_ase.errors import OutputError
from neuralil_ase.files import lock
from neuralil_ase.files.lock import OutputLock

HOLD = """
import sys
from neuralil_ase.files.lock import OutputLock
lock = OutputLock(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock of `path` until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_another_process_is_refused_until_the_first_one_ends(tmp_path: Path, end: str) -> None:
    path = tmp_path / "md.log"
    other = holder(path)
    with pytest.raises(OutputError, match=rf"md\.log is being written by process {other.pid} on"):
        OutputLock(path, take_over=True)
    assert other.stdin is not None
    assert other.stdout is not None
    if end == "kill":
        other.send_signal(signal.SIGKILL)
    other.communicate("", timeout=60)
    assert (tmp_path / ".md.log.lock").exists() == (end == "kill")
    OutputLock(path).check()


def test_a_second_run_of_this_process_is_refused_or_takes_over(tmp_path: Path) -> None:
    first = OutputLock(tmp_path / "a")
    with pytest.raises(OutputError, match="written by another run of this process"):
        OutputLock(tmp_path / "a")
    first.check()
    second = OutputLock(tmp_path / "a", take_over=True)
    with pytest.raises(OutputError, match="written by a later run of this process"):
        first.check()
    first.release()  # of what it no longer has
    second.check()
    with pytest.raises(OutputError):
        OutputLock(tmp_path / "a")


def test_it_ends_with_the_object_and_leaves_nothing(tmp_path: Path) -> None:
    first = OutputLock(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]
    del first
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    OutputLock(tmp_path / "a").release()
    assert list(tmp_path.iterdir()) == []


def test_links_lead_to_the_same_lock(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/a")
    first = OutputLock(tmp_path / "link")
    with pytest.raises(OutputError):
        OutputLock(tmp_path / "folder" / "a")
    first.check()


def test_the_lock_survives_when_the_output_is_deleted_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    first = OutputLock(path)
    path.unlink()
    (tmp_path / "b").touch()
    os.replace(tmp_path / "b", path)
    with pytest.raises(OutputError):
        OutputLock(path)
    first.check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_fork_does_not_hold_the_lock_and_does_not_free_it(tmp_path: Path) -> None:
    first = OutputLock(tmp_path / "a")
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(OutputError, match="of which this one is a fork"):
                first.check()
            with pytest.raises(OutputError, match="process"):
                OutputLock(tmp_path / "a", take_over=True)
            first.release()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    first.check()
    assert (tmp_path / ".a.lock").exists()


def test_file_systems_without_locks_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unknown)
    OutputLock(tmp_path / "a").check()
    monkeypatch.setattr(lock, "fcntl", None)
    OutputLock(tmp_path / "a").check()


def test_a_lock_file_unlinked_in_between_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its former holder ends between our opening the file and our locking it."""
    real, calls = lock.fcntl.flock, []

    def ended(handle: int, how: int) -> None:
        if not calls:
            (tmp_path / ".a.lock").unlink()
        calls.append(how)
        real(handle, how)

    monkeypatch.setattr(lock.fcntl, "flock", ended)
    held = OutputLock(tmp_path / "a")
    assert len(calls) == 2
    assert (tmp_path / ".a.lock").exists()
    held.check()


@pytest.mark.parametrize("name", ["none/a", "a\0b", "file/a"])
def test_places_that_cannot_hold_a_lock_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .* Check that the folder"):
        OutputLock(tmp_path / name)


def test_the_longest_names_can_be_locked(tmp_path: Path) -> None:
    OutputLock(tmp_path / ("x" * 255)).check()


def test_a_full_disk_keeps_nobody_from_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    first = OutputLock(tmp_path / "a")
    with pytest.raises(OutputError, match="this process"):
        OutputLock(tmp_path / "a")
    first.check()
