"""Appending to files so that nothing is lost: whole records or none.

A record (a frame, a line of the log) is composed in memory and handed to the system in one write;
if that fails, the file is cut back to the length it had. Should the process be killed inside the
write, the half record at the end is found and dropped when the file is opened for a restart.
"""

import os
from collections.abc import Callable
from pathlib import Path

from neuralil_ase.errors import MonitorError


def append_record(path: Path, record: bytes, sync: bool) -> None:
    """Append `record` to `path` as a whole or not at all.

    Parameters
    ----------
    path : Path
    record : bytes
    sync : bool
        Wait until the record has reached the disk, so that it survives a power cut.

    Raises
    ------
    MonitorError
        If the system refuses (disk full, no permission); the file is as long as it was before.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as problem:
        raise _refused(path, problem) from problem
    try:
        length = os.fstat(handle).st_size
        try:
            _write_all(handle, record)
            if sync:
                os.fsync(handle)
        except BaseException as problem:
            os.ftruncate(handle, length)
            if isinstance(problem, OSError):
                raise _refused(path, problem) from problem
            raise
    finally:
        os.close(handle)


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, then put it in its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        append_record(temporary, content, sync=True)
        os.replace(temporary, path)
    except OSError as problem:
        raise _refused(path, problem) from problem
    finally:
        temporary.unlink(missing_ok=True)


def set_aside(path: Path) -> Path | None:
    """Rename an existing file to the next free ``name.N``, so that a new run destroys nothing."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    number = 1
    while (backup := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    try:
        os.rename(path, backup)
    except OSError as problem:
        raise _refused(path, problem) from problem
    return backup


def drop_partial_tail(path: Path, whole: Callable[[bytes, Path], int]) -> int:
    """Cut a half record off the end of `path`; returns how many bytes were dropped.

    `whole` tells how many bytes at the start of the content are whole records.
    """
    content = path.read_bytes()
    keep = whole(content, path)
    if keep < len(content):
        os.truncate(path, keep)
    return len(content) - keep


def whole_lines(content: bytes, path: Path) -> int:
    """Length of the part of `content` that consists of complete lines."""
    return content.rfind(b"\n") + 1


def whole_frames(content: bytes, path: Path) -> int:
    """Length of the part of an extxyz file that consists of complete frames.

    Raises
    ------
    MonitorError
        If the file holds something else; nothing of it may then be touched.
    """
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        count = content[start : end if end >= 0 else None].strip()
        if not count.isdigit():
            raise MonitorError(
                f"{path} is not an extxyz file: byte {start} should begin a frame with the number "
                f"of its atoms, but reads {count[:40]!r}. Frames are not added to a foreign file; "
                "choose another name."
            )
        for _ in range(int(count) + 1):
            end = content.find(b"\n", end + 1) if end >= 0 else -1
        if end < 0:
            return start
        start = end + 1
    return start


def checked_path(path: str | os.PathLike[str], purpose: str) -> Path:
    """`path`, if its folder exists and it is not a folder itself; a MonitorError otherwise."""
    target = Path(path)
    if not target.parent.is_dir():
        raise MonitorError(
            f"{purpose}: the folder {target.parent} does not exist; create it before the run."
        )
    if target.is_dir():
        raise MonitorError(f"{purpose}: {target} is a folder; give the name of a file.")
    return target


def _write_all(handle: int, record: bytes) -> None:
    view = memoryview(record)
    while view:
        view = view[os.write(handle, view) :]


def waiting(problem: MonitorError, what: str) -> MonitorError:
    """The error for records that stay in memory after `problem`."""
    return MonitorError(
        f"{problem} {what} wait in memory and are not lost: make room and call monitor.flush() "
        "in this session."
    )


def _refused(path: Path, problem: OSError) -> MonitorError:
    return MonitorError(
        f"{path} could not be written ({problem.strerror or problem}); usually the disk is full "
        "or the folder is not writable. The file holds what it held before."
    )
