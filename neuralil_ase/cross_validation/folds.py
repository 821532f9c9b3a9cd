"""Scores of the folds of a cross-validation: on disk as lines of JSON, in memory, and as a table."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neuralil_ase.errors import ConfigError
from neuralil_ase.evaluation.metrics import Card
from neuralil_ase.files.outputs import check_is_no_input
from neuralil_ase.files.owned import OwnedFile
from neuralil_ase.training.checkpoint import check_same_run

logger = logging.getLogger(__name__)
FREE = ("checkpoint_every", "memory_budget")
"""Settings that may differ between the folds of one file: the scores do not depend on them."""
UNITS = (
    "Energies in meV/atom (offset removed: after subtracting the mean error of the fold), forces in meV/Å, stresses in "
    "meV/Å³."
)


@dataclass(frozen=True)
class FoldScore:
    """The errors on one fold, made by a potential that was trained on the other folds.

    Attributes
    ----------
    fold
        Number of the fold, counted from 0.
    train, validation, held_out
        Number of frames for training, number held out by the training itself for validation, and number in the fold.
    reason
        Why the training ended: "finished" or "time limit".
    cpu_seconds
        CPU time of the process during the training and its preparation.
    card
        The errors on the fold; see ``metrics.accuracy``.
    force_mae_by_frame
        Force MAE of every frame of the fold in meV/Å, None without forces. One unusual frame can spoil the mean of a
        fold; the median shows it.
    """

    fold: int
    train: int
    validation: int
    held_out: int
    reason: str
    cpu_seconds: float
    card: Card = field(repr=False)
    force_mae_by_frame: list[float | None] = field(repr=False)

    @property
    def errors(self) -> dict[str, float]:
        """The errors in the table, in meV/atom, meV/Å and meV/Å³. Errors are left out if the data lack their labels."""
        found = {name: value(self) for name, (_, value) in _ERRORS.items()}
        return {name: float(x) for name, x in found.items() if x is not None}


@dataclass(frozen=True, repr=False)
class CrossValidation:
    """The result of a cross-validation; ``print`` shows it as a table.

    Attributes
    ----------
    scores
        One for each fold, in their order.
    n_folds
        Number of folds to which the frames were assigned.
    """

    scores: list[FoldScore]
    n_folds: int

    @property
    def mean(self) -> dict[str, float]:
        """Mean over the folds of each of their ``errors``."""
        every = [score.errors for score in self.scores]
        return {
            name: float(np.mean([errors[name] for errors in every if name in errors]))
            for name in _ERRORS
            if any(name in errors for errors in every)
        }

    def table(self) -> str:
        """One row for each fold, and their mean, as plain text."""
        mean = self.mean
        titles = [title for name, (title, _) in _ERRORS.items() if name in mean]
        rows = [f"fold  to train  held out   CPU s  {'  '.join(titles)}"]
        for one in self.scores:
            counts = f"{one.fold:4d}  {one.train:8d}  {one.held_out:8d}  {one.cpu_seconds:6.0f}"
            rows.append(f"{counts}  {_cells(one.errors, mean)}")
        return "\n".join([*rows, f"mean{'':30s}{_cells(mean, mean)}", UNITS])

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        mean = self.mean
        named = (("energy_mae", "energies", "meV/atom"), ("force_mae", "forces", "meV/Å"))
        errors = [f"{name} {mean[key]:.3g} {unit}" for key, name, unit in named if key in mean]
        of = f"{len(self.scores)} of {self.n_folds} folds"
        return f"<CrossValidation: {of}, MAE of {', '.join(errors)}>"


def _cells(errors: Mapping[str, float], mean: Mapping[str, float]) -> str:
    shown = (name for name in _ERRORS if name in mean)
    widths = {name: len(title) for name, (title, _) in _ERRORS.items()}
    texts = ((n, f"{errors[n]:.2f}" if n in errors else "–") for n in shown)
    return "  ".join(f"{text:>{widths[n]}}" for n, text in texts)


def _entry(*path: str) -> Callable[[FoldScore], float | None]:
    """A function that reads an entry of the card; it returns None if the entry is missing."""

    def read(score: FoldScore) -> float | None:
        found: Any = score.card
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, int | float) else None

    return read


def _offset_removed(score: FoldScore) -> float | None:
    """The energy MAE without offset; None for a single frame, for which it would always be zero."""
    found = _entry("energy_meV_per_atom", "offset_removed", "mae")(score)
    return found if score.held_out > 1 else None


def _over_frames(
    function: Callable[[list[float]], float],
) -> Callable[[FoldScore], float | None]:
    def over(score: FoldScore) -> float | None:
        known = [x for x in score.force_mae_by_frame if x is not None]
        return function(known) if known else None

    return over


_ERRORS: dict[str, tuple[str, Callable[[FoldScore], float | None]]] = {
    "energy_mae": ("energy MAE", _entry("energy_meV_per_atom", "mae")),
    "energy_mae_offset_removed": ("offset removed", _offset_removed),
    "force_mae": ("force MAE", _entry("force_meV_per_A", "mae")),
    "force_rmse": ("force RMSE", _entry("force_meV_per_A", "rmse")),
    "force_mae_one_member": ("one member", _entry("members", "force_mae")),
    "force_mae_median_frame": ("median frame", _over_frames(lambda x: float(np.median(x)))),
    "force_mae_worst_frame": ("worst frame", _over_frames(max)),
    "stress_mae": ("stress MAE", _entry("stress_meV_per_A3", "mae")),
}
"""Names of the errors in ``FoldScore.errors``, with their title in the table and the function that reads them."""


class FoldFile:
    """The file with the scores of one cross-validation, locked until the object is closed; a context manager.

    Parameters
    ----------
    path
        A new file, or the file of the same cross-validation, which is then continued.
    inputs
        Files that the run reads.

    Raises
    ------
    OutputError
        If the file cannot be written, or another run writes it.
    ConfigError
        If the file is one of the inputs, or if it exists and does not hold scores.
    """

    def __init__(self, path: str | Path, inputs: Iterable[str | Path]) -> None:
        self.path = Path(path)
        check_is_no_input([self.path], inputs)
        self._file = OwnedFile(self.path, "output of the cross-validation")
        try:
            self._lines = _read(self._file)
        except BaseException:
            self._file.release()
            raise

    def __enter__(self) -> "FoldFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.release()

    def scores(self, run: Mapping[str, Any]) -> dict[int, FoldScore]:
        """The scores in the file, which must be of this run.

        Raises
        ------
        TrainingError
            If the scores were made with other data, settings or another start. The message says which.
        """
        for _, before in self._lines:
            check_same_run(
                self.path, before, run["settings"], run["data"], run["start"],
                free=FREE, otherwise="write to another file",
            )  # fmt: skip
        return {score.fold: score for score, _ in self._lines}

    def append(self, score: FoldScore, run: Mapping[str, Any]) -> None:
        """Write a score.

        Raises
        ------
        OutputError
            If the score cannot be written. The file is then unchanged.
        """
        line = json.dumps(asdict(score) | {"run": dict(run)}) + "\n"
        self._file.append(line.encode(), sync=True)


def _read(file: OwnedFile) -> list[tuple[FoldScore, dict[str, Any]]]:
    """Scores and their runs. An incomplete last line, left by a killed run, is moved to another file."""
    content = file.read()
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].decode(errors="replace").splitlines()
    found = [_line(file.path, number, line) for number, line in enumerate(lines, 1)]
    if whole < len(content):
        if not found and not content.startswith(b'{"fold": '):
            raise _not_ours(file.path, "line 1")
        aside = file.cut_tail(whole)
        logger.warning(
            "%s ended with half a line, which is kept as %s; its fold is trained again", file.path, aside.name
        )  # fmt: skip
    return found


_TYPES: dict[str, tuple[type, ...]] = {
    "fold": (int,),
    "train": (int,),
    "validation": (int,),
    "held_out": (int,),
    "reason": (str,),
    "cpu_seconds": (int, float),
    "card": (dict,),
    "force_mae_by_frame": (list,),
    "settings": (dict,),
    "data": (dict,),
    "start": (dict, type(None)),
}


def _line(path: Path, number: int, line: str) -> tuple[FoldScore, dict[str, Any]]:
    try:
        values = json.loads(line)
        run = values.pop("run")
        score = FoldScore(**values)
        damaged = [key for key, kinds in _TYPES.items() if type((values | run)[key]) not in kinds]
        damaged += ["force_mae_by_frame"] * (not all(map(_is_error, score.force_mae_by_frame)))
        if damaged:
            raise ValueError(f"the entry {damaged[0]!r} is damaged")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _not_ours(path, f"line {number}: {type(error).__name__}: {error}") from error
    return score, run


def _is_error(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _not_ours(path: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"{path} exists and does not hold the scores of a cross-validation ({problem}), so nothing is written to it. "
        "Give the output another name, or remove the file"
    )
