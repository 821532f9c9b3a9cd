"""NVT: hydrogen bonds of the liquid at 300 K, as the distribution of NH···O distances.

    python md_examples/nvt.py [STEPS]

Langevin dynamics, time step 0.5 fs, a frame every 20 steps. Writes nvt.png.
"""

import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator

STEPS = int(sys.argv[1]) if sys.argv[1:] else 4000
REACH, BINS = 6.0, 120  # Å; less than half the edge of the cell

atoms = read(Path(__file__).parent / "ean_start.extxyz")
atoms.calc = NeuralILCalculator()
rng = np.random.default_rng(0)
thermalize_momenta(atoms, temperature_K=300, rng=rng)
dyn = Langevin(
    atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False, rng=rng
)
oxygen = np.flatnonzero(atoms.symbols == "O")
hydrogen = [11 * cation + k for cation in range(15) for k in (1, 2, 3)]  # the three on nitrogen
counts, temperatures = [], []


def record() -> None:
    distances = atoms.get_all_distances(mic=True)[np.ix_(hydrogen, oxygen)]
    counts.append(np.histogram(distances, bins=BINS, range=(0, REACH))[0])
    temperatures.append(atoms.get_temperature())


dyn.attach(record, interval=20)
dyn.run(STEPS)

edges = np.linspace(0, REACH, BINS + 1)
shell = 4 / 3 * np.pi * np.diff(edges**3)
ideal = len(hydrogen) * len(oxygen) / atoms.get_volume() * shell
g = np.mean(counts, axis=0) / ideal
r = (edges[1:] + edges[:-1]) / 2
near = r < 2.5
print(f"temperature {np.mean(temperatures):.0f} K")
print(f"hydrogen bonds: g(NH···O) is largest at {r[near][g[near].argmax()]:.2f} Å")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
axes.plot(r, g)
axes.set(xlabel="NH···O distance (Å)", ylabel="g(r)", xlim=(1, REACH), ylim=(0, None))
figure.savefig("nvt.png", dpi=100)
