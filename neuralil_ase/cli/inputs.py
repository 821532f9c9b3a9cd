"""What several commands share: options for labelled data, the frames that they name, exit statuses."""

import argparse
from typing import TYPE_CHECKING

from neuralil_ase.errors import DataError

if TYPE_CHECKING:
    from neuralil_ase.evaluation.dataset import Frame

OK, FAILED, INTERRUPTED = 0, 2, 130
LABELS = ("energy", "forces", "stress", "virial")


def add_data(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help=f"{text}, in any format that ASE reads; file@0:100 selects frames",
    )


def add_keys(parser: argparse.ArgumentParser) -> None:
    from neuralil_ase.evaluation.labels import STRESS_UNITS

    for name in LABELS:
        parser.add_argument(f"--{name}-key", metavar="NAME", help=f"name of the {name} in the data")
    parser.add_argument(
        "--stress-unit",
        choices=list(STRESS_UNITS),
        default="eV/A^3",
        help="unit of the stresses in the data",
    )
    parser.add_argument(
        "--stress-sign",
        type=int,
        choices=(1, -1),
        default=1,
        help="-1 if stresses are positive under compression",
    )


def add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--select",
        metavar="KEY=VALUE",
        help="use only frames with this entry in atoms.info, e.g. split=test",
    )


def frames_of(options: argparse.Namespace) -> "list[Frame]":
    from neuralil_ase.evaluation.dataset import read_frames
    from neuralil_ase.evaluation.labels import Keys

    names = (*(f"{name}_key" for name in LABELS), "stress_unit", "stress_sign")
    keys = Keys.named({name: getattr(options, name) for name in names})
    if not options.select:
        return read_frames(options.data, keys)
    name, _, value = options.select.partition("=")
    frames = [f for f in read_frames(options.data, keys, name) if f.group == value]
    if not frames:
        raise DataError(f"no frame has {options.select} in its info")
    return frames
