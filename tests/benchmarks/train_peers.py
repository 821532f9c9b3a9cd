"""Train MACE or apax on a set of tables.py, in an environment of their own, and add their errors to its file.

    mace/bin/python tests/benchmarks/train_peers.py mace acetylacetone -o tables.jsonl
    apax/bin/python tests/benchmarks/train_peers.py apax Mo -o tables.jsonl --epochs 500
    python tests/benchmarks/tables.py -o tables.jsonl --only acetylacetone Mo      # prints them beside ours

The environments are those of requirements-mace.txt and requirements-apax.txt; nothing of neuralil_ase is needed there.
Both projects get the defaults of their programs, but for what the row says. A tenth of the training frames validates,
the split of tables.py tests. What --minutes ends goes on with the same command.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io import write
from table_sets import DATA_SETS, score_peer

VALIDATION = 10
"""Each tenth frame validates."""


class Trained(NamedTuple):
    """A calculator, and what was done to get it."""

    title: str
    calculator: Any


def train_mace(
    train: list[Atoms], folder: Path, epochs: int, minutes: float, device: str
) -> Trained:
    """Two layers of 64 scalar channels, as in speed.py; the last quarter of the epochs with more weight on energies."""
    from mace.calculators import MACECalculator

    atoms = [a for a in train if len(a) == 1]
    frames = [a for a in train if len(a) > 1]
    references = {int(a.numbers[0]): float(a.get_potential_energy()) for a in atoms}
    write(folder / "train.xyz", [labelled(a) for i, a in enumerate(frames) if i % VALIDATION])
    write(folder / "valid.xyz", [labelled(a) for a in frames[::VALIDATION]])
    options = {
        "name": "peer", "train_file": folder / "train.xyz", "valid_file": folder / "valid.xyz", "work_dir": folder,
        "E0s": references or "average", "hidden_irreps": "64x0e", "r_max": 5.0, "batch_size": 5,
        "max_num_epochs": epochs, "energy_key": "REF_energy", "forces_key": "REF_forces", "device": device,
        "default_dtype": "float32", "ema_decay": 0.99, "eval_interval": 5, "start_swa": 3 * epochs // 4, "plot": False,
    }  # fmt: skip
    flags = ["--ema", "--amsgrad", "--swa", "--restart_latest", "--save_cpu"]
    program = [sys.executable, "-m", "mace.cli.run_train", *flags]
    command = [str(x) for x in [*program, *(f"--{key}={value}" for key, value in options.items())]]
    run_for(command, minutes)
    models = sorted(folder.glob("peer*.model"), key=lambda path: path.stat().st_mtime)
    if not models:
        raise SystemExit(
            f"no model was made in {folder}: run again to go on, or give more --minutes"
        )
    chosen = next((m for m in models if "stagetwo" in m.name or "swa" in m.name), models[-1])
    calculator = MACECalculator(model_paths=[str(chosen)], device=device, default_dtype="float32")
    return Trained(f"MACE {version('mace-torch')} 64x0e, {epochs} epochs", calculator)


def train_apax(
    train: list[Atoms], folder: Path, epochs: int, minutes: float, device: str
) -> Trained:
    """The Gaussian moment network with its default basis, cutoff, layers and learning rates, in batches of 8.

    JAX chooses the device.
    """
    frames = [a for a in train if len(a) > 1]
    write(folder / "train.extxyz", [a for i, a in enumerate(frames) if i % VALIDATION])
    write(folder / "valid.extxyz", frames[::VALIDATION])
    n_valid = len(frames[::VALIDATION])
    config = {
        "n_epochs": epochs,
        "data": {
            "directory": str(folder), "experiment": "peer", "train_data_path": str(folder / "train.extxyz"),
            "val_data_path": str(folder / "valid.extxyz"), "n_train": len(frames) - n_valid, "n_valid": n_valid,
            "batch_size": 8, "valid_batch_size": 8,
        },
        "model": {"name": "gmnn"},
        "loss": [{"name": "energy"}, {"name": "forces"}],
        "metrics": [{"name": "energy", "reductions": ["mae"]}, {"name": "forces", "reductions": ["mae"]}],
    }  # fmt: skip
    code = "import json, sys; from apax.train.run import run; run(json.load(open(sys.argv[1])), log_level='error')"
    (folder / "config.json").write_text(json.dumps(config))
    run_for([sys.executable, "-c", code, str(folder / "config.json")], minutes)
    from apax.md import ASECalculator

    title = f"apax {version('apax')} GMNN, {epochs} epochs"
    return Trained(title, in_batches(ASECalculator(folder / "peer")))


def in_batches(peer: Any) -> Calculator:
    """A calculator that calls ``batch_eval``, whose pair lists are those of the training.

    In cells wider than twice the cutoff, single calls of apax 0.14 use other ones, with which SrTiO3 has errors of
    0.3 eV/atom. Each call compiles anew, so that its time says nothing.
    """

    class InBatches(Calculator):
        implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

        def calculate(self, atoms: Atoms, *arguments: Any) -> None:
            super().calculate(atoms, *arguments)
            found = peer.batch_eval([atoms.copy()], batch_size=1, silent=True)[0]
            self.results = {
                "energy": found.get_potential_energy(),
                "forces": found.get_forces(),
            }

    return InBatches()


PEERS: dict[str, Callable[[list[Atoms], Path, int, float, str], Trained]] = {
    "mace": train_mace,
    "apax": train_apax,
}


def labelled(atoms: Atoms) -> Atoms:
    """A copy whose labels have the names that MACE is told."""
    copy = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    copy.info["REF_energy"] = atoms.get_potential_energy()
    copy.arrays["REF_forces"] = atoms.get_forces()
    return copy


def run_for(command: list[str], minutes: float) -> None:
    """Run it; the end of the time is no error."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, check=True, timeout=60 * minutes)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("set", choices=DATA_SETS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument(
        "--minutes", type=float, default=1e4, help="end the training after this time"
    )
    parser.add_argument("--device", default="cpu", help="for MACE: cpu or cuda")
    given = parser.parse_args(arguments)
    if not DATA_SETS[given.set].is_there:
        print(
            f"{given.set} is skipped: its files are not in {DATA_SETS[given.set].train[0].parent}"
        )
        return
    train, test = DATA_SETS[given.set].splits()[0]
    folder = (
        given.output.with_suffix(".models").absolute()
        / f"{given.peer}-{given.set.replace(' ', '-')}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    trained = PEERS[given.peer](train, folder, given.epochs, given.minutes, given.device)
    entry = {
        "set": given.set,
        "potential": trained.title,
        "fold": 0,
        "train_wall_s": round(time.perf_counter() - began),
    }
    entry |= score_peer(trained.calculator, test)
    with open(given.output, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry))


if __name__ == "__main__":
    main()
