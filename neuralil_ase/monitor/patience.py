"""Readings of a frame, the bands of their values, and the number of checks in a row in a band."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import isinf, isnan
from typing import TYPE_CHECKING, Any

from ase import Atoms

from neuralil_ase.errors import MonitorError
from neuralil_ase.monitor.targets import PredictionLike
from neuralil_ase.prediction import Uncertainty

if TYPE_CHECKING:
    from neuralil_ase.monitor.criteria import Criterion


class Band(IntEnum):
    """The band that a value falls into."""

    TRUSTED = 0
    CANDIDATE = 1
    HIGH = 2


@dataclass(frozen=True)
class Reading:
    """The reading of one criterion in one frame.

    Attributes
    ----------
    criterion, unit : str
        Name of the criterion and unit of its value.
    value : float
    atom : int or None
        The atom the value belongs to; None for a property of the whole frame.
    low, high : float or None
        Where the bands begin; ``high`` is None where only one threshold was given.
    below : bool
        True where small values are the bad ones (distances).
    """

    criterion: str
    unit: str
    value: float
    atom: int | None
    low: float
    high: float | None
    below: bool = False

    @property
    def band(self) -> Band:
        """The band of the value; HIGH when the value is not a number."""
        if isnan(self.value) or (isinf(self.value) and not self.below):
            return Band.HIGH
        if self.high is not None and self._reaches(self.high):
            return Band.HIGH
        return Band.CANDIDATE if self._reaches(self.low) else Band.TRUSTED

    @property
    def in_last_band(self) -> bool:
        """Whether the value reached the worst band; this is what stops a run."""
        return self.band == Band.HIGH or (self.high is None and self.band == Band.CANDIDATE)

    @property
    def threshold(self) -> float:
        """The threshold that the value reached, or the one it would reach next."""
        return self.high if self.band == Band.HIGH and self.high is not None else self.low

    def describe(self, atoms: Atoms) -> str:
        """One line for warnings and saved frames: criterion, value, atom, element, threshold."""
        where = "" if self.atom is None else f" at atom {self.atom} ({atoms.symbols[self.atom]})"
        side = "below" if self.below else "above"
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{self.criterion} = {self.value:.4g}{unit}{where}, "
            f"{side} the threshold of {self.threshold:.4g}{unit}"
        )

    def _reaches(self, threshold: float) -> bool:
        return self.value <= threshold if self.below else self.value >= threshold


@dataclass(frozen=True)
class Check:
    """The readings of one image at one step.

    Attributes
    ----------
    step : int
        Step of the dynamics, including the steps of earlier parts of a resumed run.
    image : int or None
        Number of the image for NEB.
    prediction : PredictionLike
        Means, members and spreads of the model.
    readings : tuple of Reading
        Readings of the criteria that were due.
    complete : bool
        Whether all criteria were due.
    """

    step: int
    image: int | None
    prediction: PredictionLike
    readings: tuple[Reading, ...]
    complete: bool

    @property
    def band(self) -> Band:
        """The worst band among the readings, before patience."""
        return max((reading.band for reading in self.readings), default=Band.TRUSTED)

    @property
    def trusted(self) -> bool:
        """Whether every criterion was evaluated and is in the trusted band."""
        return self.complete and self.band == Band.TRUSTED

    def value(self, criterion: str) -> float:
        """What the criterion of this name read; nan if it was not due."""
        return next((r.value for r in self.readings if r.criterion == criterion), float("nan"))


@dataclass
class Streaks:
    """Number of checks in a row that each criterion has been in a band or a worse one."""

    patience: int
    flagged: dict[str, int] = field(default_factory=dict)
    high: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    acted: Band = Band.TRUSTED

    def update(self, readings: Sequence[Reading]) -> tuple[Reading, ...]:
        """Count these readings; returns those flagged for `patience` checks in a row or more."""
        for reading in readings:
            for counts, reached in (
                (self.flagged, reading.band >= Band.CANDIDATE),
                (self.high, reading.band == Band.HIGH),
                (self.last, reading.in_last_band),
            ):
                counts[reading.criterion] = counts.get(reading.criterion, 0) + 1 if reached else 0
        return tuple(r for r in readings if self.flagged[r.criterion] >= self.patience)

    def band(self, lasting: Sequence[Reading]) -> Band:
        """The band to act on."""
        if any(self.high[r.criterion] >= self.patience for r in lasting):
            return Band.HIGH
        return Band.CANDIDATE if lasting else Band.TRUSTED

    def stop(self, lasting: Sequence[Reading]) -> bool:
        """Whether one of these criteria has been in its worst band for long enough."""
        return any(self.last[r.criterion] >= self.patience for r in lasting)


def checked(
    criteria: "Sequence[Criterion]", calculator: Any, atoms: Atoms, with_forces: bool
) -> Check | None:
    """Evaluate the criteria that are due; None if there are none. The caller sets step and image.

    Without `with_forces` only the criteria that need no member forces are due. When one of these leaves the trusted
    band, all are evaluated, so that a flagged frame always has its force spread.
    """
    due = [c for c in criteria if with_forces or c.needs == "energy"]
    if not due:
        return None
    needs: Uncertainty = "forces" if any(c.needs == "forces" for c in due) else "energy"
    result = _check(due, calculator, atoms, needs, complete=len(due) == len(criteria))
    if needs == "energy" and result.band > Band.TRUSTED:
        return _check(criteria, calculator, atoms, "forces", complete=True)
    return result


def one_member() -> MonitorError:
    """The error for a model without a spread."""
    return MonitorError(
        "the model has a single member, so it has no spread to watch. Use an ensemble of two or "
        "more members (train with several, or import a committee)."
    )


def _check(
    criteria: "Sequence[Criterion]",
    calculator: Any,
    atoms: Atoms,
    needs: Uncertainty,
    complete: bool,
) -> Check:
    prediction = calculator.prediction(atoms, uncertainty=needs)
    if len(prediction.member_energies) < 2:
        raise one_member()
    readings = tuple(criterion.read(atoms, prediction) for criterion in criteria)
    return Check(0, None, prediction, readings, complete)
