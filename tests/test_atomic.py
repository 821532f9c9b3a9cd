"""Whole files or none: written through a temporary file, appended in one piece, cut back after a failure."""

import errno
import os
from pathlib import Path

import pytest
from interruptions import interrupted_at

from neuralil_ase.errors import NeuralILError, OutputError
from neuralil_ase.files import atomic
from neuralil_ase.files.atomic import (
    append_record,
    cut_tail,
    free_name,
    set_aside,
    write_atomically,
)


def test_content_is_written_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"one", b"", b"two" * 1000):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_that_is_replaced_hands_on_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.touch()
    path.chmod(mode)
    write_atomically(path, b"one")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"one", mode)


def test_names_of_the_longest_kind_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"


@pytest.mark.parametrize(
    "name", ["x" * 256, "none/a", "a\0b", "folder", "circle", "file/a", "x/" * 3000]
)
def test_paths_that_cannot_be_written_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match="cannot write"):
        write_atomically(tmp_path / name, b"one")
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(OutputError, match="cannot write"):
        append_record(tmp_path / name, b"one", sync=False)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a device file")
def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(OutputError, match="a folder or a device"):
        write_atomically("/dev/null", b"one")
    assert not Path("/dev/null").is_file()


def refusing(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize(
    "broken", [("open",), ("unlink",), ("open", "unlink", "rename", "replace")]
)
def test_a_read_only_file_system_ends_in_our_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...]
) -> None:
    """There even removing what is not there fails, which once hid the reason."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    for name in broken:
        monkeypatch.setattr(os, name, refusing)
    monkeypatch.setattr("neuralil_ase.files.atomic.open", refusing, raising=False)
    with pytest.raises(OutputError, match=r"cannot write .*Read-only file system\. Check .* may"):
        write_atomically(path, b"new")
    if "open" in broken:
        with pytest.raises(OutputError, match="Read-only file system"):
            append_record(path, b"new", sync=True)
    if "rename" in broken:
        with pytest.raises(OutputError, match="Read-only file system"):
            set_aside(path)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("room", [0, 1, 3])
def test_a_record_that_does_not_fit_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    path, write, left = tmp_path / "a", os.write, [room]
    append_record(path, b"one\n", sync=True)

    def full(handle: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(handle, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match=r"No space left.* holds what it held before"):
        append_record(path, b"two two\n", sync=True)
    monkeypatch.undo()
    assert path.read_bytes() == b"one\n"


def test_a_record_that_cannot_be_taken_back_is_said_to_be_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("write", "ftruncate"):
        monkeypatch.setattr(os, name, refusing)
    with pytest.raises(OutputError, match="ends with half a record"):
        append_record(tmp_path / "a", b"one\n", sync=False)


def test_records_come_one_after_another(tmp_path: Path) -> None:
    for sync, record in ((True, b"one\n"), (False, b"two\n")):
        append_record(tmp_path / "a", record, sync)
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\n"


def test_an_interrupt_inside_a_write_is_cut_back_and_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "a", os.write
    append_record(path, b"one\n", sync=True)

    def interrupted(handle: int, data: bytes) -> int:
        write(handle, bytes(data)[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        append_record(path, b"two\n", sync=True)
    assert path.read_bytes() == b"one\n"


# Between the last line of a block and its end, only the garbage collector closes the file.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path, line, outcomes = tmp_path / "a", 0, set()
    reached = True
    while reached:
        line += 1
        write_atomically(path, b"old")
        with interrupted_at(line, within=atomic) as interruption:
            write_atomically(path, b"new")
        reached = interruption.reached
        outcomes.add(path.read_bytes())
        assert list(tmp_path.iterdir()) == [path]
    assert outcomes == {b"old", b"new"}


def test_the_end_of_a_file_is_moved_to_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for number, keep in enumerate((0, 3, 7), start=1):
        path.write_bytes(b"one\ntwo")
        assert cut_tail(path, keep) == tmp_path / f"a.{number}"
        assert path.read_bytes() + (tmp_path / f"a.{number}").read_bytes() == b"one\ntwo"
        assert len(path.read_bytes()) == keep
    with pytest.raises(OutputError, match="No such file"):
        cut_tail(tmp_path / "none", 1)


def test_names_of_links_that_lead_nowhere_are_not_free(tmp_path: Path) -> None:
    (tmp_path / "a.1").symlink_to("nowhere")
    assert free_name(tmp_path / "a") == tmp_path / "a.2"


def test_files_are_set_aside_under_the_next_free_name(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert set_aside(path) is None
    path.touch()
    assert set_aside(path) is None
    for number in (1, 2):
        path.write_text(str(number))
        assert set_aside(path) == tmp_path / f"a.{number}"
        assert not path.exists()
    assert (tmp_path / "a.1").read_text() == "1"


def test_the_error_serves_generic_code() -> None:
    assert issubclass(OutputError, OSError)
    assert issubclass(OutputError, NeuralILError)
