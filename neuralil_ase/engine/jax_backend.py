"""The potential in JAX: used if there is no compiled core, on GPUs, and for all further derivatives.

Imported only when JAX is first used: loading JAX takes longer than a short run.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from neuralil_ase.engine.arrays import Derivatives, Dtype, System
from neuralil_ase.engine.concurrency import claim_jax
from neuralil_ase.engine.derivatives import energies_and_forces, neighbor_virials
from neuralil_ase.engine.force_constants import ForceConstants
from neuralil_ase.engine.stars import force_constants
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.descriptors import descriptors
from neuralil_ase.model.graph import Graph, bucket, pad_graph
from neuralil_ase.model.potential import Params, Potential, cast_params
from neuralil_ase.prediction import Uncertainty


class JaxModel:
    """A potential in JAX, in one precision.

    Compiled functions are shared by all models of the same architecture; parameters are arguments.

    Attributes
    ----------
    compilations
        Number of compilations that calls of this model have caused.
    """

    def __init__(self, potential: Potential, dtype: Dtype) -> None:
        self.potential, self.dtype = potential, dtype
        self.compilations = 0
        self._params: Params | None = None
        self._pair_capacities: dict[int, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_params": None}

    def energies_and_forces(self, system: System, uncertainty: Uncertainty) -> Derivatives:
        """Outputs, forces and virials, padding included."""
        function = jitted(self.potential.config, uncertainty)
        graph = self._pad(system)
        with precision(self.dtype):
            before = function.traces
            result = function(self._device_params(), graph)
            self.compilations += function.traces - before
            return Derivatives(*(None if x is None else np.asarray(x) for x in result))

    def descriptors(self, system: System) -> np.ndarray:
        """Power spectrum of every atom, shape (N, features), in Å^-3."""
        graph = self._pad(system)
        with precision(self.dtype):
            features = _descriptors(self.potential.config.descriptor, graph)
        return np.asarray(features)[: len(system.types)].astype(float)

    def force_constants(
        self,
        system: System,
        positions: np.ndarray,
        cell: np.ndarray,
        *,
        by_member: bool,
        motion: np.ndarray | None,
    ) -> ForceConstants:
        """See ``stars.force_constants``."""
        with precision(self.dtype):
            return force_constants(
                self.potential.config,
                self._device_params(),
                system.types,
                system.pairs,
                positions,
                cell,
                by_member=by_member,
                motion=motion,
            )

    def neighbor_virials(self, system: System) -> tuple[np.ndarray, np.ndarray]:
        """Atomic energies without reference, (N,), and nine-component virials at the neighbours, (N, 3, 3), in eV."""
        graph, n = self._pad(system), len(system.types)
        with precision(self.dtype):
            found = _neighbor_virials(self.potential.config, self._device_params(), graph)
        energies, virials = (np.asarray(values)[:n].astype(float) for values in found)
        return energies, virials

    def _device_params(self) -> Params:
        if self._params is None:
            self._params = jax.device_put(cast_params(self.potential.params, self.dtype))
        return self._params

    def _pad(self, system: System) -> Graph:
        n_atoms = bucket(len(system.types))
        return pad_graph(
            *system.pairs,
            system.types,
            n_atoms=n_atoms,
            n_pairs=self._pair_capacity(n_atoms, len(system.pairs.centers)),
            r_cut=self.potential.r_cut,
            dtype=self.dtype,
        )

    def _pair_capacity(self, n_atoms: int, n_pairs: int) -> int:
        """The smallest length in use that holds the pairs without much waste, or a new one with 5 % to spare."""
        known = self._pair_capacities.setdefault(n_atoms, [])
        for capacity in known:
            if n_pairs <= capacity <= 1.3 * n_pairs + 64:
                return capacity
        capacity = bucket(n_pairs + n_pairs // 20 + 1)
        self._pair_capacities[n_atoms] = sorted([*known, capacity])
        return capacity


class Jitted:
    """``derivatives.energies_and_forces`` of one architecture under jit, counting its compilations."""

    def __init__(self, config: ModelConfig, uncertainty: Uncertainty) -> None:
        self.traces = 0

        def traced(params: Params, graph: Graph) -> Derivatives:
            self.traces += 1  # Python runs this line only while JAX traces: once per compilation.
            return energies_and_forces(config, uncertainty, params, graph)

        self._jitted = jax.jit(traced)

    def __call__(self, params: Params, graph: Graph) -> Derivatives:
        return self._jitted(params, graph)

    def lower(self, params: Params, graph: Graph) -> jax.stages.Lowered:
        """What XLA would compile for these arguments; ``as_text()`` of it can be read."""
        return self._jitted.lower(params, graph)


@lru_cache(maxsize=64)
def jitted(config: ModelConfig, uncertainty: Uncertainty) -> Jitted:
    """The function of an architecture under jit; there is one for all callers."""
    return Jitted(config, uncertainty)


_neighbor_virials = jax.jit(neighbor_virials, static_argnums=0)
_descriptors = jax.jit(descriptors, static_argnums=0)


@contextmanager
def precision(dtype: Dtype) -> Iterator[None]:
    """Context in which JAX computes in this precision, whatever flags the user has set. Changes no global flag.

    Matrix products use all bits of float32, unless the user chose a precision for JAX. The default of JAX on GPUs
    rounds them to TF32, which changes forces by 0.02 eV/Å.
    """
    claim_jax()
    with (
        full_products(),
        jax.enable_x64(dtype == "float64"),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
    ):
        yield


def full_products() -> AbstractContextManager[None]:
    """Matrix products in the precision that the user chose for JAX, or else in the precision of the factors."""
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX makes it at run time
    return jax.default_matmul_precision(chosen or "float32")
