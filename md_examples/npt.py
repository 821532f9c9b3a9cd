"""Density of the liquid: isotropic NPT at 1 bar and 300 K."""

from pathlib import Path

from ase import units
from ase.io import read
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta

from neuralil_ase import NeuralILCalculator

atoms = read(Path(__file__).parent / "ean_start.extxyz")
atoms.calc = NeuralILCalculator()
thermalize_momenta(atoms, temperature_K=300)
Stationary(atoms)
dyn = IsotropicMTKNPT(
    atoms,
    timestep=0.5 * units.fs,
    temperature_K=300,
    pressure_au=1 * units.bar,
    tdamp=100 * units.fs,
    pdamp=1000 * units.fs,
)


def print_density() -> None:
    density = atoms.get_masses().sum() / units.mol * 1e24 / atoms.get_volume()
    print(
        f"{dyn.get_time() / units.fs:8.1f} fs  {atoms.get_temperature():6.1f} K  {density:.4f} g/cm³"
    )


dyn.attach(print_density, interval=100)
dyn.run(1000)
