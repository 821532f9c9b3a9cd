"""What a criterion reads in a frame, and the bands of its values."""

from dataclasses import dataclass, field
from enum import IntEnum
from math import isinf, isnan

from ase import Atoms

from neuralil_ase.monitor.targets import PredictionLike


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
    prediction: PredictionLike = field(repr=False)
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
