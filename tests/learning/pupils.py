"""What the tests of learning share: small crystals, a teacher that counts, networks that learn in a second."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from neuralil_ase.training.settings import TrainingSettings

SMALL = TrainingSettings(
    members=3, widths=(12, 8), head_widths=(), n_max=3, r_cut=3.6, ema=0.9, learning_rate=0.01
)


class Teacher(EMT):
    """EMT that remembers what it was asked; fails where it is told to."""

    def __init__(self, failures: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.asked: list[bytes] = []
        self.failures = failures

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        self.asked.append(atoms.positions.tobytes())
        if len(self.asked) in self.failures:
            raise RuntimeError("SCF not converged")
        super().calculate(atoms, *args, **kwargs)


def crystal(seed: int = 0, rattle: float = 0.1) -> Atoms:
    """16 copper atoms, displaced."""
    atoms = bulk("Cu", cubic=True, a=3.65) * (2, 2, 1)
    atoms.positions += np.random.default_rng(seed).normal(0, rattle, atoms.positions.shape)
    return atoms


def truth(atoms: Atoms) -> Atoms:
    """A copy without constraints, with EMT."""
    copy = atoms.copy()
    copy.set_constraint()
    copy.calc = EMT()
    return copy
