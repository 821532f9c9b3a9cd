"""NVE: the total energy stays where it is."""

from pathlib import Path

from ase import units
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from neuralil_ase import NeuralILCalculator

atoms = read(Path(__file__).parent / "ean_start.extxyz")
atoms.calc = NeuralILCalculator()
thermalize_momenta(atoms, temperature_K=300)
dyn = VelocityVerlet(atoms, timestep=0.5 * units.fs)


def report() -> None:
    total = atoms.get_total_energy()
    print(f"{dyn.get_time() / units.fs:8.1f} fs {total:12.4f} eV {atoms.get_temperature():7.1f} K")


dyn.attach(report, interval=50)
dyn.run(500)
