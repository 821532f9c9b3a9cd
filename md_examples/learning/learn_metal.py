"""MD of copper without a model at the start: EMT labels the frames for which the model is uncertain.

    python md_examples/learning/learn_metal.py 2000

Draws learn_metal.png. A second run of the command continues with the model in the folder learned_copper.
"""

import sys

import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from neuralil_ase import LearningCalculator

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
HOT = 600  # K, for the second half of the run

atoms = bulk("Cu", cubic=True, a=3.65) * (2, 2, 2)
atoms.calc = LearningCalculator(EMT(), folder="learned_copper", progress=True)
atoms.set_constraint(FixCom())

rng = np.random.default_rng(0)
thermalize_momenta(atoms, temperature_K=300, rng=rng)
dynamics = Langevin(
    atoms, 4 * units.fs, temperature_K=300, friction=0.02 / units.fs, fixcm=False, rng=rng
)
dynamics.run(STEPS // 2)
dynamics.set_temperature(temperature_K=HOT)
dynamics.run(STEPS // 2)

print(atoms.calc.summary())
prediction = atoms.calc.prediction(atoms)
error = np.linalg.norm(prediction.forces - EMT().get_forces(atoms), axis=1)
rms, bar = (np.sqrt(np.mean(x**2)) for x in (error, prediction.forces_error_bar))
print(f"last frame: rms force error {rms:.4f} eV/Å, rms error bar {bar:.4f} eV/Å")
atoms.calc.plot("learn_metal.png")
