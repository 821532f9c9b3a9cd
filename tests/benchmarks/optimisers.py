"""What trains best per CPU minute, optimisers, averages of the weights, batch sizes: one run each, and a figure.

    python tests/benchmarks/optimisers.py run DATA.extxyz -o logs --epochs 80
    python tests/benchmarks/optimisers.py draw logs/*.log -o optimisers.png
    python tests/benchmarks/optimisers.py run DATA.extxyz -o logs2 --epochs 80 --compare averages batches

All runs share split, initial parameters and order of the frames. Time is CPU time of training alone, validation
included. To compare other options, put any log of ``neuralil-ase train`` beside them: its name is the label, and
wall time stands in for the CPU time it does not have.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib

from neuralil_ase.training.data import load_data
from neuralil_ase.training.loop import Run, Trainer, fit
from neuralil_ase.training.prepare import prepare
from neuralil_ase.training.settings import TrainingSettings

RUNS: dict[str, dict[str, dict[str, object]]] = {
    "optimisers": {
        "AdamW as in the paper": {
            "optimizer": "adamw",
            "weight_decay": 1e-4,
            "learning_rate": 5e-3,
        },
        "AdamW": {"optimizer": "adamw"},
        "Muon": {"optimizer": "muon"},
        "schedule-free AdamW": {"optimizer": "schedule-free"},
    },
    "averages": {
        "no average": {"ema": 0.0},
        "average 0.9": {"ema": 0.9},
        "average 0.99": {},
        "average 0.999": {"ema": 0.999},
    },
    "batches": {f"batches of {size}": {"batch_size": size} for size in (1, 2, 5, 10)},
}


def measure(data: list[str], settings: TrainingSettings, log: Path) -> None:
    """Train once; a line of JSON per epoch, with the CPU seconds since the start of training."""
    trainer = Trainer(prepare(settings, *load_data(data, settings)))
    began, lines = time.process_time(), []

    def record(run: Run, reason: str | None) -> None:
        if reason is None:
            entry = run.history[-1] | {"cpu_seconds": time.process_time() - began}
            lines.append(json.dumps(entry))
            log.write_text("\n".join(lines) + "\n", encoding="utf-8")

    fit(trainer, trainer.start(), record)


def curve(path: Path) -> tuple[list[float], list[float], list[float]]:
    """Minutes, and validation errors of the forces in meV/Å and energies in meV/atom."""
    minutes, forces, energies, elapsed = [], [], [], 0.0
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        elapsed += entry["seconds"]
        if "validation_force_mae" in entry:
            minutes.append(entry.get("cpu_seconds", elapsed) / 60)
            forces.append(1e3 * entry["validation_force_mae"])
            energies.append(1e3 * entry["validation_energy_mae"])
    return minutes, forces, energies


def draw(logs: list[Path], output: Path) -> None:
    """Errors over time, one line per log."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for log in logs:
        minutes, *errors = curve(log)
        for axis, values in zip(axes, errors, strict=True):
            axis.plot(minutes, values, label=log.stem.replace("_", " "))
    labels = ("force MAE in meV/Å", "energy MAE in meV/atom")
    for axis, label in zip(axes, labels, strict=True):
        axis.set(xlabel="CPU time in minutes", ylabel=f"{label}, validation", yscale="log")
    axes[0].legend(frameon=False)
    figure.savefig(output, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("data", nargs="+")
    runner.add_argument("-o", "--output", type=Path, required=True)
    runner.add_argument("--epochs", type=int, default=80)
    runner.add_argument("--members", type=int, default=4)
    runner.add_argument("--validation-fraction", type=float, default=0.2)
    runner.add_argument("--compare", nargs="+", choices=RUNS, default=["optimisers"])
    drawer = commands.add_parser("draw")
    drawer.add_argument("logs", nargs="+", type=Path)
    drawer.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if given.command == "draw":
        draw(given.logs, given.output)
        return
    given.output.mkdir(parents=True, exist_ok=True)
    common = TrainingSettings(
        epochs=given.epochs, members=given.members, validation_fraction=given.validation_fraction
    )
    runs = [run for kind in given.compare for run in RUNS[kind].items()]
    for name, options in runs:
        log = given.output / f"{name.replace(' ', '_')}.log"
        measure(given.data, common.updated(options), log)


if __name__ == "__main__":
    main()
