"""The files of a run: model, checkpoint, log. Files of an earlier run are kept, and two runs never share files."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

from neuralil_ase import __version__
from neuralil_ase.errors import ConfigError, OutputError
from neuralil_ase.files.atomic import append_record, set_aside, write_atomically
from neuralil_ase.files.lock import OutputLock
from neuralil_ase.files.model_file import FORMAT as MODEL_FORMAT
from neuralil_ase.files.model_file import save_potential
from neuralil_ase.files.outputs import check_can_write, check_folder, check_is_no_input
from neuralil_ase.model.potential import Potential
from neuralil_ase.progress import Progress
from neuralil_ase.training.checkpoint import (
    Checkpoint,
    check_same_run,
    load_checkpoint,
    save_checkpoint,
)
from neuralil_ase.training.loop import Run, Trainer

logger = logging.getLogger(__name__)


class Output:
    """The files of one run, locked until the object is closed; a context manager.

    Files of an earlier run keep their names until this run has a new file to write. They are then renamed to
    ``<name>.1``, or the next free number.

    Parameters
    ----------
    path
        Model file. Log, checkpoint and report are written beside it.
    inputs
        Files that the run reads.
    report
        Whether pictures will be drawn.

    Raises
    ------
    OutputError
        If the files cannot be written, or another run writes them.
    ConfigError
        If one of the files is an input, or the model would replace a file that is not a model.
    """

    def __init__(
        self, path: str | Path, inputs: Iterable[str | Path] = (), report: bool = False
    ) -> None:
        self.model = Path(path)
        check_can_write(self.model, ".checkpoint.1000")
        self.checkpoint, self.log, self.report = map(self._beside, ("checkpoint", "log", "report"))
        self.members = self._beside("members")
        check_is_no_input([self.model, self.checkpoint, self.log, self.report], inputs)
        _check_is_model(self.model)
        for file in (self.checkpoint, self.log):
            check_can_write(file)
        if report:
            check_folder(self.report)
            if find_spec("matplotlib") is None:
                raise ConfigError(
                    "the pictures of the report need matplotlib, which is not installed: pip install matplotlib, or "
                    "train without a report (report=False, --no-report)"
                )
        self._written: set[Path] = set()
        self._lock = OutputLock(self.model)

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def has_model(self) -> bool:
        """Whether this run has written the model file."""
        return self.model in self._written

    def check_room(self, size: int) -> None:
        """Make sure that the disk has room for this many bytes.

        Raises
        ------
        OutputError
            If there is less room.
        """
        free = shutil.disk_usage(self.model.absolute().parent).free
        if free < size:
            raise OutputError(
                f"the disk of {self.model} has {free / 1e6:.1f} MB left, but model and checkpoint need up to "
                f"{size / 1e6:.1f} MB. Free some space, or write to another disk"
            )

    def belongs(self, *paths: Path) -> None:
        """Mark files as written by this run; used when an interrupted run is resumed."""
        self._written.update(paths)

    def write(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file with the function ``write``. A file of an earlier run is renamed first.

        Raises
        ------
        OutputError
            If the file cannot be written. An existing file then gets its name back.
        """
        is_ours = path in self._written or not path.is_file()
        backup = None if is_ours else set_aside(path)
        try:
            write(path)
        except BaseException:
            if backup is not None and not path.exists():
                backup.rename(path)
            raise
        self._written.add(path)
        if backup is not None:
            logger.info("%s of an earlier run is kept as %s", path, backup.name)

    def _beside(self, suffix: str) -> Path:
        return self.model.with_name(f"{self.model.name}.{suffix}")


