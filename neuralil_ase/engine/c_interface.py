"""The C interface of the compiled core, core/include/neuralil.h, as ctypes sees it: structures and argument types."""

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_void_p

API_VERSION = 1
BAD_FILE, UNSUPPORTED, BAD_GRAPH, NO_MEMORY = 1, 2, 3, 4
"""What a function returns if it fails."""


class Graph(ctypes.Structure):
    """``neuralil_graph``."""

    _fields_ = (
        *((name, c_int64) for name in ("n_atoms", "n_centers", "n_pairs")),
        *((name, c_void_p) for name in ("types", "centers", "neighbors", "vectors")),
    )  # fmt: skip


class Results(ctypes.Structure):
    """``neuralil_results``."""

    _fields_ = tuple(
        (name, c_void_p)
        for name in ("energies", "aleatoric_variances", "forces", "virials", "neighbor_virials", "member_forces",
                     "member_virials")
    )  # fmt: skip


class Executor(ctypes.Structure):
    """``neuralil_executor``."""

    _fields_ = (("n_threads", c_int), ("run", c_void_p), ("context", c_void_p))


class Info(ctypes.Structure):
    """``neuralil_info``."""

    _fields_ = (
        ("r_cut", c_double),
        ("n_elements", c_int32),
        ("elements", POINTER(c_char_p)),
        ("atomic_numbers", POINTER(c_int32)),
        ("energy_reference", POINTER(c_double)),
        ("n_members", c_int64),
        ("n_aleatoric", c_int64),
        ("n_parameters", c_int64),
        ("precision", c_int),
        ("description", c_char_p),
    )


STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "neuralil_graph": Graph,
    "neuralil_results": Results,
    "neuralil_executor": Executor,
    "neuralil_info": Info,
}
"""The structures of core/include/neuralil.h, as they are declared here."""


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the types of the arguments and results of the library."""
    library.neuralil_filter_pairs.restype = c_int64
    library.neuralil_order_pairs.restype = c_int
    library.neuralil_message.restype = c_char_p
    library.neuralil_instruction_set.restype = c_char_p
    library.neuralil_check.argtypes = [c_char_p]
    library.neuralil_load_bytes.argtypes = [c_char_p, c_size_t, c_int, POINTER(c_void_p)]
    library.neuralil_free.argtypes = [c_void_p]
    library.neuralil_free.restype = None
    library.neuralil_get_info.argtypes = [c_void_p]
    library.neuralil_get_info.restype = Info
    library.neuralil_threads.restype = Executor
    structures = [POINTER(kind) for kind in (Graph, Results, Executor)]
    library.neuralil_evaluate.argtypes = [c_void_p, *structures]
