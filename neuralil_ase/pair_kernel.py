"""The compiled pair kernel: what ``kernels/pair_sums.cpp`` offers, called through XLA's foreign-function interface.

It replaces, on a CPU, the steps that XLA turns into many passes over memory: from pairs to density coefficients and
power spectrum, back from cotangents of features to pair gradients, and their sums to forces. The pure JAX functions
in ``descriptors`` and ``derivatives`` are the reference and the fallback; whatever is differentiated by JAX goes
through them, for the functions here have no derivatives. The library is looked for at the first use, never at import.
"""

import ctypes
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from neuralil_ase.config import DescriptorConfig
from neuralil_ase.graph import Graph
from neuralil_ase.radial_basis import RadialSeries

LARGEST_N_MAX = 8
_FOLDER = Path(__file__).parent / "kernels"
_LEVELS = (4, 3, 1)
"""Levels of the x86-64 instruction set with a library of their own; 1 is also built on other processors."""
_HANDLERS = (
    "neuralil_sum_pairs",
    "neuralil_pull_back_pairs",
    "neuralil_power_spectrum",
    "neuralil_pull_back_spectrum",
    "neuralil_scatter_pairs",
)


def available() -> bool:
    """Whether the compiled kernel was built, loads and fits this version of JAX."""
    return missing_reason() is None


@lru_cache(maxsize=1)
def missing_reason() -> str | None:
    """Why the kernel cannot be used; None when it can. The first call loads and registers it."""
    library_file = _library_file(1)
    if library_file is None:
        return f"it was not built when neuralil_ase was installed (nothing in {_FOLDER})"
    try:
        level = ctypes.CDLL(str(library_file)).neuralil_x86_level()
        library = ctypes.CDLL(str(_best_library(level)))
        for name in _HANDLERS:
            capsule = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except (OSError, AttributeError, RuntimeError) as error:
        return f"it was built but does not load: {error}"
    return None


def supports(config: DescriptorConfig) -> bool:
    """Whether there is compiled code for this descriptor and everything needed to call it."""
    return 1 <= config.n_max <= LARGEST_N_MAX and available()


def sum_pairs(
    config: DescriptorConfig,
    series: RadialSeries,
    vectors: Array,
    segments: Array,
    n_segments: int,
) -> Array:
    """Sum g_nl(r) Y_lm(r) over the pairs of every segment.

    Parameters
    ----------
    config
        The descriptor.
    series
        Its radial functions.
    vectors
        r_j - r_i in Å, shape (P, 3), float32 or float64.
    segments
        Segment of every pair, shape (P,), int32; fastest when sorted. Pairs of other segments than
        0 … n_segments - 1 are left out.
    n_segments
        Number of segments.

    Returns
    -------
    Array, shape (n_segments, channels)
        In Å^(-3/2), in the type of ``vectors``.
    """
    result = jax.ShapeDtypeStruct((n_segments, _n_channels(config)), vectors.dtype)
    call = jax.ffi.ffi_call("neuralil_sum_pairs", result, vmap_method="sequential")
    return call(vectors, segments, *_operands(series, vectors), **_attributes(config))


def pull_back_pairs(
    config: DescriptorConfig,
    series: RadialSeries,
    vectors: Array,
    segments: Array,
    cotangents: Array,
) -> Array:
    """Gradients by the vectors for several cotangents of :func:`sum_pairs` at once.

    Parameters
    ----------
    config, series, vectors, segments
        As in :func:`sum_pairs`.
    cotangents
        dE/dc of M energies, shape (M, n_segments, channels), in eV Å^(3/2).

    Returns
    -------
    Array, shape (M, P, 3)
        In eV/Å.
    """
    result = jax.ShapeDtypeStruct((len(cotangents), *vectors.shape), vectors.dtype)
    call = jax.ffi.ffi_call("neuralil_pull_back_pairs", result, vmap_method="sequential")
    return call(vectors, segments, *_operands(series, vectors), cotangents, **_attributes(config))


def power_spectrum(config: DescriptorConfig, density: Array) -> Array:
    """Contract density coefficients, (N, elements, channels), to features (N, n_features), in Å^-3.

    As ``descriptors.power_spectrum`` without cross terms.
    """
    result = jax.ShapeDtypeStruct((len(density), config.n_features), density.dtype)
    call = jax.ffi.ffi_call("neuralil_power_spectrum", result, vmap_method="sequential")
    return call(density, n_max=np.int64(config.n_max))


def pull_back_spectrum(config: DescriptorConfig, density: Array, cotangents: Array) -> Array:
    """Gradients by the coefficients for M cotangents of :func:`power_spectrum`, (M, N, n_features).

    Returns
    -------
    Array, shape (M, N, elements, channels)
        In eV Å^(3/2).
    """
    result = jax.ShapeDtypeStruct((len(cotangents), *density.shape), density.dtype)
    call = jax.ffi.ffi_call("neuralil_pull_back_spectrum", result, vmap_method="sequential")
    return call(density, cotangents, n_max=np.int64(config.n_max))


def scatter_pairs(graph: Graph, gradients: Array) -> tuple[Array, Array]:
    """Forces (M, N, 3) in eV/Å and virials (M, N, 6) in eV from pair gradients (M, P, 3) in eV/Å.

    As ``derivatives.forces_from_pairs`` and ``virials_from_pairs``.
    """
    shape = (len(gradients), len(graph.types))
    results = [jax.ShapeDtypeStruct((*shape, size), gradients.dtype) for size in (3, 6)]
    call = jax.ffi.ffi_call("neuralil_scatter_pairs", results, vmap_method="sequential")
    forces, virials = call(graph.vectors, graph.centers, graph.neighbors, gradients)
    return forces, virials


def _operands(series: RadialSeries, vectors: Array) -> tuple[Array]:
    return (jnp.asarray(series.coefficients, vectors.dtype),)


def _attributes(config: DescriptorConfig) -> dict[str, np.generic]:
    return {"n_max": np.int64(config.n_max), "r_cut": np.float64(config.r_cut)}


def _n_channels(config: DescriptorConfig) -> int:
    return sum((2 * order + 1) * count for order, count in enumerate(config.n_radial))


def _best_library(level: int) -> Path | None:
    """The library for the best instruction set that the processor has and that was built."""
    found = [_library_file(built) for built in _LEVELS if built <= max(level, 1)]
    return next((path for path in found if path is not None), None)


def _library_file(level: int) -> Path | None:
    for suffix in EXTENSION_SUFFIXES:
        path = _FOLDER / f"pair_sums_v{level}{suffix}"
        if path.exists():
            return path
    return None
