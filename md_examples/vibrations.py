"""Vibrations of an ion pair, from second derivatives instead of displacements.

    python md_examples/vibrations.py

Writes vibrations.png.
"""

from pathlib import Path

import numpy as np
from ase.io import read
from ase.optimize import BFGS
from ase.vibrations import VibrationsData
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator

pair = read(Path(__file__).parent / "ean_pair.extxyz")
pair.calc = NeuralILCalculator(dtype="float64")
BFGS(pair, logfile=None).run(fmax=0.001, steps=500)

vibrations = VibrationsData(pair, pair.calc.hessian(pair))  # (N, 3, N, 3), eV/Å²
wavenumbers = vibrations.get_frequencies()  # complex, 1/cm; an imaginary one means no minimum
by_size = wavenumbers[np.argsort(np.abs(wavenumbers))]
external, internal = by_size[:6], by_size[6:].real
print(vibrations.tabulate())
print(f"zero-point energy {vibrations.get_zero_point_energy():.3f} eV")
print(f"largest of the six external modes {np.abs(external).max():.1f} 1/cm")
print(f"smallest of the others {internal.min():.1f} 1/cm")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
grid = np.linspace(0, 3600, 1000)
axes.plot(grid, np.exp(-(((grid[:, None] - internal) / 15) ** 2)).sum(axis=1))
axes.set(xlabel="wavenumber (1/cm)", ylabel="density of states", yticks=[])
figure.savefig("vibrations.png", dpi=100)
