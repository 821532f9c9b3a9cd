"""NEB: the barrier for the rotation of the methyl group of an ion pair, with its spread.

    python md_examples/neb.py [STEPS]

The path is relaxed with the mean potential. Each member has its own barrier along this path; their
standard deviation is the spread of the barrier. Writes neb.png.
"""

import sys
from pathlib import Path

import numpy as np
from ase.io import read
from ase.mep import NEB
from ase.optimize import FIRE
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator

STEPS = int(sys.argv[1]) if sys.argv[1:] else 500
CARBONS, HYDROGENS = (4, 7), (8, 9, 10)  # N-CH2 and CH3; the hydrogens of the latter

calc = NeuralILCalculator(dtype="float64", uncertainty="energy")
start = read(Path(__file__).parent / "ean_pair.extxyz")
start.calc = calc
FIRE(start, logfile=None).run(fmax=0.01, steps=STEPS)

# A third of a turn puts the hydrogens on each other's places: the same structure, relabelled.
end = start.copy()
end.positions[list(HYDROGENS)] = start.positions[list(np.roll(HYDROGENS, -1))]

path = [start, *(start.copy() for _ in range(7)), end]
for image in path:
    image.calc = calc
neb = NEB(path, climb=True, method="improvedtangent", allow_shared_calculator=True)
axis = np.diff(start.positions[list(CARBONS)], axis=0)[0]
for number, image in enumerate(path[1:-1], start=1):
    turned = start.copy()
    turned.rotate(120 * number / 8, axis, center=start.positions[CARBONS[1]])
    image.positions[list(HYDROGENS)] = turned.positions[list(HYDROGENS)]
FIRE(neb, logfile=None).run(fmax=0.03, steps=STEPS)

members = np.array([calc.prediction(image).member_energies for image in path])  # (images, M), eV
members -= members[0]
mean, spread = members.mean(axis=1), members.std(axis=1, ddof=1)
top = mean.argmax()
print(f"barrier {mean[top]:.4f} eV, spread over members {spread[top]:.4f} eV, image {top} of 8")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
axes.plot(members, color="0.8", lw=0.8)
axes.errorbar(range(len(path)), mean, spread, fmt="o-", capsize=3, label="mean ± spread")
axes.set(xlabel="image", ylabel="energy (eV)")
axes.legend()
figure.savefig("neb.png", dpi=100)
