"""Equation of state: equilibrium volume and bulk modulus, with their spread.

    python md_examples/equation_of_state.py [STEPS]

The liquid is quenched to 0 K (a glass), then relaxed at seven volumes. The fit is repeated with the energies
of every member. Writes equation_of_state.png.
"""

import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator

STEPS = int(sys.argv[1]) if sys.argv[1:] else 300
STRAINS = np.linspace(-0.02, 0.02, 7)  # of every edge

atoms = read(Path(__file__).parent / "ean_start.extxyz")
atoms.calc = calc = NeuralILCalculator(dtype="float64", uncertainty="energy")
FIRE(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None).run(fmax=0.05, steps=STEPS)

volumes, members = [], []
for strain in STRAINS:
    image = atoms.copy()
    image.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
    image.calc = calc
    FIRE(image, logfile=None).run(fmax=0.05, steps=STEPS)
    volumes.append(image.get_volume())
    members.append(calc.prediction(image).member_energies)


def fitted(energies: np.ndarray) -> tuple[float, float]:
    """Volume at the minimum, Å³, and bulk modulus, GPa."""
    volume, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    return volume, modulus / units.GPa


energies = np.array(members)  # (volumes, M), eV
volume, modulus = fitted(energies.mean(axis=1))
spreads = np.std([fitted(column) for column in energies.T], axis=0, ddof=1)
print(f"volume {volume:.0f} Å³, spread {spreads[0]:.0f} Å³")
print(f"bulk modulus {modulus:.1f} GPa, spread {spreads[1]:.1f} GPa")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
axes.plot(volumes, energies - energies.min(axis=0), color="0.8", lw=0.8)
axes.plot(volumes, energies.mean(axis=1) - energies.mean(axis=1).min(), "o-", label="mean")
axes.set(xlabel="volume (Å³)", ylabel="energy (eV)")
axes.legend()
figure.savefig("equation_of_state.png", dpi=100)
