"""What watching costs: CPU time of MD with and without the monitor, and of the energies' spread, in one run.

    python tests/benchmarks/monitor_cost.py -o monitor_cost

NVT (Langevin, 0.5 fs, 300 K) of the 225-atom EAN start structure. Cases take turns, round by round, in one
process; a ratio is the median over rounds of the ratio within a round, so that a busy machine slows both sides alike.

- "plain": uncertainty="off", the mean of all members and nothing else; no monitor.
- "monitor": the same calculator, and ExtrapolationMonitor at every 10th step with all member forces. Bar: 1.2 × plain.
- "energy level": uncertainty="energy", every member's energy and the spread of the atomic energies at every step.
- "one member": the first member alone, uncertainty="off". Bar: "energy level" of ten members at most 1.5 × this;
  given for independent members and for members that share a trunk.

The ensemble of the shipped file is extended to ten members, or cut to one, by repeating its own, and given a trunk
of two layers shared by all: speed does not depend on the values. Writes monitor_cost.json and monitor_cost.md;
--profile also prints where the time of the monitored run goes.
"""

import argparse
import cProfile
import json
import pstats
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase import Atoms, units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from neuralil_ase import ExtrapolationMonitor, NeuralILCalculator, Potential, load_potential
from neuralil_ase.files.model_file import default_model
from neuralil_ase.model.network import member_axes
from neuralil_ase.prediction import UNCERTAINTIES

ROOT = Path(__file__).resolve().parents[2]
INTERVAL = 10
SHARED_LAYERS = 2  # of five
BARS = {
    "monitor / plain": 1.2,
    "energy level of ten / one member": 1.5,
    "energy level of ten, shared trunk / one member": 1.5,
}


def rebuilt(potential: Potential, members: int, shared_layers: int = 0) -> Potential:
    """An ensemble of so many members, each one of the potential's own, or with a trunk that is its first one's."""
    network = replace(potential.config.network, shared_layers=shared_layers)
    config = replace(potential.config, n_members=members, network=network)
    source = potential.params["network"]
    chosen = np.arange(members) % (1 if shared_layers else potential.n_members)
    parameters = jax.tree.map(
        lambda leaf, axis: np.asarray(leaf)[chosen if axis == 0 else 0],
        source, member_axes(config), is_leaf=lambda x: x is None,
    )  # fmt: skip
    return replace(potential, config=config, params={**potential.params, "network": parameters})


def dynamics(start: Atoms, calculator: NeuralILCalculator, monitored: bool) -> Langevin:
    atoms = start.copy()
    atoms.calc = calculator
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    dyn = Langevin(
        atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs,
        rng=np.random.default_rng(0), fixcm=False,
    )  # fmt: skip
    if monitored:
        dyn.attach(ExtrapolationMonitor(dyn, warn=False), interval=INTERVAL)
    return dyn


def cases(potential: Potential, start: Atoms) -> dict[str, Langevin]:
    """One dynamics each, compiled and warm."""
    one, ten = rebuilt(potential, 1), rebuilt(potential, 10)
    trunk = rebuilt(potential, 10, SHARED_LAYERS)
    made = {
        "plain": dynamics(start, NeuralILCalculator(potential, uncertainty="off"), False),
        "monitor": dynamics(start, NeuralILCalculator(potential, uncertainty="off"), True),
        "one member": dynamics(start, NeuralILCalculator(one, uncertainty="off"), False),
        "ten members": dynamics(start, NeuralILCalculator(ten, uncertainty="off"), False),
        "ten, energy level": dynamics(start, NeuralILCalculator(ten, uncertainty="energy"), False),
        "ten, shared trunk, energy level": dynamics(
            start, NeuralILCalculator(trunk, uncertainty="energy"), False
        ),
    }
    for dyn in made.values():
        dyn.run(INTERVAL)
    return made


def measure(made: dict[str, Langevin], rounds: int, steps: int) -> dict[str, list[float]]:
    """CPU ms of a step, for every case and round."""
    found: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, dyn in made.items():
            found[name].append(_per_step(dyn, steps))
    return found


