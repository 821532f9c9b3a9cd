"""``cross_validate``: how accurate potentials with these settings are on frames that they have not seen.

Frames are assigned to the folds in turn, so that neighbours in a trajectory are spread over all folds. For each fold, a
potential is trained on the other frames and evaluated on the fold. As in :func:`train`, the training itself holds out
some of its frames for validation. Neither the number of workers nor an interruption changes a score.
"""

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralil_ase.cross_validation.folds import CrossValidation, FoldFile, FoldScore
from neuralil_ase.engine.concurrency import claim_jax
from neuralil_ase.errors import ConfigError, DataError
from neuralil_ase.evaluation.dataset import Data, Frame, elements_of
from neuralil_ase.evaluation.evaluate import Evaluation, evaluate
from neuralil_ase.evaluation.stresses import check_stresses
from neuralil_ase.model.potential import Potential
from neuralil_ase.progress import Progress
from neuralil_ase.training.checkpoint import fingerprint
from neuralil_ase.training.data import (
    divide,
    files_of,
    read_data,
    warn_of_copies,
    without_isolated_atoms,
)
from neuralil_ase.training.loop import Trainer, fit
from neuralil_ase.training.members import all_answers
from neuralil_ase.training.output import Recorder, plain
from neuralil_ase.training.prepare import prepare
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.warm_start import Start, settings_from, start_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """The frames of one fold: for its training, for validation during training, and for evaluation."""

    number: int
    train: list[Frame]
    validation: list[Frame]
    held_out: list[Frame]


def cross_validate(
    data: Data,
    output: str | Path | None = None,
    *,
    n_folds: int = 5,
    folds: Sequence[int] | None = None,
    settings: TrainingSettings | None = None,
    start_from: str | Path | Potential | None = None,
    progress: bool = False,
    executor: Executor | None = None,
    **options: Any,
) -> CrossValidation:
    """Train on all frames except one fold, evaluate on this fold, and repeat this for every fold.

    Frames are assigned in turn: fold k holds the frames k, k + ``n_folds`` and so on. With ``split_by``, frames of one
    group are in the same fold. If the data have a split of their own, only frames named "train" are assigned to folds;
    frames named "valid" validate every training, and frames named "test" are left out. Isolated atoms are in every
    training and in no fold. No model is kept.

    Parameters
    ----------
    data
        As for :func:`train`.
    output
        File for the scores, one line of JSON for each fold, written as soon as the fold is finished. Folds that are in
        the file are not trained again. Without ``output`` nothing is written.
    n_folds
        Number of folds, 2 or more.
    folds
        Only these folds, counted from 0; by default all.
    settings, **options
        As for :func:`train`.
    start_from
        Model file or potential that every training starts from, as for :func:`train`. It must not have been trained on
        the data, because its errors on training frames are too small.
    progress
        Show the progress on the standard error.
    executor
        A ``concurrent.futures.Executor`` whose workers train one fold each; without it, this process trains one fold
        after the other. In process pools use the start method "spawn", and one or two cores per worker.

    Returns
    -------
    CrossValidation
        The scores of the folds, in their order.

    Raises
    ------
    ConfigError
        If a setting or the number of a fold is wrong, or ``output`` is an input or not a file of scores.
    DataError
        If the data cannot be read or lack labels, if there are fewer frames (or groups) than folds, or if some
        element occurs in one fold only.
    TrainingError
        If a loss is no longer finite, or ``output`` holds scores that were made with other data, settings or another
        ``start_from``.
    OutputError
        If the output cannot be written, or another run writes it.
    ModelFileError
        If ``start_from`` cannot be read.
    ProcessError
        If workers died. The message names the missing folds. A fold whose worker died is first given to another worker.
    """
    chosen = (settings or TrainingSettings()).updated(options)
    numbers = _numbers(n_folds, folds)
    inputs = files_of(data, chosen, start_from)
    with nullcontext() if output is None else FoldFile(output, inputs) as file:
        start = None if start_from is None else start_of(start_from)
        if start is not None:
            chosen = settings_from(start, chosen, options)
        frames, validation = read_data(data, chosen)
        if chosen.stress_weight > 0:
            check_stresses([*frames, *validation])
        fold_of = _folds_of(frames, n_folds, chosen)
        run = _record(frames, validation, fold_of, n_folds, chosen, start)
        found = {} if file is None else file.scores(run)
        missing = [
            _fold(k, frames, validation, fold_of, chosen, start) for k in numbers if k not in found
        ]
        try:
            for score in _scores(missing, chosen, start, executor, progress):
                found[score.fold] = score
                if file is not None:
                    file.append(score, run)
        except KeyboardInterrupt:
            _say_what_is_kept(file, found)
            raise
    return CrossValidation([found[k] for k in numbers], n_folds)


def score_fold(
    fold: Fold, settings: TrainingSettings, start: Start | None, progress: bool = False
) -> FoldScore:
    """The work for one message: train on the other folds and evaluate on this fold."""
    claim_jax()
    began = time.process_time()
    trainer = Trainer(prepare(settings, fold.train, fold.validation, start, progress))
    with Recorder(trainer, None, progress) as recorder:
        run = fit(trainer, recorder.started(), recorder)
    if recorder.reason == "interrupted":
        raise KeyboardInterrupt  # an unfinished fold has no score
    seconds = round(time.process_time() - began, 1)
    evaluation = evaluate(recorder.potential(run), fold.held_out)
    return FoldScore(
        fold.number,
        len(fold.train),
        len(fold.validation),
        len(fold.held_out),
        recorder.reason,
        seconds,
        evaluation.card,
        _by_frame(evaluation),
    )


