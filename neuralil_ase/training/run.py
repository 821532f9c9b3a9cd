"""``train``: from data files to a model file, in one call."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase import Atoms
from tqdm import tqdm

from neuralil_ase.errors import DataError
from neuralil_ase.model_file import save_potential
from neuralil_ase.potential import Potential
from neuralil_ase.training.checkpoint import (
    Checkpoint,
    check_same_run,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from neuralil_ase.training.dataset import (
    Frame,
    Keys,
    drop_absurd,
    frames_from_atoms,
    read_frames,
    split,
)
from neuralil_ase.training.fit import History, Run, Trainer, fit, log_line
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.task import prepare

logger = logging.getLogger(__name__)
Data = Sequence[str | Path] | Sequence[Atoms] | str | Path


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves.

    Attributes
    ----------
    potential
        The best potential: of the lowest validation loss, or the last without validation.
    history
        One record per epoch.
    reason
        Why it ended: "finished", "time limit" or "interrupted".
    train, validation
        The frames on either side of the split.
    """

    potential: Potential
    history: History
    reason: str
    train: list[Frame]
    validation: list[Frame]


def train(
    data: Data,
    output: str | Path | None = None,
    *,
    settings: TrainingSettings | None = None,
    resume: bool = False,
    progress: bool = False,
    **options: Any,
) -> TrainingResult:
    """Train an ensemble on labelled structures.

    Parameters
    ----------
    data
        One or several files that ASE reads, or a list of ``Atoms`` with calculator results.
    output
        Model file to write. Beside it appear ``<output>.checkpoint`` and ``<output>.log`` (a line of JSON per epoch).
        Without it nothing is written.
    settings
        All options; the defaults train well.
    resume
        Go on from the checkpoint beside ``output``, if there is one, exactly as if never interrupted.
    progress
        Show a progress bar on the standard error.
    **options
        Single options, on top of ``settings``; see :class:`TrainingSettings`.

    Raises
    ------
    DataError
        If the data cannot be read or lack what is needed.
    ConfigError
        If an option is unknown or wrong.
    TrainingError
        If the loss is no longer finite (the last good model has then been written), or a run cannot be resumed
        because data or settings have changed.
    ModelFileError
        If a file cannot be written.
    """
    chosen = (settings or TrainingSettings()).updated(options)
    train_frames, validation_frames = load_data(data, chosen)
    task = prepare(chosen, train_frames, validation_frames)
    trainer = Trainer(task)
    recorder = _Recorder(trainer, output, progress)
    with recorder:
        run = fit(trainer, recorder.resumed() if resume else recorder.started(), recorder)
    return TrainingResult(
        recorder.potential(run), run.history, recorder.reason, train_frames, validation_frames
    )


def load_data(data: Data, settings: TrainingSettings) -> tuple[list[Frame], list[Frame]]:
    """Training and validation frames, checked."""
    keys = Keys(settings.energy_key, settings.forces_key, settings.stress_key)
    items: list[Any] = [data] if isinstance(data, str | Path) else list(data)
    if items and all(isinstance(item, Atoms) for item in items):
        frames = frames_from_atoms(items, keys, settings.split_by)
    else:
        frames = read_frames(items, keys, settings.split_by)
    frames = drop_absurd(frames, settings.max_force)
    if settings.validation_files:
        validation = read_frames(settings.validation_files, keys, None)
        training = frames
    else:
        training, validation = split(frames, settings.validation_fraction, settings.seed)
    if 0 < settings.max_frames < len(training):
        rng = np.random.default_rng((settings.seed, 3))
        picked = np.sort(rng.permutation(len(training))[: settings.max_frames])
        training = [training[k] for k in picked]
    if not training:
        raise DataError("no frames are left to train on")
    return training, validation


