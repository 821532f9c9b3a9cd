"""jax-md's energy function against the calculator: energies, forces, stress, members, dynamics, gradients."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from systems import ensemble, random_atoms

from neuralil_ase import NeuralILCalculator
from neuralil_ase.errors import ConfigError, StructureError

# By jax-md 0.2.29 itself in float64, where the tests make errors of warnings.
pytestmark = pytest.mark.filterwarnings(
    "ignore:scatter inputs have incompatible types:FutureWarning"
)

CELL = np.array([[7.4, 0.0, 0.0], [1.1, 7.3, 0.0], [-0.7, 0.9, 7.6]])


@pytest.fixture(autouse=True, scope="module")
def _library() -> None:
    """Imported by the process that runs these tests, not by all that collect them: it takes eight seconds."""
    global jax_md, neuralil_neighbor_list
    jax_md = pytest.importorskip(
        "jax_md", reason="jax-md is not installed: pip install neuralil-ase[jax-md]"
    )
    from neuralil_ase.hosts.jax_md import neuralil_neighbor_list


@lru_cache
def atoms() -> Atoms:
    found = random_atoms(3, "CHHNOHCHOH", CELL, (True, True, True), spacing=1.1)
    found.calc = NeuralILCalculator(ensemble(), dtype="float64", uncertainty="forces")
    return found


def made(dtype: str = "float64", **options: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Shift, neighbour function, energy function, fractional positions, box with vectors as columns."""
    box = jnp.asarray(CELL.T, dtype)
    displacement, shift = jax_md.space.periodic_general(box, fractional_coordinates=True)
    position = jnp.asarray(atoms().get_scaled_positions(), dtype)
    functions = neuralil_neighbor_list(
        displacement, box, atoms().numbers, ensemble(), fractional_coordinates=True, **options
    )
    return shift, *functions, position, box


