"""The compiled kernel: ``core/src/evaluation.cpp``, called through XLA's foreign-function interface.

On a CPU it replaces what XLA turns into many passes over memory: the way from pairs to descriptors and networks and
back to forces and virials. The pure JAX functions in ``descriptors``, ``network`` and ``derivatives`` are the
reference and the fallback; whatever is differentiated by JAX goes through them, for the function here has no
derivatives. The library is looked for at the first use, never at import.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from neuralil_ase.engine.native import compiled_library
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.descriptors import SERIES_TOLERANCE
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.network_tape import ACTIVATIONS, Tape, network_tape
from neuralil_ase.model.potential import Params, flatten
from neuralil_ase.model.radial_basis import radial_series

LARGEST_N_MAX = 8
_HANDLER = "neuralil_evaluate"


def available() -> bool:
    """Whether the compiled kernel was built, loads and fits this version of JAX."""
    return missing_reason() is None


@lru_cache(maxsize=1)
def missing_reason() -> str | None:
    """Why the kernel cannot be used; None when it can. The first call loads and registers it."""
    loaded = compiled_library()
    if isinstance(loaded, str):
        return loaded
    try:
        capsule = jax.ffi.pycapsule(getattr(loaded, _HANDLER))
        jax.ffi.register_ffi_target(_HANDLER, capsule, platform="cpu")
    except (AttributeError, RuntimeError) as error:
        return f"it was built but does not fit this JAX: {error}"
    return None


def supports(config: ModelConfig) -> bool:
    """Whether there is compiled code for this architecture and everything needed to call it."""
    is_covered = 1 <= config.descriptor.n_max <= LARGEST_N_MAX
    return is_covered and config.network.activation in ACTIVATIONS and available()


def evaluate(
    config: ModelConfig,
    by_member: bool,
    params: Params,
    graph: Graph,
    pair_gradients: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Outputs of the networks, and forces and virials of every member or of the mean over members.

    Parameters
    ----------
    config, params
        The potential; ``supports(config)`` must hold.
    by_member
        Whether to keep the members' forces apart.
    graph
        N atoms and their P pairs, sorted by center.
    pair_gradients
        dE/dr_ij of a pair term in eV/Å, added to the descriptor's: shape (1, P, 3), or (M, P, 3) by member.

    Returns
    -------
    outputs : Array, shape (M, N, outputs)
        Atomic energies in eV, without the pair term; for the heteroscedastic kind also σ²_E and σ²_F.
    forces, virials : Array, shapes (M or 1, N, 3) and (M or 1, N, 6)
        In eV/Å and eV, as ``derivatives.forces_from_pairs`` and ``virials_from_pairs`` define them.
    """
    vectors, descriptor, tape = jnp.asarray(graph.vectors), config.descriptor, network_tape(config)
    dtype, n_atoms = vectors.dtype, len(graph.types)
    series = radial_series(descriptor.n_max, descriptor.r_cut, SERIES_TOLERANCE[dtype.name])
    if pair_gradients is None:
        pair_gradients = jnp.zeros((0, *vectors.shape), dtype)
    n_energies = config.n_members if by_member else 1
    shapes = [(config.n_members, n_atoms, len(tape.outputs))]
    shapes += [(n_energies, n_atoms, size) for size in (3, 6)]
    call = jax.ffi.ffi_call(_HANDLER, [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes])
    named = flatten(params["network"])
    outputs, forces, virials = call(
        vectors, graph.centers, graph.neighbors, graph.types,
        jnp.asarray(series.coefficients, dtype), pair_gradients, *(named[name] for name in tape.parameters),
        **_attributes(config, tape),
    )  # fmt: skip
    return outputs, forces, virials


def _attributes(config: ModelConfig, tape: Tape) -> dict[str, np.generic | np.ndarray]:
    descriptor = config.descriptor
    return {
        "n_max": np.int64(descriptor.n_max),
        "r_cut": np.float64(descriptor.r_cut),
        "n_elements": np.int64(len(descriptor.elements)),
        "cross_terms": np.bool_(descriptor.cross_terms),
        "operations": np.array(tape.operations, np.int64).ravel(),
        "outputs": np.array(tape.outputs, np.int64),
        "n_shared": np.int64(tape.n_shared),
        "n_backward": np.int64(tape.n_backward),
        "n_columns": np.int64(tape.n_columns),
        "n_shared_columns": np.int64(tape.n_shared_columns),
    }
