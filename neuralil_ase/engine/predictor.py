"""From host arrays to predictions: pair list, padding, the compiled function, means and spreads.

Knows no ASE; the calculator, ``predict_many`` and other hosts sit on top.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from neuralil_ase.engine import backend as backends
from neuralil_ase.engine import compiled, native
from neuralil_ase.engine.concurrency import claim_jax
from neuralil_ase.engine.derivatives import (
    Backend,
    Derivatives,
    energies_and_forces,
    neighbor_virials,
)
from neuralil_ase.engine.force_constants import ForceConstants, force_constants
from neuralil_ase.engine.neighbors import Pairs
from neuralil_ase.errors import ConfigError, PredictionError
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.descriptors import descriptors
from neuralil_ase.model.graph import Graph, bucket, pad_graph
from neuralil_ase.model.potential import Params, Potential, cast_params
from neuralil_ase.prediction import Aleatoric, Members, Prediction, Uncertainty

Dtype = Literal["float32", "float64"]


class System(NamedTuple):
    """One structure on the host.

    Attributes
    ----------
    types
        Element indices, shape (N,).
    pairs
        Its neighbours inside the cutoff.
    volume
        Of the cell in Å³, or None without one.
    """

    types: np.ndarray
    pairs: Pairs
    volume: float | None


class Predictor:
    """Predicts with one potential in one precision.

    Compiled functions are shared by all predictors of the same architecture; parameters are arguments.

    Parameters
    ----------
    potential
        The potential.
    dtype
        Precision of descriptor and networks, "float32" or "float64".
    backend
        "compiled" takes the compiled core where it was built, covers the architecture and JAX computes on a CPU, and
        pure JAX elsewhere; "jax" always takes pure JAX. Second derivatives are always taken by JAX.

    Attributes
    ----------
    compilations
        Number of compilations by JAX that calls of this predictor have caused.
    """

    def __init__(
        self, potential: Potential, dtype: Dtype = "float32", backend: Backend = "compiled"
    ) -> None:
        if dtype not in get_args(Dtype):
            raise ConfigError(
                f"unknown dtype {dtype!r}; choose one of {', '.join(get_args(Dtype))}"
            )
        self.potential = potential
        self.dtype: Dtype = dtype
        self._wanted: Backend = backend
        self.compilations = 0
        self._elements = np.array(potential.elements)
        self._params: Params | None = None
        self._core: native.CoreModel | None = None
        self._pair_capacities: dict[int, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_params": None, "_core": None}

    def predict(self, systems: Sequence[System], uncertainty: Uncertainty) -> list[Prediction]:
        """Predictions for several structures, computed together as one disconnected graph."""
        merged = merge(systems)
        host = self._run(merged, uncertainty)
        ends = np.cumsum([len(system.types) for system in systems])
        return [
            self._prediction(system, _rows(host, end - len(system.types), end), uncertainty)
            for system, end in zip(systems, ends, strict=True)
        ]

    def descriptors(self, system: System) -> np.ndarray:
        """Power spectrum of every atom, shape (N, features), in Å^-3."""
        graph = self._pad(system.types, system.pairs)
        with precision(self.dtype):
            features = _descriptors(self.potential.config.descriptor, graph)
        return np.asarray(features)[: len(system.types)].astype(float)

    def force_constants(
        self,
        system: System,
        positions: np.ndarray,
        cell: np.ndarray,
        *,
        by_member: bool = False,
        motion: np.ndarray | None = None,
    ) -> ForceConstants:
        """Second derivatives of the energy, or their slope along a motion; see ``engine.force_constants``."""
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
        graph, n = self._pad(system.types, system.pairs), len(system.types)
        with precision(self.dtype):
            found = _neighbor_virials(self.potential.config, self._device_params(), graph)
        energies, virials = (np.asarray(values)[:n].astype(float) for values in found)
        return energies, virials

    def _device_params(self) -> Params:
        if self._params is None:
            self._params = jax.device_put(cast_params(self.potential.params, self.dtype))
        return self._params

    @property
    def backend(self) -> Backend:
        """Who computes energies and forces on this machine."""
        return "compiled" if self.backend_reason is None else "jax"

    @property
    def backend_reason(self) -> str | None:
        """Why JAX computes energies and forces; None where the compiled core does."""
        if self._wanted == "jax":
            return "it was asked for"
        if (device := jax.default_backend()) != "cpu":
            return f"the compiled core has no code for a {device}"
        return native.missing_reason(self.potential.config)

    @property
    def backend_in_words(self) -> str:
        """ "compiled, AVX2", or "JAX on cpu:" with the reason."""
        return backends.in_words(self.backend_reason, jax.default_backend())

    def _run(self, system: System, uncertainty: Uncertainty) -> Derivatives:
        if self.backend == "compiled":
            if self._core is None:
                self._core = compiled.core_model(self.potential, self.dtype)
            return compiled.energies_and_forces(self._core, system.types, system.pairs, uncertainty)
        if self._wanted == "compiled" and jax.default_backend() == "cpu":
            backends.warn_of_slow_backend(str(self.backend_reason))
        function = jitted(self.potential.config, uncertainty)
        graph = self._pad(system.types, system.pairs)
        with precision(self.dtype):
            before = function.traces
            result = function(self._device_params(), graph)
            self.compilations += function.traces - before
            return Derivatives(*(None if x is None else np.asarray(x) for x in result))

    def _pad(self, types: np.ndarray, pairs: Pairs) -> Graph:
        n_atoms = bucket(len(types))
        return pad_graph(
            *pairs,
            types,
            n_atoms=n_atoms,
            n_pairs=self._pair_capacity(n_atoms, len(pairs.centers)),
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

    def _prediction(
        self, system: System, values: Derivatives, uncertainty: Uncertainty
    ) -> Prediction:
        """Add the energy reference, and convert to float64."""
        outputs = values.outputs
        self._check_finite(values)
        energies = outputs[..., 0] + self.potential.energy_reference[system.types]
        members = aleatoric = None
        if uncertainty != "off":
            members = Members(energies, *_of_members(values))
            aleatoric = _aleatoric(outputs) if outputs.shape[-1] == 3 else None
        return Prediction(
            self._elements[system.types],
            energies.mean(axis=0),
            np.asarray(values.forces, float),
            np.asarray(values.virials, float),
            system.volume,
            members,
            aleatoric,
            self.potential.calibration,
        )

    def _check_finite(self, values: Derivatives) -> None:
        for what, array in (
            ("energy", values.outputs),
            ("force", values.forces),
            ("virial", values.virials),
        ):
            if not np.isfinite(array).all():
                atom = int(np.argwhere(~np.isfinite(array))[0][-2])
                raise PredictionError(
                    f"the {what} of atom {atom} is not a finite number in {self.dtype}: the parameters of this "
                    "potential are too large, as in a damaged or diverged model, or the structure is far from all that "
                    'it was trained on. Try dtype="float64", and check the model and the structure'
                )


def _rows(values: Derivatives, start: int, stop: int) -> Derivatives:
    """The atoms of one structure, without padding."""
    return Derivatives(*(None if x is None else x[..., start:stop, :] for x in values))


def _of_members(values: Derivatives) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Forces (M, N, 3) and virials (M, 6) of members in float64, where there are any."""
    if values.member_forces is None or values.member_virials is None:
        return None, None
    # einsum takes a third of the time that sum() takes over rows of six.
    virials = np.einsum("mij->mj", values.member_virials, dtype=float)
    return np.asarray(values.member_forces, float), virials


