"""A neighbour list with a skin that stays on the device: positions go there, energies, forces and the virial come back.

Slots of ``slots.py`` hold the neighbours inside cutoff and skin. Pair vectors are differences in float64, rounded only
then, as on the host. The list is built on the device too: atoms are sorted into cells of fixed room, and the 27 cells
around each atom are searched one after another. Room that does not suffice is found out and enlarged; nothing is lost.
Periodic cells of at least three cutoffs (with skin) along every direction, of one shape for the whole run.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import atom_kernels
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from slots import Slots

from neuralil_ase.engine.jax_backend import precision
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.model.graph import PADDING_DISTANCE
from neuralil_ase.model.potential import Potential, cast_params

OFFSETS = np.array(list(product((-1, 0, 1), repeat=3)), np.int32)


class Layout(NamedTuple):
    """What a compiled search is for.

    Attributes
    ----------
    bins
        Cells along the three lattice vectors.
    room
        Atoms of a cell at most.
    sizes
        Slots of every element.
    radius
        Cutoff and skin in Å.
    """

    bins: tuple[int, int, int]
    room: int
    sizes: tuple[int, ...]
    radius: float


class DeviceList(NamedTuple):
    """Neighbours of N atoms (a multiple of atom_kernels.BLOCK) in K slots each.

    Attributes
    ----------
    neighbors
        Shape (K, N), int32; -1 in an empty slot.
    images
        Lattice vectors to add to r_j - r_i, shape (3, K, N), int8.
    reverse
        See ``slots.Slots``.
    positions
        Those it was built for, shape (atoms, 3), float64.
    needed_room, needed_sizes
        What a layout needs to hold everything.
    """

    neighbors: Array
    images: Array
    reverse: Array
    positions: Array
    needed_room: Array
    needed_sizes: Array


@partial(jax.jit, static_argnums=0)
def build(layout: Layout, positions: Array, cell: Array, types: Array) -> DeviceList:
    """The list of positions, (atoms, 3), in a cell, (3, 3), both float64."""
    bins = jnp.asarray(layout.bins, jnp.int32)
    fractional = positions @ jnp.linalg.inv(cell)
    wraps = jnp.floor(fractional)
    inside = positions - wraps @ cell
    places = jnp.clip(((fractional - wraps) * bins).astype(jnp.int32), 0, bins - 1)
    table, needed_room = _table(layout, places)
    keys, needed_sizes = _search(layout, inside, cell, types, places, table)
    neighbors = jnp.where(keys >= 0, keys // 27, -1)
    own = wraps.astype(jnp.int32).T
    own = jnp.pad(own, ((0, 0), (0, len(types) - len(positions))))
    images = jnp.asarray(OFFSETS.T)[:, keys % 27] + own[:, None] - own[:, neighbors]
    reverse = _reversed(keys, neighbors)
    return DeviceList(
        neighbors, images.astype(jnp.int8), reverse, positions, needed_room, needed_sizes
    )


def _table(layout: Layout, places: Array) -> tuple[Array, Array]:
    """Atoms of every cell, shape (cells, room), -1 where there are none."""
    _, y, z = layout.bins
    numbers = (places[:, 0] * y + places[:, 1]) * z + places[:, 2]
    order = jnp.argsort(numbers).astype(jnp.int32)
    numbers = numbers[order]
    rank = jnp.arange(len(numbers)) - jnp.searchsorted(numbers, numbers)
    empty = jnp.full((int(np.prod(layout.bins)), layout.room), -1, jnp.int32)
    return empty.at[numbers, rank].set(order, mode="drop"), rank.max() + 1


def _search(
    layout: Layout, inside: Array, cell: Array, types: Array, places: Array, table: Array
) -> tuple[Array, Array]:
    """For every slot 27 times the neighbour plus the number of its image among OFFSETS, shape (K, N)."""
    atoms, n_slots = jnp.arange(len(inside), dtype=jnp.int32), sum(layout.sizes)
    elements = jnp.arange(len(layout.sizes), dtype=jnp.int32)
    first = jnp.asarray(np.cumsum([0, *layout.sizes[:-1]]), jnp.int32)
    bins = jnp.asarray(layout.bins, jnp.int32)

    def add(found: tuple[Array, Array], offset: Array) -> tuple[tuple[Array, Array], None]:
        keys, counts = found
        images, there = jnp.divmod(places + offset, bins)
        others = table[(there[:, 0] * bins[1] + there[:, 1]) * bins[2] + there[:, 2]]
        vectors = inside[others] + (images @ cell)[:, None] - inside[:, None]
        here = (others == atoms[:, None]) & (images == 0).all(axis=1)[:, None]
        near = (others >= 0) & ~here & ((vectors**2).sum(axis=-1) < layout.radius**2)
        is_of = near[..., None] & (types[others][..., None] == elements)
        rank = counts[:, None] + jnp.cumsum(is_of, axis=1, dtype=jnp.int32) - 1
        fits = is_of & (rank < jnp.asarray(layout.sizes))
        slot = jnp.where(fits, first + rank, n_slots).min(axis=-1)
        code = ((images + 1) * jnp.array([9, 3, 1])).sum(axis=1)
        values = (others * 27 + code[:, None]).astype(jnp.int32)
        keys = keys.at[slot, atoms[:, None]].set(values, mode="drop")
        return (keys, counts + is_of.sum(axis=1, dtype=jnp.int32)), None

    keys = jnp.full((n_slots, len(types)), -1, jnp.int32)
    counts = jnp.zeros((len(inside), len(layout.sizes)), jnp.int32)
    (keys, counts), _ = jax.lax.scan(add, (keys, counts), jnp.asarray(OFFSETS))
    return keys, counts.max(axis=0)


def _reversed(keys: Array, neighbors: Array) -> Array:
    """The slot of the same pair from the other side; an empty slot's own."""
    n_slots, n = keys.shape
    wanted = jnp.arange(n, dtype=jnp.int32) * 27 + 26 - keys % 27
    own = jnp.arange(n_slots * n, dtype=jnp.int32).reshape(n_slots, n)

    def look(k: Any, found: Array) -> Array:
        is_it = (keys >= 0) & (keys[k][neighbors] == wanted)
        return jnp.where(is_it, k * n + neighbors, found).astype(jnp.int32)

    return jax.lax.fori_loop(0, n_slots, look, own)


