"""MACE on a GPU: energies and forces of replicas of the start structure, as its own calculator gives them.

    python tests/benchmarks/gpu_mace.py -o gpu_kernels        # in an environment of requirements-mace.txt

The size is that of speed.py (two layers of 64 scalar channels), parameters are random, float32. "model_ms" is the model
alone on a graph that lies on the device, without the virial; "step_ms" a call of the calculator for moved atoms.
Knows nothing of neuralil_ase, so that its environment need not either.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.io import read
from peers import mace

ROOT = Path(__file__).resolve().parents[2]


def measure(start: ase.Atoms, repeat: int, device: str, seconds: float) -> dict[str, Any]:
    atoms, rng = start.repeat(repeat), np.random.default_rng(0)
    atoms.calc = calculator = mace(device=device)
    atoms.get_forces()

    def step() -> None:
        atoms.positions += rng.normal(scale=1e-3, size=(len(atoms), 3))
        atoms.get_forces()

    record: dict[str, Any] = {"atoms": len(atoms), "step_ms": _median(step, seconds)}
    try:
        record["model_ms"] = _median(_model_alone(calculator, atoms, device), seconds)
    except Exception as error:  # its calculator's private functions may be others
        record["note"] = f"model alone failed: {type(error).__name__}: {error}"
    return record


def _model_alone(calculator: Any, atoms: ase.Atoms, device: str) -> Callable[[], None]:
    model, batch = calculator.models[0], calculator._atoms_to_batch(atoms).to_dict()

    def forces() -> None:
        model(batch, compute_force=True, compute_stress=False, compute_virials=False)
        if device == "cuda":
            torch.cuda.synchronize()

    return forces


def _median(call: Callable[[], None], seconds: float) -> float:
    call()
    call()
    times: list[float] = []
    while len(times) < 50 and (len(times) < 3 or sum(times) < seconds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_kernels"), help="folder")
    parser.add_argument("--repeat", type=int, nargs="+", default=[1, 3], help="of the start cell")
    parser.add_argument("--seconds", type=float, default=3, help="of calls for each median")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    start = read(ROOT / "md_examples" / "ean_start.extxyz")
    rows = []
    for repeat in options.repeat:
        try:
            rows.append(measure(start, repeat, device, options.seconds))
        except Exception as error:  # one row must not take the others with it
            rows.append({"repeat": repeat, "note": f"failed: {type(error).__name__}: {error}"})
        print(json.dumps(rows[-1]), flush=True)
        head = f"{name}; torch {torch.__version__}, ase {ase.__version__}"
        text = json.dumps({"ran": head, "rows": rows}, indent=1)
        (options.output / "gpu_mace.json").write_text(text)


if __name__ == "__main__":
    main()
