"""A file that one run appends to for hours: it is locked, and changes by others are noticed."""

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
from neuralil_ase.files.lock import Lock


class OwnedFile:
    """The right to append to one file, which need not exist yet.

    Parameters
    ----------
    path
        Where the file is or will be.
    purpose
        What it is for. Messages about a path that cannot be written begin with it.

    Raises
    ------
    OutputError
        If no file can be written there, or if another run writes it.
    """

    def __init__(self, path: str | os.PathLike[str], purpose: str) -> None:
        self.path = checked_path(path, purpose)
        self._purpose = purpose
        self._lock = Lock(self.path, take_over=True)
        self._left = self._found()

    @property
    def changed(self) -> bool:
        """Whether somebody else has changed, replaced or deleted the file since it was last read or written here."""
        return self._found() != self._left

    @property
    def exists(self) -> bool:
        """Whether there is a file now."""
        return self._found() is not None

    def read(self) -> bytes:
        """The content, empty if there is no file. Changes by others up to now count as known."""
        self._left = self._found()
        if self._left is None:
            return b""
        with _readable(self.path):
            return self.path.read_bytes()

    def added(self) -> bytes | None:
        """What others have appended; None if they did nothing or made another change."""
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
        """Append a record as a whole or not at all, see :func:`append_record`."""
        self._lock.check()
        append_record(self.path, record, sync)
        self._left = self._found()

    def replace(self, content: bytes) -> None:
        """Replace the content."""
        self._lock.check()
        write_atomically(self.path, content)
        self._left = self._found()

    def set_aside(self) -> Path | None:
        """Rename the file to the next free ``name.N``; None where there is none."""
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
        """Device, inode and length of the file; None where there is none."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size


def checked_path(path: str | os.PathLike[str], purpose: str) -> Path:
    """Return `path` if a file can be written there, as far as can be seen without writing.

    Raises
    ------
    OutputError
        If the folder does not exist, if it or the file may not be written to, or if there is something other than a
        file.
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
