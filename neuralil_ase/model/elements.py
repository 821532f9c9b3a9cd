"""Maps atomic numbers to types: the indices of a potential's elements in alphabetical order."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from neuralil_ase.errors import StructureError


def element_types(numbers: np.ndarray, elements: Sequence[str]) -> np.ndarray:
    """Index in ``elements`` of every atomic number, shape (N,).

    Raises
    ------
    StructureError
        If an element is not known. The message names the elements and the first atom of each.
    """
    types = _table(tuple(elements)).take(numbers, mode="clip")  # numbers outside the table get -1
    if (types < 0).any():
        unknown, first = np.unique(numbers[types < 0], return_index=True)
        atoms = np.flatnonzero(types < 0)[first]
        named = ", ".join(
            f"{_symbol(z)} (atom {k})" for z, k in zip(unknown.tolist(), atoms, strict=True)
        )
        raise StructureError(
            f"the model does not know {named}; it was trained on {', '.join(elements)}. "
            "Use a model trained with these elements"
        )
    return types


@lru_cache(maxsize=8)
def _table(elements: tuple[str, ...]) -> np.ndarray:
    """Index in ``elements`` by atomic number, -1 for all others. The first and the last entry are always -1."""
    table = np.full(len(chemical_symbols) + 1, -1)
    table[[atomic_numbers[symbol] for symbol in elements]] = np.arange(len(elements))
    return table


def _symbol(number: int) -> str:
    return chemical_symbols[number] if 0 < number < len(chemical_symbols) else f"Z = {number}"
