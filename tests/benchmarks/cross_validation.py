"""Cross-validate the default settings of training on any data set, or a few of its folds.

    python tests/benchmarks/cross_validation.py DATA.extxyz -o folds.jsonl
    python tests/benchmarks/cross_validation.py DATA.extxyz -o folds.jsonl --folds 5 --only 0 3 --set weight_decay=1

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import read

from neuralil_ase import train
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.evaluate import Evaluation, evaluate


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
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="TOML values")
    given = parser.parse_args(arguments)
    options = tomllib.loads("\n".join(given.set))
    structures = read(given.data, ":")
    lines = given.output.read_text(encoding="utf-8").splitlines() if given.output.exists() else []
    scores = [json.loads(line) for line in lines]
    done = {score["fold"] for score in scores}
    for fold in given.only or range(given.folds):
        if fold not in done:
            scores.append(fold_score(structures, fold, given.folds, options))
            with open(given.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(scores[-1]) + "\n")
    print(table(sorted(scores, key=lambda score: score["fold"])))


if __name__ == "__main__":
    main()
