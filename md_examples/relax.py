"""Relax the atoms, then atoms and cell together.

    python md_examples/relax.py [STEPS]

Writes relaxed.extxyz, with the spread of every force beside the atoms, and relax.png.
"""

import sys
from pathlib import Path

import numpy as np
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import FIRE, LBFGS
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator
from neuralil_ase.monitor import annotate

STEPS = int(sys.argv[1]) if sys.argv[1:] else 200

atoms = read(Path(__file__).parent / "ean_start.extxyz")
# Forces become small, so that rounding errors matter: use float64.
atoms.calc = NeuralILCalculator(dtype="float64", uncertainty="forces")
energies, forces, spreads = [], [], []


def record() -> None:
    found = atoms.calc.prediction()
    energies.append(found.energy)
    forces.append(np.linalg.norm(found.forces, axis=1).max())
    spreads.append(found.forces_std.max())


with FIRE(atoms, dt=0.05, dtmax=0.2) as of_atoms:
    of_atoms.attach(record)
    of_atoms.run(fmax=0.1, steps=STEPS)
freed = len(energies) - 1
with LBFGS(FrechetCellFilter(atoms), maxstep=0.1) as of_cell:
    of_cell.attach(record)
    of_cell.run(fmax=0.05, steps=STEPS)

found = atoms.calc.prediction()
print(f"energy {found.energy:.4f} eV, spread over members {found.energy_std:.4f} eV")
print(f"largest force spread {found.forces_std.max():.3f} eV/Å")
print(f"cell edge {atoms.cell.lengths()[0]:.3f} Å")
write("relaxed.extxyz", annotate(atoms, found))

figure = Figure(figsize=(7, 3), layout="constrained")
left, right = figure.subplots(1, 2)
left.plot(1000 * (np.array(energies) - energies[-1]) / len(atoms))
left.set(xlabel="step", ylabel="energy above the last (meV/atom)")
left.text(freed, 0.9 * left.get_ylim()[1], " the cell is free")
right.semilogy(forces, label="largest force")
right.semilogy(spreads, label="largest spread of a force")
right.set(xlabel="step", ylabel="eV/Å")
right.legend()
for axes in (left, right):
    axes.axvline(freed, color="0.6", lw=0.8)
figure.savefig("relax.png", dpi=100)
