"""NPT: density of the liquid at 1 bar and 300 K.

    python md_examples/npt.py [STEPS]

Isotropic Martyna–Tobias–Klein dynamics, time step 0.5 fs. Writes npt.png.
"""

import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator

STEPS = int(sys.argv[1]) if sys.argv[1:] else 10_000

atoms = read(Path(__file__).parent / "ean_start.extxyz")
atoms.calc = NeuralILCalculator()
thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
Stationary(atoms)
dyn = IsotropicMTKNPT(
    atoms,
    timestep=0.5 * units.fs,
    temperature_K=300,
    pressure_au=1 * units.bar,
    tdamp=100 * units.fs,
    pdamp=1000 * units.fs,
)
times, densities = [], []


def record() -> None:
    grams = atoms.get_masses().sum() / units.kg * 1000
    times.append(dyn.get_time() / (1000 * units.fs))
    densities.append(grams / (atoms.get_volume() * 1e-24))  # 1 Å³ = 1e-24 cm³


dyn.attach(record, interval=10)
dyn.run(STEPS)

late = densities[len(densities) // 2 :]
print(f"density over the second half of {times[-1]:.2f} ps: {np.mean(late):.3f} g/cm³")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
axes.plot(times, densities)
axes.set(xlabel="time (ps)", ylabel="density (g/cm³)")
figure.savefig("npt.png", dpi=100)
