"""Find a configuration that the model is unsure of but that costs little energy.

A bias of -STRENGTH times the spread of the energy is added to the potential; an ordinary ASE optimiser on
the sum then walks to where labelling would teach the model most. The result is written for labelling.
"""

from pathlib import Path

from ase.calculators.mixing import SumCalculator
from ase.io import read, write
from ase.optimize import FIRE

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
FIRE(atoms, dt=0.05, dtmax=0.2, logfile=None).run(fmax=0.1, steps=200)
found = model.prediction(atoms)

print("                        relaxed    found")
print(f"spread of energy (eV)  {relaxed.energy_std:8.3f} {found.energy_std:8.3f}   std, ddof 1")
print(
    f"largest of force (eV/Å){relaxed.forces_std.max():8.3f} {found.forces_std.max():8.3f}   "
    "norm of component stds"
)
print(f"energy above relaxed: {1000 * (found.energy - relaxed.energy) / len(atoms):.1f} meV/atom")
atoms.calc = model
write("unsure.extxyz", annotate(atoms, found))