def test_energy_forces_stress_and_members_are_the_calculators() -> None:
    """In float32; test_all_hosts.py compares in float64."""
    with jax.enable_x64(False):
        _, neighbor_fn, energy_fn, position, box = made("float32")

        @jax.jit
        def found(position: Any, neighbor: Any) -> Any:
            return (
                energy_fn(position, neighbor),
                jax_md.quantity.force(energy_fn)(position, neighbor),
                -jax_md.quantity.stress(energy_fn, position, box, neighbor=neighbor),
                energy_fn.members(position, neighbor),
            )

        energy, forces, stress, members = found(position, neighbor_fn.allocate(position))
    near = {"rtol": 2e-4, "atol": 2e-4}
    expected = atoms().calc.prediction(atoms())
    np.testing.assert_allclose(energy, expected.energy, **near)
    np.testing.assert_allclose(forces, expected.forces, **near)
    full = np.asarray(expected.stress)[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
    np.testing.assert_allclose(stress, full, **near)
    np.testing.assert_allclose(members, expected.member_energies, **near)


def test_one_member_and_no_reference() -> None:
    with jax.enable_x64(True):
        _, neighbor_fn, energy_fn, position, _ = made(member=1, include_reference=False)
        found = jax.jit(energy_fn)(position, neighbor_fn.allocate(position))
        reference = ensemble().energy_reference[
            [ensemble().elements.index(s) for s in atoms().symbols]
        ]
        expected = atoms().calc.prediction(atoms()).member_energies[1] - reference.sum()
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_nve_keeps_the_energy_and_gradients_pass_through_the_trajectory() -> None:
    with jax.enable_x64(True):
        shift, neighbor_fn, energy_fn, position, _ = made()
        neighbor = neighbor_fn.allocate(position)
        mass = jnp.asarray(atoms().get_masses())

        def run(scale: Any, dt: Any) -> tuple[Any, Any]:
            """Potential energy after some steps, and total energies after each of them."""
            init, apply = jax_md.simulate.nve(energy_fn, shift, dt)
            state = init(
                jax.random.PRNGKey(0), position, kT=0.02, mass=mass * scale, neighbor=neighbor
            )

            def body(state: Any, _: Any) -> tuple[Any, Any]:
                state = apply(state, neighbor=neighbor)
                kinetic = jax_md.quantity.kinetic_energy(momentum=state.momentum, mass=state.mass)
                potential = energy_fn(state.position, neighbor)
                return state, (potential, potential + kinetic)

            _, (potential, total) = jax.lax.scan(body, state, None, length=60)
            return potential[-1], total

        differentiated = jax.jit(jax.value_and_grad(run, has_aux=True))
        (_, coarse), slope = differentiated(1.0, 0.02)
        (_, fine), _ = differentiated(1.0, 0.01)
        assert np.ptp(fine) < 0.4 * np.ptp(coarse[:30])  # second order in the time step
        above, below = (differentiated(scale, 0.02)[0][0] for scale in (1 + 1e-4, 1 - 1e-4))
        np.testing.assert_allclose(slope, (above - below) / 2e-4, rtol=1e-4, atol=1e-7)


def test_nvt_keeps_the_energy_of_system_and_thermostat() -> None:
    """To second order in the time step."""
    kT = 0.03
    with jax.enable_x64(True):
        shift, neighbor_fn, energy_fn, position, _ = made()
        neighbor = neighbor_fn.allocate(position)
        mass = jnp.asarray(atoms().get_masses())

        @jax.jit
        def run(dt: Any) -> Any:
            init, apply = jax_md.simulate.nvt_nose_hoover(energy_fn, shift, dt, kT, tau=1.0)
            state = init(jax.random.PRNGKey(0), position, mass=mass, neighbor=neighbor)

            def body(state: Any, _: Any) -> tuple[Any, Any]:
                state = apply(state, neighbor=neighbor)
                return state, jax_md.simulate.nvt_nose_hoover_invariant(
                    energy_fn, state, kT, neighbor=neighbor
                )

            return jax.lax.scan(body, state, None, length=60)[1]

        coarse, fine = run(0.02), run(0.01)
        assert np.isfinite(coarse).all()
        assert np.ptp(fine) < 0.4 * np.ptp(coarse[:30])


@pytest.mark.slow
def test_npt_moves_the_box_towards_its_pressure() -> None:
    """Begun at rest beside the pressure of the structure, by as much as the barostat's first step says.

    The energy that NPT keeps is no test: jax-md 0.2.29 itself does not keep it in fractional coordinates.
    """
    kT, dt, tau, away = 1e-6, 0.01, 1.0, 5e-3
    volume, own = atoms().cell.volume, -atoms().calc.prediction(atoms()).stress[:3].mean()
    with jax.enable_x64(True):
        shift, neighbor_fn, energy_fn, position, box = made()
        neighbor = neighbor_fn.allocate(position)
        mass = jnp.asarray(atoms().get_masses())

        @jax.jit
        def stepped(pressure: Any) -> Any:
            init, apply = jax_md.simulate.npt_nose_hoover(
                energy_fn, shift, dt, pressure, kT, barostat_kwargs={"tau": tau}
            )
            state = init(jax.random.PRNGKey(0), position, box, mass=mass, neighbor=neighbor)
            return apply(state, neighbor=neighbor)

        for side in (-1, 1):
            state = stepped(own + side * away)
            strain = -side * away * 3 * volume / float(state.box_mass) * dt**2 / 2
            np.testing.assert_allclose(state.box_position, strain, rtol=1e-2)


def test_missing_neighbours_are_never_silent() -> None:
    with jax.enable_x64(True):
        _, neighbor_fn, energy_fn, position, box = made(capacity_multiplier=1.0)
        neighbor = neighbor_fn.allocate(position)
        # All atoms in one corner have more neighbours than there is room for.
        crowd = neighbor.update(0.3 * position)
        assert crowd.did_buffer_overflow
        with pytest.raises(StructureError, match="overflowed"):
            energy_fn(0.3 * position, crowd)
        with pytest.raises(StructureError, match="narrower than twice the cutoff"):
            energy_fn(position, neighbor, box=0.5 * box)

        compiled = jax.jit(jax.value_and_grad(lambda r, n, b: energy_fn(r, n, box=b)))
        assert np.isfinite(compiled(position, neighbor, box)[0])
        for found in (
            compiled(0.3 * position, crowd, box),
            compiled(position, neighbor, 0.5 * box),
        ):
            assert np.isnan(found[0])
            assert np.isnan(found[1]).all()


def test_compiled_code_takes_lists_of_another_allocation() -> None:
    """jax-md keeps an array in the list where JAX needs what it can compare; the error does not say so."""
    with jax.enable_x64(True):
        (_, first, energy_fn, position, _), (_, second, *_) = made(), made()
        lists = [first.allocate(position), second.allocate(position)]

        @jax.jit
        def shapes(position: Any) -> Any:
            assert [jax.eval_shape(energy_fn, position, found).shape for found in lists] == [(), ()]
            return position

        shapes(position)


def test_what_cannot_work_is_refused() -> None:
    displacement, _ = jax_md.space.periodic(5.0)
    with pytest.raises(StructureError, match="narrower than twice cutoff and skin"):
        neuralil_neighbor_list(displacement, 5.0, atoms().numbers, ensemble())
    with pytest.raises(StructureError, match="does not know Ar"):
        neuralil_neighbor_list(displacement, 50.0, [18], ensemble())
    with pytest.raises(ConfigError, match="no member 3: the model has 3"):
        neuralil_neighbor_list(displacement, 50.0, [1], ensemble(), member=3)
    neighbor_fn, energy_fn = neuralil_neighbor_list(displacement, 50.0, [1, 1], ensemble())
    position = jnp.array([[0.0, 0, 0], [0.8, 0, 0], [1.6, 0, 0]])
    with pytest.raises(StructureError, match=r"was made for \(2, 3\)"):
        energy_fn(position, neighbor_fn.allocate(position))


def test_a_molecule_needs_no_box() -> None:
    with jax.enable_x64(True):
        molecule = Atoms("OHH", positions=[[0, 0, 0], [0.96, 0, 0], [-0.2, 0.9, 0]])
        molecule.calc = atoms().calc
        displacement, _ = jax_md.space.free()
        neighbor_fn, energy_fn = neuralil_neighbor_list(
            displacement, None, molecule.numbers, ensemble()
        )
        position = jnp.asarray(molecule.positions)
        found = jax.jit(energy_fn)(position, neighbor_fn.allocate(position))
        np.testing.assert_allclose(found, molecule.get_potential_energy(), rtol=1e-10)
