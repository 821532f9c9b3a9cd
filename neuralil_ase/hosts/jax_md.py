"""Potentials as energy functions of jax-md: differentiable MD, trajectories compiled as a whole.

    displacement, shift = jax_md.space.periodic_general(box, fractional_coordinates=True)
    neighbor_fn, energy_fn = neuralil_neighbor_list(displacement, box, atoms.numbers, fractional_coordinates=True)
    neighbors = neighbor_fn.allocate(R)
    init, step = jax_md.simulate.nve(energy_fn, shift, dt)

Energies are in eV, lengths in Å. Boxes are as in jax-md: a length, three lengths, or lattice vectors as columns.
Forces, stress (``jax_md.quantity.stress``, whose sign is opposite to ASE's) and gradients through trajectories follow
from ``energy_fn``. The positions decide the precision: float64 needs ``jax_enable_x64``.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax_md import partition, space

from neuralil_ase.engine.derivatives import atomic_outputs
from neuralil_ase.engine.jax_backend import full_products
from neuralil_ase.errors import ConfigError, StructureError
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.model.elements import element_types
from neuralil_ase.model.graph import PADDING_DISTANCE, Graph
from neuralil_ase.model.potential import Params, Potential, cast_params

_OVERFLOW = (
    "the neighbour list of jax-md overflowed, so that neighbours are missing: allocate it again with "
    "neighbor_fn.allocate(position) and repeat the steps since the last check"
)


def neuralil_neighbor_list(
    displacement_fn: Callable[..., Array],
    box: Any,
    numbers: np.ndarray | Sequence[int],
    model: str | Path | Potential | None = None,
    *,
    member: int | None = None,
    include_reference: bool = True,
    dr_threshold: float = 0.5,
    fractional_coordinates: bool = False,
    **neighbor_kwargs: Any,
) -> "tuple[partition.NeighborListFns, EnergyFunction]":
    """Neighbour list and energy of a potential, in jax-md's convention.

    Parameters
    ----------
    displacement_fn
        From ``jax_md.space``.
    box
        jax-md's box; None for a system without one (``space.free``).
    numbers
        Atomic numbers, shape (N,).
    model
        Path of a model file, a loaded potential, or None for the potential that ships with the package.
    member
        Only this member of the ensemble; by default the mean.
    include_reference
        Whether the energies of free atoms are part of the energy, as in ASE. Without them, float32 keeps more digits of
        energy differences.
    dr_threshold
        Skin in Å: the list is built again when an atom has moved half of it.
    fractional_coordinates
        Whether positions are fractions of the box.
    **neighbor_kwargs
        Other arguments of ``jax_md.partition.neighbor_list``, such as ``capacity_multiplier``.

    Returns
    -------
    neighbor_fn
        Allocates and updates neighbour lists.
    energy_fn : EnergyFunction
        ``energy_fn(position, neighbor, box=…, perturbation=…)``.

    Raises
    ------
    StructureError
        If the potential does not know an element, or if the box is narrower than twice the sum of
        cutoff and skin, so that one image of each atom is not enough.
    ConfigError
        If there is no such member.
    """
    potential = as_potential(model)
    if member is not None:
        if not 0 <= member < potential.n_members:
            raise ConfigError(
                f"there is no member {member}: the model has {potential.n_members}, counted from 0"
            )
        potential = potential.member(member)
    types = element_types(np.asarray(numbers), potential.elements)
    if box is not None and _heights(np.asarray(box), np).min() < 2 * (
        potential.r_cut + dr_threshold
    ):
        raise StructureError(
            f"jax-md sees one image of each atom, and the box is narrower than twice cutoff and skin, "
            f"{2 * (potential.r_cut + dr_threshold):.2f} Å: repeat the cell, or use the ASE calculator"
        )
    if box is None:
        neighbor_kwargs["disable_cell_list"] = True
    neighbor_fn = partition.neighbor_list(
        displacement_fn,
        1.0 if box is None else box,
        potential.r_cut,
        dr_threshold,
        fractional_coordinates=fractional_coordinates,
        format=partition.NeighborListFormat.Dense,
        **neighbor_kwargs,
    )
    energy_fn = EnergyFunction(
        potential, displacement_fn, types, include_reference=include_reference
    )
    return _comparable(neighbor_fn), energy_fn


def _comparable(neighbor_fn: "partition.NeighborListFns") -> "partition.NeighborListFns":
    """The same functions, with lists that JAX can compare.

    With fractional coordinates, jax-md 0.2.29 keeps the size of its cells as an array in a static field. JAX then
    stops with an error when compiled code meets a second list of the same shape.
    """

    def allocate(position: Array, extra_capacity: int = 0, **options: Any) -> Any:
        found = neighbor_fn.allocate(position, extra_capacity, **options)
        size = found.cell_size
        return found.set(cell_size=None if size is None else float(size))

    return partition.NeighborListFns(allocate, neighbor_fn.update)


class EnergyFunction:
    """Energy in eV of positions and neighbours; made by :func:`neuralil_neighbor_list`.

    A result with missing neighbours is never returned. If the neighbour list overflowed, or the box became narrower
    than twice the cutoff, StructureError is raised where the values are known. Compiled code cannot raise errors;
    there, energy and forces become NaN.
    """

    def __init__(
        self,
        potential: Potential,
        displacement_fn: Callable[..., Array],
        types: np.ndarray,
        *,
        include_reference: bool,
    ) -> None:
        self.potential = potential
        self._displacement_fn = displacement_fn
        # One extra atom, of the last element: the neighbour in empty places of the list, sorted after all others.
        self._types = np.append(types, len(potential.elements) - 1).astype(np.int32)
        reference = potential.energy_reference[types].sum() if include_reference else 0.0
        self._reference = float(reference)
        self._params = lru_cache(maxsize=2)(self._cast)

    def __call__(self, position: Array, neighbor: Any, **kwargs: Any) -> Array:
        """Energy of the mean over members.

        Parameters
        ----------
        position
            In Å, or fractions of the box, shape (N, 3).
        neighbor
            From ``neighbor_fn``.
        **kwargs
            ``box`` and ``perturbation`` go to the displacement function; others are ignored, as jax-md does.
        """
        return self.members(position, neighbor, **kwargs).mean()

    def members(self, position: Array, neighbor: Any, **kwargs: Any) -> Array:
        """Energies of all M members, shape (M,); their standard deviation is the spread."""
        used = {
            name: kwargs[name] for name in ("box", "perturbation") if kwargs.get(name) is not None
        }
        trust = self._trust(neighbor, used)
        graph = self._graph(jnp.asarray(position), neighbor, used)
        params = self._params(graph.vectors.dtype.name)
        with full_products():
            outputs = atomic_outputs(self.potential.config, params, graph)
        energies = outputs[:, :-1, 0].sum(axis=1) + self._reference
        return energies * trust.astype(energies.dtype)

    def _cast(self, dtype: str) -> Params:
        return cast_params(self.potential.params, dtype)

    def _graph(self, position: Array, neighbor: Any, used: dict[str, Any]) -> Graph:
        """Pairs by centre, then by the neighbour's element, as the model needs. Empty places lie beyond the cutoff."""
        n_atoms = len(self._types) - 1
        if position.shape != (n_atoms, 3):
            raise StructureError(
                f"positions have the shape {position.shape}; this energy function was made for ({n_atoms}, 3)"
            )
        types = jnp.asarray(self._types)
        order = jnp.argsort(types[neighbor.idx], axis=1, stable=True)
        neighbors = jnp.take_along_axis(neighbor.idx, order, axis=1)

        def displacement(first: Array, second: Array) -> Array:
            return self._displacement_fn(first, second, **used)

        # jax-md's displacement of (a, b) is a - b.
        vectors = -space.map_neighbor(displacement)(position, position[neighbors])
        beyond = jnp.array((PADDING_DISTANCE * self.potential.r_cut, 0, 0), vectors.dtype)
        vectors = jnp.where((neighbors < n_atoms)[..., None], vectors, beyond)
        centers = jnp.broadcast_to(jnp.arange(n_atoms)[:, None], neighbors.shape)
        return Graph(vectors.reshape(-1, 3), centers.ravel(), neighbors.ravel(), types)

    def _trust(self, neighbor: Any, used: dict[str, Any]) -> Array:
        """1, or NaN if neighbours are missing and the code is compiled, so that no error can be raised."""
        overflowed = neighbor.did_buffer_overflow
        _refuse(overflowed, _OVERFLOW)
        good = jnp.asarray(overflowed) == 0
        if used.get("box") is not None:
            narrow = (_heights(used["box"], jnp) < 2 * self.potential.r_cut).any()
            _refuse(
                narrow,
                "the box is narrower than twice the cutoff, and jax-md sees only one image of each atom: start from "
                "a larger cell",
            )
            good &= ~narrow
        return jnp.where(good, 1, jnp.nan)


def _refuse(is_wrong: Any, message: str) -> None:
    """Raise the error if the value is known. For traced values, ``_trust`` returns NaN instead."""
    if not isinstance(is_wrong, jax.core.Tracer) and bool(is_wrong):
        raise StructureError(message)


def _heights(box: Any, xp: Any) -> Any:
    """Distances between opposite faces of a box, whose lattice vectors are columns."""
    box = xp.asarray(box)
    if box.ndim < 2:
        return xp.atleast_1d(box)
    return 1 / xp.sqrt((xp.linalg.inv(box) ** 2).sum(axis=1))
