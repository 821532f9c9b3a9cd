"""What goes from a calculator to a learner."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from ase import Atoms

from neuralil_ase.learning.records import Kind, Record
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Prediction


@dataclass(frozen=True)
class Request:
    """A frame that a calculator wants to have labelled.

    Attributes
    ----------
    atoms
        The structure.
    kind, reason
        Why.
    prediction
        What the model says of it, with uncertainty "forces"; None without a model.
    evaluation, temperature
        For the record.
    target
        Root mean square force error in eV/Å to which the frame is to be learnt.
    bar, allowed
        Largest error bar of a force, and what is tolerated, eV/Å.
    """

    atoms: Atoms
    kind: Kind
    reason: str
    prediction: Prediction | None = None
    evaluation: int = 0
    temperature: float | None = None
    target: float = np.inf
    bar: float = np.inf
    allowed: float = np.inf


class Teaching(Protocol):
    """What a calculator needs of a learner."""

    @property
    def potential(self) -> Potential | None:
        """The present model."""

    @property
    def tolerance(self) -> float:
        """Largest error bar of a force that is trusted, eV/Å."""

    @property
    def is_training(self) -> bool:
        """Whether a better model is being made in the background."""

    @property
    def records(self) -> list[Record]:
        """All queries so far."""

    def too_far(self, atoms: Atoms, indices: np.ndarray, reach: float) -> str | None:
        """Why a young model must not be trusted so far from what it has seen; None where it may be."""

    def catch_up(self) -> None:
        """Learn what an earlier run has left unlearnt."""

    def settle(self) -> None:
        """Wait for training in the background."""

    def begin(self, request: Request) -> Atoms | None:
        """Label the first frame; None where another was labelled instead."""

    def ask(self, requests: Sequence[Request]) -> Sequence[Atoms | None]:
        """Label frames, and learn them."""


def bare(atoms: Atoms) -> Atoms:
    """What the teacher gets: no constraints, no calculator, no momenta."""
    return Atoms(
        atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc,
        charges=atoms.get_initial_charges(), magmoms=atoms.get_initial_magnetic_moments(),
    )  # fmt: skip
