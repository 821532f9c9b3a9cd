"""MD from nothing with a LearningCalculator: calls of the teacher, errors against error bars, CPU time.

    python tests/benchmarks/learning_md.py ean      # liquid EAN, 120 atoms, GFN1-xTB (needs tblite), 300 K, then 500 K
    python tests/benchmarks/learning_md.py solid    # 108 copper atoms, EMT, 300 K, then 600 K
    python tests/benchmarks/learning_md.py molten   # 108 copper atoms, EMT, 1600 K, then 2000 K
    python tests/benchmarks/learning_md.py ean --seed 1 --folder ean_1   # again with other random numbers

Every ``--steps / --tests`` steps a frame is put aside, whether it was asked about or not; all of them are labelled
after the run and predicted by the last model. CPU time is that of all threads of the process.
"""

import argparse
import json
import lzma
import time
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixCom
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from neuralil_ase import LearningCalculator, NeuralILCalculator

DATA = Path(__file__).parents[2] / "md_examples" / "ean_gfn1" / "ean_gfn1.extxyz.xz"
CPU: list[float] = []
"""Seconds of each call of the teacher."""


def timed(kind: type, **options: Any) -> Any:
    """A calculator of this class that notes the CPU time of its calls."""

    class Timed(kind):  # type: ignore[misc]  # made at run time, as tblite is optional
        def calculate(self, *args: Any, **kwargs: Any) -> None:
            began = time.process_time()
            super().calculate(*args, **kwargs)
            CPU.append(time.process_time() - began)

    return Timed(**options)


def liquid() -> Atoms:
    """A frame of 120 atoms at 300 K from the shipped data, without its label."""
    with lzma.open(DATA, "rt", encoding="utf-8") as file:
        frames = read(StringIO(file.read()), ":", format="extxyz")
    frame = next(a for a in frames if len(a) == 120 and a.info["T"] == 300)
    return Atoms(frame.symbols, positions=frame.positions, cell=frame.cell, pbc=True)


def system(name: str) -> tuple[Atoms, Any, float, tuple[float, float], float]:
    """Atoms, teacher, time step in fs, the two temperatures in K, and friction in 1/fs."""
    if name == "ean":
        from tblite.ase import TBLite

        teacher = timed(TBLite, method="GFN1-xTB", accuracy=0.01, verbosity=0)
        return liquid(), teacher, 0.5, (300, 500), 0.01
    copper = bulk("Cu", cubic=True, a=3.65 if name == "solid" else 3.85) * (3, 3, 3)
    hot = (300.0, 600.0) if name == "solid" else (1600.0, 2000.0)
    return copper, timed(EMT), 4.0, hot, 0.02


def run(
    atoms: Atoms, T: float, steps: int, tests: int, timestep: float, friction: float, seed: int
) -> tuple[list[Atoms], float]:
    """Langevin dynamics; frames put aside and mean temperature."""
    rng = np.random.default_rng(seed)
    dynamics = Langevin(
        atoms,
        timestep * units.fs,
        temperature_K=T,
        friction=friction / units.fs,
        fixcm=False,
        rng=rng,
    )
    aside: list[Atoms] = []
    temperatures: list[float] = []
    dynamics.attach(lambda: temperatures.append(atoms.get_temperature()), interval=10)
    dynamics.attach(lambda: aside.append(bare(atoms)), interval=max(steps // tests, 1))
    dynamics.run(steps)
    return aside[1:], float(np.mean(temperatures[len(temperatures) // 4 :]))


def bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def judged(model: Any, frames: list[Atoms], teacher: Any) -> dict[str, float]:
    """Errors of forces and their error bars on frames that are labelled here."""
    calc = NeuralILCalculator(model, uncertainty="forces")
    errors, bars, sizes = [], [], []
    for atoms in frames:
        atoms.calc = teacher
        forces = atoms.get_forces()
        prediction = calc.prediction(atoms)
        errors.append(prediction.forces - forces)
        bars.append(prediction.forces_error_bar)
        sizes.append(forces)
    error, bar = np.concatenate(errors), np.concatenate(bars)
    norms = np.linalg.norm(error, axis=1)
    inside = (np.abs(error) <= bar[:, None] / np.sqrt(3)).mean()
    return {
        "force_mae_meV_per_A": 1e3 * float(np.abs(error).mean()),
        "rms_error_meV_per_A": 1e3 * float(np.sqrt((norms**2).mean())),
        "rms_error_over_rms_bar": float(np.sqrt((norms**2).mean() / (bar**2).mean())),
        "coverage_68": float(inside),
        "rms_force_eV_per_A": float(np.sqrt((np.concatenate(sizes) ** 2).sum(axis=1).mean())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("system", choices=("ean", "solid", "molten"))
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--hot-steps", type=int, default=4_000)
    parser.add_argument("--tests", type=int, default=20)
    parser.add_argument("--tolerance", type=float)
    parser.add_argument("--folder", type=Path)
    parser.add_argument(
        "--seed", type=int, default=0, help="of velocities, thermostat and learner (default 0)"
    )
    options = parser.parse_args()
    folder = options.folder or Path(f"learned_{options.system}")
    atoms, teacher, timestep, temperatures, friction = system(options.system)
    calc = LearningCalculator(
        teacher,
        folder,
        tolerance=options.tolerance,
        progress=True,
        max_queries=400,
        seed=options.seed,
    )
    atoms.calc = calc
    atoms.set_constraint(FixCom())
    velocities = np.random.default_rng(1 + 100 * options.seed)
    thermalize_momenta(atoms, temperature_K=temperatures[0], rng=velocities)
    for part, (T, steps) in enumerate(
        zip(temperatures, (options.steps, options.hot_steps), strict=True)
    ):
        calls, evaluations, began = len(CPU), calc.evaluations, time.process_time()
        seed = part + 100 * options.seed
        aside, temperature = run(atoms, T, steps, options.tests, timestep, friction, seed)
        cpu = time.process_time() - began
        asked = [r.evaluation - evaluations for r in calc.records if r.evaluation > evaluations]
        result = {
            "system": options.system, "seed": options.seed, "T": T, "mean_T": round(temperature, 1), "steps": steps,
            "calls": len(CPU) - calls, "calls_in_last_quarter": sum(k > 3 * steps / 4 for k in asked),
            "cpu_s": round(cpu, 1), "cpu_s_of_one_call": round(float(np.median(CPU)), 3),
            "teacher_alone_over_this": round(steps * float(np.median(CPU)) / cpu, 1),
            "tolerance": round(calc.learner.tolerance, 4),
        }  # fmt: skip
        calc.plot(folder / f"{options.system}_{T:.0f}.png")
        print(json.dumps(result), flush=True)
        tested = judged(calc.potential, aside, teacher)
        print(json.dumps({k: round(v, 3) for k, v in tested.items()}), flush=True)
    print(calc.summary())


if __name__ == "__main__":
    main()
