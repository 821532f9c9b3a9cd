"""The command line: ``neuralil-ase train | cross-validate | evaluate | calibrate | info | import | host``.

Thin: it reads options, calls functions of the package and prints. Heavy modules are imported by the command that
needs them.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

from neuralil_ase import __version__
from neuralil_ase.cli.inputs import (
    FAILED,
    INTERRUPTED,
    OK,
    add_data,
    add_keys,
    add_selection,
    frames_of,
)
from neuralil_ase.cli.training import (
    add_cross_validate_options,
    add_train_options,
    run_cross_validate,
    run_train,
)
from neuralil_ase.errors import NeuralILError

EXAMPLE = """\
example:
  neuralil-ase train data.extxyz -o model.safetensors
  neuralil-ase evaluate model.safetensors test.extxyz --output report
  neuralil-ase info model.safetensors

neuralil-ase COMMAND --help shows the options of a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv
        Words of the command line; by default the arguments of this process.

    Returns
    -------
    int
        Exit status: 0, 2 after an error (one line on the standard error), 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Å shows a question mark
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in ``info | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _run(words: list[str]) -> int:
    options = build_parser(words).parse_args(words)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for chatty in ("jax", "matplotlib", "absl"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        return int(options.run(options))
    except NeuralILError as error:
        print(f"neuralil-ase: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("neuralil-ase: interrupted", file=sys.stderr)
        return INTERRUPTED


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser. Only the command that ``words`` names gets its options, so that help loads no heavy modules."""
    parser = argparse.ArgumentParser(
        "neuralil-ase",
        description="train, evaluate and inspect NeuralIL potentials",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((word for word in words if word in COMMANDS), None)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        sub.set_defaults(run=command.run)
        if name == chosen:
            command.add_options(sub)
    return parser


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model file")
    add_data(parser, "labelled data")
    add_keys(parser)
    add_selection(parser)
    parser.add_argument("--output", metavar="FOLDER", help="folder for pictures and accuracy.json")
    parser.add_argument(
        "--write-predictions",
        metavar="EXTXYZ",
        help="file for the structures with predictions and labels",
    )


def _evaluate(options: argparse.Namespace) -> int:
    import json

    from neuralil_ase.evaluation.calibration import calibration_report
    from neuralil_ase.evaluation.evaluate import evaluate, write_predictions
    from neuralil_ase.evaluation.metrics import format_table
    from neuralil_ase.evaluation.report import write_report
    from neuralil_ase.files.atomic import write_atomically
    from neuralil_ase.files.model_file import load_potential
    from neuralil_ase.files.outputs import check_folder

    _check_outputs(options, options.write_predictions)
    if options.output:
        check_folder(options.output)
    potential, frames = load_potential(options.model), frames_of(options)
    evaluation = evaluate(potential, frames)
    name = Path(options.data[0]).stem if len(options.data) == 1 else "all files"
    print(format_table({name: evaluation.card}))
    uncertainty = calibration_report(potential.calibration, evaluation.comparison)
    if uncertainty:
        print(f"\n{_quality_table(uncertainty)}")
    if options.output:
        folder = Path(options.output)
        write_report(folder, {name: evaluation.comparison}, calibration=potential.calibration)
        card = evaluation.card | {"uncertainty": uncertainty}
        numbers = json.dumps(card, indent=1, ensure_ascii=False)
        write_atomically(folder / "accuracy.json", numbers.encode())
        print(f"pictures and accuracy.json are in {folder}")
    if options.write_predictions:
        write_predictions(evaluation, options.write_predictions)
        print(f"predictions are in {options.write_predictions}")
    return OK


def _check_outputs(options: argparse.Namespace, output: str | None) -> None:
    """Check before the work that the output can be written and is not one of the inputs."""
    from neuralil_ase.files.outputs import check_can_write, check_is_no_input

    if output:
        is_in_place = options.run is _calibrate and Path(output) == Path(options.model)
        check_is_no_input([output], options.data if is_in_place else [options.model, *options.data])
        check_can_write(output)


def _calibrate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model file")
    add_data(parser, "labelled data that were not used in training")
    add_keys(parser)
    add_selection(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="NEW",
        help="write the calibrated model to NEW and leave MODEL as it is",
    )


def _calibrate(options: argparse.Namespace) -> int:
    from neuralil_ase.evaluation.calibrate import calibrate
    from neuralil_ase.files.model_file import load_potential, save_potential

    _check_outputs(options, options.output)
    potential, frames = load_potential(options.model), frames_of(options)
    names = ", ".join(Path(path).name for path in options.data)
    calibrated = calibrate(potential, frames, description=names)
    output = options.output or options.model
    save_potential(calibrated.potential, output)
    print(_quality_table(calibrated.quality))
    print(f"the calibrated model is in {output}")
    return OK


def _info_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="model file; by default the model that ships with the package",
    )
    parser.add_argument(
        "--lammps",
        nargs="?",
        const="metal",
        choices=("metal", "real"),
        metavar="UNITS",
        help="print lines that LAMMPS includes (model, elements, cutoff, thresholds), in metal or real units",
    )


def _info(options: argparse.Namespace) -> int:
    if options.lammps:
        from neuralil_ase.hosts.lammps.variables import variables

        print(variables(options.model, options.lammps))
        return OK
    from neuralil_ase.evaluation.model_card import describe
    from neuralil_ase.files.model_file import as_potential

    print(describe(as_potential(options.model)))
    return OK


def _import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("published", metavar="PUBLISHED", help="published parameter file (pickle)")
    parser.add_argument("-o", "--output", required=True, metavar="MODEL", help="model file")


def _import(options: argparse.Namespace) -> int:
    from neuralil_ase.files.model_file import save_potential
    from neuralil_ase.files.published_files import import_published

    potential = import_published(options.published)
    save_potential(potential, options.output)
    elements = " ".join(potential.elements)
    print(f"{potential.n_members} member(s) for {elements} are in {options.output}")
    return OK


def _host_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "program", choices=["ipi"], help="ipi: the driver for i-pi-py_driver -m custom -P PATH"
    )


def _host(options: argparse.Namespace) -> int:
    import neuralil_ase.hosts

    folder = Path(neuralil_ase.hosts.__file__).parent
    print(folder / {"ipi": "ipi_driver.py"}[options.program])
    return OK


class _Command(NamedTuple):
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "train": _Command("train an ensemble on labelled structures", add_train_options, run_train),
    "cross-validate": _Command(
        "train on parts of the data and evaluate on the rest, fold by fold",
        add_cross_validate_options,
        run_cross_validate,
    ),
    "evaluate": _Command("compare a model with labelled data", _evaluate_options, _evaluate),
    "calibrate": _Command(
        "fit error bars to held-out data and store them in the model",
        _calibrate_options,
        _calibrate,
    ),
    "info": _Command("describe a model file", _info_options, _info),
    "import": _Command("convert a published NeuralIL file", _import_options, _import),
    "host": _Command("print the path of the i-PI driver", _host_options, _host),
}


def _quality_table(report: "dict[str, dict[str, float]]") -> str:
    titles = {
        "rms_error_over_rms_sigma": "rms error / rms error bar (1 is right)",
        "coverage_68": "components within 1 error bar (0.683)",
        "coverage_95": "components within 1.96 error bars (0.950)",
        "spearman": "rank correlation with the error",
        "miscalibration_area": "miscalibration area (0)",
        "auroc_largest_tenth": "AUROC for the largest 10 %",
        "crps": "CRPS of components (eV/Å; eV)",
    }
    first = max(map(len, titles.values()))
    lines = [f"{'error bar or spread:':<{first}}" + "".join(f"  {column:>16}" for column in report)]
    lines += [
        f"{title:<{first}}" + "".join(f"  {values[key]:>16.3f}" for values in report.values())
        for key, title in titles.items()
    ]
    return "\n".join(lines)
