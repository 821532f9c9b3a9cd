"""One check of one image: which criteria are due, what they read, and for how long already."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ase import Atoms

from neuralil_ase.errors import MonitorError
from neuralil_ase.monitor.criteria import Criterion
from neuralil_ase.monitor.protocols import Needs, PredictionLike
from neuralil_ase.monitor.readings import Level, Reading


@dataclass(frozen=True)
class Check:
    """What was found in one image.

    Attributes
    ----------
    prediction : PredictionLike
    readings : tuple of Reading
        Of the criteria that were due.
    complete : bool
        Whether all criteria were.
    """

    prediction: PredictionLike
    readings: tuple[Reading, ...]
    complete: bool

    @property
    def level(self) -> Level:
        """The worst band among the readings, before patience."""
        return max((reading.level for reading in self.readings), default=Level.TRUSTED)

    @property
    def trusted(self) -> bool:
        """Whether every criterion was evaluated and none objected."""
        return self.complete and self.level == Level.TRUSTED


@dataclass
class Streaks:
    """How often in a row each criterion has been at a level or above."""

    patience: int
    flagged: dict[str, int] = field(default_factory=dict)
    high: dict[str, int] = field(default_factory=dict)
    top: dict[str, int] = field(default_factory=dict)
    acted: Level = Level.TRUSTED

    def update(self, readings: Sequence[Reading]) -> tuple[Reading, ...]:
        """Count the readings in; returns those that have lasted for `patience` checks."""
        for reading in readings:
            for counts, reached in (
                (self.flagged, reading.level >= Level.CANDIDATE),
                (self.high, reading.level == Level.HIGH),
                (self.top, reading.top),
            ):
                counts[reading.criterion] = counts.get(reading.criterion, 0) + 1 if reached else 0
        return tuple(r for r in readings if self.flagged[r.criterion] >= self.patience)

    def level(self, lasting: Sequence[Reading]) -> Level:
        """The level to act on."""
        if any(self.high[r.criterion] >= self.patience for r in lasting):
            return Level.HIGH
        return Level.CANDIDATE if lasting else Level.TRUSTED

    def stop(self, lasting: Sequence[Reading]) -> bool:
        """Whether one of them has been in its last band for long enough."""
        return any(self.top[r.criterion] >= self.patience for r in lasting)


def check(
    criteria: Sequence[Criterion], calculator: Any, atoms: Atoms, with_forces: bool
) -> Check | None:
    """Evaluate what is due; None if nothing is.

    Without `with_forces` only the criteria that need no member forces are due. When one of these
    objects, all are evaluated, so that a flagged frame always comes with its force spread.
    """
    due = [c for c in criteria if with_forces or c.needs == "energy"]
    if not due:
        return None
    needs: Needs = "forces" if any(c.needs == "forces" for c in due) else "energy"
    result = _check(due, calculator, atoms, needs, complete=len(due) == len(criteria))
    if needs == "energy" and result.level > Level.TRUSTED:
        return _check(criteria, calculator, atoms, "forces", complete=True)
    return result


def _check(
    criteria: Sequence[Criterion], calculator: Any, atoms: Atoms, needs: Needs, complete: bool
) -> Check:
    prediction = calculator.prediction(atoms, uncertainty=needs)
    if len(prediction.member_energies) < 2:
        raise one_member()
    readings = tuple(criterion.read(atoms, prediction) for criterion in criteria)
    return Check(prediction, readings, complete)


def one_member() -> MonitorError:
    """The error for a model that cannot disagree with itself."""
    return MonitorError(
        "the model has a single member, so it has no spread to watch. Use an ensemble of two or "
        "more members (train with several, or import a committee)."
    )
