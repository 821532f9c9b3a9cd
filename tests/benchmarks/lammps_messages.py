"""Weak scaling of LAMMPS on paper: ghosts, messages and bytes for a rank and step, with 900 atoms for each rank.

    python tests/benchmarks/lammps_messages.py [--ranks 1 2 4 8 16]

Random parameters, ten members, NVE at 0.5 fs. Ranks may be more than there are cores, because nothing is timed. What is
sent is counted by a library between LAMMPS and MPI (mpi_counter.c, compiled here by mpicc): the difference of a run of
60 and one of 20 steps, means over ranks. It contains the lists that are made in these steps.
"""

import argparse
import os
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ase.io import read
from ase.io.lammpsdata import write_lammps_data
from ase_step import START
from lammps_speed import PROGRAMS, inputs

from neuralil_ase.hosts import lammps as host

COUNTER = Path(__file__).with_name("mpi_counter.c")
ROWS = ("ten members", "ten, energies_std every step", "ten, forces_std every step")
REPEAT = {1: (2, 2, 1), 2: (2, 2, 2), 4: (4, 2, 2), 8: (4, 4, 2), 16: (4, 4, 4)}
"""Copies of the cell of 225 atoms along the axes."""


def counted(text: str, steps: int, ranks: int, folder: Path) -> tuple[np.ndarray, float]:
    """Messages, bytes and collective calls of every rank, shape (ranks, 3), and ghosts for a rank."""
    (folder / "in.lmp").write_text(f"{text}run {steps}\n")
    settings = {
        "LAMMPS_PLUGIN_PATH": str(host.build()),
        "OMP_NUM_THREADS": "1",
        "LD_PRELOAD": str(folder / "counter.so"),
    }
    command = [PROGRAMS / "mpiexec", "-n", str(ranks), PROGRAMS / "lmp", "-in", "in.lmp"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | settings, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-1000:] + done.stderr)
    found = re.findall(r"MPI-COUNT (\d+) (\d+) (\d+)", done.stdout + done.stderr)
    lmp = [row for row in found if int(row[2])]  # mpiexec's own processes have no collective calls
    (ghosts,) = re.findall(r"Nghost:\s+(\S+) ave", done.stdout)
    return np.array(lmp, float), float(ghosts)


def row(name: str, ranks: int, folder: Path) -> str:
    start = read(START).repeat(REPEAT[ranks])
    text, _ = inputs(folder, 1)[name]
    write_lammps_data(
        folder / "metal.data", start, specorder=list("CHNO"), masses=True, units="metal"
    )
    short, _ = counted(text, 20, ranks, folder)
    long, ghosts = counted(text, 60, ranks, folder)
    assert len(short) == len(long) == ranks
    messages, sent, collectives = (long.mean(axis=0) - short.mean(axis=0)) / 40
    return (
        f"| {name} | {ranks} | {len(start)} | {ghosts:.0f} | {messages:.1f} | {sent / 1000:.1f} | "
        f"{collectives:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", choices=[*REPEAT], default=[1, 2, 4, 8])
    options = parser.parse_args()
    print("| | ranks | atoms | ghosts a rank | messages | kB | all-reduces |", flush=True)
    print("|---|---|---|---|---|---|---|")
    with TemporaryDirectory() as name:
        folder = Path(name)
        command = [PROGRAMS / "mpicc", "-shared", "-fPIC", "-O2", COUNTER, "-o"]
        subprocess.run([*command, folder / "counter.so"], check=True)
        for kind in ROWS:
            for ranks in options.ranks:
                print(row(kind, ranks, folder), flush=True)


if __name__ == "__main__":
    main()
