"""Peak memory of one evaluation against the number of atoms: a table, and what one more atom costs.

    python tests/benchmarks/memory.py --calculator neuralil-10 --repeat 2,2,2 4,4,4 7,8,8

Every size runs in a process of its own; peak means the resident set, interpreter and JAX included. The EAN start
structure is repeated, so that 7,8,8 has 100,800 atoms.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np


def peak_mib() -> float:
    """Peak resident set of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(name: str, repeat: tuple[int, int, int]) -> dict[str, float]:
    """Two evaluations, the second with every atom moved."""
    from ase.io import read
    from ase_step import CALCULATORS, START

    cell = read(START)
    cell.calc = CALCULATORS[name]()
    cell.get_forces()
    before, atoms = peak_mib(), cell.repeat(repeat)
    atoms.calc = cell.calc
    start = time.process_time()
    atoms.get_forces()
    first = time.process_time() - start
    atoms.positions += np.random.default_rng(0).normal(scale=0.01, size=atoms.positions.shape)
    start = time.process_time()
    forces = atoms.get_forces()
    assert np.isfinite(forces).all()
    second = time.process_time() - start
    return {
        "atoms": len(atoms),
        "before_mib": before,
        "peak_mib": peak_mib(),
        "first_s": first,
        "step_s": second,
    }


def table(name: str, records: list[dict[str, float]]) -> str:
    lines = [
        f"{name}: peak resident memory",
        "",
        "| atoms | peak MiB | KiB per atom above the small cell | first call CPU s | next call CPU s |",
        "|---|---|---|---|---|",
    ]
    for r in records:
        each = 1024 * (r["peak_mib"] - r["before_mib"]) / r["atoms"]
        lines.append(
            f"| {r['atoms']:.0f} | {r['peak_mib']:.0f} | {each:.2f} | {r['first_s']:.1f} | {r['step_s']:.3f} |"
        )
    if len(records) > 1:
        atoms, peaks = (np.array([r[key] for r in records]) for key in ("atoms", "peak_mib"))
        slope = 1024 * np.polyfit(atoms, peaks, 1)[0]
        lines += ["", f"Straight line through all sizes: {slope:.2f} KiB per atom."]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calculator", default="neuralil-10", help="a name in ase_step.py")
    parser.add_argument(
        "--repeat", nargs="+", default=["2,2,2", "4,4,4", "5,6,6", "7,8,8"], metavar="A,B,C"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        a, b, c = map(int, options.repeat[0].split(","))
        print(json.dumps(measure(options.calculator, (a, b, c))))
        return
    records = []
    for repeat in options.repeat:
        command = [sys.executable, __file__, "--worker", "--calculator", options.calculator]
        done = subprocess.run(
            [*command, "--repeat", repeat], stdout=subprocess.PIPE, text=True, check=True
        )
        records.append(json.loads(done.stdout.splitlines()[-1]))
    print(table(options.calculator, records))


if __name__ == "__main__":
    main()
