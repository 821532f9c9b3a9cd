"""Peak memory of training on data that are larger than the memory they may use.

    python tests/benchmarks/large_data.py --frames 2000 20000

Copper, 32 atoms, labelled with EMT. Every size runs in a process of its own: it reads the file, prepares the data with
``memory_budget`` and trains for some seconds. Peak means the resident set, interpreter and JAX included. Beside it is
what densities and slopes of all frames would take; beyond the budget they are computed for each microbatch, as pairs
are.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from memory import peak_mib

from neuralil_ase import train
from neuralil_ase.evaluation.dataset import pairs_of

SECONDS = 20.0


def make(path: Path, count: int) -> None:
    """Write so many frames, a few different ones again and again: labelling is not what is measured."""
    different = []
    for seed in range(min(count, 500)):
        atoms = bulk("Cu", cubic=True) * (2, 2, 2)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        different.append(atoms)
    for first in range(0, count, len(different)):
        write(path, different[: count - first], format="extxyz", append=True)


def measure(path: Path, budget_mib: int) -> dict[str, float]:
    """Train for some seconds on the file."""
    before = peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            path,
            Path(folder) / "model.safetensors",
            memory_budget=budget_mib * 2**20,
            time_limit=SECONDS,
            members=2,
            linear="none",
        )
    config, atoms = result.potential.config.descriptor, sum(len(f.symbols) for f in result.train)
    channels = sum(n * (2 * order + 1) for order, n in enumerate(config.n_radial))
    slots = max(
        np.bincount(pairs_of(frame, np.zeros(len(frame.symbols), int), config.r_cut).centers).max()
        for frame in result.train[:500]
    )
    slopes = 12 * slots * channels * atoms
    return {"before_mib": before, "peak_mib": peak_mib(), "slopes_mib": slopes / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--budget", type=int, default=64, help="memory_budget in MiB")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.file:
        print(json.dumps(measure(given.file, given.budget)))
        return
    print("| frames | file MiB | peak MiB | KiB a frame | slopes of all frames, MiB |")
    print("|---|---|---|---|---|")
    last: tuple[int, float] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for count in given.frames:
            path = Path(folder) / f"{count}.extxyz"
            make(path, count)
            command = [sys.executable, __file__, "--file", str(path), "--budget", str(given.budget)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            each = np.nan
            if last is not None:
                each = 1024 * (found["peak_mib"] - last[1]) / (count - last[0])
            last = count, found["peak_mib"]
            print(
                f"| {count} | {path.stat().st_size / 2**20:.0f} | {found['peak_mib']:.0f} | {each:.1f} | "
                f"{found['slopes_mib']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
