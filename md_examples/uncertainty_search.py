"""Find a structure with a large spread and a low energy.

A bias of -STRENGTH times the spread of the energy is added to the potential. An ordinary ASE optimiser then finds a
structure from which the model would learn much. It ends at the higher threshold of the model: beyond it, a spread can
grow without limit, and the structure is none that would ever be labelled. Writes this structure, unsure.extxyz, and
uncertainty_search.png.
"""

from pathlib import Path

import numpy as np
from ase.calculators.mixing import SumCalculator
from ase.io import read, write
from ase.optimize import FIRE
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator
from neuralil_ase.bias import UncertaintyBias
from neuralil_ase.monitor import annotate

STRENGTH = 20.0  # eV of bias per eV of spread

atoms = read(Path(__file__).parent / "ean_start.extxyz")
model = NeuralILCalculator(uncertainty="forces")  # one evaluation serves potential and bias
atoms.calc = model
FIRE(atoms, dt=0.05, dtmax=0.2, logfile=None).run(fmax=0.1, steps=200)
relaxed = model.prediction(atoms)

atoms.calc = SumCalculator([model, UncertaintyBias(model, -STRENGTH)])
path = []  # energy and its spread, eV
search = FIRE(atoms, dt=0.05, dtmax=0.2, logfile=None)
limit = model.potential.calibration.thresholds["high"]  # eV/Å, of the largest force spread
for _ in search.irun(fmax=0.1, steps=200):
    found = model.prediction()
    path.append((found.energy, found.energy_std))
    if found.forces_std.max() > limit:
        break

print("                        relaxed    found")
print(f"spread of energy (eV)  {relaxed.energy_std:8.3f} {found.energy_std:8.3f}   std, ddof 1")
print(
    f"largest of force (eV/Å){relaxed.forces_std.max():8.3f} {found.forces_std.max():8.3f}   "
    "norm of component stds"
)
print(f"energy above relaxed: {1000 * (found.energy - relaxed.energy) / len(atoms):.1f} meV/atom")
atoms.calc = model
write("unsure.extxyz", annotate(atoms, found))

figure = Figure(figsize=(7, 3), layout="constrained")
left, right = figure.subplots(1, 2)
energy, spread = np.array(path).T
left.plot(1000 * (energy - relaxed.energy) / len(atoms), spread, ".-", lw=0.8, ms=3)
left.plot(0, relaxed.energy_std, "o", label="relaxed")
left.plot(1000 * (energy[-1] - relaxed.energy) / len(atoms), spread[-1], "s", label="found")
left.set(xlabel="energy above relaxed (meV/atom)", ylabel="spread of energy (eV)")
left.legend()
for symbol in sorted(set(atoms.symbols)):
    of_element = atoms.symbols == symbol
    right.plot(
        relaxed.forces_std[of_element], found.forces_std[of_element], ".", ms=4, label=symbol
    )
limits = [0, found.forces_std.max()]
right.plot(limits, limits, color="0.6", lw=0.8)
right.set(xlabel="spread of force, relaxed (eV/Å)", ylabel="found (eV/Å)")
right.legend()
figure.savefig("uncertainty_search.png", dpi=100)