def _per_step(dyn: Langevin, steps: int) -> float:
    began = time.process_time()
    dyn.run(steps)
    return 1e3 * (time.process_time() - began) / steps


def evaluations(potential: Potential, start: Atoms, rounds: int, calls: int) -> dict[str, float]:
    """CPU ms of one evaluation at each level, for positions that change every time, in turns."""
    levels = UNCERTAINTIES
    calculators = {level: NeuralILCalculator(potential, uncertainty=level) for level in levels}
    rng = np.random.default_rng(0)
    atoms = start.copy()
    found: dict[str, list[float]] = {level: [] for level in levels}
    for calculator in calculators.values():
        calculator.prediction(atoms)
    for _ in range(rounds):
        for level, calculator in calculators.items():
            began = time.process_time()
            for _ in range(calls):
                atoms.positions[:] = start.positions + rng.normal(scale=1e-3, size=(len(atoms), 3))
                calculator.prediction(atoms)
            found[level].append(1e3 * (time.process_time() - began) / calls)
    return {level: float(np.median(values)) for level, values in found.items()}


def ratios(found: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """Median and quartiles over rounds."""
    pairs = {
        "monitor / plain": ("monitor", "plain"),
        "energy level of ten / one member": ("ten, energy level", "one member"),
        "energy level of ten, shared trunk / one member": (
            "ten, shared trunk, energy level",
            "one member",
        ),
        "energy level of ten / ten members": ("ten, energy level", "ten members"),
    }
    return {
        name: tuple(np.quantile(np.array(found[a]) / np.array(found[b]), [0.5, 0.25, 0.75]).tolist())
        for name, (a, b) in pairs.items()
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    lines = ["| case | CPU ms a step, median |", "|---|---|"]
    lines += [f"| {n} | {np.median(v):.2f} |" for n, v in results["cpu_ms"].items()]
    lines += ["", "| ratio | median | quartiles | bar | |", "|---|---|---|---|---|"]
    for name, (median, low, high) in results["ratios"].items():
        bar = BARS.get(name)
        verdict = "" if bar is None else ("pass" if median <= bar else "FAIL")
        lines.append(
            f"| {name} | {median:.2f} | {low:.2f} to {high:.2f} | {bar or ''} | {verdict} |"
        )
    level, cpu = results["evaluation_ms"], results["cpu_ms"]
    check = INTERVAL * (np.median(cpu["monitor"]) - np.median(cpu["plain"]))
    lines += [
        "",
        f"One evaluation: off {level['off']:.2f}, energy {level['energy']:.2f}, forces {level['forces']:.2f} ms. "
        f"One check costs {check:.1f} ms, of which the second evaluation, with all members' forces, is "
        f"{level['forces']:.1f} ms.",
    ]
    return "\n".join(lines) + "\n"


def profile(run: Callable[[], Any]) -> str:
    """The functions that take the most time of their own."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    stats = pstats.Stats(profiler).sort_stats("tottime")
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])[:15]  # type: ignore[attr-defined]  # unknown to its stubs
    return "\n".join(
        f"{1e3 * own:8.1f} ms  {count:6d} calls  {Path(file).name}:{line} {function}"
        for (file, line, function), (_, count, own, _, _) in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("-o", "--output", type=Path, default=Path("monitor_cost"), help="folder")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100, help="of each case in a round")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    potential = load_potential(given.model)
    start: Any = read(ROOT / "md_examples" / "ean_start.extxyz")
    made = cases(potential, start)
    found = measure(made, given.rounds, given.steps)
    results = {
        "members": potential.n_members,
        "cpu_ms": found,
        "ratios": ratios(found),
        "evaluation_ms": evaluations(potential, start, given.rounds, max(1, given.steps // 5)),
    }
    given.output.mkdir(parents=True, exist_ok=True)
    text = (
        f"{given.model.name}, {potential.n_members} members, {len(start)} atoms\n\n{table(results)}"
    )
    (given.output / "monitor_cost.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (given.output / "monitor_cost.md").write_text(text, encoding="utf-8")
    print(text)
    if given.profile:
        print(profile(lambda: made["monitor"].run(200)))


if __name__ == "__main__":
    main()
