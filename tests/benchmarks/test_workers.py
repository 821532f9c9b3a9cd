"""Folds by workers, and the count of what workers are sent."""

import json
import pickle
from pathlib import Path
from typing import Any

import cross_validation
import farm
import pytest
from ase.build import molecule
from ase.io import write
from executors import Mortal

from neuralil_ase.errors import ProcessError


def scored(
    structures: list[Any], fold: int, n_folds: int, options: dict[str, Any]
) -> dict[str, Any]:
    """In place of a training."""
    errors = {"offset_removed": {"mae": float(fold)}}
    card = {"energy_meV_per_atom": errors, "force_meV_per_A": {"mae": 2.0}}
    frames = [len(structures) - len(structures[fold::n_folds]), 0, len(structures[fold::n_folds])]
    return {
        "fold": fold,
        "frames": frames,
        "cpu_seconds": 1,
        "card": card,
        "force_mae_by_frame": [1.0],
    }


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    write(tmp_path / "data.extxyz", [molecule("H2O")] * 7)
    monkeypatch.setattr(cross_validation, "fold_score", scored)
    output = str(tmp_path / "folds.jsonl")
    return [str(tmp_path / "data.extxyz"), "-o", output, "--folds", "3"]


def test_workers_score_the_folds_that_are_missing(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = Mortal()
    monkeypatch.setattr(cross_validation, "processes", lambda count: pool)
    cross_validation.main([*words, "--only", "1"])
    assert not pool.messages
    cross_validation.main([*words, "--workers", "2"])
    assert [message[1] for message in pool.messages] == [0, 2]
    lines = [json.loads(line) for line in Path(words[2]).read_text().splitlines()]
    assert [line["fold"] for line in lines] == [1, 0, 2]
    assert [line["frames"] for line in lines] == [[5, 0, 2], [4, 0, 3], [5, 0, 2]]
    capsys.readouterr()


def test_a_fold_whose_worker_dies_twice_is_an_error(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "processes", lambda count: Mortal({1, 3}))
    with pytest.raises(ProcessError, match="the worker is gone"):
        cross_validation.main([*words, "--workers", "2"])
    assert len(Path(words[2]).read_text().splitlines()) == 2


def test_messages_and_answers_are_measured() -> None:
    counting = farm.Counting(Mortal())
    answer = counting.submit(sorted, [3, 1, 2], reverse=True)
    assert answer.result() == [3, 2, 1]
    assert counting.sent == [len(pickle.dumps((sorted, ([3, 1, 2],), {"reverse": True})))]
    assert counting.answered == [len(pickle.dumps([3, 2, 1]))]
