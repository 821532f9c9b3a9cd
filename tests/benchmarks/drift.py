"""NVE of the same liquid in every host that is installed: how well is the total energy kept?

    python tests/benchmarks/drift.py [--steps 4000] [--only ASE LAMMPS]

The shipped potential of ethylammonium nitrate, mean over members, 225 atoms, 300 K, 0.5 fs, velocity Verlet; all hosts
begin with the same positions and velocities. Drift is the slope of a line through the total energies after the first
0.1 ps, fluctuation the standard deviation from it. "from ASE" is the largest difference of the change of total energy
from that in ASE within the first 20 fs; later the trajectories part, as those of any two precisions do.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from ase.io.lammpsdata import write_lammps_data
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from neuralil_ase import NeuralILCalculator, Potential, save_potential
from neuralil_ase.files.model_file import as_potential

START = Path(__file__).resolve().parents[2] / "md_examples" / "ean_start.extxyz"
PROGRAMS = Path(sys.executable).parent
STEP = 0.5 * units.fs
EVERY = 4
"""Steps between two energies."""
BLOCK = 5
"""Energies from one call of what jax-md compiles."""


def ase(atoms: Atoms, model: Potential, steps: int) -> np.ndarray:
    atoms = atoms.copy()
    atoms.calc = NeuralILCalculator(model, uncertainty="off")
    dynamics, found = VelocityVerlet(atoms, STEP), []
    dynamics.attach(lambda: found.append(atoms.get_total_energy()), interval=EVERY)
    dynamics.run(steps)
    return np.array(found)


def lammps(atoms: Atoms, model: Potential, steps: int) -> np.ndarray:
    from neuralil_ase.hosts import lammps as host

    with TemporaryDirectory() as name:
        folder = Path(name)
        save_potential(model, folder / "model.safetensors")
        write_lammps_data(
            folder / "start.data", atoms, specorder=list(model.elements), masses=True,
            units="metal", velocities=True,
        )  # fmt: skip
        (folder / "in.lmp").write_text(
            f"units metal\natom_style atomic\nread_data start.data\npair_style neuralil model.safetensors\n"
            f"pair_coeff * * {' '.join(model.elements)}\ntimestep {STEP / units.fs / 1000}\nfix move all nve\n"
            f"thermo {EVERY}\nthermo_style custom step etotal\nthermo_modify format float %.12g\nrun {steps}\n"
        )
        settings = {"LAMMPS_PLUGIN_PATH": str(host.build()), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [PROGRAMS / "mpiexec", "-n", "1", PROGRAMS / "lmp", "-in", "in.lmp"], cwd=folder,
            env=os.environ | settings, capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout[-1000:] + done.stderr)
    rows = re.findall(r"^\s*\d+\s+(-?\d+\.\d+)\s*$", done.stdout, re.MULTILINE)
    return np.array(rows, float)


def ipi(atoms: Atoms, model: Potential, steps: int) -> np.ndarray:
    from ipi.utils.units import unit_to_internal

    from neuralil_ase.hosts import ipi_driver

    velocity = unit_to_internal("length", "angstrom", 1.0) / unit_to_internal(
        "time", "femtosecond", 1 / units.fs
    )
    mass = unit_to_internal("mass", "dalton", 1.0)
    with TemporaryDirectory() as name:
        folder, address = Path(name), f"neuralil-{uuid.uuid4().hex[:12]}"
        save_potential(model, folder / "model.safetensors")
        write(folder / "start.xyz", Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc),
              format="extxyz")  # fmt: skip
        text = INPUT.format(
            address=address, steps=steps, every=EVERY, step=STEP / units.fs, atoms=len(atoms),
            masses=_flat(mass * atoms.get_masses()),
            velocities=_flat(velocity * atoms.get_velocities()),
        )  # fmt: skip
        (folder / "input.xml").write_text(text)
        server = subprocess.Popen(
            [sys.executable, _script("i-pi"), "input.xml"], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        options = "template=start.xyz,model=model.safetensors,committee=False"
        try:
            while not Path(f"/tmp/ipi_{address}").exists():
                if server.poll() is not None:
                    raise RuntimeError(server.communicate()[0])
                time.sleep(0.05)
            subprocess.run(
                [sys.executable, _script("i-pi-py_driver"), "-u", "-a", address, "-m", "custom",
                 "-P", ipi_driver.__file__, "-o", options],
                cwd=folder, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            server.communicate(timeout=60)
        finally:
            server.kill()
        return np.loadtxt(folder / "run.out")[:, 1]


def _flat(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{x:.15e}" for x in values.ravel()) + "]"


def _script(name: str) -> str:
    own = PROGRAMS / name
    return str(own if own.exists() else shutil.which(name))


INPUT = """
<simulation verbosity='low' safe_stride='1000000'>
  <output prefix='run'>
    <properties stride='{every}' filename='out'> [step, conserved{{electronvolt}}] </properties>
  </output>
  <total_steps> {steps} </total_steps>
  <ffsocket mode='unix' name='neuralil' pbc='false'>
    <address> {address} </address>
    <latency> 1e-4 </latency>
    <exit_on_disconnect> True </exit_on_disconnect>
  </ffsocket>
  <system>
    <initialize nbeads='1'>
      <file mode='ase'> start.xyz </file>
      <masses mode='manual'> {masses} </masses>
      <velocities mode='manual'> {velocities} </velocities>
    </initialize>
    <forces><force forcefield='neuralil'/></forces>
    <motion mode='dynamics'>
      <fixcom> False </fixcom>
      <dynamics mode='nve'><timestep units='femtosecond'> {step} </timestep></dynamics>
    </motion>
    <ensemble><temperature units='kelvin'> 300 </temperature></ensemble>
  </system>
