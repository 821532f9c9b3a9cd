"""What a run leaves on disk while it goes on: log, checkpoint, model; and the progress bar."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from neuralil_ase import __version__
from neuralil_ase.errors import ModelFileError
from neuralil_ase.files.atomic import write_atomically
from neuralil_ase.files.model_file import save_potential
from neuralil_ase.model.potential import Potential
from neuralil_ase.training.checkpoint import (
    Checkpoint,
    check_same_run,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from neuralil_ase.training.loop import Run, Trainer


class Recorder:
    """Writes log, checkpoints and models, and moves the progress bar.

    Parameters
    ----------
    trainer
        The run.
    output
        Model file; the log and the checkpoint stand beside it. None to write nothing.
    progress
        Whether to show the bar, on the standard error.

    Attributes
    ----------
    reason
        Why the run ended.
    """

    def __init__(self, trainer: Trainer, output: str | Path | None, progress: bool) -> None:
        self.trainer = trainer
        self.reason = "finished"
        self._output = None if output is None else Path(output)
        self._data = fingerprint([*trainer.task.train, *trainer.task.validation])
        self._start = None if trainer.task.start is None else trainer.task.start.provenance
        self._progress = progress
        self._cpu_seconds = 0.0
        self._began = time.process_time()

    def __enter__(self) -> "Recorder":
        epochs = self.trainer.task.settings.epochs
        self._bar = tqdm(total=epochs, unit="epoch", disable=not self._progress, dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def started(self) -> Run:
        """A fresh run with an empty log."""
        if self._output is not None:
            write_atomically(self._beside("log"), b"")
        return self.trainer.start()

    def resumed(self) -> Run:
        """The run of the checkpoint, its log cut back to there; a fresh one without a checkpoint."""
        if self._output is None or not self._beside("checkpoint").exists():
            return self.started()
        fresh, path = self.trainer.start(), self._beside("checkpoint")
        checkpoint = load_checkpoint(path, (fresh.state, fresh.best))
        record = checkpoint.record
        check_same_run(path, record, self._settings(), self._data, self._start)
        state, best = jax.tree.map(jax.numpy.asarray, checkpoint.arrays)
        run = Run(state, best, record["best_loss"], record["epoch"], record["history"])
        self._cpu_seconds = record["cpu_seconds"]
        lines = "".join(log_line(entry) + "\n" for entry in run.history)
        write_atomically(self._beside("log"), lines.encode())
        self._bar.update(run.epoch)
        return run

    def __call__(self, run: Run, reason: str | None) -> None:
        """After an epoch, and at the end.

        Raises
        ------
        ModelFileError
            If a file cannot be written; the checkpoint and the model written before are untouched.
        """
        if reason is None:
            self._show(run)
            self._log(run)
        self.reason = reason or self.reason
        every = self.trainer.task.settings.checkpoint_every
        if self._output is not None and (reason or run.epoch == 1 or run.epoch % every == 0):
            self._save(run)

    def potential(self, run: Run) -> Potential:
        """The best potential so far, with its provenance."""
        task = self.trainer.task
        provenance = {
            "program": f"neuralil-ase {__version__}",
            "settings": self._settings(),
            "training_frames": len(task.train),
            "validation_frames": len(task.validation),
            "data_sha256": self._data,
            "epochs": run.epoch,
            "ended": self.reason,
            "cpu_seconds": round(self._seconds(), 1),
            "last_epoch": run.history[-1] if run.history else {},
            "best_validation_loss": run.best_loss,
        }
        if self._start is not None:
            provenance["start_from"] = self._start
        return self.trainer.potential(run.best, provenance)

    def _save(self, run: Run) -> None:
        assert self._output is not None
        record = {
            "settings": self._settings(),
            "data": self._data,
            "start": self._start,
            "epoch": run.epoch,
            "best_loss": run.best_loss,
            "history": run.history,
            "cpu_seconds": self._seconds(),
        }
        save_checkpoint(Checkpoint((run.state, run.best), record), self._beside("checkpoint"))
        save_potential(self.potential(run), self._output)

    def _seconds(self) -> float:
        return self._cpu_seconds + time.process_time() - self._began

    def _settings(self) -> dict[str, Any]:
        return _plain(self.trainer.task.settings.to_dict())

    def _beside(self, suffix: str) -> Path:
        assert self._output is not None
        return self._output.with_name(f"{self._output.name}.{suffix}")

    def _log(self, run: Run) -> None:
        if self._output is None:
            return
        try:
            with open(self._beside("log"), "a", encoding="utf-8") as file:
                file.write(log_line(run.history[-1]) + "\n")
        except OSError as error:
            raise ModelFileError(
                f"cannot write {self._beside('log')}: {error}. Check that the disk has room; the last checkpoint is "
                "untouched, and the run can be resumed from it"
            ) from error

    def _show(self, run: Run) -> None:
        shown = {"loss": f"{run.history[-1]['loss']:.4f}", **_errors(run.history[-1], "")}
        validated = [record for record in run.history if "validation_loss" in record]
        shown |= _errors(validated[-1], "validation_") if validated else {}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(run.epoch - self._bar.n)


def log_line(record: Mapping[str, Any]) -> str:
    """One epoch as a line of JSON."""
    return json.dumps(
        {k: float(f"{v:.8g}") if isinstance(v, float) else v for k, v in record.items()}
    )


def _errors(record: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Force and energy error, where there are labels, for the bar."""
    parts = (("force_mae", "F", "meV/Å"), ("energy_mae", "E", "meV/atom"))
    return {
        f"{prefix[:3]} {name}".strip(): f"{1e3 * record[prefix + key]:.3g} {unit}"
        for key, name, unit in parts
        if prefix + key in record
    }


def _plain(value: Any) -> Any:
    """Tuples to lists, as JSON would."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
