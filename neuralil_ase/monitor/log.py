"""The monitor's log: a plain table that ``numpy.loadtxt`` reads, with its meaning in the header."""

import warnings
from array import array
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuralil_ase.errors import ConfigError, MonitorError, OutputError
from neuralil_ase.files.owned import OwnedFile
from neuralil_ase.monitor.criteria import Criterion, names_column
from neuralil_ase.monitor.restart import Row, matching_step, unknown_structure

ESTIMATOR = (
    "standard deviation over the members of the ensemble with ddof = 1; of a force, per atom, "
    "the norm of the vector of component deviations, sqrt(var_x + var_y + var_z)"
)
FIRST_LINE = "# neuralil_ase monitor log, format 2"
FIXED = ("step", "image", "time_fs", "temperature_K", "energy_eV", "energy_std_eV", "band", "saved")
DIGITS = {"step": 15, "time_fs": 12, "energy_eV": 12}
"""Significant digits in the file, for columns that need more than nine."""


class Log:
    """Rows in memory, and in a file if there is one. Rows that could not be written are kept.

    Parameters
    ----------
    file : OwnedFile or None
    criteria : sequence of Criterion
        With their thresholds.
    append : bool
        Continue an existing file; otherwise it is renamed.

    Raises
    ------
    OutputError
        If the file cannot be written.
    MonitorError
        If `append` is set, but the file is no log with the same columns or has a damaged row.
    """

    def __init__(self, file: OwnedFile | None, criteria: Sequence[Criterion], append: bool) -> None:
        self.columns = column_names(criteria)
        self.clock = (0, 0.0)
        """A step and its time in fs, from which later times are counted."""
        self._head = _header(criteria, self.columns)
        self._values = array("d")
        self._unwritten = b""
        self._earlier: _Table | None = None
        self._file = file
        if file is not None and append:
            self._earlier = self._opened(file)
        if file is not None and self._earlier is None:
            file.set_aside()
            file.append(self._content(), sync=True)

    def resume(self, present: Sequence[Row], done: int, first_step: int | None, atoms: int) -> int:
        """Find the row of the log from which the run continues. Drop later rows, which will be computed again.

        Parameters
        ----------
        present : sequence of Row
            Rows of the structures that the run begins with, one for each image; their step is ignored.
        done : int
            Steps that the dynamics has already counted.
        first_step : int or None
            Number to add to `done`; None to find this number by comparing `present` with the log.
        atoms : int
            Number of atoms of a structure.

        Returns
        -------
        int
            Number to add to the steps that the dynamics counts.

        Raises
        ------
        MonitorError
            If `first_step` is None and no row belongs to the present structure. The log is then unchanged.
        """
        table = self._earlier
        if table is None or self._file is None or len(table.rows) == 0:
            return first_step or 0
        found = matching_step(present, table.as_dict(), atoms)
        if first_step is None and found is None:
            raise unknown_structure(self._file.path, present, table.as_dict())
        offset = first_step if first_step is not None else (found or 0) - done
        step = offset + done
        if found is not None and found != step:
            warnings.warn(
                f"{self._file.path}: first_step = {first_step} puts this structure at step {step}, but it is that of "
                f"step {found} in the log. Leave first_step out to continue from there",
                stacklevel=2,
            )
        self._go_on(self._file, table, step)
        self._earlier = None
        return offset

    def add(self, row: Row) -> None:
        """Add a row; columns that are not given hold nan. MonitorError if it cannot be written."""
        values = [float(row.get(name, np.nan)) for name in self.columns]
        self._values.extend(values)
        if self._file is not None:
            self._unwritten += self._text(values)
            self.flush()

    def flush(self) -> None:
        """Write the rows that an earlier failure left in memory."""
        if self._file is None or not self._unwritten:
            return
        told = None
        try:
            if self._file.changed:
                told = self._restore(self._file)
            else:
                self._file.append(self._unwritten, sync=False)
        except OutputError as problem:
            raise waiting(problem, f"{len(self._unwritten.splitlines())} row(s)") from problem
        self._unwritten = b""
        if told:
            warnings.warn(told, stacklevel=2)

    def as_dict(self) -> dict[str, np.ndarray]:
        """All rows so far, by column, including the rows of earlier parts of a resumed run."""
        rows = np.frombuffer(self._values.tobytes()).reshape(-1, len(self.columns))
        return _Table([], self.columns, rows).as_dict()

    def _opened(self, file: OwnedFile) -> "_Table | None":
        """The rows that an earlier part of the run left; None without any, or if the file ends inside its header."""
        content = file.read()
        whole = _whole_lines(content)
        table = _parsed(file.path, content[:whole] or content)
        if table is not None and table.columns != self.columns:
            raise MonitorError(
                f"{file.path} was written with other criteria (columns {' '.join(table.columns[len(FIXED) :])}); "
                "resume with the same ones, or choose another log. The file was not touched"
            )
        if table is not None and whole < len(content):
            aside = file.cut_tail(whole)
            warnings.warn(
                f"the last line of {file.path} is not complete, as after a kill; it was moved to {aside}",
                stacklevel=2,
            )
        return table

    def _go_on(self, file: OwnedFile, table: "_Table", step: int) -> None:
        """Keep the rows before `step`. If later rows are dropped, a copy of the file is kept under another name."""
        steps = table.rows[:, 0]
        kept = table.rows[steps < step]
        note = f"# resumed at step {step}"
        if (steps > step).any():
            aside = file.keep_copy()
            note += f"; the rows from there to step {steps.max():.0f}, computed again since, are in {aside.name}"
        known = set(table.comments)
        self._head = [
            *table.comments,
            f"{note}\n",
            *(line for line in self._head if line not in known),
        ]
        self._values.extend(kept.ravel())
        file.replace(self._content())
        reached = table.rows[steps <= step]
        times = reached[-1:, FIXED.index("time_fs")]
        if times.size and np.isfinite(times[0]):
            self.clock = (int(reached[-1, 0]), float(times[0]))

    def _restore(self, file: OwnedFile) -> str | None:
        """Repair the file after another program changed or deleted it; returns what the user should be told."""
        added = file.added()
        if added == self._unwritten:
            file.read()  # our own rows: an interrupt came just after they were written
            return None
        if added is not None and all(
            line[:1] in b"#\n\r" for line in added.splitlines(keepends=True)
        ):
            if added.endswith(b"\n"):
                file.append(self._unwritten, sync=False)  # only comments were appended
                return None
        elif added is not None:
            raise OutputError(
                f"{file.path}: {len(added)} bytes were added to this log by another program, usually by a second run "
                "with the same log. Give each its own, and remove the other's rows here"
            )
        aside = file.set_aside()
        file.append(self._content(), sync=True)
        what = (
            "was deleted or emptied"
            if aside is None
            else f"was changed by another program, is now {aside},"
        )
        return f"{file.path} {what} and was written again, with all rows of this run"

    def _content(self) -> bytes:
        """The whole content of the file."""
        rows = np.frombuffer(self._values.tobytes()).reshape(-1, len(self.columns))
        return "".join(self._head).encode() + b"".join(map(self._text, rows))

    def _text(self, values: Sequence[float] | np.ndarray) -> bytes:
        words = (
            f"{value:.{DIGITS.get(name, 9)}g}"
            for name, value in zip(self.columns, values, strict=True)
        )
        return (" ".join(words) + "\n").encode()