def _by_frame(evaluation: Evaluation) -> list[float | None]:
    """Force MAE of every frame in meV/Å."""
    comparison = evaluation.comparison
    frames = np.split(np.abs(comparison.force_errors), np.cumsum(comparison.sizes)[:-1])
    known = [errors[np.isfinite(errors)] for errors in frames]
    return [float(f"{1e3 * errors.mean():.4g}") if errors.size else None for errors in known]


def _numbers(n_folds: int, folds: Sequence[int] | None) -> list[int]:
    """The numbers of the folds to score, in order."""
    if not _is_whole(n_folds) or n_folds < 2:
        raise ConfigError(
            f"n_folds must be a whole number and at least 2, got {n_folds!r}: with one fold, no frames would be left "
            "to train on"
        )
    if folds is None:
        return list(range(n_folds))
    if not isinstance(folds, Iterable):
        raise ConfigError(f"folds must be a list of numbers, got {folds!r}")
    numbers = list(folds)
    wrong = [k for k in numbers if not _is_whole(k) or not 0 <= k < n_folds]
    if wrong or not numbers:
        what = f"there is no fold {wrong[0]!r}" if wrong else "give at least one fold"
        raise ConfigError(f"{what}: with n_folds={n_folds}, folds are numbered 0 to {n_folds - 1}")
    return sorted({int(k) for k in numbers})


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _folds_of(
    frames: Sequence[Frame], n_folds: int, settings: TrainingSettings
) -> list[int | None]:
    """The fold of every frame; None for frames that are in no fold."""
    atoms = {id(frame) for frame in without_isolated_atoms(frames, settings)[1]}
    is_named = any(frame.group == "train" for frame in frames)
    keys = [
        None
        if id(frame) in atoms or (is_named and frame.group != "train")
        else frame.source if is_named or frame.group is None else frame.group
        for frame in frames
    ]  # fmt: skip
    order = {key: k for k, key in enumerate(dict.fromkeys(k for k in keys if k is not None))}
    if len(order) < n_folds:
        raise DataError(
            f"cannot make {n_folds} folds of {len(order)} frames (or groups). Give more frames, or use fewer folds"
        )
    return [None if key is None else order[key] % n_folds for key in keys]


def _fold(
    number: int,
    frames: Sequence[Frame],
    validation: Sequence[Frame],
    fold_of: Sequence[int | None],
    settings: TrainingSettings,
    start: Start | None,
) -> Fold:
    """The frames of a fold. Called for all folds before the first training, so that errors are found early."""
    pairs = [*zip(frames, fold_of, strict=True)]
    train, held_back = divide([f for f, k in pairs if k != number], validation, settings)
    held_out = [f for f, k in pairs if k == number]
    warn_of_copies([*train, *held_back], held_out, f"held-out (fold {number})")
    learnt = without_isolated_atoms(train, settings)[0]
    known = elements_of(learnt) if start is None else start.potential.elements
    unknown = sorted(set(elements_of(held_out)) - set(known))
    if unknown:
        raise DataError(
            f"fold {number} holds {', '.join(unknown)}, which no frame holds that is trained on for this fold (only "
            f"{', '.join(known)}). Give more frames with {unknown[0]}, or leave those frames out"
        )
    return Fold(number, train, held_back, held_out)


def _record(
    frames: Sequence[Frame],
    validation: Sequence[Frame],
    fold_of: Sequence[int | None],
    n_folds: int,
    settings: TrainingSettings,
    start: Start | None,
) -> dict[str, Any]:
    """What the scores of one cross-validation have in common."""
    return {
        "settings": plain({**settings.to_dict(), "n_folds": n_folds}),
        "data": {
            **fingerprint(frames, validation),
            "folds": hashlib.sha256(repr([*fold_of]).encode()).hexdigest(),
        },
        "start": None if start is None else start.provenance,
    }


def _scores(
    folds: Sequence[Fold],
    settings: TrainingSettings,
    start: Start | None,
    executor: Executor | None,
    progress: bool,
) -> Iterator[FoldScore]:
    """Scores in the order in which this process or the workers finish them."""
    if executor is None:
        for fold in folds:
            logger.info("fold %d: training on %d frames", fold.number, len(fold.train))
            yield score_fold(fold, settings, start, progress)
        return
    messages = {fold.number: (fold, settings, start) for fold in folds}
    advice = "Folds that were finished are in the output: start a new executor and call again with the same output"
    with Progress(len(folds), "fold", "cross-validation", progress) as bar:
        answers = all_answers(executor, score_fold, messages, "folds", advice)
        for done, (_, score) in enumerate(answers, 1):
            yield score
            bar.update(done)


def _say_what_is_kept(file: FoldFile | None, found: dict[int, FoldScore]) -> None:
    if file is not None and found:
        logger.warning(
            "interrupted: %s holds the folds %s; the same call continues with the others", file.path, sorted(found)
        )  # fmt: skip
