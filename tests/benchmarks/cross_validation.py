"""Cross-validate the default settings of training on any data set, or a few of its folds.

    python tests/benchmarks/cross_validation.py DATA.extxyz -o folds.jsonl
    python tests/benchmarks/cross_validation.py DATA.extxyz -o folds.jsonl --folds 5 --only 0 3 --set weight_decay=1
    python tests/benchmarks/cross_validation.py DATA.extxyz -o folds.jsonl --workers 2

Frames are dealt to the folds in turn, so that neighbours in a trajectory are spread over all. A model is trained
on the frames outside a fold, a part of which it holds back itself as ``neuralil-ase train`` does, and scored on the
fold, which it has never seen. One line of JSON per fold; folds that the file has already are not trained again. The
table gives the error of the mean over members; energies after removing one offset per fold.
"""

import argparse
import json
import resource
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import read

from neuralil_ase import train
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.evaluate import Evaluation, evaluate
from neuralil_ase.farm import Lost, answers_of, died, processes


def fold_score(
    structures: list[Any], fold: int, n_folds: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Train outside the fold and evaluate on it."""
    held_out = structures[fold::n_folds]
    rest = [atoms for k, atoms in enumerate(structures) if k % n_folds != fold]
    began = time.process_time()
    result = train(rest, report=False, progress=True, **options)
    seconds = time.process_time() - began
    evaluation = evaluate(result.potential, frames_from_atoms(held_out))
    return {
        "fold": fold,
        "folds": n_folds,
        "options": options,
        "frames": [len(result.train), len(result.validation), len(held_out)],
        "cpu_seconds": round(seconds, 1),
        "peak_GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "card": evaluation.card,
        "force_mae_by_frame": _by_frame(evaluation),
    }


def scored(
    structures: list[Any],
    folds: Sequence[int],
    n_folds: int,
    options: dict[str, Any],
    executor: Executor | None,
) -> Iterator[dict[str, Any]]:
    """Scores of the folds as they come, here or by an executor's workers."""
    if executor is None:
        yield from (fold_score(structures, fold, n_folds, options) for fold in folds)
        return
    messages = {fold: (structures, fold, n_folds, options) for fold in folds}
    for _, answer in answers_of(executor, fold_score, messages):
        if isinstance(answer, Lost):
            raise died(answer)
        yield answer


def _by_frame(evaluation: Evaluation) -> list[float]:
    """Force MAE of every frame in meV/Å: one cell unlike all others can spoil the mean of a fold."""
    comparison = evaluation.comparison
    frames = np.split(np.abs(comparison.force_errors), np.cumsum(comparison.sizes)[:-1])
    return [round(1e3 * float(np.nanmean(errors)), 1) for errors in frames]


def table(scores: list[dict[str, Any]]) -> str:
    """One row per fold, and their mean."""
    rows = [
        "fold  train  held out  CPU s  energy MAE  force MAE  one member  median frame  worst frame"
    ]
    for score in scores:
        frames = score["frames"]
        rows.append(
            f"{score['fold']:4d}  {frames[0]:5d}  {frames[2]:8d}  {score['cpu_seconds']:5.0f}  "
            + _cells(_errors(score))
        )
    mean = np.mean([_errors(score) for score in scores], axis=0)
    units = "Energies in meV/atom, one offset per fold removed; forces in meV/Å."
    return "\n".join([*rows, f"mean{'':26s}" + _cells(mean), units])


def _cells(errors: Sequence[float]) -> str:
    widths = (10, 9, 10, 12, 11)
    return "  ".join(f"{x:{width}.2f}" for x, width in zip(errors, widths, strict=True))


def _errors(score: dict[str, Any]) -> tuple[float, ...]:
    card, by_frame = score["card"], score["force_mae_by_frame"]
    forces = card["force_meV_per_A"]["mae"]
    return (
        card["energy_meV_per_atom"]["offset_removed"]["mae"],
        forces,
        card.get("members", {}).get("force_mae", forces),
        float(np.median(by_frame)),
        max(by_frame),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="+", help="these folds alone")
    parser.add_argument("--workers", type=int, metavar="N", help="folds at a time, in processes")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="TOML values")
    given = parser.parse_args(arguments)
    options = tomllib.loads("\n".join(given.set))
    structures = read(given.data, ":")
    lines = given.output.read_text(encoding="utf-8").splitlines() if given.output.exists() else []
    scores = [json.loads(line) for line in lines]
    done = {score["fold"] for score in scores}
    missing = [fold for fold in given.only or range(given.folds) if fold not in done]
    with nullcontext() if given.workers is None else processes(given.workers) as executor:
        for score in scored(structures, missing, given.folds, options, executor):
            scores.append(score)
            with open(given.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(score) + "\n")
    print(table(sorted(scores, key=lambda score: score["fold"])))


if __name__ == "__main__":
    main()
