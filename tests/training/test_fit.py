"""Long work behaves: resuming is exact, and nothing that goes wrong loses the last good state."""

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interruptions import interrupted_at
from small_runs import TINY, alloy, frames, losses, recorder, shared_trainer, trainer_for

from neuralil_ase import load_potential
from neuralil_ase.errors import DataError, ModelFileError, OutputError, TrainingError
from neuralil_ase.training import train
from neuralil_ase.training.data import load_data
from neuralil_ase.training.loop import Run, Trainer, fit


def run_to_the_end(path: Path | None, resume: bool = False) -> Run:
    with recorder(path) as record:
        run = fit(shared_trainer(), record.resumed() if resume else record.started(), record)
    return run


def interrupt_in_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int, action: Any) -> None:
    """Do something in the middle of an epoch."""
    step, calls = Trainer.step, []

    def wrapped(self: Trainer, state: Any, chosen: np.ndarray) -> Any:
        calls.append(1)
        result = step(self, state, chosen)
        if len(calls) == (epoch - 1) * self.steps_per_epoch + 2:
            return action(result)
        return result

    monkeypatch.setattr(Trainer, "step", wrapped)


def send_sigint(result: Any) -> Any:
    os.kill(os.getpid(), signal.SIGINT)
    return result


def test_the_same_seed_gives_the_same_run_and_it_learns() -> None:
    first, second = run_to_the_end(None), run_to_the_end(None)
    assert losses(first.history) == losses(second.history)
    assert first.history[-1]["loss"] < 0.7 * first.history[0]["loss"]
    for a, b in zip(jax.tree.leaves(first.best), jax.tree.leaves(second.best), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Python's own handler, whatever the test run inherited: background jobs ignore SIGINT."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_sigint_leaves_a_model_and_resuming_equals_an_uninterrupted_run(
    epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_to_the_end(None)
    path = tmp_path / "model.safetensors"
    interrupt_in_epoch(monkeypatch, epoch, send_sigint)
    stopped = run_to_the_end(path)
    monkeypatch.undo()
    assert stopped.epoch == epoch - 1
    if epoch == 1:  # nothing has been learnt yet
        assert not list(tmp_path.iterdir())
    else:
        assert load_potential(path).provenance["ended"] == "interrupted"

    resumed = run_to_the_end(path, resume=True)
    assert losses(resumed.history) == losses(whole.history)
    lines = (tmp_path / "model.safetensors.log").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    final = load_potential(path)
    expected = shared_trainer().potential(whole.best)
    for a, b in zip(jax.tree.leaves(final.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert final.provenance["ended"] == "finished"


@pytest.mark.parametrize("count", [6, pytest.param(150, marks=pytest.mark.slow)])
def test_ctrl_c_at_any_line_loses_nothing_that_resuming_does_not_bring_back(
    count: int, tmp_path: Path
) -> None:
    """At moments spread over the whole run, most of them not where Ctrl-C is expected."""
    whole = run_to_the_end(None)
    expected = jax.tree.leaves(shared_trainer().potential(whole.best).params)
    with interrupted_at(0) as uninterrupted:
        run_to_the_end(tmp_path / "first.safetensors")
    for number, line in enumerate(np.linspace(1, uninterrupted.lines - 100, count).astype(int)):
        path = tmp_path / f"{number}.safetensors"
        with interrupted_at(line) as interruption:
            run_to_the_end(path)
        assert interruption.reached
        if path.exists():
            assert load_potential(path).provenance["ended"] in (
                "unfinished",
                "interrupted",
                "finished",
            )
        resumed = run_to_the_end(path, resume=True)
        assert losses(resumed.history) == losses(whole.history), line
        for a, b in zip(jax.tree.leaves(load_potential(path).params), expected, strict=True):
            np.testing.assert_array_equal(a, b)
        lines = Path(f"{path}.log").read_text().splitlines()
        assert [json.loads(row)["epoch"] for row in lines] == [1, 2, 3, 4]
    assert not list(tmp_path.glob(".neuralil*.tmp"))


def test_an_interrupt_before_the_first_validation_keeps_the_latest_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in_epoch(monkeypatch, 2, send_sigint)
    run = run_to_the_end(tmp_path / "model.safetensors")
    assert run.best_loss is None
    assert run.best is run.state.average


def test_nan_stops_with_the_reason_and_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(result: Any) -> Any:
        state, loss, sums, norms = result
        return state, loss.at[1].set(jnp.nan), sums, norms

    path = tmp_path / "model.safetensors"
    interrupt_in_epoch(monkeypatch, 3, spoil)
    with pytest.raises(
        TrainingError, match=r"loss of member 1 became nan in epoch 3, step 2 .* learning rate"
    ):
        run_to_the_end(path)
    good = load_potential(path)
    assert good.provenance["ended"] == "failed"
    assert good.provenance["epochs"] == 2


def test_parameters_that_are_not_finite_stop_the_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(result: Any) -> Any:
        state, *rest = result
        return (state._replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params)), *rest)

    steps = shared_trainer().steps_per_epoch
    assert steps == 3
    step, calls = Trainer.step, []

    def last_step_spoils(self: Trainer, state: Any, chosen: np.ndarray) -> Any:
        calls.append(1)
        result = step(self, state, chosen)
        return spoil(result) if len(calls) == steps else result

    monkeypatch.setattr(Trainer, "step", last_step_spoils)
    with pytest.raises(TrainingError, match="parameters are no longer finite after epoch 1"):
        run_to_the_end(None)


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_full_disk_gives_a_clear_error_and_loses_nothing(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 1 is written; the disk is full when epoch 2 is to be."""
    path = tmp_path / "model.safetensors"
    real, written = getattr(os, what), []

    def full(*arguments: Any) -> Any:
        written.append(1)
        if len(written) > 2:  # model and checkpoint of the first epoch
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, what, full)
    with pytest.raises(OutputError, match=r"No space left on device.* holds what it held before"):
        run_to_the_end(path)
    monkeypatch.undo()
    assert load_potential(path).provenance["epochs"] == 1
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names == {path.name, f"{path.name}.log", f"{path.name}.checkpoint"}
    assert losses(run_to_the_end(path, resume=True).history) == losses(run_to_the_end(None).history)


def test_a_log_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / "model.safetensors.log").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*\.log"):
        run_to_the_end(path)
    (tmp_path / "model.safetensors.log").rmdir()
    with recorder(path) as record:
        run = record.started()
        (tmp_path / "model.safetensors.log").mkdir()
        with pytest.raises(OutputError, match="can be resumed"):
            fit(shared_trainer(), run, record)


def test_a_time_limit_ends_in_order(tmp_path: Path) -> None:
    trainer = trainer_for(frames()[:9], frames()[9:], time_limit=1e-9)
    reasons: list[str | None] = []
    run = fit(trainer, trainer.start(), lambda run, reason: reasons.append(reason))
    assert run.epoch == 1
    assert reasons == [None, "time limit"]


def test_resuming_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    run_to_the_end(path)
    options: dict[str, Any] = {"settings": TINY, "report": False, "resume": True}
    with pytest.raises(TrainingError, match=r"other settings than before: epochs \(was 4, now 5\)"):
        train(list(alloy()), path, epochs=5, **options)
    with pytest.raises(TrainingError, match="the training data have changed"):
        train(list(alloy(12, seed=1)), path, **options)
    (tmp_path / "model.safetensors.checkpoint").write_bytes(b"nonsense")
    with pytest.raises(
        ModelFileError, match=r"is not a checkpoint .* remove it to start a new run"
    ):
        train(list(alloy()), path, **options)


def test_everything_can_be_trained_on() -> None:
    """Without validation the latest average is kept."""
    training, validation = load_data(list(alloy(6)), TINY.updated({"validation_fraction": 0.0}))
    assert len(training) == 6
    assert validation == []
    trainer = trainer_for(training, validation)
    run = fit(trainer, trainer.start(), lambda run, reason: None)
    assert run.best is run.state.average
    assert "validation_loss" not in run.history[-1]


def test_subsets_and_splits_of_the_data() -> None:
    options = {"split_by": "seed", "max_frames": 5}
    training, validation = load_data(list(alloy()), TINY.updated(options))
    assert len(training) == 5
    assert len(validation) == 3
    assert not {f.group for f in training} & {f.group for f in validation}
    with pytest.raises(DataError, match="nothing would be left"):
        load_data(list(alloy(1)), TINY)


def test_a_log_line_is_json_whatever_is_missing(tmp_path: Path) -> None:
    run_to_the_end(tmp_path / "model.safetensors")
    for line in (tmp_path / "model.safetensors.log").read_text().splitlines():
        record = json.loads(line)
        assert {"epoch", "step", "loss", "energy_mae", "force_mae", "seconds"} <= record.keys()
    assert {"validation_loss", "validation_force_mae", "validation_energy_mae"} <= record.keys()
