"""Active learning: the potential itself selects the frames that it should learn next.

It begins with a few frames of ethylammonium nitrate (EAN) at 300 K. Each round has three steps:

1. MD at 500 K with the present potential. A monitor collects frames whose force spread is between the
   two thresholds, and stops a run that exceeds the upper one.
2. GFN1-xTB (tblite) labels some of the collected frames.
3. Training continues from the last parameters with these frames added.

The rounds end when no frame is flagged, or after the last round. To see whether selecting frames helps,
a second loop learns the same number of labels from frames at random times of its own MD. Both loops are
tested on 500 K frames of the data set, which they never learn.

    python active_learning.py                 # half an hour of CPU time at most
    python active_learning.py --quick         # does it run here? a minute

Every step (active_steps.py) writes a file or folder in the work folder. If a run is killed, the same
command continues from there. Results: table.txt, overview.png, and the potential of each round in
round_N/flagged/training.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from active_steps import (
    Exploration,
    explored,
    judged,
    md_frames,
    product,
    read_data,
    taught,
    totals,
    trained,
)
from ase import Atoms
from ase.io import read, write

from neuralil_ase import load_potential
from neuralil_ase.errors import NeuralILError
from neuralil_ase.files.atomic import write_atomically

DATA = Path(__file__).resolve().parents[1] / "ean_gfn1" / "ean_gfn1.extxyz.xz"
HEADER = (
    "round loop   frames  flagged/checks stops   force MAE  99 % below  energy MAE  unsure of\n"
    "                                                meV/Å       meV/Å    meV/atom          %"
)
NOTE = """\
frames: number of learnt frames. flagged: checks during MD with a spread of {low:.3f} eV/Å or more; at {high:.3f}
the run is stopped and started again. On {test} frames at {T:.0f} K: mean absolute errors of force components
and energies, 99 % quantile of the norm of the force error, fraction of frames that would be
flagged. Spread: standard deviation over members (ddof 1), norm over x, y, z, largest of all atoms.
"""


def option(default: Any, text: str) -> Any:
    """A setting with its default and its help on the command line."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Everything that the result depends on. A run can only be continued with the same settings."""

    data_sha256: str
    atoms: int = option(120, "atoms in the boxes whose frames are used")
    rounds: int = option(6, "rounds of labelling, at most")
    start_frames: int = option(20, "frames at 300 K to begin with")
    valid_frames: int = option(12, "more of them, to calibrate the spread")
    test_frames: int = option(24, "frames to judge by, at most")
    labels: int = option(8, "frames labelled per round and loop")
    temperature: float = option(500.0, "of MD, and of the frames to judge by, K")
    boxes: int = option(2, "starting boxes per round and loop")
    steps: int = option(2000, "MD steps of 2 fs from each")
    interval: int = option(10, "steps between two looks at the spread")
    threshold: tuple[float, ...] = option((), "low and high, eV/Å (default: the first model's own)")
    members: int = option(4, "members of the ensemble")
    first_epochs: int = option(150, "epochs of the first training")
    epochs: int = option(60, "epochs of the others")
    seed: int = option(0, "of training, velocities, thermostat and the random choice")


QUICK = {
    "rounds": 1, "start_frames": 2, "valid_frames": 2, "test_frames": 2, "labels": 1, "boxes": 1,
    "steps": 20, "members": 2, "first_epochs": 4, "epochs": 2, "threshold": (0.01, 1e3),
}  # fmt: skip


@dataclass
class Loop:
    """One of the two loops: which frames it takes, the files it learns, its model, its results."""

    name: str
    kind: str
    files: list[Path]
    model: Path | None = None
    rows: list[dict[str, float]] = field(default_factory=list)


def run(settings: Settings, data: list[Atoms], work: Path) -> tuple[Loop, Loop]:
    """All rounds of both loops."""
    boxes = partial(md_frames, data, settings.atoms)
    start = boxes(300.0, ("train",), settings.start_frames)
    valid = boxes(300.0, ("valid",), settings.valid_frames)
    test = boxes(settings.temperature, ("valid", "test"), settings.test_frames)
    first = product(work / "start.extxyz", lambda path: write(path, start + valid, "extxyz"))
    loops = Loop("active", "flagged", [first]), Loop("random", "checked", [first])
    for number in range(settings.rounds + 1):
        for loop in loops:
            advance(loop, number, start, test, work, settings)
        report(loops, settings, work)
        if number == settings.rounds or not loops[0].rows[-1]["flagged"]:
            break
        count = settings.labels
        for loop in loops:  # the second loop gets as many labels as the first one
            count = teach(loop, number, count, work, settings)
        if not count:
            print("no frame could be labelled; see the messages above")
            break
    return loops


def advance(
    loop: Loop, number: int, start: list[Atoms], test: list[Atoms], work: Path, settings: Settings
) -> None:
    """One round of one loop: train, explore, test. Both loops share the first one."""
    folder = work / f"round_{number}" / (loop.name if number else "both")
    print(f"round {number}, {loop.name} loop: training and MD, in {folder}", flush=True)
    first: dict[str, Any] = {"members": settings.members, "epochs": settings.first_epochs}
    options = {"epochs": settings.epochs} if loop.model else first
    loop.model = trained(folder / "training", loop.files, loop.model, seed=settings.seed, **options)
    low, high = bands(settings, work)
    md = Exploration(settings.temperature, settings.steps, settings.interval, (low, high))
    found = explored(
        folder / "md", loop.model, start[-settings.boxes :], md, settings.seed + number
    )
    frames = sum(frame.info["split"] == "train" for file in loop.files for frame in read(file, ":"))
    loop.rows.append(
        {"frames": frames, "tested": len(test), **totals(found), **judged(loop.model, test, low)}
    )


