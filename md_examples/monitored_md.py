"""Molecular dynamics with a monitor of the uncertainty: the main task of this package.

    python md_examples/monitored_md.py --temperature 300 --steps 10000

It writes to the output folder: trajectory.traj, md.log (the table of the monitor), flagged.extxyz (frames with a
spread above the threshold, if any) and overview.png. A run that reaches the upper threshold is stopped.
"""

import argparse
import warnings
from pathlib import Path
from time import perf_counter

from ase import Atoms, units
from ase.io import read
from ase.io.trajectory import Trajectory
from ase.md.bussi import Bussi
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from tqdm import tqdm

from neuralil_ase import ExtrapolationMonitor, NeuralILCalculator
from neuralil_ase.progress import Progress

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> ExtrapolationMonitor:
    options = parse(arguments)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)

    atoms = read(options.structure)
    atoms.calc = NeuralILCalculator(options.model)
    thermalize_momenta(atoms, temperature_K=options.temperature, rng=np_rng(options.seed))
    Stationary(atoms)
    dyn = dynamics(atoms, options)

    monitor = ExtrapolationMonitor(
        dyn,
        threshold=options.threshold,
        log=output / "md.log",
        save=output / "flagged.extxyz",
        before=3,
        patience=2,
        stop=True,
        warn=tqdm.write,
    )
    dyn.attach(monitor, interval=options.interval)
    with Trajectory(output / "trajectory.traj", "w", atoms) as trajectory:
        dyn.attach(trajectory.write, interval=options.interval * 5)
        run_with_progress(dyn, monitor, options.steps)

    monitor.plot(output / "overview.png")
    print(monitor.summary())
    names = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    print(f"written to {output}: {', '.join(names)}")
    return monitor


def dynamics(atoms: Atoms, options: argparse.Namespace) -> MolecularDynamics:
    """NVE, NVT (stochastic velocity rescaling) or isotropic NPT at 1 bar."""
    timestep = options.timestep * units.fs
    if options.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    if options.ensemble == "nvt":
        return Bussi(
            atoms, timestep, options.temperature, taut=100 * units.fs, rng=np_rng(options.seed + 1)
        )
    return IsotropicMTKNPT(
        atoms,
        timestep,
        temperature_K=options.temperature,
        pressure_au=1.0 * units.bar,
        tdamp=100 * units.fs,
        pdamp=1000 * units.fs,
    )


def run_with_progress(dyn: MolecularDynamics, monitor: ExtrapolationMonitor, steps: int) -> None:
    """Run, and show steps per second, ns per day, temperature and largest force spread."""
    start: list[float] = []

    def show() -> None:
        if not start:  # The first evaluation compiles; the rate counts from its end.
            start.append(perf_counter())
        rate = dyn.nsteps / max(perf_counter() - start[0], 1e-9)
        progress.update(
            dyn.nsteps,
            f"{rate * 86400 * dyn.dt / units.fs * 1e-6:.2f} ns/day, "
            f"{dyn.atoms.get_temperature():.0f} K, "
            f"spread {monitor.last.value('max_force_std'):.3f} eV/Å",
        )

    with Progress(steps, "step", "MD", True) as progress:
        dyn.attach(show, interval=20)
        try:
            dyn.run(steps)
        except KeyboardInterrupt:
            tqdm.write("interrupted: closing the files of what was done so far")


def np_rng(seed: int):
    import numpy as np

    return np.random.default_rng(seed)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--structure", default=HERE / "ean_start.extxyz", help="anything ase.io reads")
    add("--model", default=None, help="model file (default: the EAN potential of the package)")
    add("--temperature", type=float, default=300.0, help="K")
    add("--steps", type=int, default=10000)
    add("--timestep", type=float, default=0.5, help="fs")
    add("--ensemble", choices=["nve", "nvt", "npt"], default="nvt")
    add("--output", default="monitored_md", help="folder")
    add("--interval", type=int, default=10, help="steps between two checks of the spread")
    add("--threshold", type=float, nargs=2, metavar=("LOW", "HIGH"), default=None,
        help="force spread in eV/Å: flag above LOW, stop above HIGH (default: of the model)")  # fmt: skip
    add("--seed", type=int, default=0, help="of velocities and thermostat")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"{message}\n"
    main()
