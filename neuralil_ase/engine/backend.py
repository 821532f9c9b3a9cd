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
from neuralil_ase.engine.concurrency import jax_device
from neuralil_ase.model.config import ModelConfig

Backend = Literal["compiled", "jax"]
"""The backend that is used: the compiled core if possible (see ``native.missing_reason``), else JAX."""

_LOGGER = logging.getLogger("neuralil_ase")


def device() -> str:
    """Where JAX computes by default: "cpu", "gpu", "tpu".

    Without a plugin for an accelerator the answer is "cpu", and JAX is not loaded.

    Raises
    ------
    ProcessError
        If JAX cannot start.
    """
    may_be_other = "jax" in sys.modules or may_find_accelerator()
    return jax_device() if may_be_other else "cpu"


def reason_for_jax(config: ModelConfig) -> str | None:
    """Why JAX computes with this architecture on this machine; None if the compiled core does."""
    if (found := device()) != "cpu":
        return f"the compiled core has no code for a {found}"
    return native.missing_reason(config)


@lru_cache(maxsize=1)
def may_find_accelerator() -> bool:
    """Whether JAX may find an accelerator. Checks the variables, packages and entry points that JAX itself uses."""
    if wanted := _wanted_platforms():
        return wanted[0] != "cpu"
    folder = find_spec("jax_plugins")
    places = folder.submodule_search_locations if folder else None
    return (
        any(os.environ.get(name) for name in ("PJRT_NAMES_AND_LIBRARY_PATHS", "TPU_LIBRARY_PATH"))
        or any(True for _ in pkgutil.iter_modules(places or []))
        or bool(entry_points(group="jax_plugins"))
        or find_spec("libtpu") is not None
    )


def _wanted_platforms() -> list[str]:
    """The platforms that the user asks for, the first of them by preference; empty if JAX chooses."""
    wanted = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME") or ""
    return [name.strip().lower() for name in wanted.split(",") if name.strip()]


def in_words(reason: str | None, device: str = "cpu") -> str:
    """The backend in words; ``reason`` says why JAX computes; None means that the compiled core computes."""
    if reason is None:
        return f"compiled, {native.instruction_set()}"
    return f"JAX on {device}: {reason}"


def expected_backend(config: ModelConfig) -> str:
    """The backend of an architecture on this machine, in words. JAX is not loaded for it.

    Only JAX itself knows whether there is an accelerator. If it may find one, the words name both cases.
    """
    if "jax" in sys.modules or not may_find_accelerator():
        reason = reason_for_jax(config)
        return in_words(reason, "cpu" if reason is None else device())
    wanted = _wanted_platforms()
    if wanted and "cpu" not in wanted:
        return f"JAX on {' or '.join(wanted)}, as JAX_PLATFORMS asks"
    reason = native.missing_reason(config)
    if reason is None:
        return f"{in_words(None)}; JAX if it finds an accelerator"
    return f"JAX on an accelerator if it finds one, else on cpu: {reason}"


@lru_cache(maxsize=64)
def warn_of_slow_backend(reason: str) -> None:
    """Log one line, once per process and reason."""
    _LOGGER.warning(
        "energies and forces are computed by JAX, several times slower than by the compiled core: %s",
        reason,
    )
