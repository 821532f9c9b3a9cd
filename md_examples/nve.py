"""Ten lines of NVE."""

from pathlib import Path

from ase import units
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from neuralil_ase import NeuralILCalculator

atoms = read(Path(__file__).parent / "ean_start.extxyz")
atoms.calc = NeuralILCalculator()
thermalize_momenta(atoms, temperature_K=300)
dyn = VelocityVerlet(atoms, timestep=0.5 * units.fs, logfile="-", loginterval=50)
dyn.run(500)
