"""Cost of second derivatives against central differences of our own forces, and how it grows with atoms.

    python tests/benchmarks/hessian.py --output hessian --repeat 1 2 3 --peers mace=PYTHON

The shipped model, eight members, float64; the EAN cell of md_examples and its supercells. Medians of CPU time (with
--clock wall of time, for GPUs) of runs that take turns, so that a busy machine slows all alike: compare ratios.
Compilation is shown by itself. Memory is what the process gains at its peak while the force constants are computed, and
the size of the record. The peer, of random parameters in float32, runs on the smallest cell in its own environment.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read

try:
    from neuralil_ase import NeuralILCalculator
except ImportError:  # in the environment of a peer
    NeuralILCalculator = None  # type: ignore[assignment,misc]  # which does not ask for it

CELL = Path(__file__).parents[2] / "md_examples" / "ean_start.extxyz"
FORCES_TIMED = 30
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}
COLUMNS = {
    "who": "s", "atoms": "d", "differences, s": ".2f", "mean, s": ".2f", "all members, s": ".2f",
    "compilation, s": ".1f", "mean / differences": ".3f", "members / mean": ".2f", "record, MB": ".1f",
    "peak, MB": ".0f",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("hessian"), help="folder")
    parser.add_argument("--repeat", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--peer-row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer_row:
        print(json.dumps(peer_row(options.peer_row, options.clock)))
        return
    rows = []
    for repeat in options.repeat:
        row = in_process(measure, repeat, options.rounds, options.clock)
        rows.append(row | {"peak, MB": in_process(peak_memory, repeat)})
    for peer in options.peers:
        name, python = peer.split("=")
        command = [python, __file__, "--peer-row", name, "--clock", options.clock]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append(json.loads(found.splitlines()[-1]))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "hessian.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    text = table(rows)
    (options.output / "hessian.md").write_text(text, encoding="utf-8")
    print(text)


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own, whose memory is its own, too."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def system(repeat: int) -> tuple[Atoms, NeuralILCalculator]:
    atoms: Any = read(CELL)
    atoms = atoms.repeat(repeat)
    atoms.rattle(0.01, seed=0)
    return atoms, NeuralILCalculator(dtype="float64", uncertainty="off")


def measure(repeat: int, rounds: int, clock: str) -> dict[str, Any]:
    """Seconds of everything on one structure; differences are 6 N forces, of which some are timed."""
    atoms, calc = system(repeat)
    n = len(atoms)

    def some_forces() -> None:
        for k in range(FORCES_TIMED):
            atoms.positions[k, 0] += 1e-3 if k % 2 else -1e-3
            calc.prediction(atoms)

    tasks: dict[str, Callable[[], Any]] = {
        "differences, s": some_forces,
        "mean, s": lambda: calc.force_constants(atoms),
        "all members, s": lambda: calc.force_constants(atoms, members=True),
    }
    first = {name: seconds(task, clock) for name, task in tasks.items()}
    later = {
        name: statistics.median(values)
        for name, values in zip(
            tasks,
            zip(
                *([seconds(task, clock) for task in tasks.values()] for _ in range(rounds)),
                strict=True,
            ),
            strict=True,
        )
    }
    row: dict[str, Any] = later | {
        "who": calc.backend.split(",")[0].split(":")[0],
        "atoms": n,
        "compilation, s": first["mean, s"] - later["mean, s"],
    }
    row["differences, s"] *= 6 * n / FORCES_TIMED
    row["mean / differences"] = row["mean, s"] / row["differences, s"]
    row["members / mean"] = row["all members, s"] / row["mean, s"]
    return row | {"record, MB": calc.force_constants(atoms).nbytes / 1e6}


def peer_row(name: str, clock: str) -> dict[str, Any]:
    """The Hessian of a peer by its own method, and finite differences of its forces, on one cell."""
    sys.path.insert(0, str(Path(__file__).parent))
    from peers import PEERS

    atoms: Any = read(CELL)
    atoms.rattle(0.01, seed=0)
    calc = PEERS[name]()
    calc.get_forces(atoms)

    def some_forces() -> None:
        for k in range(5):
            atoms.positions[k, 0] += 1e-3
            calc.get_forces(atoms)

    differences = seconds(some_forces, clock) * 6 * len(atoms) / 5
    hessian = seconds(lambda: calc.get_hessian(atoms=atoms), clock)
    row = {"who": name, "atoms": len(atoms), "differences, s": differences, "mean, s": hessian}
    return row | {"mean / differences": hessian / differences}


def seconds(task: Callable[[], Any], clock: str) -> float:
    start = CLOCKS[clock]()
    task()
    return CLOCKS[clock]() - start


def peak_memory(repeat: int) -> float:
    """MB gained at the peak by the force constants of the mean, after those of one cell."""
    small, calc = system(1)
    calc.force_constants(small)
    atoms, _ = system(repeat)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calc.force_constants(atoms)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = (format(row[name], style) if name in row else "" for name, style in COLUMNS.items())
        lines.append("| " + " | ".join(cells) + " |")
    ours = [row for row in rows if "record, MB" in row]
    if len(ours) > 1:
        logs = (np.log([row[name] for row in ours]) for name in ("atoms", "mean, s"))
        lines += ["", f"Slope of log(seconds) over log(atoms): {np.polyfit(*logs, 1)[0]:.2f}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
