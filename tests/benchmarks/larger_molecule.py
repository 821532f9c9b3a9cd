"""The defaults for small molecules against those for liquids, on a molecule of 27 atoms.

    python tests/benchmarks/larger_molecule.py FOLDER                         # makes the data, trains both
    python tests/benchmarks/larger_molecule.py FOLDER --as liquid --epochs 130

2-(benzyloxy)pyridin-3-amine, GFN1-xTB (tblite, extra ``data``) at 500 K: 300 frames of one Langevin run, 15 fs apart,
to learn from, and 75 frames of another run as a test.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.optimize import BFGS

from neuralil_ase import train
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.evaluate import evaluate
from neuralil_ase.samples import cutoff

START = Path(__file__).with_name("benzyloxypyridinamine.xyz")
FRAMES = (300, 75)
TEMPERATURE = 500


def frames_of_run(seed: int, count: int) -> list[Atoms]:
    """Labelled frames of a run from the minimum."""
    from tblite.ase import TBLite

    atoms = read(START)
    atoms.calc = TBLite(method="GFN1-xTB", verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
    rng = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
    Stationary(atoms)
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=TEMPERATURE, friction=0.01 / units.fs, rng=rng
    )
    dynamics.run(600)
    frames = []
    for _ in range(count):
        dynamics.run(30)
        frame = atoms.copy()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        frame.calc = SinglePointCalculator(frame, **results)
        frames.append(frame)
    return frames


def data(folder: Path) -> list[list[Atoms]]:
    """Training and test frames; they are made if the folder has none."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed, (name, count) in enumerate(zip(("train", "test"), FRAMES, strict=True)):
        path = folder / f"{name}.extxyz"
        if not path.exists():
            write(path, frames_of_run(seed, count))
        found.append(read(path, ":"))
    return found


def trained(kind: str, frames: list[list[Atoms]], epochs: int, members: int) -> str:
    """Train with the rules for this kind of matter, and test."""
    if kind == "liquid":
        cutoff.FEW_IF_COVALENT = 0
    began = time.process_time()
    potential = train(frames[0], members=members, epochs=epochs, report=False).potential
    seconds = time.process_time() - began
    errors = evaluate(potential, frames_from_atoms(frames[1])).comparison
    config = potential.config
    forces = 1e3 * np.abs(errors.force_errors).mean()
    energy = 1e3 * np.sqrt(np.mean(errors.energy_errors**2))
    return (
        f"{kind}: r_cut {potential.r_cut:g} Å, n_max {config.descriptor.n_max}, widths {config.network.widths}, "
        f"{epochs} epochs, {seconds:.0f} s of CPU time: force MAE {forces:.1f} meV/Å, energy RMSE {energy:.1f} meV"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--as", dest="kinds", nargs="+", choices=("molecule", "liquid"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--members", type=int, default=2)
    options = parser.parse_args()
    frames = data(options.folder)
    for kind in options.kinds or ("molecule", "liquid"):
        print(trained(kind, frames, options.epochs, options.members), flush=True)


if __name__ == "__main__":
    main()
