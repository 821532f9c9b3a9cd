"""The commands that train: ``neuralil-ase train | cross-validate``."""

import argparse
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from typing import Any

from neuralil_ase.cli.inputs import INTERRUPTED, OK, add_data


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``train``."""
    parser.epilog = (
        "Units: eV, Å. Values in brackets are defaults. Example: neuralil-ase train a.extxyz b.extxyz -o "
        "model.safetensors --energy-key REF_energy --split-by seed --members 8"
    )
    add_data(parser, "data to train on")
    parser.add_argument("-o", "--output", required=True, metavar="MODEL", help="model file")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint beside MODEL"
    )
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="at the end, evaluate, calibrate and draw pictures in MODEL.report",
    )
    _add_shared(parser, "train the members in N parallel processes")


def run_train(options: argparse.Namespace) -> int:
    """Train, and print the errors."""
    from neuralil_ase.evaluation.metrics import format_table
    from neuralil_ase.training import train

    with _shared(options) as shared:
        result = train(
            options.data, options.output, resume=options.resume, report=options.report, **shared
        )
    if result.accuracy:
        print(format_table(result.accuracy))
    if result.output:
        print(f"{result.reason}; the model is in {result.output}")
    else:
        print(f"{result.reason}; no model was written: the run ended before its first validation")
    return INTERRUPTED if result.reason == "interrupted" else OK


def add_cross_validate_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``cross-validate``."""
    parser.epilog = (
        "Frames are assigned to the folds in turn (with --split-by, group by group). After an interruption, the same "
        "command continues. Example: neuralil-ase cross-validate data.extxyz -o folds.jsonl --folds 5 --workers 2"
    )
    add_data(parser, "data to train on and to evaluate on")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="SCORES",
        help="file for the scores, a line of JSON for each fold; folds that it holds are not trained again",
    )
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="number of folds [5]")
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="K", help="only these folds, counted from 0"
    )
    _add_shared(parser, "train the folds in N parallel processes")


def run_cross_validate(options: argparse.Namespace) -> int:
    """Train fold by fold, and print the table of errors."""
    from neuralil_ase.cross_validation import cross_validate

    with _shared(options) as shared:
        result = cross_validate(
            options.data, options.output, n_folds=options.folds, folds=options.only, **shared
        )
    print(result.table())
    print(f"the scores are in {options.output}")
    return OK


def _add_shared(parser: argparse.ArgumentParser, workers: str) -> None:
    from neuralil_ase.options import add_options

    parser.add_argument(
        "--settings", metavar="TOML", help="read settings from this file; options override them"
    )
    parser.add_argument(
        "--start-from",
        metavar="OLD",
        help="start from this model, for example with new data, and keep its architecture",
    )
    parser.add_argument("--workers", type=int, metavar="N", help=workers)
    parser.add_argument("--quiet", action="store_true", help="do not show progress")
    add_options(parser.add_argument_group("settings (also in the TOML file, with _ for -)"))


@contextmanager
def _shared(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The arguments that both commands share. The workers stop at the end of the context."""
    from neuralil_ase.options import given_options
    from neuralil_ase.training.settings import read_settings
    from neuralil_ase.workers import processes

    values = read_settings(options.settings) if options.settings else {}
    executor: Executor | None = None if options.workers is None else processes(options.workers)
    shared = {"start_from": options.start_from, "progress": not options.quiet, "executor": executor}
    with executor or nullcontext():
        yield shared | values | given_options(options)
