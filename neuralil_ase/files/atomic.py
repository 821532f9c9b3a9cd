"""Writes files so that nothing is lost or half written. Every file of this package is written here.

A whole file is first written to a temporary file, which then replaces the old one. A record at the end of a file (a
frame, a line of a log) is written in one call; if that fails, the file is cut back to its former length. If the process
is killed during that call, half a record stays at the end. The next run that opens the file moves it to another file
with :func:`cut_tail`.
"""

import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from neuralil_ase.errors import OutputError


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a temporary file beside the target, flush it to the disk, and rename it to the target.

    If the path is a symbolic link, its target is replaced and the link stays. The permissions are kept.

    Raises
    ------
    OutputError
        If that fails, for instance because the disk is full. The temporary file is removed, and the target is
        unchanged.
    """
    temporary = None
    try:
        target = Path(path).resolve()
        if target.exists() and not target.is_file():
            raise OutputError(
                f"cannot write {path}: it is a folder or a device; give the name of a file"
            )
        temporary = target.with_name(f".neuralil-{uuid.uuid4().hex}.tmp")
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            with suppress(OSError):  # some file systems have no permissions
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except OutputError:
        raise
    except (OSError, ValueError, RuntimeError) as problem:  # a null byte; a circle of links
        raise _refused(path, problem) from problem
    finally:
        if temporary is not None:
            with suppress(OSError):  # read-only file systems refuse this even without a file
                temporary.unlink(missing_ok=True)


def append_record(path: str | os.PathLike[str], record: bytes, sync: bool) -> None:
    """Append a record completely or not at all.

    Parameters
    ----------
    path
        The file; it is made if it does not exist.
    record
        What to append.
    sync
        Wait until the record has reached the disk, so that it survives a power cut.

    Raises
    ------
    OutputError
        If the record cannot be written (disk full, no permission). The file then has its former length.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except (OSError, ValueError) as problem:
        raise _refused(path, problem) from problem
    try:
        length = os.fstat(handle).st_size
        try:
            _write_all(handle, record)
            if sync:
                os.fsync(handle)
        except BaseException as problem:
            _cut_back(handle, length, path, problem)
            raise
    except OutputError:
        raise
    except OSError as problem:
        raise _refused(path, problem) from problem
    finally:
        os.close(handle)


def set_aside(path: Path) -> Path | None:
    """Rename an existing file to the next free ``name.N``, so that a new run does not overwrite it.

    Returns the new name, or None if there is no file or an empty one.

    Raises
    ------
    OutputError
        If the file cannot be renamed.
    """
    try:
        if not path.exists() or path.stat().st_size == 0:
            return None
        backup = free_name(path)
        os.rename(path, backup)
    except OSError as problem:
        raise _refused(path, problem) from problem
    return backup


def cut_tail(path: Path, keep: int) -> Path:
    """Move all but the first `keep` bytes to the next free ``name.N``; returns that name.

    Raises
    ------
    OutputError
        If that fails. The file is then unchanged.
    """
    try:
        aside = free_name(path)
        write_atomically(aside, path.read_bytes()[keep:])
        os.truncate(path, keep)
    except OutputError:
        raise
    except OSError as problem:
        raise _refused(path, problem) from problem
    return aside


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder, and those above it, unless they exist.

    Raises
    ------
    OutputError
        If the folder cannot be made, or a file has that name.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise OutputError(
            f"cannot make the folder {path}: {reason}. Choose another folder, one that you may write to"
        ) from problem
    return Path(path)


def free_name(path: Path) -> Path:
    """The first of ``name.1``, ``name.2`` and so on that does not exist."""
    number = 1
    while os.path.lexists(name := path.with_name(f"{path.name}.{number}")):
        number += 1
    return name


def _write_all(handle: int, record: bytes) -> None:
    view = memoryview(record)
    while view:
        view = view[os.write(handle, view) :]


def _cut_back(
    handle: int, length: int, path: str | os.PathLike[str], problem: BaseException
) -> None:
    try:
        os.ftruncate(handle, length)
    except OSError as second:
        raise OutputError(
            f"cannot write {path}: {problem}. The part that was written could not be removed either ({second}), so "
            "that the file ends with half a record. The next run with this file moves it to another file"
        ) from problem


def _refused(path: str | os.PathLike[str], problem: Exception) -> OutputError:
    reason = getattr(problem, "strerror", None) or problem
    return OutputError(
        f"cannot write {path}: {reason}. Check that the folder exists, that you may write to it and that the disk has "
        "room; the file holds what it held before"
    )
