"""What a teacher may depend on and a model does not see: charge, spin, magnetic moments. One learner learns one energy
surface."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms

from neuralil_ase.errors import StructureError
from neuralil_ase.farm import electrons_of

Electrons = Mapping[str, Any]
"""What :func:`electrons_of` returns."""


ROUNDED = 1e-6
"""Charges and moments of one surface differ by less than this. They are rounded in label files."""


def changed_electrons(old: Electrons, new: Electrons, tolerance: float = 0.0) -> list[str]:
    """Names of what differs and only the teacher sees."""
    return [
        name for name in sorted({*old, *new}) if not _same(old.get(name), new.get(name), tolerance)
    ]


def _same(old: Any, new: Any, tolerance: float) -> bool:
    try:
        a, b = np.asarray(old, float), np.asarray(new, float)
    except (TypeError, ValueError):  # whatever a user keeps in atoms.info
        return bool(np.array_equal(np.asarray(old), np.asarray(new)))
    return a.shape == b.shape and bool((np.abs(a - b) <= tolerance).all())


class Surface:
    """Remembers the charge, spin and magnetic moments of every set of atoms."""

    def __init__(self) -> None:
        self._known: dict[bytes, Electrons] = {}

    def remember(self, atoms: Atoms) -> Electrons:
        """The electrons that these atoms had at first."""
        return self._known.setdefault(atoms.numbers.tobytes(), electrons_of(atoms))

    def check(self, atoms: Atoms) -> None:
        """Check that the same atoms had the same electrons before, in this run or in a label.

        Raises
        ------
        StructureError
            If not: the model would learn two energy surfaces as one.
        """
        changed = changed_electrons(self.remember(atoms), electrons_of(atoms), ROUNDED)
        if changed:
            raise StructureError(
                f"the same atoms had another value of {', '.join(changed)} before. A model sees only elements, "
                "positions and cell, and would learn two energy surfaces as one. Give each of them a learner with a "
                "folder of its own"
            )
