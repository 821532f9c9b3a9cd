"""NVT in jax-md: blocks of steps compiled as a whole, with the spread of the energy over the members after each block.

    python md_examples/jax_md_nvt.py [STEPS]

Needs ``pip install neuralil-ase[jax-md]``. A Nosé-Hoover thermostat at 300 K, 0.5 fs a step. The neighbour list is
updated inside the compiled block; where it has no room for all neighbours, the block is repeated with a larger one.
On a CPU, ASE's loop is faster; use jax-md for gradients through trajectories, or inside other compiled code.
Writes jax_md_nvt.png.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax_md
import numpy as np
from ase import units
from ase.io import read
from matplotlib.figure import Figure

from neuralil_ase.hosts.jax_md import neuralil_neighbor_list

STEPS = int(sys.argv[1]) if sys.argv[1:] else 2000
BLOCK, STEP, KT = 20, 0.5 * units.fs, 300 * units.kB

atoms = read(Path(__file__).parent / "ean_start.extxyz")
box = jnp.asarray(atoms.cell.array.T, jnp.float32)  # vectors as columns
displacement, shift = jax_md.space.periodic_general(box, fractional_coordinates=True)
neighbor_fn, energy_fn = neuralil_neighbor_list(
    displacement, box, atoms.numbers, include_reference=False, fractional_coordinates=True
)
init, apply = jax_md.simulate.nvt_nose_hoover(energy_fn, shift, STEP, KT, tau=50 * units.fs)

position = jnp.asarray(atoms.get_scaled_positions(), jnp.float32)
neighbor = neighbor_fn.allocate(position)
mass = jnp.asarray(atoms.get_masses(), jnp.float32)
state = init(jax.random.PRNGKey(0), position, mass=mass, neighbor=neighbor)


@jax.jit
def block(state, neighbor):
    """Some steps, then temperature in K, conserved energy and the energies of all members in eV."""

    def step(_, both):
        state, neighbor = both
        state = apply(state, neighbor=neighbor)
        return state, neighbor.update(state.position)

    state, neighbor = jax.lax.fori_loop(0, BLOCK, step, (state, neighbor))
    conserved = jax_md.simulate.nvt_nose_hoover_invariant(energy_fn, state, KT, neighbor=neighbor)
    temperature = jax_md.simulate.temperature(state) / units.kB
    members = energy_fn.members(state.position, neighbor)
    return state, neighbor, (temperature, conserved, members)


records = []
while len(records) * BLOCK < STEPS:
    after, neighbor, found = block(state, neighbor)
    if neighbor.did_buffer_overflow:
        neighbor = neighbor_fn.allocate(state.position)
        continue
    state = after
    records.append(found)

temperatures, conserved, members = map(np.array, zip(*records, strict=True))
spread = 1e3 * members.std(axis=1, ddof=1) / len(atoms)
print(f"temperature {temperatures[len(temperatures) // 2 :].mean():.0f} K")
print(
    f"conserved energy: {1e3 * np.ptp(conserved) / len(atoms):.3f} meV/atom from lowest to highest"
)
print(f"spread of the energy: {spread.mean():.3f} meV/atom")

time = np.arange(1, len(records) + 1) * BLOCK * STEP / units.fs
figure = Figure(figsize=(5, 4), layout="constrained")
upper, lower = figure.subplots(2, sharex=True)
upper.plot(time, temperatures)
upper.set(ylabel="temperature (K)")
lower.plot(time, spread)
lower.set(xlabel="time (fs)", ylabel="spread (meV/atom)", ylim=(0, None))
figure.savefig("jax_md_nvt.png", dpi=100)
