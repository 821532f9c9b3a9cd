"""A Lennard-Jones toy through the whole stack, against ASE's own: pair list, images, forces, virial."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from jax import Array
from systems import TINY, TRICLINIC, random_atoms

from neuralil_ase import NeuralILCalculator, Potential
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.parameters import parameters
from neuralil_ase.model.potential import Params, unflatten

EPSILON, SIGMA, R_CUT = 0.8, 1.1, 3.1
CONFIG = ModelConfig(
    DescriptorConfig(("Ar",), n_max=0, r_cut=R_CUT),
    NetworkConfig("core", (2,), embed_d=0),
    pair_term="zbl",  # its place is taken by the toy below
    zbl_radii=(0.1,),
)


def lennard_jones(config: ModelConfig, params: Params, graph: Graph) -> Array:
    """4ε((σ/r)¹² - (σ/r)⁶), shifted to zero at the cutoff; half of each pair to either atom: (1, N)."""
    r_squared = jnp.sum(jnp.asarray(graph.vectors) ** 2, axis=-1)
    c6 = (SIGMA**2 / r_squared) ** 3
    shift = (SIGMA / R_CUT) ** 12 - (SIGMA / R_CUT) ** 6
    pair = jnp.where(r_squared < R_CUT**2, 4 * EPSILON * (c6**2 - c6 - shift), 0)
    return jnp.zeros(len(graph.types)).at[graph.centers].add(pair / 2)[None]


@pytest.fixture(scope="module")
def toy() -> Iterator[NeuralILCalculator]:
    """A network of zeros, so that nothing but the pair term is left."""
    zeros = unflatten({name: np.zeros(p.shape) for name, p in parameters(CONFIG).items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuralil_ase.engine.derivatives.pair_energies", lennard_jones)
        yield NeuralILCalculator(Potential(CONFIG, zeros, np.zeros(1)), dtype="float64")


def argon(n: int, cell: np.ndarray, pbc: tuple[bool, bool, bool]) -> Atoms:
    return random_atoms(4, f"Ar{n}", cell, pbc, spacing=1.05)


SYSTEMS = {
    "triclinic": argon(8, TRICLINIC, (True, True, True)),
    "mixed": argon(8, TRICLINIC, (False, True, True)),
    "wire": argon(8, TRICLINIC, (True, False, False)),
    "cluster": argon(8, TRICLINIC, (False, False, False)),
    "tiny": argon(2, TINY, (True, True, True)),
    "primitive fcc": bulk("Ar", "fcc", a=1.8),
    "unwrapped": argon(8, TRICLINIC, (True, True, True)),
}
SYSTEMS["unwrapped"].positions[:4] += TRICLINIC.sum(axis=0) * 3


@pytest.mark.parametrize("name", SYSTEMS)
def test_energy_forces_and_stress_are_those_of_ase(toy: NeuralILCalculator, name: str) -> None:
    atoms, twin = SYSTEMS[name].copy(), SYSTEMS[name].copy()
    atoms.calc = toy
    twin.calc = LennardJones(epsilon=EPSILON, sigma=SIGMA, rc=R_CUT, smooth=False)
    scale = max(1, np.abs(twin.get_forces()).max())
    for found, expected in (
        (atoms.get_potential_energy(), twin.get_potential_energy()),
        (atoms.get_potential_energies(), twin.get_potential_energies()),
        (atoms.get_forces(), twin.get_forces()),
        (atoms.get_stress(), twin.get_stress()),
        (atoms.get_stresses(), twin.get_stresses()),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * scale)
    assert abs(atoms.get_potential_energy()) > 0.1


def test_a_toy_that_is_wrong_is_noticed(toy: NeuralILCalculator) -> None:
    """The comparison has teeth: another cutoff of the reference already shows."""
    atoms, twin = SYSTEMS["triclinic"].copy(), SYSTEMS["triclinic"].copy()
    atoms.calc = toy
    twin.calc = LennardJones(epsilon=EPSILON, sigma=SIGMA, rc=R_CUT - 0.1, smooth=False)
    assert abs(atoms.get_potential_energy() - twin.get_potential_energy()) > 1e-3