def read_log(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The columns of a monitor's log, by name. An incomplete last line, left by a killed run, is ignored.

    Parameters
    ----------
    path : str or path
        The log.

    Returns
    -------
    dict of str to array
        Arrays of shape (rows,), float64. Units are part of the names ("time_fs", "energy_eV"), or in the header of the
        file for the criteria. Numbers that are not known are NaN; an atom of -1 stands for the whole frame.

    Raises
    ------
    MonitorError
        If the file is no such log, or a row is damaged.
    OSError
        If the file cannot be read.
    """
    target = Path(path)
    content = target.read_bytes()
    table = _parsed(target, content[: _whole_lines(content)] or content)
    if table is None:
        raise MonitorError(f"{target} holds no more than the beginning of a log's header")
    return table.as_dict()


def column_names(criteria: Sequence[Criterion]) -> tuple[str, ...]:
    """The fixed columns, then value and atom of each criterion.

    Raises
    ------
    ConfigError
        If there is no criterion, or if a column would have no name or the same name as another one.
    """
    if not criteria:
        raise ConfigError("criteria is empty: give at least one, e.g. [MaxForceSpread(0.5)]")
    for criterion in criteria:
        if not isinstance(criterion, Criterion):
            raise ConfigError(
                f"criteria must hold criteria such as MaxForceSpread(0.5), got {criterion!r:.80}"
            )
        if not names_column(criterion.name):
            raise ConfigError(
                f"{type(criterion).__name__} needs a name for its log column: set its kind, no blanks"
            )
    names = (*FIXED, *(name for c in criteria for name in (c.name, f"{c.name}_atom")))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"two columns of the log would be called {twice[0]}; tell criteria apart with label=, which names them"
        )
    return names


def waiting(problem: Exception, what: str) -> MonitorError:
    """The error for records that stay in memory after `problem`."""
    return MonitorError(
        f"{problem}. {what} wait in memory and are not lost: remove the cause and call monitor.flush() in this session"
    )


class _Table(NamedTuple):
    """The content of a log: comments with their line ends, columns, rows."""

    comments: list[str]
    columns: tuple[str, ...]
    rows: np.ndarray

    def as_dict(self) -> dict[str, np.ndarray]:
        return {name: self.rows[:, i].copy() for i, name in enumerate(self.columns)}


def _parsed(path: Path, content: bytes) -> _Table | None:
    """Read a log; None where it is empty or ends inside its header.

    Raises a MonitorError if it is no log, or if a row is damaged.
    """
    first, title = FIRST_LINE.encode(), b"# step "
    lines = content.splitlines(keepends=True)
    comments = [line.decode(errors="replace") for line in lines if line.startswith(b"#")]
    titles = [line for line in lines if line.startswith(title)]
    if not titles and first.startswith(content[: len(first)]) and len(comments) == len(lines):
        return None
    if not titles or lines[0].strip() != first:
        raise MonitorError(
            f"{path} is not a monitor log of this format: its first line should read {FIRST_LINE!r}. Choose another "
            "name; the file was not touched"
        )
    columns = tuple(titles[-1].decode(errors="replace")[2:].split())
    rows = [
        _row(path, number, line, len(columns))
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.startswith(b"#")
    ]
    return _Table(comments, columns, np.array(rows).reshape(-1, len(columns)))


def _row(path: Path, number: int, line: bytes, width: int) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = []
    if len(values) != width or not np.isfinite(values[0]):
        raise MonitorError(
            f"{path}: line {number} is damaged: it should hold {width} numbers, but reads {line[:60]!r}. Correct or "
            "remove this line; or begin a new log with append=False, which keeps this one under another name. The "
            "file was not touched"
        )
    return values


def _whole_lines(content: bytes) -> int:
    """Length of the complete lines. Zero bytes that a power cut can leave at the end of a file are no line."""
    return content.rstrip(b"\0").rfind(b"\n") + 1


def _header(criteria: Sequence[Criterion], columns: Sequence[str]) -> list[str]:
    """The comment lines at the top of a log."""
    lines = [
        FIRST_LINE,
        f"# spread: {ESTIMATOR}",
        *(_criterion_line(criterion) for criterion in criteria),
        "# band: 0 trusted, 1 candidate, 2 high (worst criterion of this row, before patience)",
        "# saved: frames written at this row; image: -1 unless several images are followed",
        "# nan: not evaluated at this step, or no number; atom -1: belongs to the whole frame",
        "# " + " ".join(columns),
    ]
    return [f"{line}\n" for line in lines]


def _criterion_line(criterion: Criterion) -> str:
    unit = criterion.unit or "1"
    high = "no high band" if criterion.high is None else f"high from {criterion.high:g}"
    side = "small values are bad" if criterion.below else "large values are bad"
    return (
        f"# criterion {criterion.name} [{unit}]: candidate from {criterion.low:g}, {high}; {side}"
    )
