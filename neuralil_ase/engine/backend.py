"""Which backend computes energies and forces, in words. Loads JAX only where JAX may find an accelerator."""

import logging
import os
import pkgutil
import sys
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Literal

from neuralil_ase.engine import native
from neuralil_ase.model.config import ModelConfig

Backend = Literal["compiled", "jax"]
"""The backend that is used: the compiled core if possible (see ``native.missing_reason``), else JAX."""

_LOGGER = logging.getLogger("neuralil_ase")


def device() -> str:
    """Where JAX computes by default: "cpu", "gpu", "tpu".

    Without a plugin for an accelerator the answer is "cpu", and JAX is not loaded.
    """
    if "jax" not in sys.modules and not may_find_accelerator():
        return "cpu"
    from neuralil_ase.engine import jax_backend

    return jax_backend.device()


@lru_cache(maxsize=1)
def may_find_accelerator() -> bool:
    """Whether JAX may find an accelerator. Checks the variables, packages and entry points that JAX itself uses."""
    wanted = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
    if wanted:
        return wanted.lower() != "cpu"
    folder = find_spec("jax_plugins")
    places = folder.submodule_search_locations if folder else None
    return (
        any(os.environ.get(name) for name in ("PJRT_NAMES_AND_LIBRARY_PATHS", "TPU_LIBRARY_PATH"))
        or any(True for _ in pkgutil.iter_modules(places or []))
        or bool(entry_points(group="jax_plugins"))
        or find_spec("libtpu") is not None
    )


def in_words(reason: str | None, device: str = "cpu") -> str:
    """The backend in words; ``reason`` says why JAX computes; None means that the compiled core computes."""
    if reason is None:
        return f"compiled, {native.instruction_set()}"
    return f"JAX on {device}: {reason}"


def expected_backend(config: ModelConfig) -> str:
    """The backend of an architecture, in words, on a machine where JAX finds no accelerator."""
    return in_words(native.missing_reason(config))


@lru_cache(maxsize=64)
def warn_of_slow_backend(reason: str) -> None:
    """Log one line, once per process and reason."""
    _LOGGER.warning(
        "energies and forces are computed by JAX, several times slower than by the compiled core: %s",
        reason,
    )
