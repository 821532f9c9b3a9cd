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


def changed_electrons(old: Electrons, new: Electrons) -> list[str]:
    """Names of what differs and only the teacher sees."""
    return [
        name
        for name in sorted({*old, *new})
        if not np.array_equal(np.asarray(old.get(name)), np.asarray(new.get(name)))
    ]


class Surface:
    """Remembers the charge, spin and magnetic moments of every set of atoms."""

    def __init__(self) -> None:
        self._known: dict[bytes, Electrons] = {}

    def check(self, atoms: Atoms) -> None:
        """Check that the same atoms had the same electrons before.

        Raises
        ------
        StructureError
            If not: the model would learn two energy surfaces as one.
        """
        electrons = electrons_of(atoms)
        first = self._known.setdefault(atoms.numbers.tobytes(), electrons)
        changed = changed_electrons(first, electrons)
        if changed:
            raise StructureError(
                f"the same atoms had another value of {', '.join(changed)} before. A model sees only elements, "
                "positions and cell, and would learn two energy surfaces as one. Give each of them a learner with a "
                "folder of its own"
            )
