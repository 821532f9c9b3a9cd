"""OpenMM through OpenMM-ML: by the name of the entry point, energies kept, a barostat that works, wrong input said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.io import read
from ase.neighborlist import neighbor_list
from systems import ensemble, random_atoms

pytest.importorskip(
    "openmmml", reason="OpenMM-ML is not installed: pip install neuralil-ase[openmm]"
)

import openmm
from openmm import unit
from openmm.app import Element, Topology
from openmmml import MLPotential

from neuralil_ase import NeuralILCalculator, save_potential
from neuralil_ase.errors import ModelFileError, StructureError

CELL = np.array([[7.4, 0.0, 0.0], [1.1, 7.3, 0.0], [-0.7, 0.9, 7.6]])
START = Path(__file__).resolve().parents[2] / "md_examples" / "ean_start.extxyz"
BONDS = {("C", "C"): 1.8, ("C", "H"): 1.35, ("C", "N"): 1.8, ("H", "N"): 1.35, ("N", "O"): 1.5}
EV = 1 / (units.kJ / units.mol)
"""kJ/mol in an electronvolt."""


def atoms() -> Atoms:
    return random_atoms(3, "CHHNOHCHOH", CELL, (True, True, True), spacing=1.1)


def topology_of(atoms: Atoms) -> Topology:
    topology = Topology()
    residue = topology.addResidue("all", topology.addChain())
    for symbol in atoms.symbols:
        topology.addAtom(symbol, Element.getBySymbol(symbol), residue)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array * unit.angstrom)
    return topology


def context_of(atoms: Atoms, system: Any, dt: float = 0.25) -> Any:
    integrator = openmm.VerletIntegrator(dt * unit.femtosecond)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions * unit.angstrom)
    return context


def energy_of(context: Any, *, total: bool = False) -> float:
    """In eV."""
    state = context.getState(getEnergy=True)
    energy = state.getPotentialEnergy()
    if total:
        energy += state.getKineticEnergy()
    return energy.value_in_unit(unit.kilojoule_per_mole) / EV


@pytest.mark.parametrize("pbc", [True, False])
def test_the_name_is_found_and_energies_and_forces_are_the_calculators(
    pbc: bool, tmp_path: Path
) -> None:
    save_potential(ensemble(), tmp_path / "model.safetensors")
    potential = MLPotential("neuralil", model=tmp_path / "model.safetensors", dtype="float64")
    structure = atoms()
    structure.pbc = pbc
    context = context_of(structure, potential.createSystem(topology_of(structure)))
    state = context.getState(getForces=True)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom)
    structure.calc = NeuralILCalculator(ensemble(), dtype="float64")
    np.testing.assert_allclose(energy_of(context), structure.get_potential_energy(), rtol=1e-9)
    np.testing.assert_allclose(forces / EV, structure.get_forces(), atol=1e-8, rtol=1e-8)


def test_nve_keeps_the_energy() -> None:
    """To second order in the time step."""
    system = MLPotential("neuralil", model=ensemble(), dtype="float64").createSystem(
        topology_of(atoms())
    )
    ranges = []
    for dt, every in ((0.2, 5), (0.1, 10)):
        context = context_of(atoms(), system, dt)
        context.setVelocitiesToTemperature(300, 1)
        energies = []
        for _ in range(8):
            context.getIntegrator().step(every)
            energies.append(energy_of(context, total=True))
        ranges.append(np.ptp(energies))
    assert ranges[1] < 0.4 * ranges[0]


def test_a_barostat_changes_the_box_and_the_potential_sees_it() -> None:
    system = MLPotential("neuralil", model=ensemble(), dtype="float64").createSystem(
        topology_of(atoms())
    )
    system.addForce(openmm.MonteCarloBarostat(1e5 * unit.bar, 300, 1))
    context = context_of(atoms(), system)
    context.getIntegrator().step(40)
    state = context.getState(getPositions=True)
    cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
    assert abs(np.linalg.det(cell) / np.linalg.det(CELL) - 1) > 1e-3
    moved = atoms()
    moved.set_cell(cell)
    moved.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    moved.calc = NeuralILCalculator(ensemble(), dtype="float64")
    np.testing.assert_allclose(energy_of(context), moved.get_potential_energy(), rtol=1e-8)


@pytest.mark.slow
def test_the_liquid_under_a_barostat_keeps_its_density() -> None:
    """The shipped potential at 1 bar and 300 K; bonds without strength tell OpenMM what it moves as a whole."""
    liquid = read(START)
    system = MLPotential("neuralil").createSystem(topology_of(liquid))
    system.addForce(openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 10))
    bonds = openmm.HarmonicBondForce()
    bonds.setUsesPeriodicBoundaryConditions(True)
    for i, j in zip(*neighbor_list("ij", liquid, BONDS), strict=True):
        if i < j:
            bonds.addBond(int(i), int(j), 0.1, 0.0)
    system.addForce(bonds)
    friction, dt = 5 / unit.picosecond, 0.5 * unit.femtosecond
    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, friction, dt)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(liquid.positions * unit.angstrom)
    context.setVelocitiesToTemperature(300, 1)
    assert len(context.getMolecules()) == 30
    densities, temperatures = [], []
    for _ in range(200):
        integrator.step(20)
        state = context.getState(getEnergy=True)
        volume = state.getPeriodicBoxVolume().value_in_unit(unit.angstrom**3)
        kinetic = state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole) / EV
        densities.append(liquid.get_masses().sum() / volume / units.mol * 1e24)
        temperatures.append(2 * kinetic / (3 * len(liquid) * units.kB))
    print(
        f"density {np.mean(densities[100:]):.3f} g/cm³, {np.mean(temperatures[100:]):.0f} K, volume changed in "
        f"{np.mean(np.diff(densities) != 0):.0%} of blocks of 20 steps"
    )
    assert 1.1 < np.mean(densities[100:]) < 1.35
    assert 270 < np.mean(temperatures[100:]) < 330
    assert np.mean(np.diff(densities) != 0) > 0.5


def test_some_atoms_of_a_mixed_system() -> None:
    """The potential within them, and what the system had between the others."""
    structure = atoms()
    topology = topology_of(structure)
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    system.setDefaultPeriodicBoxVectors(*(CELL * unit.angstrom))
    chosen = [0, 1, 2, 3, 4]
    mixed = MLPotential("neuralil", model=ensemble(), dtype="float64").createMixedSystem(
        topology, system, chosen
    )
    part = structure[chosen]
    part.calc = NeuralILCalculator(ensemble(), dtype="float64")
    np.testing.assert_allclose(
        energy_of(context_of(structure, mixed)), part.get_potential_energy(), rtol=1e-8
    )


def test_wrong_input_is_said() -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.safetensors"):
        MLPotential("neuralil", model="nowhere.safetensors")
    xenon = Atoms("Xe2", positions=[[0, 0, 0], [0, 0, 4]])
    with pytest.raises(StructureError, match="Xe"):
        MLPotential("neuralil", model=ensemble()).createSystem(topology_of(xenon))
    with pytest.raises(TypeError, match="modle"):
        MLPotential("neuralil", modle="model.safetensors")
    with pytest.raises(TypeError, match="charge"):
        MLPotential("neuralil", model=ensemble()).createSystem(topology_of(atoms()), charge=1)