class Recorder:
    """Writes log, checkpoints and models, and shows the progress; a context manager.

    Parameters
    ----------
    trainer
        The trainer of the run.
    output
        The files of the run; None to write nothing.
    progress
        Whether to show the progress on the standard error.

    Attributes
    ----------
    reason
        Why the run ended.
    """

    def __init__(self, trainer: Trainer, output: Output | None, progress: bool) -> None:
        self.trainer = trainer
        self.reason = "finished"
        self._output = output
        self._start = None if trainer.task.start is None else trainer.task.start.provenance
        self._progress = Progress(trainer.task.settings.epochs, "epoch", "training", progress)
        self._cpu_seconds = 0.0
        self._began = time.process_time()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__()

    def started(self) -> Run:
        """A new run."""
        run = self.trainer.start()
        if self._output is not None:
            # Room for a checkpoint, a model, and the temporary files that replace them.
            state, best = (_size(x) for x in (run.state, run.best))
            self._output.check_room(2 * (state + 2 * best) + 2**20)
        return run

    def resumed(self) -> Run:
        """The run of the checkpoint, with the log cut back to its epoch; a new run if there is no checkpoint."""
        output = self._output
        if output is None or not output.checkpoint.exists():
            logger.info("there is no checkpoint to resume from; a new run starts")
            return self.started()
        fresh, path = self.started(), output.checkpoint
        checkpoint = load_checkpoint(path)
        record = checkpoint.record
        check_same_run(path, record, self._settings(), self.trainer.task.data, self._start)
        state, best = jax.tree.map(jax.numpy.asarray, checkpoint.like((fresh.state, fresh.best)))
        run = Run(state, best, record["best_loss"], record["epoch"], record["history"])
        self._cpu_seconds = record["cpu_seconds"]
        output.belongs(output.checkpoint, output.log)
        if record["model_written"]:
            output.belongs(output.model)
        lines = "".join(log_line(entry) + "\n" for entry in run.history)
        write_atomically(output.log, lines.encode())
        self._progress.update(run.epoch)
        return run

    def __call__(self, run: Run, reason: str | None) -> None:
        """Write what is due after an epoch, or at the end.

        Raises
        ------
        OutputError
            If a file cannot be written. The last checkpoint and the last model are then untouched.
        """
        self.reason = reason or self.reason
        every = self.trainer.task.settings.checkpoint_every
        if reason is None:
            self._progress.update(run.epoch, _summary(run))
        if self._output is None:
            return
        if reason is None:
            self._log(self._output, run)
        if reason or run.epoch == 1 or run.epoch % every == 0:
            self._save(self._output, run)

    def potential(self, run: Run) -> Potential:
        """The best potential so far, with its provenance."""
        task = self.trainer.task
        provenance = {
            "program": f"neuralil-ase {__version__}",
            "settings": self._settings(),
            "training_frames": len(task.train),
            "validation_frames": len(task.validation),
            "data_sha256": task.data["all"],
            "element_fractions": {
                symbol: [round(x, 4) for x in ends]
                for symbol, ends in task.element_fractions.items()
            },
            "epochs": run.epoch,
            "ended": self.reason,
            "cpu_seconds": round(self._seconds(), 1),
            "last_epoch": run.history[-1] if run.history else {},
            "best_validation_loss": run.best_loss,
        }
        if self._start is not None:
            provenance["start_from"] = self._start
        return self.trainer.potential(run.best, provenance)

    def _save(self, output: Output, run: Run) -> None:
        """Write model and checkpoint, if there is something to save."""
        if run.epoch == 0:
            return  # nothing has been learnt yet
        if self._is_worth_writing(output, run):
            output.write(output.model, lambda path: save_potential(self.potential(run), path))
        record = {
            "settings": self._settings(),
            "data": self.trainer.task.data,
            "start": self._start,
            "epoch": run.epoch,
            "best_loss": run.best_loss,
            "history": run.history,
            "cpu_seconds": self._seconds(),
            "model_written": output.has_model,
        }
        checkpoint = Checkpoint.of((run.state, run.best), record)
        output.write(output.checkpoint, lambda path: save_checkpoint(checkpoint, path))

    def _is_worth_writing(self, output: Output, run: Run) -> bool:
        """Whether to write the model. Only a validated model replaces the model of an earlier run."""
        validates = bool(self.trainer.task.validation)
        if output.has_model or not output.model.exists() or not validates:
            return True
        if run.best_loss is None and self.reason != "finished":
            logger.warning(
                "the run ended before its first validation, so %s is still the model of an earlier run. Resume the run "
                "to continue",
                output.model,
            )
        return run.best_loss is not None

    def _seconds(self) -> float:
        return self._cpu_seconds + time.process_time() - self._began

    def _settings(self) -> dict[str, Any]:
        return plain(self.trainer.task.settings.to_dict())

    def _log(self, output: Output, run: Run) -> None:
        line = (log_line(run.history[-1]) + "\n").encode()
        try:
            output.write(output.log, lambda path: append_record(path, line, sync=False))
        except OutputError as error:
            raise OutputError(
                f"{error}. The last checkpoint is untouched, and the run can be resumed from it"
            ) from error


def log_line(record: Mapping[str, Any]) -> str:
    """One epoch as a line of JSON."""
    return json.dumps(
        {k: float(f"{v:.8g}") if isinstance(v, float) else v for k, v in record.items()}
    )


def _check_is_model(path: Path) -> None:
    """Refuse to replace a file that is not a model: usually the name was given by mistake."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with open(path, "rb") as file:
        start = file.read(4096)
    if f'"{MODEL_FORMAT}"'.encode() not in start:
        raise ConfigError(
            f"{path} exists and is not a model of neuralil-ase, so training does not replace it. Give the output "
            "another name, or remove the file"
        )


def _size(tree: Any) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


def _summary(run: Run) -> str:
    shown = {"loss": f"{run.history[-1]['loss']:.4f}", **_errors(run.history[-1], "")}
    validated = [record for record in run.history if "validation_loss" in record]
    shown |= _errors(validated[-1], "validation_") if validated else {}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _errors(record: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Force and energy error for the progress bar, if there are labels."""
    parts = (("force_mae", "F", "meV/Å"), ("energy_mae", "E", "meV/atom"))
    return {
        f"{prefix[:3]} {name}".strip(): f"{1e3 * record[prefix + key]:.3g} {unit}"
        for key, name, unit in parts
        if prefix + key in record
    }


def plain(value: Any) -> Any:
    """Convert tuples to lists, as JSON does."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
