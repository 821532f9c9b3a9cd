"""The base of records that hold arrays: they compare by content, print in a few words, and are read-only."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np

LONGEST_WORDS = 60
"""Objects of other packages with longer words are shown as the name of their class."""


class ArrayRecord:
    """Base of frozen dataclasses that hold arrays, made with ``@dataclass(frozen=True, eq=False, repr=False)``.

    Two records are equal if they are of one class and all their fields hold the same numbers; NaN equals NaN, as a
    missing label. Arrays in fields are read-only. Records have no hash, like the arrays in them.

    Parameters
    ----------
    units
        Of the subclass: the units of its fields, by name. Fields are shown with them, and arrays by their shape.
    """

    _units: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, units: Mapping[str, str] | None = None) -> None:
        cls._units = units or {}

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                view = value.view()
                view.flags.writeable = False
                object.__setattr__(self, name, view)

    def __repr__(self) -> str:
        parts = [f"{name} {shown(value, self._units.get(name, ''))}" for name, value in _held(self)]
        return f"{type(self).__name__}: {', '.join(parts)}"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = zip(_held(self), _held(other), strict=True)
        return all(same_content(mine, theirs) for (_, mine), (_, theirs) in pairs)

    __hash__ = None  # type: ignore[assignment]  # as for arrays, which it compares


def shown(value: Any, unit: str = "") -> str:
    """A number with its unit, the shape of an array, or another value in few words."""
    if isinstance(value, np.ndarray):
        return f"{value.shape} {unit}".rstrip()
    if isinstance(value, float):
        return f"{value:.6g} {unit}".rstrip()
    if isinstance(value, list | tuple | Mapping):
        return f"({count(len(value), 'entry', 'entries')})"
    if isinstance(value, ArrayRecord):
        return f"({value!r})"
    words = str(value)
    return words if len(words) <= LONGEST_WORDS else type(value).__name__


def count(number: int, noun: str, nouns: str | None = None) -> str:
    """A number of things in words."""
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"


def same_content(one: Any, other: Any) -> bool:
    """Whether two values hold the same numbers, in arrays, containers, records and objects of ASE."""
    if one is other:
        return True
    if hasattr(one, "__array__") or hasattr(other, "__array__"):
        return _same_numbers(np.asarray(one), np.asarray(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_content(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(same_content, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)
    if type(one) is type(other) and hasattr(one, "todict"):  # ASE compares bands by identity
        return same_content(one.todict(), other.todict())
    return bool(one == other)


def _same_numbers(one: np.ndarray, other: np.ndarray) -> bool:
    has_nan = one.dtype.kind in "fc" and other.dtype.kind in "fc"
    return np.array_equal(one, other, equal_nan=has_nan)


def _held(record: ArrayRecord) -> list[tuple[str, Any]]:
    names = [field.name for field in fields(record)]  # type: ignore[arg-type]  # every subclass is a dataclass
    return [(name, getattr(record, name)) for name in names]
