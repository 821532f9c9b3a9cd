"""Workers counted: messages, bytes, files and time of labelling, prediction and training by 1, 2, 4 and 8 processes.

    python tests/benchmarks/farm.py [--workers 1 2 4 8] [--only label predict train]

One row for each task and number of workers: messages sent, kilobytes of a message and of its answer when pickled,
files that lie in the folder at the end, seconds of CPU of all processes together and of wall time. Both hold the start
of the workers, each of which imports what it needs and, for training, compiles.
"""

import argparse
import pickle
import resource
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read

from neuralil_ase import label, predict_many, train
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.workers import processes

START = Path(__file__).resolve().parents[2] / "md_examples" / "ean_start.extxyz"


class Counting(Executor):
    """Another executor, with its traffic counted.

    Attributes
    ----------
    sent, answered
        Bytes of every message and of every answer when pickled.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.sent: list[int] = []
        self.answered: list[int] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.sent.append(len(pickle.dumps((function, args, kwargs))))
        future = self._executor.submit(function, *args, **kwargs)
        future.add_done_callback(
            lambda done: self.answered.append(len(pickle.dumps(done.result())))
        )
        return future


def copper(count: int, repeat: int) -> list[Atoms]:
    rng = np.random.default_rng(0)
    cells = [bulk("Cu", cubic=True, a=3.6).repeat(repeat) for _ in range(count)]
    for atoms in cells:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    return cells


def labelling(executor: Executor, folder: Path) -> None:
    """24 cells of 2916 atoms by EMT."""
    found = label(copper(24, 9), EMT, executor, folder / "labels")
    assert not found.failures


def predicting(executor: Executor, folder: Path) -> None:
    """960 cells of 225 atoms by the shipped potential, with all members' forces."""
    start, rng = read(START), np.random.default_rng(0)
    cells = [start.copy() for _ in range(960)]
    for atoms in cells:
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
    predict_many(as_potential(None), cells, uncertainty="forces", executor=executor)


def training(executor: Executor, folder: Path) -> None:
    """Eight members, of a small network, on 40 cells of 32 atoms."""
    frames = copper(40, 2)
    for atoms in frames:
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    train(
        frames, folder / "model.safetensors", members=8, epochs=200, r_cut=4.0, n_max=3, widths=(16, 8),
        report=False,
        executor=executor,
    )  # fmt: skip


TASKS = {"label": labelling, "predict": predicting, "train": training}


def cpu() -> float:
    """Seconds of this process and of those of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def row(name: str, workers: int) -> str:
    with TemporaryDirectory() as folder:
        began, before = time.perf_counter(), cpu()
        with processes(workers) as pool:
            counting = Counting(pool)
            TASKS[name](counting, Path(folder))
        seconds, used = time.perf_counter() - began, cpu() - before
        files = sum(path.is_file() for path in Path(folder).rglob("*"))
    kilobytes = [np.mean(sizes) / 1000 for sizes in (counting.sent, counting.answered)]
    return (
        f"| {name} | {workers} | {len(counting.sent)} | {kilobytes[0]:.0f} | {kilobytes[1]:.0f} | {files} | "
        f"{used:.1f} | {seconds:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--only", nargs="+", choices=[*TASKS], default=[*TASKS])
    options = parser.parse_args()
    print("| task | workers | messages | kB sent | kB back | files | CPU s | wall s |", flush=True)
    print("|---|---|---|---|---|---|---|---|")
    for name in options.only:
        for workers in options.workers:
            print(row(name, workers), flush=True)


if __name__ == "__main__":
    main()
