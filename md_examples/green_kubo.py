"""Green-Kubo: thermal conductivity of the copper lattice at 300 K, from the heat flux along NVE runs.

    python md_examples/train.py && python md_examples/green_kubo.py [STEPS]

It uses the model of copper that train.py writes to this folder. There are four runs with different velocities and a
time step of 5 fs; the statistical error is their standard error. A potential does not describe electrons, which conduct
most of the heat in a metal. Writes green_kubo.png.
"""

import sys

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator
from neuralil_ase.response import green_kubo, heat_flux

STEPS = int(sys.argv[1]) if sys.argv[1:] else 6000
RUNS, STEP, EVERY, TEMPERATURE = 4, 5.0, 4, 300  # fs, steps between fluxes, K

calc = NeuralILCalculator("copper.safetensors", uncertainty="off")


def fluxes(seed: int) -> np.ndarray:
    """Heat flux along a run in eV Å/fs, shape (T, 3)."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", a=3.6, cubic=True) * (3, 3, 3)
    atoms.calc = calc
    thermalize_momenta(atoms, temperature_K=TEMPERATURE, rng=rng)
    bath = {"temperature_K": TEMPERATURE, "friction": 0.01 / units.fs, "rng": rng}
    Langevin(atoms, STEP * units.fs, fixcm=False, **bath).run(STEPS // 10)
    Stationary(atoms)  # a motion of the whole crystal would also transport energy
    found: list[np.ndarray] = []
    dyn = VelocityVerlet(atoms, STEP * units.fs)
    dyn.attach(lambda: found.append(heat_flux(atoms).total), interval=EVERY)
    dyn.run(STEPS)
    return np.array(found)


volume = 3**3 * 3.6**3
runs = [green_kubo(fluxes(seed), STEP * EVERY, volume, TEMPERATURE) for seed in range(RUNS)]
times = runs[0][0] / 1000
kappa = np.array([conductivity for _, conductivity in runs])
mean, error = kappa.mean(axis=0), kappa.std(axis=0, ddof=1) / np.sqrt(RUNS)
end = len(times) // 2  # a quarter of the run: beyond it there are few times to average over
print(f"lattice conductivity {mean[end]:.3g} ± {error[end]:.2g} W/(m K) at {times[end]:.1f} ps")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
axes.plot(times, kappa.T, color="0.8", lw=0.8)
axes.plot(times, mean)
axes.fill_between(times, mean - error, mean + error, alpha=0.3, lw=0)
axes.set(xlabel="upper end of the integral (ps)", ylabel="conductivity (W/(m K))")
axes.set(xlim=(0, times[end]), ylim=(0, 1.3 * kappa[:, : end + 1].max()))
figure.savefig("green_kubo.png", dpi=100)
