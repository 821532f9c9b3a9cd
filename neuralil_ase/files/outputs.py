"""Checks before long work begins: results can be written, and they do not overwrite an input."""

import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from neuralil_ase.errors import ConfigError, OutputError


def check_can_write(path: str | os.PathLike[str], longest_suffix: str = "") -> None:
    """Make sure that a file of this name can be written, and one with a longer name beside it.

    Raises
    ------
    OutputError
        If the path is a folder, the name is too long, or its folder is missing or not writable.
    """
    path = Path(path)
    probe = path.with_name(f".{uuid.uuid4().hex[:16]}{longest_suffix}.tmp") if path.name else path
    try:
        if not path.name or path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; give the name of a file")
        if not path.parent.is_dir():
            raise OutputError(
                f"cannot write {path}: there is no folder {path.parent}; make it first"
            )
        path.with_name(f"{path.name}{longest_suffix}").exists()  # too long a name is an OSError
        with open(probe, "xb"):
            pass
    except OutputError:
        raise
    except (OSError, ValueError) as problem:
        raise OutputError(
            f"cannot write {path}: {getattr(problem, 'strerror', None) or problem}. Check that you may write to the "
            "folder, that the disk has room and that the name is not too long"
        ) from problem
    finally:
        with suppress(OSError, ValueError):
            probe.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Make sure that files can be written to this folder, which need not exist yet.

    Raises
    ------
    OutputError
        If the path is a file, or if the folder cannot be made or written to.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise OutputError(
            f"cannot write to the folder {path}: it is a file; remove it, or choose another name"
        )
    check_can_write(path / "a file" if path.is_dir() else path)


def check_is_no_input(
    outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Raise an error if an input file would be overwritten, also through a link.

    Parameters
    ----------
    outputs
        Files to be written.
    inputs
        Files that are read. ``file@0:10``, ASE's notation for a part of a file, stands for the file.

    Raises
    ------
    ConfigError
        If an output is also an input. The message names the file.
    """
    read = [Path(name) for given in inputs for name in _files(os.fspath(given))]
    for output in map(Path, outputs):
        for name in read:
            if _is_same(output, name):
                raise ConfigError(
                    f"{output} is read by this run, which must not overwrite it: the data or model would be lost. Give "
                    "the output another name"
                )


def _files(name: str) -> list[str]:
    """The file that ASE would read for this name."""
    return [name] if os.path.exists(name) or "@" not in name else [name, name.rpartition("@")[0]]


def _is_same(first: Path, second: Path) -> bool:
    try:
        if first.exists() and second.exists():
            return first.samefile(second)
        return first.resolve() == second.resolve()
    except (OSError, ValueError, RuntimeError):  # too long a name, a null byte, a circle of links
        return False
