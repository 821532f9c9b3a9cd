"""One writer for each output: a second run that would write the same files stops with an error.

The lock is a small hidden file beside the output. The operating system holds it (``flock``) and releases it whenever
the process ends. The lock belongs to the name of the output. It therefore stays when the file is replaced or deleted
during the run.
"""

import hashlib
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path

from neuralil_ase.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows has no flock; outputs are not locked there
    fcntl = None  # type: ignore[assignment]  # read below before every use

_held: "weakref.WeakValueDictionary[Path, OutputLock]" = weakref.WeakValueDictionary()
"""The locks of this process, by the resolved path of the output."""


class OutputLock:
    """The right to write one output, until the lock is released or garbage-collected, or the process ends.

    On file systems without locks (some parallel ones) outputs are not locked.

    Parameters
    ----------
    path
        The output: an existing or a new file. Symbolic links have the same lock as their target.
    take_over
        Take the lock from another holder in this process, for instance when a cell of a notebook runs again. ``check``
        of the former holder then raises an error. A lock of another process is never taken over.

    Raises
    ------
    OutputError
        If another run holds the lock, or the lock file cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], take_over: bool = False) -> None:
        self.path = Path(path)
        self._pid = os.getpid()
        try:
            output = Path(os.path.realpath(path))
            former = _held.get(output)
            if former is not None and former.held:
                if not take_over:
                    raise _in_use(path, "another run of this process")
                former.release()
            file = _lock_file(output)
            handle = _Handle()
            # Before anything is open: whatever interrupts this, nothing stays open or locked.
            self._freed: weakref.finalize[..., object] = weakref.finalize(
                self, _free, handle, file, self._pid
            )
            _take(handle, file, path)
        except OutputError:
            raise
        except (OSError, ValueError) as problem:
            raise OutputError(
                f"cannot write {path}: {getattr(problem, 'strerror', None) or problem}. Check that the folder exists "
                "and that you may write to it"
            ) from problem
        _held[output] = self

    @property
    def held(self) -> bool:
        """Whether this object, in this process, still holds the lock."""
        return self._pid == os.getpid() and self._freed.alive

    def check(self) -> None:
        """Make sure that this object still holds the lock, in this process.

        Raises
        ------
        OutputError
            If the lock was taken over or released, or if this is a forked copy of the process that holds it.
        """
        if self._pid != os.getpid():
            raise _in_use(self.path, f"process {self._pid}, of which this one is a fork,")
        if not self._freed.alive:
            raise _in_use(self.path, "a later run of this process")

    def release(self) -> None:
        """Release the lock. A second call has no effect."""
        self._freed()


class _Handle:
    """An open lock file, or none."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.is_locked = False

    def close(self) -> None:
        """Close it, which also unlocks it."""
        if self.number is not None:
            number, self.number = self.number, None
            with suppress(OSError):
                os.close(number)


def _free(handle: _Handle, file: Path, pid: int) -> None:
    if os.getpid() == pid:
        if handle.is_locked:
            with suppress(OSError):
                file.unlink()  # the file is still locked, so nobody else can have locked it
        handle.close()


def _lock_file(output: Path) -> Path:
    name = f".{output.name}.lock"
    if len(os.fsencode(name)) > 255:
        name = f".{hashlib.sha256(os.fsencode(output.name)).hexdigest()[:32]}.lock"
    return output.with_name(name)


def _take(handle: _Handle, file: Path, output: str | os.PathLike[str]) -> None:
    """Open and lock the lock file."""
    while True:
        handle.number = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(handle.number):
            holder = os.read(handle.number, 200).decode(errors="replace") or "another process"
            handle.close()
            raise _in_use(output, holder)
        if _is_at(handle.number, file):
            break
        handle.close()  # its holder has deleted it in the meantime: make a new one
    handle.is_locked = True
    with suppress(OSError):  # the lock is valid even if the disk is too full for this text
        os.ftruncate(handle.number, 0)
        os.write(handle.number, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _lock(handle: int) -> bool:
    """Whether the file could be locked, or its file system has no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _in_use(output: str | os.PathLike[str], holder: str) -> OutputError:
    return OutputError(
        f"{output} is being written by {holder}. Two runs would mix or overwrite their results: wait for the other "
        "run, end it, or choose another name"
    )