def bands(settings: Settings, work: Path) -> tuple[float, ...]:
    """The thresholds of the first model, from its calibration. All rounds use them."""
    if settings.threshold:
        return settings.threshold
    first = load_potential(work / "round_0" / "both" / "training" / "model.safetensors")
    if first.calibration is None:
        raise SystemExit("too few validation frames to calibrate on: give --threshold LOW HIGH")
    return first.calibration.thresholds["low"], first.calibration.thresholds["high"]


def teach(loop: Loop, number: int, count: int, work: Path, settings: Settings) -> int:
    """Label frames of the last exploration for the next round; returns how many there are."""
    target = work / f"round_{number}" / f"{loop.name}_labels.extxyz"
    assert loop.model is not None
    frames = taught(target, loop.model.parents[1] / "md", loop.kind, count, settings.seed + number)
    if frames:
        loop.files.append(target)
    return len(frames)


def table(loops: tuple[Loop, Loop]) -> str:
    """The results of all rounds."""
    lines = [HEADER]
    for number in range(len(loops[0].rows)):
        for loop in loops if number else loops[:1]:
            row = loop.rows[number]
            lines.append(
                f"{number:5} {loop.name if number else 'both':6} {row['frames']:6.0f} "
                f"{row['flagged']:8.0f}/{row['checks']:<6.0f} {row['stops']:5.0f} "
                f"{row['force_mae']:11.1f} {row['force_99']:11.0f} {row['energy_mae']:11.2f} "
                f"{row['unsure']:10.0f}"
            )
    return "\n".join(lines)


def report(loops: tuple[Loop, Loop], settings: Settings, work: Path) -> None:
    """Print the table so far, and write it and the picture, replacing those of the last round."""
    low, high = bands(settings, work)
    note = NOTE.format(low=low, high=high, T=settings.temperature, test=loops[0].rows[-1]["tested"])
    text = f"{table(loops)}\n\n{note}"
    print(text, flush=True)
    write_atomically(work / "table.txt", text.encode())
    write_atomically(work / "overview.png", picture(loops))


def picture(loops: tuple[Loop, Loop]) -> bytes:
    """Errors and flagged share against the number of frames learnt, for both loops, as png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    force, energy, flagged = figure.subplots(1, 3)
    for loop, style in zip(loops, ("o-", "s--"), strict=True):
        frames = [row["frames"] for row in loop.rows]
        share = [100 * row["flagged"] / row["checks"] for row in loop.rows]
        force.plot(frames, [row["force_mae"] for row in loop.rows], style, label=loop.name)
        energy.plot(frames, [row["energy_mae"] for row in loop.rows], style)
        flagged.plot(frames, share, style)
    force.set_ylabel("force MAE on test frames (meV/Å)")
    energy.set_ylabel("energy MAE on test frames (meV/atom)")
    flagged.set_ylabel("flagged checks during MD (%)")
    for axes in (force, energy, flagged):
        axes.set_xlabel("frames learnt")
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    force.legend(title="choice of frames")
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def prepare(work: Path, settings: Settings) -> None:
    """Make the work folder, or check that its content was made with the same settings."""
    wanted = json.dumps(asdict(settings), indent=1)
    record = work / "settings.json"
    if record.exists() and record.read_text(encoding="utf-8") != wanted:
        raise SystemExit(
            f"{work} holds a run with other settings or data (see {record.name} there). Give the "
            "same options as before, or another folder with --work."
        )
    product(record, lambda path: path.write_text(wanted, encoding="utf-8"))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, default=Path("active_learning"), help="folder of all results")
    add("--data", type=Path, default=DATA, help="labelled data set")
    add("--quick", action="store_true", help="few frames, few steps, one round: a test")
    for setting in fields(Settings)[1:]:
        value: Any = setting.default
        kind = {"type": type(value)} if value != () else {"type": float, "nargs": 2}
        shown = f" [{value}]" if value != () else ""
        add(f"--{setting.name.replace('_', '-')}", help=setting.metadata["help"] + shown, **kind)
    return parser.parse_args(arguments)


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings that the options stand for."""
    if not options.data.is_file():
        raise SystemExit(f"there is no data set {options.data}")
    names = [setting.name for setting in fields(Settings)[1:]]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= {"threshold": tuple(given["threshold"])} if "threshold" in given else {}
    sha256 = hashlib.sha256(options.data.read_bytes()).hexdigest()
    return Settings(sha256, **({**QUICK, **given} if options.quick else given))


def main(arguments: list[str] | None = None) -> None:
    """Both loops, table and picture; see the module's docstring."""
    options = parse(arguments)
    if find_spec("tblite") is None:
        raise SystemExit('the labels need tblite: pip install "neuralil-ase[data]"')
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # the cells are small: threads of GFN1-xTB only wait for each other
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = settings_from(options)
    prepare(options.work, settings)
    try:
        run(settings, read_data(options.data), options.work)
    except KeyboardInterrupt:
        sys.exit(
            f"stopped; what is done is in {options.work}: the same command continues from there"
        )
    except NeuralILError as error:
        sys.exit(str(error))
    print(f"table.txt, overview.png and the models are in {options.work}")


if __name__ == "__main__":
    main()
