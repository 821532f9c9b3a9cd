"""Vibrations of an ion pair from exact second derivatives, each with its error bar.

    python md_examples/vibrations.py

Writes vibrations.png.
"""

from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.optimize import BFGS
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator
from neuralil_ase.response import vibrations

pair = read(Path(__file__).parent / "ean_pair.extxyz")
pair.calc = NeuralILCalculator(dtype="float64")
BFGS(pair, logfile=None).run(fmax=1e-5, steps=500)  # soft modes need a minimum this exact

found = vibrations(pair, pair.calc)
waves = found.internal.map(lambda energies: energies / units.invcm, "1/cm")
for value, error in zip(waves.value, waves.error_bar, strict=True):
    print(f"{value:8.1f} ± {error:5.1f} 1/cm")  # a negative number stands for an imaginary mode
print(f"zero-point energy {found.zero_point_energy}")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
grid = np.linspace(0, 3700, 3701)
lines = np.exp(-(((grid[:, None] - waves.value) / waves.error_bar) ** 2) / 2)
axes.fill_between(grid, lines.max(axis=1))
axes.set(xlabel="wavenumber (1/cm), each line as wide as its error bar", yticks=[], ylim=(0, 1.1))
figure.savefig("vibrations.png", dpi=100)
