"""Equation of state: volume and bulk modulus with their spread, compared with the reference method.

    python md_examples/train.py && python md_examples/equation_of_state.py [MODEL]

It uses the model of copper that train.py writes to this folder. The fit is repeated with the energies of every
member; the standard deviation of the results is their spread. Writes equation_of_state.png.
"""

import sys

import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.eos import EquationOfState
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator
from neuralil_ase.response import equation_of_state

MODEL = sys.argv[1] if sys.argv[1:] else "copper.safetensors"
STRAINS = np.linspace(-0.015, 0.015, 9)

crystal = bulk("Cu", a=3.6, cubic=True)
found = equation_of_state(crystal, NeuralILCalculator(MODEL), STRAINS)

teacher = []
for strain in STRAINS:
    atoms = bulk("Cu", a=3.6 * (1 + strain), cubic=True)
    atoms.calc = EMT()
    teacher.append(atoms.get_potential_energy())
volume, _, modulus = EquationOfState(found.volumes, teacher, eos="birchmurnaghan").fit()

gpa = found.bulk_modulus.map(lambda value: value / units.GPa, "GPa")
print(f"volume {found.volume.value:.2f}, spread {found.volume.std:.2f} Å³; EMT {volume:.2f}")
print(f"bulk modulus {gpa.value:.1f}, spread {gpa.std:.1f} GPa; EMT {modulus / units.GPa:.1f}")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
members, mean = found.energies.members, found.energies.value
axes.plot(found.volumes, (members - members.min(axis=1, keepdims=True)).T, color="0.8", lw=0.8)
axes.plot(found.volumes, mean - mean.min(), "o", label="mean of members")
axes.plot(found.volumes, np.array(teacher) - min(teacher), "k--", lw=0.8, label="EMT")
axes.set(xlabel="volume of the cubic cell (Å³)", ylabel="energy (eV)")
axes.legend()
figure.savefig("equation_of_state.png", dpi=100)
