"""The monitor's log: a plain table that ``numpy.loadtxt`` reads, with its meaning in the header."""

from array import array
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from neuralil_ase.errors import MonitorError
from neuralil_ase.monitor.criteria import Criterion
from neuralil_ase.monitor.files import (
    append_record,
    drop_partial_tail,
    replace_file,
    waiting,
    whole_lines,
)
from neuralil_ase.monitor.protocols import ESTIMATOR

FIRST_LINE = "# neuralil_ase monitor log, format 1"
NEWLINE = b"\n"
FIXED = (
    "step",
    "image",
    "time_fs",
    "temperature_K",
    "energy_eV",
    "energy_std_eV",
    "level",
    "saved",
)


def column_names(criteria: Sequence[Criterion]) -> tuple[str, ...]:
    """The fixed columns, then value and atom of each criterion."""
    own = [name for c in criteria for name in (c.name, f"{c.name}_atom")]
    return (*FIXED, *own)


def header(criteria: Sequence[Criterion], columns: Sequence[str]) -> str:
    """The comment lines at the top of a log."""
    lines = [
        FIRST_LINE,
        f"# spread: {ESTIMATOR}",
        *(_criterion_line(criterion) for criterion in criteria),
        "# level: 0 trusted, 1 candidate, 2 high (worst criterion of this row, before patience)",
        "# saved: frames written at this row; image: -1 unless several images are followed",
        "# nan: not evaluated at this step, or no number; atom -1: belongs to the whole frame",
        "# " + " ".join(columns),
    ]
    return "\n".join(lines) + "\n"


class Table:
    """Rows in memory, and in a file if there is one. Rows that could not be written are kept.

    Parameters
    ----------
    path : Path or None
    criteria : sequence of Criterion
        With their thresholds.
    resume_before : int or None
        Go on with the file, keeping its rows before this step. None begins a new file.
    """

    def __init__(
        self, path: Path | None, criteria: Sequence[Criterion], resume_before: int | None
    ) -> None:
        self.path = path
        self.columns = column_names(criteria)
        self._values = array("d")
        self._unwritten = b""
        if path is None:
            return
        if resume_before is not None and path.exists() and path.stat().st_size > 0:
            self._resume(path, resume_before)
        else:
            append_record(path, header(criteria, self.columns).encode(), sync=True)

    def add(self, row: Mapping[str, float]) -> None:
        """Add a row; columns that are not given hold nan. MonitorError if the disk refuses it."""
        values = [float(row.get(name, np.nan)) for name in self.columns]
        self._values.extend(values)
        if self.path is not None:
            self._unwritten += (" ".join(f"{value:.9g}" for value in values) + "\n").encode()
            self.flush()

    def flush(self) -> None:
        """Write the rows that an earlier failure left in memory."""
        if self._unwritten and self.path is not None:
            try:
                append_record(self.path, self._unwritten, sync=False)
            except MonitorError as problem:
                raise waiting(problem, f"{self._unwritten.count(NEWLINE)} row(s)") from problem
            self._unwritten = b""

    def as_dict(self) -> dict[str, np.ndarray]:
        """All rows so far, by column; those of earlier parts of a resumed run included."""
        rows = np.frombuffer(self._values.tobytes()).reshape(-1, len(self.columns))
        return {name: rows[:, i].copy() for i, name in enumerate(self.columns)}

    def _resume(self, path: Path, before: int) -> None:
        drop_partial_tail(path, whole_lines)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        _check_columns(path, lines, self.columns)
        comments = [line for line in lines if line.startswith("#")]
        rows = [line for line in lines if not line.startswith("#")]
        kept = [line for line in rows if float(line.split()[0]) < before]
        if len(kept) < len(rows):
            replace_file(path, "".join(comments + kept).encode())
        for line in kept:
            self._values.extend(float(word) for word in line.split())


def last_step(path: Path) -> int | None:
    """The step of the last row of a log; None without rows."""
    if not path.exists():
        return None
    content = path.read_bytes()
    lines = content[: whole_lines(content, path)].decode().splitlines()
    if not lines:
        return None
    _columns_in(path, lines)
    rows = [line for line in lines if not line.startswith("#")]
    return int(float(rows[-1].split()[0])) if rows else None


def read_log(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The columns of a monitor's log, by name; a half line left by a kill is passed over.

    Raises
    ------
    MonitorError
        If the file is not such a log.
    """
    target = Path(path)
    content = target.read_bytes()
    lines = content[: whole_lines(content, target)].decode("utf-8").splitlines()
    columns = _columns_in(target, lines)
    rows = [[float(word) for word in line.split()] for line in lines if not line.startswith("#")]
    table = np.array(rows).reshape(-1, len(columns))
    return {name: table[:, i] for i, name in enumerate(columns)}


def _columns_in(path: Path, lines: Sequence[str]) -> tuple[str, ...]:
    titles = [line for line in lines if line.startswith("# step ")]
    if not lines or lines[0].strip() != FIRST_LINE or not titles:
        raise MonitorError(
            f"{path} is not a monitor log of this format: its first line should read "
            f"{FIRST_LINE!r}. Choose another name; the file was not touched."
        )
    return tuple(titles[-1][2:].split())


def _check_columns(path: Path, lines: Sequence[str], columns: Sequence[str]) -> None:
    found = _columns_in(path, lines)
    if found != tuple(columns):
        raise MonitorError(
            f"{path} was written with other criteria (columns {' '.join(found[len(FIXED) :])}); "
            "resume with the same ones, or choose another log. The file was not touched."
        )


def _criterion_line(criterion: Criterion) -> str:
    unit = criterion.unit or "1"
    high = "no high band" if criterion.high is None else f"high from {criterion.high:g}"
    side = "small values are bad" if criterion.below else "large values are bad"
    return (
        f"# criterion {criterion.name} [{unit}]: candidate from {criterion.low:g}, {high}; {side}"
    )
