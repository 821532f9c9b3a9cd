"""What a criterion found in a frame, and the band it falls into."""

from dataclasses import dataclass
from enum import IntEnum
from math import isinf, isnan

from ase import Atoms


class Level(IntEnum):
    """The band that a value falls into."""

    TRUSTED = 0
    CANDIDATE = 1
    HIGH = 2


@dataclass(frozen=True)
class Reading:
    """What one criterion found in one frame.

    Attributes
    ----------
    criterion, unit : str
        Name of the criterion and unit of its value.
    value : float
    atom : int or None
        The atom the value belongs to; None for a property of the whole frame.
    low, high : float or None
        The bands; ``high`` is None where only one threshold was given.
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
    def level(self) -> Level:
        """The band of the value; HIGH when the value is not a number."""
        if isnan(self.value) or (isinf(self.value) and not self.below):
            return Level.HIGH
        if self.high is not None and self._reaches(self.high):
            return Level.HIGH
        return Level.CANDIDATE if self._reaches(self.low) else Level.TRUSTED

    @property
    def top(self) -> bool:
        """Whether the value reached the last band there is; this is what stops a run."""
        return self.level == Level.HIGH or (self.high is None and self.level == Level.CANDIDATE)

    @property
    def threshold(self) -> float:
        """The bound that the value reached, or the one it would reach next."""
        return self.high if self.level == Level.HIGH and self.high is not None else self.low

    def describe(self, atoms: Atoms) -> str:
        """One line for warnings and saved frames: criterion, value, atom, element, threshold."""
        where = "" if self.atom is None else f" at atom {self.atom} ({atoms.symbols[self.atom]})"
        side = "below" if self.below else "above"
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{self.criterion} = {self.value:.4g}{unit}{where}, "
            f"{side} the threshold of {self.threshold:.4g}{unit}"
        )

    def _reaches(self, bound: float) -> bool:
        return self.value <= bound if self.below else self.value >= bound