@partial(jax.jit, static_argnums=0)
def pair_vectors(
    r_cut: float, listed: DeviceList, positions: Array, cell: Array
) -> tuple[Array, Array]:
    """r_j - r_i of all slots, shape (3, K, N), float32, and the longest way that an atom went since, in Å."""
    moved = jnp.sqrt(((positions - listed.positions) ** 2).sum(axis=1).max())
    n = listed.neighbors.shape[1]
    places = jnp.pad(positions, ((0, n - len(positions)), (0, 0))).T
    images = jnp.einsum("akn,ab->bkn", listed.images.astype(cell.dtype), cell)
    vectors = places[:, listed.neighbors] - places[:, None] + images
    empty = jnp.asarray([PADDING_DISTANCE * r_cut, 0, 0])[:, None, None]
    vectors = jnp.where(listed.neighbors >= 0, vectors, empty)
    return vectors.astype(jnp.float32), moved


@jax.jit
def sums(outputs: Array) -> Array:
    """Energies of all members in eV without reference, shape (M,), summed in float64."""
    return outputs[..., 0].astype(float).sum(axis=1)


class OnDevice:
    """Energies of all members, forces and virial of the mean, for one structure that moves.

    Attributes
    ----------
    builds
        How often the list was built.
    """

    def __init__(
        self, potential: Potential, types: np.ndarray, cell: np.ndarray, skin: float,
        parts: atom_kernels.Parts = atom_kernels.PALLAS,
    ) -> None:  # fmt: skip
        self._potential, self._skin, self._parts, self.builds = potential, skin, parts, 0
        self._n, radius = len(types), potential.r_cut + skin
        heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
        bins = np.floor(heights / radius).astype(int)
        if bins.min() < 3:
            raise ValueError(f"the cell has no room for three cells of {radius} Å each: {heights}")
        room = int(1.5 * len(types) / bins.prod()) + 6
        self._layout = Layout(tuple(bins.tolist()), room, (1,) * len(potential.elements), radius)
        with precision("float64"):
            self._cell = jnp.asarray(cell, float)
        more = -self._n % atom_kernels.BLOCK
        self._types = jnp.asarray(np.pad(types, (0, more)), jnp.int32)
        self._params = jax.device_put(cast_params(potential.params, "float32"))
        self._list: DeviceList | None = None
        self._function: Callable[..., Any] | None = None

    def make_room(self, positions: np.ndarray, pbc: np.ndarray) -> None:
        """Slots as many as the structure needs now and some more, counted by the list on the host."""
        n_types = len(self._potential.elements)
        types = np.asarray(self._types)[: self._n]
        pairs = NeighborList(self._layout.radius, 0).pairs(
            positions, np.asarray(self._cell), pbc, types
        )
        counts = np.bincount(
            pairs.centers * n_types + types[pairs.neighbors], minlength=n_types * self._n
        )
        # With room to spare: more slots mean another compilation in the middle of a run.
        sizes = counts.reshape(-1, n_types).max(axis=0) * 5 // 4 + 3
        self._layout = self._layout._replace(sizes=tuple(sizes.tolist()))

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Member energies in eV without reference, (M,), forces, (N, 3), and virial, (6,), on the host."""
        if self._list is None:
            self.build(positions)
        *found, moved = jax.device_get(self.compute(positions))
        if not 2 * moved < self._skin:
            self.build(positions)
            *found, moved = jax.device_get(self.compute(positions))
        energies, forces, virial = found
        return energies, forces[: self._n], virial

    def build(self, positions: np.ndarray) -> None:
        """A new list; compiled anew where it needs more room."""
        with precision("float64"):
            while True:
                listed = build(self._layout, jnp.asarray(positions), self._cell, self._types)
                room, sizes = jax.device_get((listed.needed_room, listed.needed_sizes))
                if room <= self._layout.room and (sizes <= self._layout.sizes).all():
                    break
                larger = np.maximum(sizes + 2, self._layout.sizes)
                self._layout = self._layout._replace(
                    room=max(int(room) + 2, self._layout.room), sizes=tuple(larger.tolist())
                )
                self._function = None
        self._list, self.builds = listed, self.builds + 1

    def compute(self, positions: np.ndarray) -> tuple[Array, Array, Array, Array]:
        """The same with the longest way since the list was built, all left on the device."""
        assert self._list is not None
        with precision("float64"):
            vectors, moved = pair_vectors(
                self._potential.r_cut, self._list, jnp.asarray(positions), self._cell
            )
        if self._function is None:
            self._function = jax.jit(
                partial(
                    atom_kernels.energies_and_forces,
                    self._potential.config,
                    self._layout.sizes,
                    self._parts,
                )
            )
        with precision("float32"):
            slots = Slots(vectors, self._list.reverse, self._types)
            outputs, forces, virial = self._function(self._params, slots)
        with precision("float64"):
            # Atoms that fill the last block up have an energy too.
            return sums(outputs[:, : self._n]), forces, virial, moved
