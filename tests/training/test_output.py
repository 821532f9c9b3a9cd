"""A run destroys nothing: no input, no earlier model, nothing of a run beside it; and says so at the start."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import TINY, alloy, frames, recorder, shared_trainer

from neuralil_ase import load_potential, save_potential
from neuralil_ase.errors import (
    ConfigError,
    ModelFileError,
    NeuralILError,
    OutputError,
    TrainingError,
)
from neuralil_ase.evaluation.dataset import Frame
from neuralil_ase.files.lock import OutputLock
from neuralil_ase.training import train
from neuralil_ase.training.checkpoint import check_same_run, fingerprint, load_checkpoint
from neuralil_ase.training.loop import Run, Trainer, fit
from neuralil_ase.training.output import Output

NAMES = ("model.safetensors", "model.safetensors.checkpoint", "model.safetensors.log")


def run_to(path: Path, last_epoch: int | None = None, resume: bool = False) -> Run:
    """A run that is interrupted after an epoch, or in the first one."""

    class Stopped(Trainer):
        def epoch(self, run: Run) -> Run:
            if run.epoch == last_epoch:
                raise KeyboardInterrupt
            return super().epoch(run)

    trainer = Stopped.__new__(Stopped)
    trainer.__dict__ = shared_trainer().__dict__
    with recorder(path) as record:
        return fit(trainer, record.resumed() if resume else record.started(), record)


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


# --- an earlier run ----------------------------------------------------------------------------


def test_an_earlier_run_stays_until_there_is_something_better(tmp_path: Path) -> None:
    path = tmp_path / NAMES[0]
    run_to(path)
    before = contents(tmp_path)
    assert set(before) == set(NAMES)

    run_to(path, 0)  # interrupted in its first epoch: nothing is touched
    assert contents(tmp_path) == before

    run_to(path, 1)  # not validated yet: the model stays, and the old log and checkpoint are kept
    after = contents(tmp_path)
    assert after[NAMES[0]] == before[NAMES[0]]
    assert after[f"{NAMES[1]}.1"] == before[NAMES[1]]
    assert after[f"{NAMES[2]}.1"] == before[NAMES[2]]

    run_to(path, resume=True)  # the resumed run knows that the model is not its own
    last = contents(tmp_path)
    assert last[f"{NAMES[0]}.1"] == before[NAMES[0]]
    assert last[f"{NAMES[1]}.1"] == before[NAMES[1]]
    assert load_potential(path).provenance["ended"] == "finished"
    assert set(last) == {*NAMES, *(f"{name}.1" for name in NAMES)}


def test_a_run_that_diverges_at_once_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / NAMES[0]
    run_to(path)
    before = contents(tmp_path)
    step = Trainer.step

    def spoilt(self: Trainer, state: Any, chosen: np.ndarray) -> Any:
        state, loss, sums, norms = step(self, state, chosen)
        return state, loss * jnp.nan, sums, norms

    monkeypatch.setattr(Trainer, "step", spoilt)
    with pytest.raises(TrainingError, match="epoch 1"):
        run_to(path)
    assert contents(tmp_path) == before


def test_a_new_run_keeps_every_earlier_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / NAMES[0]
    first = []
    for _ in range(3):
        run_to(path)
        first.append(path.read_bytes())
    assert (tmp_path / f"{NAMES[0]}.1").read_bytes() == first[0]
    assert (tmp_path / f"{NAMES[0]}.2").read_bytes() == first[1]


# --- two runs ----------------------------------------------------------------------------------


@pytest.mark.slow  # the lock itself is tried in tests/monitor
def test_a_second_run_of_one_output_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NAMES[0]
    lock = OutputLock(path)
    with pytest.raises(OutputError, match="is being written by"):
        train(list(alloy()), path, settings=TINY)
    lock.release()
    code = "import sys; from neuralil_ase.training.output import Output; Output(sys.argv[1])"
    with Output(path):
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert b"is being written by process" in done.stderr
    assert not list(tmp_path.iterdir())


# --- what is seen at the start -----------------------------------------------------------------


def refused(error: type[NeuralILError], message: str, *arguments: Any, **options: Any) -> None:
    """Training refuses before it reads the data, which do not exist or are nonsense."""
    with pytest.raises(error, match=message):
        train(*arguments, settings=TINY, **options)


@pytest.mark.parametrize("suffix", ["", ".log", ".checkpoint", ".report"])
def test_no_output_is_an_input(suffix: str, tmp_path: Path) -> None:
    model = tmp_path / "m"
    data = tmp_path / f"m{suffix}"
    data.write_text("precious")
    (tmp_path / "link").symlink_to(data)
    os.link(data, tmp_path / "hard")
    for name in (data, tmp_path / "." / data.name, tmp_path / "link", tmp_path / "hard"):
        for given in (str(name), f"{name}@0:3"):
            refused(ConfigError, "must not overwrite it", given, model)
        refused(ConfigError, "must not overwrite it", ["other", name], model)
        refused(ConfigError, "must not overwrite it", "other", model, validation_files=(str(name),))
        refused(ConfigError, "must not overwrite it", "other", model, start_from=name)
    assert data.read_text() == "precious"


def test_what_is_no_model_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("epochs = 3\n")
    refused(ConfigError, "exists and is not a model of neuralil-ase", "data", path)
    save_potential(shared_trainer().potential(shared_trainer().start().best), tmp_path / "m")
    Output(tmp_path / "m").__exit__()
    (tmp_path / "empty").touch()
    Output(tmp_path / "empty").__exit__()


def test_unwritable_outputs_are_seen_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "m.report").write_text("no folder")
    (tmp_path / "k.checkpoint").mkdir()
    refused(OutputError, "it is a folder", "data", tmp_path / "folder")
    refused(OutputError, "there is no folder", "data", tmp_path / "none" / "m")
    refused(OutputError, "it is a file", "data", tmp_path / "m")
    refused(OutputError, "it is a folder", "data", tmp_path / "k")
    refused(OutputError, "name is not too long", "data", tmp_path / ("x" * 250))
    refused(OutputError, "cannot write", "data", f"{tmp_path}/a\0b")
    assert {entry.name for entry in tmp_path.iterdir()} == {"folder", "m.report", "k.checkpoint"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused(OutputError, "Permission denied", "data", tmp_path / "m")
    tmp_path.chmod(0o700)


def test_a_disk_without_room_is_seen_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("neuralil_ase.training.output.shutil.disk_usage", lambda _: usage)
    with recorder(tmp_path / "m") as record, pytest.raises(OutputError, match=r"0\.0 MB left"):
        record.started()


def test_a_report_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuralil_ase.training.output.find_spec", lambda _: None)
    refused(ConfigError, "need matplotlib", "data", tmp_path / "m")


# --- resuming ----------------------------------------------------------------------------------


CHANGES: dict[str, dict[str, Any]] = {
    "structures": {"cell": np.eye(3) * 9.0},
    "energies": {"energy": 1.0},
    "forces": {"forces": np.zeros((16, 3))},
    "stresses": {"stress": None},
    "weights": {"weight": 2.0},
}


@pytest.mark.parametrize("name", list(CHANGES))
@pytest.mark.parametrize("side", [0, 1])
def test_the_fingerprint_sees_all_that_is_learnt_from(name: str, side: int) -> None:
    sides: list[list[Frame]] = [frames(4), frames(2, seed=1)]
    before = fingerprint(*sides)
    assert before == fingerprint(*sides)
    sides[side] = [replace(sides[side][0], **CHANGES[name]), *sides[side][1:]]
    after = fingerprint(*sides)
    assert {key for key in after if after[key] != before[key]} == {name, "all"}
    record = {"settings": {}, "data": before, "start": None}
    with pytest.raises(TrainingError, match=rf"data have changed \({name}\)"):
        check_same_run("x", record, {}, after)


def test_the_fingerprint_sees_order_and_side() -> None:
    data = frames(4)
    found = {
        fingerprint(data[:2], data[2:])["all"],
        fingerprint(data[:3], data[3:])["all"],
        fingerprint(data[2:], data[:2])["all"],
        fingerprint(data[1::-1], data[2:])["all"],
        fingerprint(data, [])["all"],
    }
    assert len(found) == 5


@pytest.mark.parametrize(
    "damage",
    [
        {"epoch": 0}, {"epoch": "1"}, {"history": {}}, {"history": [1]}, {"data": "abc"}, {"best_loss": "low"},
        {"settings": None}, {"cpu_seconds": None}, {"model_written": 1}, {"start": []},
    ],
)  # fmt: skip
def test_damaged_checkpoints_are_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    import json

    import safetensors.numpy

    record = {
        "settings": {}, "data": {}, "start": None, "epoch": 1, "best_loss": None, "history": [{}],
        "cpu_seconds": 1.0, "model_written": False,
    }  # fmt: skip
    path = tmp_path / "c"

    def write(content: dict[str, Any]) -> None:
        metadata = {"neuralil-ase-checkpoint": json.dumps(content)}
        safetensors.numpy.save_file({"00000": np.zeros(2)}, path, metadata)

    write(record)
    checkpoint = load_checkpoint(path)
    with pytest.raises(ModelFileError, match="another architecture"):
        checkpoint.like(np.zeros(3))
    write(record | damage)
    with pytest.raises(
        ModelFileError, match=r"is not a checkpoint .* remove it to start a new run"
    ):
        load_checkpoint(path)
