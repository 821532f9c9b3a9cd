"""One structure, every door: energies, forces, virials, members and spreads are the same."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from ase.io import write
from systems import ensemble, random_atoms

from neuralil_ase import NeuralILCalculator, Replicas, predict_many, save_potential

CELL = np.array([[7.4, 0.0, 0.0], [1.1, 7.3, 0.0], [-0.7, 0.9, 7.6]])
ATOMS = random_atoms(3, "CHHNOHCHOH", CELL, (True, True, True), spacing=1.1)
SIX = [0, 4, 8, 5, 2, 1]
"""xx yy zz yz xz xy in a flat 3 × 3 matrix."""


class Found(NamedTuple):
    """In eV and Å; virial dE/dε; None where a host does not say it."""

    energy: float
    forces: np.ndarray
    virial: np.ndarray | None
    member_energies: np.ndarray | None
    forces_std: np.ndarray | None


def calculator(folder: Path) -> Found:
    calc = NeuralILCalculator(ensemble(), dtype="float64", uncertainty="forces")
    found = calc.prediction(ATOMS)
    return Found(
        found.energy, found.forces, ATOMS.get_volume() * found.stress, found.member_energies, found.forces_std
    )  # fmt: skip


def many(folder: Path) -> Found:
    with ThreadPoolExecutor(1) as executor:
        found, _ = predict_many(
            ensemble(), [ATOMS, ATOMS], dtype="float64", uncertainty="forces", executor=executor
        )
    return Found(
        found.energy, found.forces, found.virials.sum(axis=0), found.member_energies, found.forces_std
    )  # fmt: skip


def replicas(folder: Path) -> Found:
    walkers = Replicas(ATOMS, ensemble(), dtype="float64", uncertainty="forces")
    found = walkers.predict(np.stack([ATOMS.positions] * 2))
    assert found.forces_std is not None
    return Found(found.energy[1], found.forces[1], found.virial[1], None, found.forces_std[1])


def ipi(folder: Path) -> Found:
    pytest.importorskip("ipi", reason="i-PI is not installed: pip install neuralil-ase[ipi]")
    from ipi.utils.units import unit_to_internal

    from neuralil_ase.hosts.ipi_driver import NeuralILDriver

    write(folder / "start.xyz", ATOMS, format="extxyz")
    save_potential(ensemble(), folder / "model.safetensors")
    driver = NeuralILDriver(str(folder / "start.xyz"), str(folder / "model.safetensors"), "float64")
    ev, angstrom = (
        unit_to_internal("energy", "electronvolt", 1.0),
        unit_to_internal("length", "angstrom", 1.0),
    )
    energy, forces, virial, extras = driver(angstrom * CELL.T, angstrom * ATOMS.positions)
    committee = json.loads(extras)
    members = np.array(committee["committee_force"]).reshape(3, -1, 3) * angstrom / ev
    return Found(
        energy / ev,
        forces * angstrom / ev,
        -virial.ravel()[SIX] / ev,
        np.array(committee["committee_pot"]) / ev,
        np.linalg.norm(members.std(axis=0, ddof=1), axis=-1),
    )


def jax_md(folder: Path) -> Found:
    pytest.importorskip(
        "jax_md", reason="jax-md is not installed: pip install neuralil-ase[jax-md]"
    )
    import jax
    import jax_md

    from neuralil_ase.hosts.jax_md import neuralil_neighbor_list

    with jax.enable_x64(True):
        displacement, _ = jax_md.space.periodic_general(CELL.T, fractional_coordinates=False)
        neighbor_fn, energy_fn = neuralil_neighbor_list(
            displacement, CELL.T, ATOMS.numbers, ensemble()
        )
        position = jax.numpy.asarray(ATOMS.positions)
        neighbor = neighbor_fn.allocate(position)

        def energies(position: jax.Array, strain: jax.Array) -> tuple[jax.Array, jax.Array]:
            perturbation = jax.numpy.eye(3) + strain
            found = energy_fn.members(position, neighbor, perturbation=perturbation)
            return found, found

        slopes = jax.jit(jax.jacrev(energies, argnums=(0, 1), has_aux=True))
        (by_position, by_strain), members = slopes(position, jax.numpy.zeros((3, 3)))
    by_member = -np.asarray(by_position)
    return Found(
        float(np.asarray(members).mean()),
        by_member.mean(axis=0),
        np.asarray(by_strain).mean(axis=0).ravel()[SIX],
        np.asarray(members),
        np.linalg.norm(by_member.std(axis=0, ddof=1), axis=-1),
    )


def openmm(folder: Path) -> Found:
    pytest.importorskip(
        "openmmml", reason="OpenMM-ML is not installed: pip install neuralil-ase[openmm]"
    )
    from openmm import unit
    from openmmml import MLPotential
    from test_openmm import EV, context_of, energy_of, topology_of

    potential = MLPotential("neuralil", model=ensemble(), dtype="float64")
    context = context_of(ATOMS, potential.createSystem(topology_of(ATOMS)))
    forces = context.getState(getForces=True).getForces(asNumpy=True)
    in_kj = forces.value_in_unit(unit.kilojoule_per_mole / unit.angstrom)
    return Found(energy_of(context), in_kj / EV, None, None, None)


@pytest.mark.parametrize("host", [many, replicas, ipi, jax_md, openmm])
@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")
def test_every_host_says_the_same(host: Callable[[Path], Found], tmp_path: Path) -> None:
    for name, value, expected in zip(
        Found._fields, host(tmp_path), calculator(tmp_path), strict=True
    ):
        if value is not None:
            np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9, err_msg=name)
