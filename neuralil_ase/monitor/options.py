"""Checking the options of a monitor."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuralil_ase.errors import ConfigError
from neuralil_ase.monitor.criteria import Criterion, MaxForceSpread, named


def criteria_from(threshold: Any, criteria: Sequence[Criterion] | None) -> tuple[Criterion, ...]:
    """The criteria, `threshold` being the short form of one on the largest force spread."""
    if criteria is not None:
        if threshold is not None:
            raise ConfigError(
                "threshold= belongs to the default criterion; with criteria= put it into these, "
                "e.g. criteria=[MaxForceSpread(0.5)]."
            )
        return named(criteria)
    bounds = threshold if isinstance(threshold, tuple | list) else (threshold, None)
    if len(bounds) != 2 or not all(b is None or isinstance(b, int | float) for b in bounds):
        raise ConfigError(
            f"threshold = {threshold!r}: give one number in eV/Å, or two as (low, high)."
        )
    return (MaxForceSpread(*bounds),)


def check_counts(least: int = 1, **counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
            raise ConfigError(f"{name} = {count!r}: give a whole number, {least} or above.")
