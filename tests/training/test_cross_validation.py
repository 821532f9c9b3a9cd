"""Cross-validation: who is in which fold, scores that depend on neither workers nor interruptions, and wrong input."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from ensembles import random_potential
from executors import Mortal
from small_runs import TINY, alloy, labelled

from neuralil_ase import CrossValidation, cross_validate, save_potential, train
from neuralil_ase.cli import main
from neuralil_ase.cross_validation import FoldScore
from neuralil_ase.errors import ConfigError, DataError, OutputError, ProcessError, TrainingError
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.evaluate import evaluate
from neuralil_ase.training.loop import Trainer

QUICK = TINY.updated({"epochs": 2, "linear": "none", "validation_fraction": 0})
CARD = {
    "energy_meV_per_atom": {"mae": 3.0, "offset_removed": {"mae": 2.0}},
    "force_meV_per_A": {"mae": 40.0, "rmse": 60.0},
    "members": {"force_mae": 50.0},
}
SCORE = FoldScore(0, 8, 1, 3, "finished", 7.0, CARD, [30.0, 35.0, 55.0])


class Told(Executor):
    """Scores without a training; keeps the messages."""

    def __init__(self) -> None:
        self.folds: list[Any] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.folds.append(args[0])
        future: Future[Any] = Future()
        future.set_result(replace(SCORE, fold=args[0].number))
        return future


def numbers(result: CrossValidation) -> list[dict[str, Any]]:
    """Everything but the times."""
    return [asdict(replace(score, cpu_seconds=0.0)) for score in result.scores]


def sources(frames: Any) -> list[int]:
    return [int(frame.source.rpartition(" ")[2]) for frame in frames]


@pytest.fixture(scope="module")
def whole() -> CrossValidation:
    """Three folds, one after the other in this process."""
    return cross_validate([*alloy()], n_folds=3, settings=QUICK)


def test_a_fold_is_scored_by_a_model_that_was_trained_on_the_others(whole: CrossValidation) -> None:
    every, found = [*alloy()], whole.scores[1]
    rest = [atoms for k, atoms in enumerate(every) if k % 3 != 1]
    potential = train(rest, settings=QUICK, report=False).potential
    expected = evaluate(potential, frames_from_atoms(every[1::3]))
    assert found.card == expected.card
    assert (found.fold, found.train, found.validation, found.held_out) == (1, 8, 0, 4)
    assert found.reason == "finished"
    forces = [p.forces for p in expected.predictions]
    labels = [atoms.get_forces() for atoms in every[1::3]]
    by_frame = [1e3 * np.abs(a - b).mean() for a, b in zip(forces, labels, strict=True)]
    np.testing.assert_allclose(np.array(found.force_mae_by_frame, float), by_frame, rtol=1e-3)


def test_workers_find_the_same_numbers(whole: CrossValidation, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = cross_validate(
            [*alloy()], tmp_path / "folds.jsonl", n_folds=3, settings=QUICK, executor=pool
        )
    assert numbers(found) == numbers(whole)
    assert len({score.card["force_meV_per_A"]["mae"] for score in found.scores}) == 3


@pytest.mark.slow
def test_spawned_workers_find_the_same_numbers(whole: CrossValidation) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = cross_validate([*alloy()], n_folds=3, settings=QUICK, executor=pool)
    assert numbers(found) == numbers(whole)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Python's own handler, whatever the test run inherited: background jobs ignore SIGINT."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("_interruptible")
def test_what_an_interruption_leaves_is_not_trained_again(
    whole: CrossValidation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    step, calls, output = Trainer.step, [], tmp_path / "folds.jsonl"

    def counted(self: Trainer, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 * self.steps_per_epoch + 1:  # in the first epoch of the second fold
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        cross_validate([*alloy()], output, n_folds=3, settings=QUICK)
    assert "folds.jsonl holds the folds [0]; the same call continues" in caplog.text
    monkeypatch.undo()
    executor = Mortal()
    found = cross_validate([*alloy()], output, n_folds=3, settings=QUICK, executor=executor)
    assert [fold.number for fold, *_ in executor.messages] == [1, 2]
    assert numbers(found) == numbers(whole)
    again = Mortal()
    found = cross_validate([*alloy()], output, n_folds=3, settings=QUICK, executor=again)
    assert not again.messages
    assert numbers(found) == numbers(whole)


def test_folds_whose_workers_died_are_named_and_the_others_are_kept(tmp_path: Path) -> None:
    output, executor = tmp_path / "folds.jsonl", Mortal({1, 3})
    with pytest.raises(ProcessError, match=r"the folds \[1\] .*the worker is gone.*same output"):
        cross_validate([*alloy()], output, n_folds=3, settings=QUICK, executor=executor)
    told = Told()
    cross_validate([*alloy()], output, n_folds=3, settings=QUICK, executor=told)
    assert [fold.number for fold in told.folds] == [1]


def test_only_the_folds_that_were_asked_for(tmp_path: Path) -> None:
    output, told = tmp_path / "folds.jsonl", Told()
    one = cross_validate([*alloy()], output, folds=[3], executor=told)
    two = cross_validate([*alloy()], output, folds=np.array([4, 1, 4]), executor=told)
    assert [s.fold for s in one.scores] == [3]
    assert [s.fold for s in two.scores] == [1, 4]
    assert [fold.number for fold in told.folds] == [3, 1, 4]
    assert [sources(fold.held_out) for fold in told.folds] == [[3, 8], [1, 6, 11], [4, 9]]
    for fold in told.folds:
        everyone = sources([*fold.train, *fold.validation, *fold.held_out])
        assert sorted(everyone) == list(range(12))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["fold"] for line in lines] == [3, 1, 4]


def test_groups_stay_together() -> None:
    told = Told()
    cross_validate([*alloy()], n_folds=2, settings=QUICK, split_by="seed", executor=told)
    for fold in told.folds:
        groups = [{f.group for f in part} for part in (fold.train, fold.validation, fold.held_out)]
        assert not groups[0] & groups[1]
        assert not (groups[0] | groups[1]) & groups[2]
    assert {f.group for f in told.folds[0].held_out} == {"0", "2"}


def test_of_a_split_data_set_the_training_frames_are_dealt() -> None:
    told, data = Told(), [atoms.copy() for atoms in alloy()]
    for k, atoms in enumerate(data):
        atoms.calc = alloy()[k].calc
        atoms.info["part"] = ("train", "train", "valid", "test")[k % 4]
    cross_validate(data, n_folds=3, settings=QUICK, split_by="part", executor=told)
    for fold in told.folds:
        assert sources(fold.validation) == [2, 6, 10]
        assert {f.group for f in [*fold.train, *fold.held_out]} == {"train"}
    assert [sources(fold.held_out) for fold in told.folds] == [[0, 5], [1, 8], [4, 9]]


def test_isolated_atoms_are_in_every_training() -> None:
    atom = Atoms("Cu", cell=[20, 20, 20], pbc=True)
    told, data = Told(), [*alloy(6), labelled(atom, "energy", "forces")]
    cross_validate(data, n_folds=2, settings=QUICK, executor=told)
    for fold in told.folds:
        assert 6 in sources(fold.train)
        assert len(fold.held_out) == 3


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"n_folds": 1}, ConfigError, "at least 2, got 1: with one fold, no frames would be left"),
    ({"n_folds": 2.5}, ConfigError, "whole number and at least 2, got 2.5"),
    ({"n_folds": True}, ConfigError, "got True"),
    ({"n_folds": 13}, DataError, "cannot make 13 folds of 12 frames"),
    ({"split_by": "seed"}, DataError, r"cannot make 5 folds of 4 frames \(or groups\)"),
    ({"folds": [0, 5]}, ConfigError, "there is no fold 5: with n_folds=5, .* 0 to 4"),
    ({"folds": [-1]}, ConfigError, "there is no fold -1"),
    ({"folds": ["a"]}, ConfigError, "there is no fold 'a'"),
    ({"folds": []}, ConfigError, "give at least one fold"),
    ({"folds": 2}, ConfigError, "folds must be a list of numbers, got 2"),
    ({"epoch": 3}, ConfigError, r"unknown training options \['epoch'\]"),
    ({"members": 0}, ConfigError, "members must lie between 1"),
    ({"start_from": "nothing.safetensors"}, Exception, "nothing.safetensors"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG)
def test_wrong_input_is_said_before_any_training(
    options: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    told = Told()
    with pytest.raises(kind, match=message):
        cross_validate([*alloy()], tmp_path / "folds.jsonl", executor=told, **options)
    assert not told.folds
    assert not list(tmp_path.iterdir())


def test_an_element_of_one_fold_alone_is_refused() -> None:
    data = [*alloy()]
    strange = data[4].copy()
    strange.symbols[0] = "Ni"
    data[4] = labelled(strange)
    told = Told()
    with pytest.raises(DataError, match=r"fold 1 holds Ni, .* \(only Au, Cu\). Give more frames"):
        cross_validate(data, n_folds=3, executor=told)
    assert not told.folds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, r"folds.jsonl: other settings .* epochs \(was 2, now 3\)"),
        ({"time_limit": 60}, r"time_limit \(was 0.0, now 60.0\)"),
        ({"n_folds": 4}, r"n_folds \(was 3, now 4\). .* or write to another file"),
        ({"data": [*alloy(16)]}, r"data have changed \(.*structures.*\). Resume with the old data"),
        ({"data": [*alloy()][::-1]}, r"data have changed .* or write to another file"),
        ({"start_from": "m.safetensors"}, "began with random parameters, .*m.safetensors"),
    ],
)
def test_scores_of_other_data_or_options_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual: dict[str, Any] = {"n_folds": 3, "epochs": 2, "output": "folds.jsonl"}
    if "start_from" in change:
        save_potential(random_potential(), "m.safetensors")
    cross_validate([*alloy()], folds=[0], executor=Told(), **usual)
    before = Path("folds.jsonl").read_bytes()
    with pytest.raises(TrainingError, match=message):
        cross_validate(**({"data": [*alloy()], "executor": Told()} | usual | change))
    assert Path("folds.jsonl").read_bytes() == before
    cross_validate([*alloy()], executor=Told(), **usual, checkpoint_every=1, memory_budget=0)


def test_groups_that_were_renamed_are_other_folds(tmp_path: Path) -> None:
    output, told = tmp_path / "folds.jsonl", Told()
    cross_validate([*alloy()], output, n_folds=2, split_by="seed", executor=told)
    data = [atoms.copy() for atoms in alloy()]
    for k, atoms in enumerate(data):
        atoms.calc = alloy()[k].calc
        atoms.info["seed"] = k // 3
    with pytest.raises(TrainingError, match=r"data have changed \(folds\)"):
        cross_validate(data, output, n_folds=2, split_by="seed", executor=told)


def test_half_a_line_is_moved_and_its_fold_is_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, told = tmp_path / "folds.jsonl", Told()
    cross_validate([*alloy()], output, n_folds=2, executor=told)
    content = output.read_bytes()
    for keep in (len(content) - 10, 20):
        output.write_bytes(content[:keep])
        cross_validate([*alloy()], output, n_folds=2, executor=told)
        assert "ended with half a line" in caplog.text
        assert sorted(output.read_bytes().splitlines()) == sorted(content.splitlines())
    assert [fold.number for fold in told.folds] == [0, 1, 1, 0, 1]
    assert (tmp_path / "folds.jsonl.2").read_bytes() == content[:20]


@pytest.mark.parametrize(
    "content",
    [
        b"epoch loss\n",
        b"{}\n",
        b"[1]\n",
        b'{"run": 1}\n',
        b"\xff\x00",
        b"a model",
        b'{"fold": 0}\n',
    ],
)
def test_a_file_that_holds_something_else_is_left_alone(content: bytes, tmp_path: Path) -> None:
    output = tmp_path / "folds.jsonl"
    output.write_bytes(content)
    with pytest.raises(ConfigError, match=r"does not hold the scores .* Give the output another"):
        cross_validate([*alloy()], output, executor=Told())
    assert output.read_bytes() == content


@pytest.mark.parametrize(
    "damage",
    [
        {"fold": "0"}, {"cpu_seconds": None}, {"card": []}, {"force_mae_by_frame": ["a"]}, {"reason": 1},
        {"run": {"settings": {}, "data": [], "start": None}}, {"run": {}}, {"more": 1},
    ],
)  # fmt: skip
def test_damaged_scores_are_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "folds.jsonl"
    cross_validate([*alloy()], output, folds=[0], executor=Told())
    output.write_text(json.dumps(json.loads(output.read_text()) | damage) + "\n")
    with pytest.raises(ConfigError, match="does not hold the scores of a cross-validation"):
        cross_validate([*alloy()], output, executor=Told())


def test_the_output_is_checked_before_the_work(tmp_path: Path) -> None:
    write(tmp_path / "data.extxyz", [*alloy()])
    with pytest.raises(ConfigError, match="is read by this run"):
        cross_validate(tmp_path / "data.extxyz", tmp_path / "data.extxyz", executor=Told())
    with pytest.raises(OutputError, match="is a folder"):
        cross_validate([*alloy()], tmp_path, executor=Told())
    with pytest.raises(OutputError, match="does not exist"):
        cross_validate([*alloy()], tmp_path / "none" / "folds.jsonl", executor=Told())


def test_the_table_has_a_row_for_each_fold_and_their_mean() -> None:
    other = replace(
        SCORE, fold=1, held_out=1, force_mae_by_frame=[None],
        card={"energy_meV_per_atom": {"mae": 5.0, "offset_removed": {"mae": 0.0}}},
    )  # fmt: skip
    result = CrossValidation([SCORE, other], 5)
    assert result.mean == {
        "energy_mae": 4.0, "energy_mae_offset_removed": 2.0, "force_mae": 40.0, "force_rmse": 60.0,
        "force_mae_one_member": 50.0, "force_mae_median_frame": 35.0, "force_mae_worst_frame": 55.0,
    }  # fmt: skip
    assert str(result) == result.table()
    head, first, second, mean, units = result.table().splitlines()
    assert len({len(head), len(first), len(second), len(mean)}) == 1
    assert first.split() == [
        "0",
        "8",
        "3",
        "7",
        "3.00",
        "2.00",
        "40.00",
        "60.00",
        "50.00",
        "35.00",
        "55.00",
    ]
    assert second.split() == ["1", "8", "1", "7", "5.00", "–", "–", "–", "–", "–", "–"]
    assert mean.split() == ["mean", "4.00", "2.00", "40.00", "60.00", "50.00", "35.00", "55.00"]
    assert units.startswith("Energies in meV/atom")
    assert "stress" not in head
    assert repr(result) == (
        "<CrossValidation: 2 of 5 folds, MAE of energies 4 meV/atom, forces 40 meV/Å>"
    )


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data.extxyz", [*alloy()])
    output = tmp_path / "folds.jsonl"
    toml = [f"{k} = {json.dumps(v)}" for k, v in QUICK.to_dict().items()]
    (tmp_path / "quick.toml").write_text("\n".join(toml))
    words = ["cross-validate", str(tmp_path / "data.extxyz"), "-o", str(output)]
    words += ["--settings", str(tmp_path / "quick.toml"), "--quiet"]
    assert main([*words, "--folds", "3", "--only", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["fold", "2", "mean", "Energies", "the"]
    assert [json.loads(line)["fold"] for line in output.read_text().splitlines()] == [2]
    assert main([*words, "--folds", "13"]) == 2
    assert "cannot make 13 folds of 12 frames" in capsys.readouterr().err
    assert main([*words, "--workers", "0"]) == 2
    assert "workers: at least 1 is needed, not 0" in capsys.readouterr().err
