"""``train``: from data files to a model file, in one call."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neuralil_ase.array_record import ArrayRecord, count
from neuralil_ase.engine.concurrency import claim_jax
from neuralil_ase.errors import DataError, OutputError
from neuralil_ase.evaluation.calibrate import calibrate_potential
from neuralil_ase.evaluation.dataset import Data, Frame, is_isolated_atom
from neuralil_ase.evaluation.evaluate import Evaluation, evaluation_of, predict_frames
from neuralil_ase.evaluation.metrics import Card, errors_in_words
from neuralil_ase.evaluation.stresses import check_stresses
from neuralil_ase.files.model_file import save_potential
from neuralil_ase.model.potential import Potential
from neuralil_ase.training.data import files_of, load_data
from neuralil_ase.training.loop import History, Trainer, fit
from neuralil_ase.training.members import Job, train_members
from neuralil_ase.training.output import Output, Recorder
from neuralil_ase.training.prepare import prepare
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.warm_start import settings_from, start_of

logger = logging.getLogger(__name__)
MAX_TRAINING_FRAMES = 200
"""Largest number of training frames that are evaluated at the end. The card says how many were."""


@dataclass(frozen=True, eq=False, repr=False)
class TrainingResult(ArrayRecord):
    """The result of a training run.

    Attributes
    ----------
    potential
        The potential with the lowest validation loss. Without validation, the last one.
    history
        One record per epoch.
    reason
        Why the run ended: "finished", "time limit" or "interrupted".
    train, validation
        The training and validation frames.
    accuracy
        The cards of the data sets "train" and "validation", see ``metrics.accuracy``; empty without a report.
    output
        The model file. None if ``output`` was not given, or if the run ended before it had a model.
    """

    potential: Potential
    history: History
    reason: str
    train: list[Frame]
    validation: list[Frame]
    accuracy: dict[str, Card] = field(default_factory=dict)
    output: Path | None = None

    def __repr__(self) -> str:
        parts = [
            f"{self.reason} after {count(len(self.history), 'epoch')}",
            f"{count(len(self.train), 'frame')} for training, {len(self.validation)} for validation",
            f"({self.potential!r})",
        ]
        if "validation" in self.accuracy:
            parts.append(f"validation: {errors_in_words(self.accuracy['validation'])}")
        return f"TrainingResult: {', '.join(parts)}"


def train(
    data: Data,
    output: str | Path | None = None,
    *,
    settings: TrainingSettings | None = None,
    start_from: str | Path | Potential | None = None,
    resume: bool = False,
    progress: bool = False,
    report: bool = True,
    executor: Executor | None = None,
    **options: Any,
) -> TrainingResult:
    """Train an ensemble on labelled structures.

    Parameters
    ----------
    data
        One or several files that ASE reads, or a list of ``Atoms`` with calculator results.
    output
        Model file to write. The run also writes ``<output>.checkpoint``, ``<output>.log`` (a line of JSON per epoch)
        and the folder ``<output>.report`` with pictures. Files of an earlier run are renamed to ``<name>.1`` when this
        run has a new file to write. Without ``output`` nothing is written.
    settings
        All settings; the defaults train well.
    start_from
        Model file or potential to start from, for instance if frames were added to its data, or to learn frames of a
        more expensive method. The run begins with the predictions of this potential and keeps its architecture and
        repulsion radii. The energy reference is also kept, unless the energies of the data have another zero. Learning
        rate and schedule start again. Hold out the same frames as before (``split_by``, ``validation_files``): on
        frames that the old run has learnt, errors and error bars are too small.
    resume
        Continue from the checkpoint beside ``output``, if there is one. The result is the same as without interruption.
    progress
        Show a progress bar on the standard error. If that is not a terminal, write a line every ten seconds.
    report
        At the end, evaluate training and validation frames, calibrate the spreads on the validation frames, store the
        results in the model and draw pictures.
    executor
        A ``concurrent.futures.Executor`` whose workers train one member each. This process joins the members, and
        evaluates and calibrates the ensemble. Each member keeps its own best epoch; the result depends neither on the
        number of workers nor on their order. Finished members are kept in ``<output>.members``, and ``resume`` trains
        only the missing ones. The log is written at the end. In process pools use the start method "spawn", and one or
        two cores per worker.
    **options
        Single settings, which take precedence over ``settings``; see :class:`TrainingSettings`.

    Raises
    ------
    DataError
        If the data cannot be read, lack labels, or contain elements that ``start_from`` does not know.
    ConfigError
        If a setting is unknown or wrong, or contradicts the architecture of ``start_from``. Also if ``output`` is one
        of the files that are read, or exists and is not a model.
    TrainingError
        If the loss is no longer finite (the last good model has then been written), or if a run cannot be resumed
        because data, settings or ``start_from`` have changed.
    OutputError
        If a file cannot be written, or another run writes to the same output.
    ModelFileError
        If ``start_from`` or the checkpoint cannot be read.
    ProcessError
        If workers died (the message names the missing members), or if this process was forked from one in which JAX
        has computed.
    """
    claim_jax()
    chosen = (settings or TrainingSettings()).updated(options)
    inputs = files_of(data, chosen, start_from)
    with nullcontext() if output is None else Output(output, inputs, report) as files:
        start = None if start_from is None else start_of(start_from)
        if start is not None:
            chosen = settings_from(start, chosen, options)
        frames = load_data(data, chosen)
        if chosen.stress_weight > 0:
            check_stresses([*frames[0], *frames[1]])
        if executor is None:
            trainer = Trainer(prepare(chosen, *frames, start, progress))
            found = _train_here(trainer, files, resume, progress)
        else:
            job = Job(chosen, *frames, start)
            found = train_members(job, executor, files, resume, progress)
        written = files.model if files is not None and files.has_model else None
        result = TrainingResult(*found, *frames, output=written)
        return _with_report(result) if report and result.history else result


def _train_here(
    trainer: Trainer, files: Output | None, resume: bool, progress: bool
) -> tuple[Potential, History, str]:
    """Train all members together; returns the potential, the history, and why the run ended."""
    with Recorder(trainer, files, progress) as recorder:
        run = fit(trainer, recorder.resumed() if resume else recorder.started(), recorder)
    return recorder.potential(run), run.history, recorder.reason


def _with_report(result: TrainingResult) -> TrainingResult:
    """Evaluate and calibrate the result. The model is already on disk, so the user may interrupt this."""
    try:
        potential, accuracy = finish(
            result.potential, result.train, result.validation, result.output, result.history
        )
    except KeyboardInterrupt:
        logger.warning("interrupted: the model was neither evaluated nor calibrated")
        return replace(result, reason="interrupted")
    return replace(result, potential=potential, accuracy=accuracy)


def finish(
    potential: Potential,
    train: Sequence[Frame],
    validation: Sequence[Frame],
    output: str | Path | None,
    history: Sequence[Mapping[str, Any]],
) -> tuple[Potential, dict[str, Card]]:
    """Evaluate and calibrate a trained potential. If ``output`` is given, write it again, with pictures.

    Returns
    -------
    Potential
        With the accuracy in its provenance and, if there are enough validation frames, a calibration.
    dict
        The cards of "train" and "validation".
    """
    evaluations = _evaluations(potential, train, validation)
    cards = {name: evaluation.card for name, evaluation in evaluations.items()}
    potential = replace(potential, provenance={**potential.provenance, "accuracy": cards})
    if "validation" in evaluations:
        potential = _calibrated(potential, train, evaluations["validation"])
    if output is not None:
        save_potential(potential, output)
        comparisons = {name: evaluation.comparison for name, evaluation in evaluations.items()}
        _draw(f"{output}.report", comparisons, history, potential.calibration)
    return potential, cards


def _draw(folder: str, *what: Any) -> None:
    """Draw the pictures of the run. If that fails, only warn: the model is already on disk."""
    from neuralil_ase.evaluation.report import write_report

    try:
        write_report(folder, *what)
    except OutputError as error:
        logger.warning("the pictures could not be written: %s", error)


def _evaluations(
    potential: Potential, train: Sequence[Frame], validation: Sequence[Frame]
) -> dict[str, Evaluation]:
    several = [frame for frame in train if not is_isolated_atom(frame, potential.r_cut)]
    shown = several[:: -(-len(several) // MAX_TRAINING_FRAMES)]
    # One call for both sets, so that few shapes are compiled.
    predictions = predict_frames(potential, [*shown, *validation])
    n = len(shown)
    evaluations = {"train": evaluation_of(shown, predictions[:n])}
    if validation:
        evaluations["validation"] = evaluation_of(validation, predictions[n:])
    return evaluations


def _calibrated(potential: Potential, train: Sequence[Frame], held_out: Evaluation) -> Potential:
    data = f"the {len(held_out.frames)} validation frames of the training run"
    try:
        return calibrate_potential(potential, held_out, train, data)
    except DataError as error:
        logger.warning("not calibrated: %s", error)
        return potential
