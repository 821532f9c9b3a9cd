"""Relax the positions, then positions and cell together."""

from pathlib import Path

from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS, FIRE

from neuralil_ase import NeuralILCalculator

atoms = read(Path(__file__).parent / "ean_start.extxyz")
atoms.calc = NeuralILCalculator(dtype="float64")  # small forces: let rounding play no part

FIRE(atoms, dt=0.05, dtmax=0.2).run(fmax=0.1, steps=200)
BFGS(FrechetCellFilter(atoms), maxstep=0.1).run(fmax=0.05, steps=100)

prediction = atoms.calc.prediction(atoms, uncertainty="forces")
print(f"energy {prediction.energy:.4f} ± {prediction.energy_std:.4f} eV (std of members, ddof 1)")
print(
    f"cell edge {atoms.cell.lengths()[0]:.3f} Å, largest force spread {prediction.forces_std.max():.3f} eV/Å"
)
