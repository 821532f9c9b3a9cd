"""Cost of one MD step through ASE: our models and, if installed, peers, as a table and a picture.

    python tests/benchmarks/speed.py --output speed
    python tests/benchmarks/speed.py --output speed --peers calorine=PYTHON apax=PYTHON mace=PYTHON

Calculators take turns, round by round, so that a busy machine slows all of them alike: compare ratios
within one run. PYTHON is the interpreter of an environment made from tests/benchmarks/requirements-<name>.txt.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from peers import ENVIRONMENTS, MOST_ATOMS

STEP = Path(__file__).with_name("ase_step.py")
MEMBERS = [1, 2, 5, 10, 20]
OURS = [*(f"neuralil-{n}" for n in MEMBERS), "neuralil-10-shared", "neuralil-10-forces",
        "neuralil-resnet-1", "neuralil-resnet-10"]  # fmt: skip
Medians = dict[str, dict[int, dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("speed"), help="folder")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--repeat", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    interpreters = {name: sys.executable for name in OURS}
    for environment, interpreter in (peer.split("=", 1) for peer in options.peers):
        interpreters |= dict.fromkeys(ENVIRONMENTS[environment], interpreter)
    records: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, interpreter in interpreters.items():
            for record in run(name, interpreter, options):
                records[name, record["atoms"]].append(record)
    medians = summarise(records)
    text = table(medians)
    (options.output / "speed.md").write_text(text, encoding="utf-8")
    (options.output / "speed.json").write_text(json.dumps(medians, indent=1), encoding="utf-8")
    plot(medians).savefig(options.output / "speed.png", dpi=150)
    print(text)


def run(name: str, interpreter: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    most = MOST_ATOMS.get(name, sys.maxsize)
    repeat = [str(r) for r in options.repeat if 225 * r**3 <= most]
    command = [interpreter, str(STEP), name, "--repeat", *repeat, "--steps", str(options.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def summarise(records: dict[tuple[str, int], list[dict[str, Any]]]) -> Medians:
    medians: Medians = defaultdict(dict)
    for (name, atoms), rounds in records.items():
        keys = ("cpu_ms", "cpu_mean_ms", "wall_ms", "first_call_s")
        medians[name][atoms] = {k: float(np.median([r[k] for r in rounds])) for k in keys}
    return dict(medians)


def table(medians: Medians) -> str:
    """Markdown: CPU ms (mean over steps, rebuilds included), µs per atom, wall, first call, ratio to one member."""
    lines = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, jax {version('jax')}, {time.strftime('%Y-%m-%d')}; float32 matrix product "
        f"{matmul_rate():.0f} GFLOP/s of CPU time",
        "",
        "| calculator | atoms | CPU ms a step | µs per atom | wall ms | first call s | CPU / neuralil-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, sizes in medians.items():
        for atoms, m in sorted(sizes.items()):
            ratio = m["cpu_mean_ms"] / medians["neuralil-1"][atoms]["cpu_mean_ms"]
            lines.append(
                f"| {name} | {atoms} | {m['cpu_mean_ms']:.2f} | {1e3 * m['cpu_mean_ms'] / atoms:.1f} "
                f"| {m['wall_ms']:.2f} | {m['first_call_s']:.1f} | {ratio:.2f} |"
            )
    return "\n".join([*lines, ""])


def matmul_rate(size: int = 1024, repeats: int = 10) -> float:
    """Rate of XLA's own float32 matrix product, in GFLOP per second of CPU time: the fastest of some."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(matrix).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        product(matrix).block_until_ready()
        times.append(time.process_time() - start)
    return 2e-9 * size**3 / min(times)


def plot(medians: Medians) -> Figure:
    """Cost against atoms, log-log with the slope, and against members."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    largest = {
        name: sizes[max(sizes)]["cpu_mean_ms"] / max(sizes) for name, sizes in medians.items()
    }
    for name in sorted(largest, key=largest.__getitem__, reverse=True):
        if name in {f"neuralil-{n}" for n in MEMBERS} - {"neuralil-1", "neuralil-10"}:
            continue  # on the right
        atoms = np.array(sorted(medians[name]))
        cost = np.array([medians[name][n]["cpu_mean_ms"] for n in atoms.tolist()])
        label = name
        if len(atoms) > 1:
            label += f" (slope {np.polyfit(np.log(atoms), np.log(cost), 1)[0]:.2f})"
        left.loglog(atoms, cost, "o-" if name.startswith("neuralil") else "s--", label=label)
    sizes = sorted(medians["neuralil-1"])
    for n_atoms in sizes:
        cost = np.array([medians[f"neuralil-{n}"][n_atoms]["cpu_mean_ms"] for n in MEMBERS])
        right.plot(MEMBERS, cost / cost[0], "o-", label=f"{n_atoms} atoms")
    left.set(xlabel="atoms", ylabel="CPU time of one MD step through ASE (ms)")
    left.set_xticks(sizes, [str(n) for n in sizes])
    left.minorticks_off()
    right.set(xlabel="members, spread of energies", ylabel="CPU time / that of one member")
    right.set_xticks(MEMBERS)
    left.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    right.legend(fontsize="small", frameon=False)
    return figure


if __name__ == "__main__":
    main()
