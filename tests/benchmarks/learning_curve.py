"""Error against the number of training frames, learning from forces, from energies, and from both.

    python tests/benchmarks/learning_curve.py md_examples/ean_gfn1/ean_gfn1.extxyz.xz -o curve.jsonl
    python tests/benchmarks/learning_curve.py -o curve.jsonl --draw curve.png

Every run takes the same number of steps, so that all cost the same, and is scored on the frames whose info key "split"
is "test". One line of JSON per run; runs that the file has already are not repeated.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from ase.io import read

from neuralil_ase import train
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.evaluate import evaluate
from neuralil_ase.training.settings import TrainingSettings

LEARN_FROM: dict[str, dict[str, float]] = {
    "both": {},
    "forces": {"energy_weight": 0.0, "stress_weight": 0.0},
    "energies": {"force_weight": 0.0, "stress_weight": 0.0, "energy_weight": 1.0},
}


def run(data: str, size: int, labels: str, steps: int, members: int) -> dict[str, Any]:
    """Train on `size` random frames of the split "train" and score on "test"."""
    structures = read(data, ":")
    parts = {name: [a for a in structures if a.info["split"] == name] for name in ("train", "test")}
    order = np.random.default_rng(0).permutation(len(parts["train"]))
    size = min(size or len(order), len(order))
    chosen = [parts["train"][k] for k in order[:size]]
    batch_size = TrainingSettings().batch_size
    epochs = max(1, round(steps * batch_size / size))
    began = time.process_time()
    result = train(
        chosen,
        report=False,
        progress=True,
        epochs=epochs,
        members=members,
        validation_fraction=0.0,
        **LEARN_FROM[labels],
    )
    card = evaluate(result.potential, frames_from_atoms(parts["test"])).card
    return {
        "frames": size,
        "labels": labels,
        "epochs": epochs,
        "members": members,
        "cpu_seconds": round(time.process_time() - began, 1),
        "energy": card["energy_meV_per_atom"]["offset_removed"]["mae"],
        "force": card["force_meV_per_A"]["mae"],
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Test errors of the mean over members."""
    rows = ["frames  learnt from  epochs  CPU s  energy MAE meV/atom  force MAE meV/Å"]
    for run in sorted(runs, key=lambda run: (run["labels"], run["frames"])):
        rows.append(
            f"{run['frames']:6d}  {run['labels']:>11s}  {run['epochs']:6d}  {run['cpu_seconds']:5.0f}  "
            f"{run['energy']:19.2f}  {run['force']:15.1f}"
        )
    return "\n".join(rows)


def draw(runs: list[dict[str, Any]], output: Path) -> None:
    """Both errors against the number of frames, log-log."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    titles = {"force": "force MAE (meV/Å)", "energy": "energy MAE, no offset (meV/atom)"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for labels in LEARN_FROM:
            points = sorted((run["frames"], run[key]) for run in runs if run["labels"] == labels)
            if points:
                axis.loglog(*zip(*points, strict=True), "o-", label=f"learnt from {labels}")
        axis.set(xlabel="training frames", ylabel=f"{title},\ntest seeds")
    axes[0].legend(frameon=False)
    figure.savefig(output, dpi=160)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 50, 100, 0], help="0: all")
    parser.add_argument("--labels", nargs="+", choices=LEARN_FROM, default=list(LEARN_FROM))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--draw", type=Path, metavar="PNG")
    given = parser.parse_args(arguments)
    lines = given.output.read_text(encoding="utf-8").splitlines() if given.output.exists() else []
    runs = [json.loads(line) for line in lines]
    done = {(run["asked"], run["labels"]) for run in runs}
    for labels in given.labels if given.data else ():
        for size in given.sizes:
            if (size, labels) not in done:
                runs.append(
                    run(given.data, size, labels, given.steps, given.members) | {"asked": size}
                )
                with open(given.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    print(table(runs))
    if given.draw:
        draw(runs, given.draw)


if __name__ == "__main__":
    main()
