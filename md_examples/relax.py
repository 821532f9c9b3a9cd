"""Relax the atoms, then atoms and cell together.

    python md_examples/relax.py [STEPS]

Writes relaxed.extxyz, with the spread of every force beside the atoms.
"""

import sys
from pathlib import Path

from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import FIRE, LBFGS

from neuralil_ase import NeuralILCalculator
from neuralil_ase.monitor import annotate

STEPS = int(sys.argv[1]) if sys.argv[1:] else 200

atoms = read(Path(__file__).parent / "ean_start.extxyz")
atoms.calc = NeuralILCalculator(dtype="float64")  # forces get small: keep rounding errors smaller

FIRE(atoms, dt=0.05, dtmax=0.2).run(fmax=0.1, steps=STEPS)
LBFGS(FrechetCellFilter(atoms), maxstep=0.1).run(fmax=0.05, steps=STEPS)

found = atoms.calc.prediction(atoms, uncertainty="forces")
print(f"energy {found.energy:.4f} eV, spread over members {found.energy_std:.4f} eV")
print(f"largest force spread {found.forces_std.max():.3f} eV/Å")
print(f"cell edge {atoms.cell.lengths()[0]:.3f} Å")
write("relaxed.extxyz", annotate(atoms, found))
