"""NVE of the liquid by three loops: ASE's, Replicas in NumPy, and jax-md compiled as a whole.

    python tests/benchmarks/jax_md_speed.py [--repeat 1] [--rounds 5]

The shipped potential, mean over members, 0.5 fs, 300 K, float32. Milliseconds of CPU and of wall time for a step of
one copy: medians over rounds, in which all of them take turns. jax-md compiles blocks of steps, with an update of its
neighbour list in each step; overflow is checked after each block.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms, units
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from neuralil_ase import NeuralILCalculator, Replicas

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
STEP = 0.5 * units.fs
COPIES = 8


def ase_loop(start: Atoms) -> Callable[[], None]:
    atoms = start.copy()
    atoms.calc = NeuralILCalculator()
    dynamics = VelocityVerlet(atoms, STEP)
    return lambda: dynamics.run(STEPS) and None


def replicas_loop(start: Atoms, copies: int) -> Callable[[], None]:
    walkers, masses = Replicas(start), start.get_masses()[:, None]
    positions = np.stack([start.positions] * copies)
    velocities = np.stack([start.get_velocities()] * copies)
    forces = walkers.predict(positions).forces

    def block() -> None:
        nonlocal forces
        for _ in range(STEPS):
            velocities[:] += 0.5 * STEP * forces / masses
            positions[:] += STEP * velocities
            forces = walkers.predict(positions).forces
            velocities[:] += 0.5 * STEP * forces / masses

    return block


def jax_md_loop(start: Atoms) -> Callable[[], None]:
    import jax_md

    from neuralil_ase.hosts.jax_md import neuralil_neighbor_list

    box = jnp.asarray(start.cell.array.T, jnp.float32)
    displacement, shift = jax_md.space.periodic_general(box, fractional_coordinates=True)
    neighbor_fn, energy_fn = neuralil_neighbor_list(
        displacement, box, start.numbers, include_reference=False, fractional_coordinates=True
    )
    position = jnp.asarray(start.get_scaled_positions(), jnp.float32)
    neighbor = neighbor_fn.allocate(position)
    init, apply = jax_md.simulate.nve(energy_fn, shift, STEP)
    mass = jnp.asarray(start.get_masses(), jnp.float32)
    state = init(jax.random.PRNGKey(0), position, kT=300 * units.kB, mass=mass, neighbor=neighbor)

    @jax.jit
    def block(state, neighbor):  # type: ignore[no-untyped-def]  # jax-md has no types
        def step(_, both):  # type: ignore[no-untyped-def]
            state, neighbor = both
            state = apply(state, neighbor=neighbor)
            return state, neighbor.update(state.position)

        return jax.lax.fori_loop(0, STEPS, step, (state, neighbor))

    def run() -> None:
        nonlocal state, neighbor
        state, neighbor = jax.block_until_ready(block(state, neighbor))
        assert not neighbor.did_buffer_overflow

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=1, help="of the start cell of 225 atoms")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    start = read(ROOT / "md_examples" / "ean_start.extxyz")
    assert isinstance(start, Atoms)
    start = start.repeat(options.repeat)
    thermalize_momenta(start, temperature_K=300, rng=np.random.default_rng(0))
    loops = {
        "ASE": (ase_loop(start), 1),
        "Replicas, one": (replicas_loop(start, 1), 1),
        f"Replicas, {COPIES}": (replicas_loop(start, COPIES), COPIES),
        "jax-md": (jax_md_loop(start), 1),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for block, _ in loops.values():
        block()  # compiles, or loads
    for _ in range(options.rounds):
        for name, (block, copies) in loops.items():
            cpu, wall = time.process_time(), time.perf_counter()
            block()
            each = STEPS * copies / 1e3
            times[name].append(
                ((time.process_time() - cpu) / each, (time.perf_counter() - wall) / each)
            )
    print(f"{len(start)} atoms, {jax.default_backend()}, ms for a step of one copy")
    for name, values in times.items():
        cpu_ms, wall_ms = np.median(values, axis=0)
        print(f"{name:14s} {cpu_ms:8.2f} CPU {wall_ms:8.2f} wall")


if __name__ == "__main__":
    main()