def _aleatoric(outputs: np.ndarray) -> Aleatoric:
    """From the variances that the members predict, outputs 1 and 2 of shape (M, N, 3)."""
    variances = outputs[..., 1].sum(axis=1, dtype=float)
    energy_std = float(np.sqrt(variances.mean()))
    return Aleatoric(energy_std, np.sqrt(3 * outputs[..., 2].mean(axis=0, dtype=float)))


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


@lru_cache(maxsize=64)
def jitted(config: ModelConfig, uncertainty: Uncertainty) -> Jitted:
    """The function of an architecture under jit, one for all who ask."""
    return Jitted(config, uncertainty)


_neighbor_virials = jax.jit(neighbor_virials, static_argnums=0)
_descriptors = jax.jit(descriptors, static_argnums=0)


@contextmanager
def precision(dtype: Dtype) -> Iterator[None]:
    """JAX as the calls inside need it, 64-bit or not, whatever flags the user has set; no global flag is touched.

    Matrix products take all bits of float32 unless the user chose a precision for JAX: its default on GPUs rounds them
    to TF32, which changes forces by 0.02 eV/Å.
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
    """Matrix products in the precision that the user chose for JAX, or else in that of their numbers."""
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX makes it at run time
    return jax.default_matmul_precision(chosen or "float32")


def merge(systems: Sequence[System]) -> System:
    """All of them as one system without a volume: their atoms and pairs one after another."""
    if len(systems) == 1:
        return systems[0]
    sizes = [len(system.types) for system in systems]
    starts = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
    pairs = Pairs(
        np.concatenate([s.pairs.vectors for s in systems]),
        np.concatenate([s.pairs.centers + start for s, start in zip(systems, starts, strict=True)]),
        np.concatenate(
            [s.pairs.neighbors + start for s, start in zip(systems, starts, strict=True)]
        ),
    )
    return System(np.concatenate([s.types for s in systems]), pairs, None)