class _Recorder:
    """Writes log, checkpoints and models, and moves the progress bar."""

    def __init__(self, trainer: Trainer, output: str | Path | None, progress: bool) -> None:
        self.trainer = trainer
        self.reason = "finished"
        self._output = None if output is None else Path(output)
        self._data = fingerprint([*trainer.task.train, *trainer.task.validation])
        self._bar: Any = None
        self._progress = progress
        self._began = time.process_time()

    def __enter__(self) -> "_Recorder":
        epochs = self.trainer.task.settings.epochs
        self._bar = tqdm(total=epochs, unit="epoch", disable=not self._progress, dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def started(self) -> Run:
        """A fresh run with an empty log."""
        if self._output is not None:
            self._beside("log").write_text("", encoding="utf-8")
        return self.trainer.start()

    def resumed(self) -> Run:
        """The run of the checkpoint, its log cut back to there; a fresh one without a checkpoint."""
        fresh = self.trainer.start()
        if self._output is None or not self._beside("checkpoint").exists():
            return self.started()
        path = self._beside("checkpoint")
        checkpoint = load_checkpoint(path, (fresh.state, fresh.best))
        record = checkpoint.record
        check_same_run(path, record, self._settings(), self._data)
        state, best = jax.tree.map(jax.numpy.asarray, checkpoint.arrays)
        run = Run(state, best, record["best_loss"], record["epoch"], record["history"])
        lines = "".join(log_line(entry) + "\n" for entry in run.history)
        self._beside("log").write_text(lines, encoding="utf-8")
        self._bar.update(run.epoch)
        return run

    def __call__(self, run: Run, reason: str | None) -> None:
        """After an epoch, and at the end."""
        if reason is None:
            self._show(run)
            self._log(run)
        self.reason = reason or self.reason
        due = run.epoch % self.trainer.task.settings.checkpoint_every == 0
        if self._output is not None and (reason is not None or due):
            self._save(run)

    def potential(self, run: Run) -> Potential:
        """The best potential so far, with its provenance."""
        task = self.trainer.task
        last = run.history[-1] if run.history else {}
        provenance = {
            "program": f"neuralil-ase {version('neuralil-ase')}",
            "settings": self._settings(),
            "training_frames": len(task.train),
            "validation_frames": len(task.validation),
            "data_sha256": self._data,
            "epochs": run.epoch,
            "ended": self.reason,
            "cpu_seconds": round(time.process_time() - self._began, 1),
            "last_epoch": last,
            "best_validation_loss": run.best_loss,
        }
        return self.trainer.potential(run.best, provenance)

    def _save(self, run: Run) -> None:
        assert self._output is not None
        record = {
            "settings": self._settings(),
            "data": self._data,
            "epoch": run.epoch,
            "best_loss": run.best_loss,
            "history": run.history,
        }
        save_checkpoint(Checkpoint((run.state, run.best), record), self._beside("checkpoint"))
        save_potential(self.potential(run), self._output)

    def _settings(self) -> dict[str, Any]:
        return _plain(self.trainer.task.settings.to_dict())

    def _beside(self, suffix: str) -> Path:
        assert self._output is not None
        return self._output.with_name(f"{self._output.name}.{suffix}")

    def _log(self, run: Run) -> None:
        if self._output is not None:
            with open(self._beside("log"), "a", encoding="utf-8") as file:
                file.write(log_line(run.history[-1]) + "\n")

    def _show(self, run: Run) -> None:
        record = run.history[-1]
        shown = {"loss": f"{record['loss']:.4f}", "F": _milli(record["force_mae"])}
        shown["E"] = _milli(record["energy_mae"])
        for entry in reversed(run.history):
            if "validation_loss" in entry:
                shown["val F"] = _milli(entry["validation_force_mae"]) + " meV/Å"
                shown["val E"] = _milli(entry["validation_energy_mae"]) + " meV/atom"
                break
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(run.epoch - self._bar.n)


def _milli(value: float) -> str:
    return f"{1e3 * value:.3g}"


def _plain(value: Any) -> Any:
    """Tuples to lists, as JSON would."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
