"""A file to which one run appends for hours. It is locked, and changes by other programs are detected."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuralil_ase.errors import OutputError
from neuralil_ase.files.atomic import (
    append_record,
    cut_tail,
    free_name,
    set_aside,
    write_atomically,
)
from neuralil_ase.files.lock import OutputLock


class OwnedFile:
    """The right to append to one file, which may be new.

    Parameters
    ----------
    path
        Path of the file.
    purpose
        The purpose of the file. Error messages about the path begin with it.

    Raises
    ------
    OutputError
        If no file can be written there, or if another run writes it.
    """

    def __init__(self, path: str | os.PathLike[str], purpose: str) -> None:
        self.path = checked_path(path, purpose)
        self._purpose = purpose
        self._lock = OutputLock(self.path, take_over=True)
        self._left = self._found()

    @property
    def changed(self) -> bool:
        """Whether another program has changed, replaced or deleted the file since it was last read or written here."""
        return self._found() != self._left

    @property
    def exists(self) -> bool:
        """Whether the file exists now."""
        return self._found() is not None

    def read(self) -> bytes:
        """The content, empty if there is no file. Changes by other programs up to now are then accepted."""
        self._left = self._found()
        if self._left is None:
            return b""
        with _readable(self.path):
            return self.path.read_bytes()

    def added(self) -> bytes | None:
        """Text that other programs have appended; None if they did nothing or made another change."""
        found = self._found()
        if (
            found is None
            or self._left is None
            or found[:2] != self._left[:2]
            or found[2] <= self._left[2]
        ):
            return None
        with _readable(self.path), open(self.path, "rb") as file:
            file.seek(self._left[2])
            return file.read()

    def append(self, record: bytes, sync: bool) -> None:
        """Append a record completely or not at all, see :func:`append_record`."""
        self._lock.check()
        append_record(self.path, record, sync)
        self._left = self._found()

    def release(self) -> None:
        """Give up the right, so that another run may write the file."""
        self._lock.release()

    def replace(self, content: bytes) -> None:
        """Replace the content."""
        self._lock.check()
        write_atomically(self.path, content)
        self._left = self._found()

    def set_aside(self) -> Path | None:
        """Rename the file to the next free ``name.N``; returns None if there is no file."""
        self._lock.check()
        checked_path(self.path, self._purpose)
        aside = set_aside(self.path)
        self._left = self._found()
        return aside

    def keep_copy(self) -> Path:
        """Copy the file to the next free ``name.N``; returns that name."""
        aside = free_name(self.path)
        write_atomically(aside, self.read())
        return aside

    def cut_tail(self, keep: int) -> Path:
        """Move all but the first `keep` bytes to a new file ``name.N``; returns its name."""
        self._lock.check()
        aside = cut_tail(self.path, keep)
        self._left = self._found()
        return aside

    def _found(self) -> tuple[int, int, int] | None:
        """Device, inode and length of the file; None if there is no file."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size


def checked_path(path: str | os.PathLike[str], purpose: str) -> Path:
    """Check, without writing, that a file can be written at `path`; returns `path`.

    Raises
    ------
    OutputError
        If the folder does not exist, if the folder or the file is not writable, or if `path` is not a file.
    """
    target = Path(path)
    try:
        folder = Path(os.path.realpath(target)).parent
        if not os.path.isdir(folder):
            raise OutputError(f"{purpose}: the folder {folder} does not exist; create it first")
        mode = _mode(target)
    except (OSError, ValueError) as problem:
        if isinstance(problem, OutputError):
            raise
        raise OutputError(
            f"{purpose}: a file cannot have the name {target}: {problem}"
        ) from problem
    if mode is not None and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise OutputError(f"{purpose}: {target} is {what}; give the name of a file")
    for place in (folder,) if mode is None else (folder, target):
        if not os.access(place, os.W_OK):
            raise OutputError(f"{purpose}: you may not write to {place}; choose another place")
    return target


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise OutputError(f"cannot read {path}: {problem.strerror or problem}") from problem