</simulation>
"""


def openmm(atoms: Atoms, model: Potential, steps: int) -> np.ndarray:
    import openmm
    from openmm import unit
    from openmm.app import Element, Topology
    from openmmml import MLPotential

    topology = Topology()
    residue = topology.addResidue("all", topology.addChain())
    for symbol in atoms.symbols:
        topology.addAtom(symbol, Element.getBySymbol(symbol), residue)
    topology.setPeriodicBoxVectors(atoms.cell.array * unit.angstrom)
    system = MLPotential("neuralil", model=model).createSystem(topology)
    for k, mass in enumerate(atoms.get_masses()):
        system.setParticleMass(k, mass * unit.dalton)
    femtoseconds = STEP / units.fs * unit.femtosecond
    integrator = openmm.VerletIntegrator(femtoseconds)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, integrator, platform)
    context.setPositions(atoms.positions * unit.angstrom)
    start = atoms.copy()
    start.calc = NeuralILCalculator(model, uncertainty="off")
    # OpenMM's velocities are half a step behind its positions.
    earlier = start.get_velocities() - 0.5 * STEP * start.get_forces() / start.get_masses()[:, None]
    context.setVelocities(earlier * units.fs * unit.angstrom / unit.femtosecond)
    found = [_openmm_energy(context)]
    for _ in range(steps // EVERY):
        integrator.step(EVERY)
        found.append(_openmm_energy(context))
    return np.array(found)


def _openmm_energy(context) -> float:  # type: ignore[no-untyped-def]  # OpenMM has no types
    from openmm import unit

    state = context.getState(getEnergy=True)
    total = state.getPotentialEnergy() + state.getKineticEnergy()
    return float(total.value_in_unit(unit.kilojoule_per_mole)) * units.kJ / units.mol


def jax_md(atoms: Atoms, model: Potential, steps: int, dtype: str = "float32") -> np.ndarray:
    """Blocks of steps compiled as a whole; energies without the reference, which float32 has no digits for."""
    import jax
    import jax.numpy as jnp
    import jax_md

    from neuralil_ase.hosts.jax_md import neuralil_neighbor_list

    with jax.enable_x64(dtype == "float64"):
        box = jnp.asarray(atoms.cell.array.T, dtype)
        displacement, shift = jax_md.space.periodic_general(box, fractional_coordinates=True)
        neighbor_fn, energy_fn = neuralil_neighbor_list(
            displacement, box, atoms.numbers, model, include_reference=False,
            fractional_coordinates=True, capacity_multiplier=1.5,
        )  # fmt: skip
        position = jnp.asarray(atoms.get_scaled_positions(), dtype)
        neighbor = neighbor_fn.allocate(position)
        init, apply = jax_md.simulate.nve(energy_fn, shift, STEP)
        mass = jnp.asarray(atoms.get_masses(), dtype)

        @jax.jit
        def begun(neighbor):  # type: ignore[no-untyped-def]  # jax-md has no types
            state = init(jax.random.PRNGKey(0), position, kT=0.0, mass=mass, neighbor=neighbor)
            return state.set(momentum=jnp.asarray(atoms.get_momenta(), dtype))

        def moved(_, both):  # type: ignore[no-untyped-def]
            state, neighbor = both
            state = apply(state, neighbor=neighbor)
            return state, neighbor.update(state.position)

        @jax.jit
        def block(state, neighbor):  # type: ignore[no-untyped-def]
            def step(both, _):  # type: ignore[no-untyped-def]
                state, neighbor = both
                kinetic = jax_md.quantity.kinetic_energy(momentum=state.momentum, mass=state.mass)
                energy = energy_fn(state.position, neighbor) + kinetic
                return jax.lax.fori_loop(0, EVERY, moved, both), energy

            return jax.lax.scan(step, (state, neighbor), None, length=BLOCK)

        state, found = begun(neighbor), []
        while len(found) * BLOCK * EVERY <= steps:
            (state, neighbor), energies = block(state, neighbor)
            if neighbor.did_buffer_overflow:
                raise RuntimeError("the neighbour list overflowed")
            found.append(np.asarray(energies, float))
        return np.concatenate(found)[: steps // EVERY + 1]


def jax_md_float64(atoms: Atoms, model: Potential, steps: int) -> np.ndarray:
    return jax_md(atoms, model, steps, "float64")


class Host(NamedTuple):
    """How a host runs NVE; the module and the extra that it needs."""

    run: Callable[[Atoms, Potential, int], np.ndarray]
    module: str
    extra: str

    @property
    def is_there(self) -> bool:
        return find_spec(self.module) is not None


HOSTS = {
    "ASE": Host(ase, "ase", ""),
    "LAMMPS": Host(lammps, "lammps", "lammps"),
    "i-PI": Host(ipi, "ipi", "ipi"),
    "OpenMM": Host(openmm, "openmmml", "openmm"),
    "jax-md": Host(jax_md, "jax_md", "jax-md"),
    "jax-md, float64": Host(jax_md_float64, "jax_md", "jax-md"),
}


def begin(atoms: Atoms, kelvin: float = 300) -> Atoms:
    """The atoms with velocities, without the calculator."""
    atoms = atoms.copy()
    thermalize_momenta(atoms, temperature_K=kelvin, rng=np.random.default_rng(0))
    Stationary(atoms)
    return atoms


def row(name: str, energies: np.ndarray, in_ase: np.ndarray, n_atoms: int) -> str:
    """Drift, fluctuation and difference from ASE, for an atom."""
    per_atom = 1e3 * (energies - energies[0]) / n_atoms
    picoseconds = np.arange(len(per_atom)) * EVERY * STEP / units.fs / 1000
    late = picoseconds >= 0.1
    (slope, offset), covariance = np.polyfit(picoseconds[late], per_atom[late], 1, cov=True)
    rest = (per_atom - slope * picoseconds - offset)[late]
    early = picoseconds <= 0.02
    apart = np.abs(per_atom - 1e3 * (in_ase - in_ase[0]) / n_atoms)[early].max()
    error = np.sqrt(covariance[0, 0])
    return f"| {name} | {1e3 * slope:.2f} ± {1e3 * error:.2f} | {1e3 * rest.std():.1f} | {1e3 * apart:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--only", nargs="+", choices=[*HOSTS], default=[*HOSTS])
    options = parser.parse_args()
    atoms, model = begin(read(START)), as_potential(None)
    in_ase = ase(atoms, model, options.steps)
    print("| µeV/atom | drift per ps | fluctuation | from ASE |\n|---|---|---|---|", flush=True)
    for name in options.only:
        if not HOSTS[name].is_there:
            print(f"| {name} | not installed | | |")
            continue
        energies = in_ase if name == "ASE" else HOSTS[name].run(atoms, model, options.steps)
        print(row(name, energies, in_ase, len(atoms)), flush=True)


if __name__ == "__main__":
    main()
