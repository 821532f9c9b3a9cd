"""What a calculator remembers of its evaluations, for the picture and the progress bar."""

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.units import kB

from neuralil_ase.learning.decision import Decision

MOST_STEPS = 100_000
"""Largest number of steps by the model that are remembered, in some 20 MB."""


class Step(NamedTuple):
    """One evaluation of a calculator.

    Attributes
    ----------
    evaluation
        Its number, from 1.
    bar, allowed
        Largest error bar of a force, and the tolerated error bar, in eV/Å; infinite and NaN without a model.
    temperature
        In K; NaN for atoms at rest.
    asked
        Whether the teacher was asked.
    """

    evaluation: int
    bar: float
    allowed: float
    temperature: float
    asked: bool


def step_of(evaluation: int, decision: Decision, atoms: Atoms) -> Step:
    """The step of the evaluation with this number."""
    temperature = temperature_of(atoms)
    heat = np.nan if temperature is None else temperature
    return Step(evaluation, decision.bar, decision.allowed, heat, decision.kind is not None)


def remember(history: list[Step], step: Step) -> None:
    """Append a step, and forget others if there are too many.

    Steps by the model are kept at equal distances, which double whenever there would be more than ``MOST_STEPS``.
    Steps at which the teacher was asked, and the last one, are always kept.
    """
    distance = _distance(step)
    if history and distance > _distance(history[-1]):
        history[:] = [old for old in history if old.asked or old.evaluation % distance == 0]
    elif history and not history[-1].asked and history[-1].evaluation % distance:
        history.pop()
    history.append(step)


def temperature_of(atoms: Atoms) -> float | None:
    """In K, for records and pictures; None for atoms at rest, or if ASE cannot count the degrees of freedom: with
    constraints of the user's own, or none left."""
    if not atoms.has("momenta"):
        return None
    try:
        free = atoms.get_number_of_degrees_of_freedom()
    except (AttributeError, NotImplementedError):
        return None
    return float(2 * atoms.get_kinetic_energy() / (free * kB)) if free > 0 else None


def _distance(step: Step) -> int:
    """Number of evaluations between steps by the model that are kept: 1, 2, 4 and so on."""
    return 1 << ((step.evaluation - 1) // MOST_STEPS).bit_length()
