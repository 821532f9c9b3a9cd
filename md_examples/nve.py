"""NVE: is the total energy conserved?

    python md_examples/nve.py [STEPS]

225 atoms of liquid ethylammonium nitrate, time step 0.5 fs. Writes nve.png.
"""

import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator

STEPS = int(sys.argv[1]) if sys.argv[1:] else 2000

atoms = read(Path(__file__).parent / "ean_start.extxyz")
atoms.calc = NeuralILCalculator()
thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
dyn = VelocityVerlet(atoms, timestep=0.5 * units.fs)
rows: list[tuple[float, float, float]] = []  # fs, eV, K


def record() -> None:
    rows.append((dyn.get_time() / units.fs, atoms.get_total_energy(), atoms.get_temperature()))


dyn.attach(record, interval=10)
dyn.run(STEPS)

time, energy, temperature = np.array(rows).T
shift = 1000 * (energy - energy[0]) / len(atoms)
drift = 1000 * np.polyfit(time, shift, 1)[0]
print(
    f"total energy: {shift.std():.4f} meV/atom rms around its mean, drift {drift:.4f} meV/atom/ps"
)
print(f"temperature: {temperature.mean():.0f} K on average")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
axes.plot(time, shift)
axes.set(xlabel="time (fs)", ylabel="total energy (meV/atom)", ylim=(-0.2, 0.2))
figure.savefig("nve.png", dpi=100)
