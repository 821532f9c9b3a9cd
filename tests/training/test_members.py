"""Members trained apart by workers: those that training together would give, kept and resumed one by one."""

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ase.io import write
from executors import Mortal
from small_runs import TINY, alloy

from neuralil_ase import load_potential
from neuralil_ase.cli import main
from neuralil_ase.errors import ConfigError, ModelFileError, ProcessError, TrainingError
from neuralil_ase.model.potential import Potential
from neuralil_ase.training import members, train
from neuralil_ase.training.prepare import prepare

TWO = TINY.updated({"bootstrap": True, "validate_every": 4})


def same(one: Potential, other: Potential) -> None:
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_members_apart_are_those_trained_together() -> None:
    """With one validation at the end, both keep the last epoch; bootstrap gives every member its own frames."""
    together = train([*alloy()], settings=TWO, report=False)
    apart = train([*alloy()], settings=TWO, report=False, executor=Mortal())
    assert apart.potential.config == together.potential.config
    assert apart.reason == "finished"
    assert apart.potential.provenance["data_sha256"] == together.potential.provenance["data_sha256"]
    for a, b in zip(
        jax.tree.leaves(apart.potential.params),
        jax.tree.leaves(together.potential.params), strict=True,
    ):  # fmt: skip
        assert np.abs(a - b).max() < 1e-3 * max(np.abs(b).max(), 1)
        assert np.abs(b[0] - b[1]).max() > 0.01  # members differ
    for a, b in zip(apart.history, together.history, strict=True):
        assert (a["epoch"], a["step"]) == (b["epoch"], b["step"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


@pytest.mark.slow
def test_spawned_workers_give_the_same_bits_and_the_ensemble_is_calibrated(tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = train([*alloy()], output, settings=TWO, executor=pool)
    here = train([*alloy()], settings=TWO, report=False, executor=Mortal())
    same(found.potential, here.potential)
    assert set(found.accuracy) == {"train", "validation"}
    saved = load_potential(output)
    same(saved, found.potential)
    assert saved.provenance["members_trained"] == "apart"
    assert (saved.calibration is None) == (found.potential.calibration is None)
    assert sorted(p.name for p in (tmp_path / "model.safetensors.members").iterdir()) == [
        "0.safetensors", "1.safetensors",
    ]  # fmt: skip
    assert len((tmp_path / "model.safetensors.log").read_text().splitlines()) == TWO.epochs


def test_a_worker_that_dies_costs_its_member_only_and_the_member_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, executor = tmp_path / "model.safetensors", Mortal({1})
    found = train([*alloy()], output, settings=TWO, report=False, executor=executor)
    assert [k for _, k in executor.messages] == [0, 1, 1]
    assert "sent again, because a worker died: ConnectionError: the worker is gone" in caplog.text
    same(
        found.potential, train([*alloy()], settings=TWO, report=False, executor=Mortal()).potential
    )


def test_members_that_are_lost_are_named_and_resuming_trains_only_them(tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    with pytest.raises(ProcessError, match=r"members \[1\] .*the worker is gone.*resume=True"):
        train([*alloy()], output, settings=TWO, report=False, executor=Mortal({1, 2}))
    assert not output.exists()
    executor = Mortal()
    found = train([*alloy()], output, settings=TWO, report=False, resume=True, executor=executor)
    assert [k for _, k in executor.messages] == [1]
    whole = train([*alloy()], settings=TWO, report=False, executor=Mortal())
    same(found.potential, whole.potential)
    assert [r["loss"] for r in found.history] == [r["loss"] for r in whole.history]
    nothing = Mortal()
    train([*alloy()], output, settings=TWO, report=False, resume=True, executor=nothing)
    assert not nothing.messages


def test_a_killed_process_is_named(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        victim = pool.submit(os.getpid).result()
        timer = threading.Timer(1.0, os.kill, (victim, signal.SIGKILL))
        timer.start()
        with pytest.raises(ProcessError, match=r"members \[0, 1\]"):
            train([*alloy()], settings=TWO.updated({"epochs": 100_000}), executor=pool)
        timer.join()


def test_resuming_another_run_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    train([*alloy()], output, settings=TWO, report=False, executor=Mortal())
    with pytest.raises(TrainingError, match=r"learning_rate \(was 0.02, now 0.01\)"):
        train([*alloy()], output, settings=TWO, learning_rate=0.01, resume=True, executor=Mortal())
    with pytest.raises(TrainingError, match="training data have changed"):
        train([*alloy(16)], output, settings=TWO, resume=True, executor=Mortal())
    (tmp_path / "model.safetensors.members" / "1.safetensors").write_bytes(b"no model")
    with pytest.raises(ModelFileError):
        train([*alloy()], output, settings=TWO, resume=True, executor=Mortal())


def test_members_of_an_earlier_run_are_kept_aside(tmp_path: Path) -> None:
    output, kept = tmp_path / "model.safetensors", tmp_path / "model.safetensors.members"
    train([*alloy()], output, settings=TWO, report=False, executor=Mortal())
    first = (kept / "0.safetensors").read_bytes()
    train([*alloy()], output, settings=TWO, seed=1, report=False, executor=Mortal())
    assert (
        kept.with_name("model.safetensors.members.1").joinpath("0.safetensors").read_bytes()
        == first
    )
    assert (kept / "0.safetensors").read_bytes() != first


def test_members_that_share_layers_are_not_trained_apart() -> None:
    with pytest.raises(ConfigError, match="share layers"):
        train([*alloy()], settings=TWO, shared_layers=1, executor=Mortal())


def test_a_diverged_member_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any) -> None:
        raise TrainingError("the loss became nan")

    monkeypatch.setattr(members, "fit", diverge)
    with pytest.raises(TrainingError, match=r"member 0, trained separately .* nan"):
        train([*alloy()], settings=TWO, report=False, executor=Mortal())


def test_threads_train_too() -> None:
    with ThreadPoolExecutor(2) as pool:
        found = train([*alloy()], settings=TWO, report=False, executor=pool)
    same(
        found.potential, train([*alloy()], settings=TWO, report=False, executor=Mortal()).potential
    )


def test_data_are_prepared_once_in_a_process_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared: list[weakref.ref[Any]] = []

    def counted(*arguments: Any) -> Any:
        task = prepare(*arguments)
        prepared.append(weakref.ref(task))
        return task

    monkeypatch.setattr(members, "prepare", counted)
    with ThreadPoolExecutor(2) as pool:
        train([*alloy()], settings=TWO, report=False, executor=pool)
    assert len(prepared) == 1
    train([*alloy()], settings=TWO, report=False, executor=Mortal())
    assert len(prepared) == 2
    gc.collect()
    assert [task() for task in prepared] == [None, None]


@pytest.fixture
def data(tmp_path: Path) -> str:
    write(tmp_path / "data.extxyz", [*alloy()])
    return str(tmp_path / "data.extxyz")


def test_the_command_line_needs_a_worker(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", data, "-o", f"{data}.safetensors", "--workers", "0"]) == 2
    assert "workers: at least 1 is needed, not 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_trains_by_workers(data: str) -> None:
    output, words = (
        f"{data}.safetensors",
        "--epochs 4 --members 2 --widths 8,4 --n-max 2 --r-cut 3.4",
    )
    command = [
        sys.executable,
        "-m",
        "neuralil_ase",
        "train",
        data,
        "-o",
        output,
        "--workers",
        "2",
    ]
    subprocess.run([*command, "--quiet", *words.split()], check=True, timeout=600)
    assert load_potential(output).provenance["members_trained"] == "apart"


def test_architectures_that_differ_are_not_joined() -> None:
    here = train([*alloy()], settings=TWO, members=1, report=False).potential
    network = replace(here.config.network, activation="tanh")
    other = replace(here, config=replace(here.config, network=network))
    with pytest.raises(ProcessError, match="same neuralil-ase"):
        members.join([here, other], [])


@pytest.mark.slow
def test_members_go_on_from_a_model() -> None:
    """With a learning rate that changes nothing, each member is the start's own."""
    start = train([*alloy()], settings=TWO, report=False).potential
    options: dict[str, Any] = {"learning_rate": 1e-12, "epochs": 1, "batch_size": 4}
    found = train([*alloy()], start_from=start, report=False, executor=Mortal(), **options)
    for a, b in zip(
        jax.tree.leaves(found.potential.params), jax.tree.leaves(start.params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
