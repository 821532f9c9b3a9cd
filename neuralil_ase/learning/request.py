"""The request of a calculator to a learner, and the interface that the calculator needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from ase import Atoms

from neuralil_ase.learning.records import Kind, Record
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Prediction

SURPRISE = 2.0
"""A spot check is a surprise if the error of a force exceeds the tolerated error bar by more than this factor. If error
bars are right, two errors in five are larger than their error bars, and one in 135 is more than twice as large."""


@dataclass(frozen=True)
class Request:
    """A frame that a calculator needs labelled.

    Attributes
    ----------
    atoms
        The structure.
    kind, reason
        Why the label is needed.
    prediction
        The prediction of the model with uncertainty "forces"; None without a model.
    evaluation, temperature
        Number of the evaluation, and temperature in K, for the record.
    target
        Root mean square force error on the frame, in eV/Å, that training should reach.
    bar, allowed
        Largest error bar of a force, and the tolerated error bar, in eV/Å.
    may_hold_out
        Whether a spot check without a surprise is held out from training.
    """

    atoms: Atoms
    kind: Kind
    reason: str
    prediction: Prediction | None = field(default=None, repr=False)
    evaluation: int = 0
    temperature: float | None = None
    target: float = np.inf
    bar: float = np.inf
    allowed: float = np.inf
    may_hold_out: bool = True


class Teaching(Protocol):
    """The interface of a learner that a calculator needs."""

    @property
    def potential(self) -> Potential | None:
        """The present model."""

    @property
    def tolerance(self) -> float:
        """Largest error bar of a force that is trusted, in eV/Å."""

    @property
    def is_training(self) -> bool:
        """Whether a new model is being trained in the background."""

    @property
    def records(self) -> list[Record]:
        """All queries so far."""

    def moved(self, atoms: Atoms) -> float:
        """Largest displacement in Å of an atom from the nearest learnt frame; infinite if there is none."""

    @property
    def knows_stress(self) -> bool:
        """Whether the model could learn stresses."""

    def check_surface(self, atoms: Atoms) -> None:
        """Check that the same atoms had the same charge, spin and magnetic moments before."""

    def too_far(self, atoms: Atoms, is_descending: bool) -> str | None:
        """The reason why the model must not be trusted here, whatever its error bars; None if it may be trusted."""

    def is_strained(self, atoms: Atoms) -> bool:
        """Whether no learnt frame of the same atoms has this cell."""

    def catch_up(self) -> None:
        """Learn labels of an earlier run that the model has not learnt."""

    def settle(self) -> None:
        """Wait for training in the background."""

    def begin(self, request: Request) -> Atoms | None:
        """Label the first frame; None if another frame was labelled instead."""

    def ask(self, requests: Sequence[Request]) -> Sequence[Atoms | None]:
        """Label frames and learn them."""


def bare(atoms: Atoms) -> Atoms:
    """A copy for the teacher, without constraints, calculator, momenta and arrays of the user.

    Some teachers read the charge or spin of the system from ``atoms.info``, or kinds of atoms from the tags.
    """
    return Atoms(
        atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, tags=atoms.get_tags(),
        charges=atoms.get_initial_charges(), magmoms=atoms.get_initial_magnetic_moments(), info=atoms.info,
    )  # fmt: skip
