"""Forces, virials and second derivatives against differences and against other routes to them."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from systems import CONFIG, R_CUT, STRUCTURES, calculator, ensemble, structure, with_calculator

from neuralil_ase import NeuralILCalculator
from neuralil_ase.engine.arrays import Derivatives
from neuralil_ase.engine.derivatives import atomic_outputs, energies_and_forces
from neuralil_ase.engine.jax_backend import precision
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.model.elements import element_types
from neuralil_ase.model.graph import Graph, pad_graph
from neuralil_ase.model.potential import cast_params

PERIODIC = [name for name in STRUCTURES if name != "molecule"]
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])


def graph_of(name: str, n_atoms: int = 8, n_pairs: int = 96) -> Graph:
    atoms = structure(name)
    types = element_types(atoms.numbers, CONFIG.descriptor.elements)
    pairs = NeighborList(R_CUT, 0.0).pairs(atoms.positions, atoms.cell.array, atoms.pbc, types)
    return pad_graph(*pairs, types, n_atoms=n_atoms, n_pairs=n_pairs, r_cut=R_CUT, dtype="float64")


@lru_cache
def params() -> dict:
    return cast_params(ensemble().params, "float64")


predicted = jax.jit(energies_and_forces, static_argnums=(0, 1))


def derivatives(name: str, level: str = "energy", **padding: int) -> Derivatives:
    with precision("float64"):
        found = predicted(CONFIG, level, params(), graph_of(name, **padding))
        return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("name", STRUCTURES)
def test_forces_are_the_slopes_of_the_energy(name: str) -> None:
    """Two step lengths, extrapolated: the error falls from h² to h⁴."""
    atoms = with_calculator(name)
    forces = atoms.get_forces()
    h = 1e-3
    coarse, fine = (calculate_numerical_forces(atoms, eps=eps) for eps in (h, h / 2))
    np.testing.assert_allclose(forces, (4 * fine - coarse) / 3, rtol=0, atol=2e-8)
    if name != "one atom":
        assert np.abs(forces).max() > 0.05, "there must be something to compare"


@pytest.mark.parametrize("name", PERIODIC)
def test_stress_is_the_slope_of_the_energy_with_strain(name: str) -> None:
    """Also for slabs and wires whose third vector is given, with the full volume."""
    atoms = with_calculator(name)
    stress = atoms.get_stress()
    h = 1e-3
    coarse, fine = (calculate_numerical_stress(atoms, eps=eps) for eps in (h, h / 2))
    np.testing.assert_allclose(stress, (4 * fine - coarse) / 3, rtol=0, atol=2e-8)
    assert np.abs(stress).max() > 1e-4, "there must be something to compare"
    np.testing.assert_allclose(atoms.get_stresses().sum(axis=0), stress, rtol=0, atol=1e-14)


def test_tension_is_positive() -> None:
    """A stretched cell pulls inwards: the energy rises with the volume, and so the trace is positive."""
    atoms = with_calculator("triclinic")

    def energy(scale: float) -> float:
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell * scale, scale_atoms=True)
        return calculator().prediction(scaled).energy

    rises = energy(1.001) > energy(0.999)
    assert rises == (atoms.get_stress()[:3].sum() > 0)


def mean_energy(graph: Graph, vectors: jax.Array) -> jax.Array:
    return atomic_outputs(CONFIG, params(), graph._replace(vectors=vectors))[..., 0].sum() / 3


@jax.jit
@jax.grad
def strain_slope(strain: jax.Array, graph: Graph) -> jax.Array:
    return mean_energy(graph, graph.vectors @ (jnp.eye(3) + strain))


@jax.jit
@jax.grad
def position_slope(moves: jax.Array, graph: Graph) -> jax.Array:
    return mean_energy(graph, graph.vectors + moves[graph.neighbors] - moves[graph.centers])


@pytest.mark.parametrize("name", ["triclinic", "mixed", "tiny"])
def test_virial_agrees_with_the_derivative_along_a_strain(name: str) -> None:
    """The other route: strain all pair vectors, differentiate with respect to the strain."""
    with precision("float64"):
        expected = np.asarray(strain_slope(np.zeros((3, 3)), graph_of(name)))
    np.testing.assert_allclose(expected, expected.T, rtol=0, atol=1e-12)
    virial = derivatives(name).virials.sum(axis=0)
    np.testing.assert_allclose(virial, expected[VOIGT], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["triclinic", "tiny"])
def test_forces_agree_with_the_derivative_along_positions(name: str) -> None:
    with precision("float64"):
        expected = -np.asarray(position_slope(np.zeros((8, 3)), graph_of(name)))
    np.testing.assert_allclose(derivatives(name).forces, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", STRUCTURES)
def test_levels_agree_on_what_they_share(name: str) -> None:
    off, energy, forces = (derivatives(name, level) for level in ("off", "energy", "forces"))
    np.testing.assert_allclose(off.outputs[0], energy.outputs.mean(axis=0), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(forces.outputs, energy.outputs, rtol=1e-12, atol=1e-14)
    for other in (off, forces):
        np.testing.assert_allclose(other.forces, energy.forces, rtol=0, atol=1e-13)
        np.testing.assert_allclose(other.virials, energy.virials, rtol=0, atol=1e-13)
    assert off.member_forces is None
    assert energy.member_forces is None
    np.testing.assert_allclose(forces.member_forces.mean(axis=0), forces.forces, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        forces.member_virials.mean(axis=0), forces.virials, rtol=0, atol=1e-13
    )


def test_forces_of_members_are_the_slopes_of_their_energies() -> None:
    """By differences along one random direction, each member by itself."""
    calc, atoms = calculator("forces"), structure("triclinic")
    direction = np.random.default_rng(0).normal(size=(6, 3))
    start, h = atoms.positions.copy(), 1e-3

    def slopes(step: float) -> np.ndarray:
        ends = []
        for sign in (1, -1):
            atoms.positions = start + sign * step * direction
            ends.append(calc.prediction(atoms).member_energies)
        return (ends[0] - ends[1]) / (2 * step)

    expected = -(4 * slopes(h / 2) - slopes(h)) / 3
    atoms.positions = start
    found = np.einsum("mic,ic->m", calc.prediction(atoms).member_forces, direction)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert np.ptp(found) > 0.01


@pytest.mark.parametrize(
    "padding", [{"n_atoms": 6, "n_pairs": 70}, {"n_atoms": 24, "n_pairs": 500}]
)
def test_padding_changes_nothing(padding: dict[str, int]) -> None:
    """Not even where the last real atom is the one that padding pairs belong to."""
    n = 6
    expected, found = derivatives("triclinic"), derivatives("triclinic", **padding)
    np.testing.assert_allclose(found.outputs[:, :n], expected.outputs[:, :n], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.forces[:n], expected.forces[:n], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.virials[:n], expected.virials[:n], rtol=0, atol=1e-13)
    assert (found.forces[n:] == 0).all()
    assert (found.virials[n:] == 0).all()


@lru_cache
def hessian() -> np.ndarray:
    return calculator().hessian(structure("triclinic"))


@pytest.mark.parametrize(("atom", "axis"), [(0, 0), (5, 1), (1, 2)])
def test_hessian_is_the_slope_of_the_forces(atom: int, axis: int) -> None:
    assert hessian().shape == (6, 3, 6, 3)
    moved, h = structure("triclinic"), 1e-3
    start = moved.positions[atom, axis]

    def slope(step: float) -> np.ndarray:
        ends = []
        for sign in (1, -1):
            moved.positions[atom, axis] = start + sign * step
            ends.append(calculator().prediction(moved).forces)
        return (ends[0] - ends[1]) / (2 * step)

    expected = -(4 * slope(h / 2) - slope(h)) / 3
    np.testing.assert_allclose(hessian()[:, :, atom, axis], expected, rtol=0, atol=1e-6)


def test_hessian_is_symmetric_and_blind_to_translation() -> None:
    matrix = hessian()
    scale = np.abs(matrix).max()
    assert scale > 1
    np.testing.assert_allclose(matrix, matrix.transpose(2, 3, 0, 1), rtol=0, atol=1e-12 * scale)
    assert np.abs(matrix.sum(axis=2)).max() < 1e-12 * scale


def test_energy_is_c2_across_the_cutoff() -> None:
    """An atom leaves the sphere of another: energy, forces and curvature go over without a jump."""
    atoms = structure("molecule")
    positions = np.array([[0.0, 0, 0], [1.0, 0.3, 0], [0, 0, R_CUT]])
    atoms = atoms[[0, 1, 2]]
    calc = calculator()

    def along(z: float) -> tuple[float, np.ndarray]:
        positions[2, 2] = z
        atoms.positions = positions
        prediction = calc.prediction(atoms)
        return prediction.energy, prediction.forces

    h = 1e-5
    (e0, f0), (e1, f1), (e2, f2) = (along(R_CUT + step) for step in (-h, 0.0, h))
    assert abs(e0 - e1) < 1e-12
    assert e2 == pytest.approx(e1, abs=1e-12)
    assert np.abs(f0 - f1).max() < 1e-9
    np.testing.assert_allclose(f1[2], f2[2], rtol=0, atol=1e-10)
    left, right = (f1 - f0) / h, (f2 - f1) / h
    assert np.abs(left - right).max() < 1e-3
    inside = along(R_CUT - 0.3)
    assert abs(inside[0] - e1) > 1e-6, "the pair must matter inside"


def test_gradient_beyond_every_neighbour_is_exactly_zero() -> None:
    atoms = structure("molecule")[[0, 1]]
    atoms.positions = [[0, 0, 0], [0, 0, R_CUT]]
    apart = NeuralILCalculator(ensemble(), dtype="float64").prediction(atoms)
    np.testing.assert_array_equal(apart.forces, np.zeros((2, 3)))
    single = [calculator().prediction(atoms[[k]]).energy for k in range(2)]
    assert apart.energy == pytest.approx(sum(single), abs=1e-12)


def test_net_force_vanishes() -> None:
    for name in STRUCTURES:
        assert np.abs(calculator().prediction(structure(name)).forces.sum(axis=0)).max() < 1e-13
