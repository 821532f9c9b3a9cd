"""A quantity computed with the mean of an ensemble and with each member, and its error bar."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralil_ase.array_record import ArrayRecord, count, shown
from neuralil_ase.errors import UncertaintyError
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import spread


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(ArrayRecord):
    """Value, members, spread and error bar of one quantity.

    Attributes
    ----------
    value
        Result of the mean potential.
    members
        Results of the M members, shape (M, ...), where ... is the shape of the value. For a quantity that is linear in
        the energy, their mean is the value.
    unit
        Unit of value, members, spread and error bar.
    scale
        Error bar divided by spread, from the calibration of the model; None without calibration.
    """

    value: float | np.ndarray
    members: np.ndarray
    unit: str
    scale: float | None = None

    @property
    def std(self) -> float | np.ndarray:
        """Spread: standard deviation over the members (ddof = 1).

        Raises
        ------
        UncertaintyError
            If the ensemble has one member.
        """
        if len(self.members) < 2:
            raise UncertaintyError(
                "the model has one member, and a spread needs two; use an ensemble"
            )
        return spread(self.members)

    @property
    def error_bar(self) -> float | np.ndarray:
        """Calibrated error bar, one standard deviation: ``scale`` times the spread.

        The scale always comes from held-out forces, for any quantity; see ``Calibration.scale_of_spread``. Errors of
        the reference method are not included.

        Raises
        ------
        UncertaintyError
            If the model is not calibrated, or has one member.
        """
        if self.scale is None:
            raise UncertaintyError(
                "the model is not calibrated, so that it has no error bars; run neuralil-ase calibrate MODEL "
                "DATA with held-out data, or use the spread, std"
            )
        return self.scale * self.std

    def map(self, function: Callable[[Any], Any], unit: str) -> "Estimate":
        """Apply a function to the value and to every member, and return the new estimate."""
        members = np.array([function(member) for member in self.members])
        return Estimate(function(self.value), members, unit, self.scale)

    def __repr__(self) -> str:
        words = str(self) if np.ndim(self.value) == 0 else shown(np.asarray(self.value), self.unit)
        state = "not calibrated" if self.scale is None else "calibrated"
        return f"Estimate: {words}, {count(len(self.members), 'member')}, {state}"

    def __str__(self) -> str:
        has_bar = self.scale is not None and len(self.members) > 1
        bar = f" ± {self.error_bar:.3g}" if has_bar and np.ndim(self.value) == 0 else ""
        return f"{self.value:.6g}{bar} {self.unit}" if bar else f"{self.value} {self.unit}"


def error_scale(potential: Potential, symbols: Sequence[str]) -> float | None:
    """Error bar divided by spread for these atoms; None without calibration."""
    calibration = potential.calibration
    return None if calibration is None else calibration.scale_of_spread(symbols)
