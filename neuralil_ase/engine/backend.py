"""Who computes energies and forces, in words. Knows no JAX, so that it can be told without loading it."""

import logging
from functools import lru_cache

from neuralil_ase.engine import native
from neuralil_ase.model.config import ModelConfig

_LOGGER = logging.getLogger("neuralil_ase")


def in_words(reason: str | None, device: str = "cpu") -> str:
    """For the reason why JAX computes, or None where the compiled core does."""
    if reason is None:
        return f"compiled, {native.instruction_set()}"
    return f"JAX on {device}: {reason}"


def expected_backend(config: ModelConfig) -> str:
    """What will compute an architecture on a machine where JAX finds no accelerator."""
    return in_words(native.missing_reason(config))


@lru_cache(maxsize=64)
def warn_of_slow_backend(reason: str) -> None:
    """One line in the log, once per process and reason."""
    _LOGGER.warning(
        "energies and forces are computed by JAX, several times slower than by the compiled core: %s",
        reason,
    )
