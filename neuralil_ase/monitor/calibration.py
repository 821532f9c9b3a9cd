"""What the monitor takes from a calibrated model; all that it knows of the calibration is here.

A calculator may offer ``calc.potential.calibration``: None, or a mapping (as in the header of a
model file) or record with

- ``thresholds``: mapping ``"low"``, ``"high"`` to eV/Å, for the largest force spread;
- ``relative_thresholds``: the same in units of the element's 0.99 quantile;
- ``force_std_quantiles``: mapping element → mapping quantile → eV/Å, of the held-out force spreads
  (quantiles may be numbers or, as in a JSON header, their text);
- ``shortest_distances``: mapping ``"A-B"`` → Å, the shortest in the training data.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from neuralil_ase.calibration import REFERENCE
from neuralil_ase.errors import MonitorError
from neuralil_ase.monitor.criteria import (
    Criterion,
    MaxForceSpread,
    RelativeForceSpread,
    ShortestDistance,
)


def resolved(criterion: Criterion, calculator: Any) -> Criterion:
    """The criterion with what it leaves open filled in from the model's calibration.

    Raises
    ------
    MonitorError
        If something is open that the model does not hold.
    """
    if isinstance(criterion, MaxForceSpread) and criterion.low is None:
        thresholds = _calibrated(calculator, "thresholds", criterion, "threshold= (in eV/Å)")
        return replace(criterion, low=thresholds["low"], high=criterion.high or thresholds["high"])
    if isinstance(criterion, RelativeForceSpread) and criterion.reference is None:
        quantiles = _calibrated(calculator, "force_std_quantiles", criterion, "reference=")
        reference = {
            element: _pick(table, criterion.quantile, element)
            for element, table in quantiles.items()
        }
        criterion = _with_relative_bands(replace(criterion, reference=reference), calculator)
    if isinstance(criterion, ShortestDistance) and criterion.reference is None:
        distances = _calibrated(calculator, "shortest_distances", criterion, "reference=")
        return replace(criterion, reference=dict(distances))
    if criterion.low is None:
        raise MonitorError(
            f"{criterion.name} has no threshold and none can be taken from a model; "
            f"give low= to {type(criterion).__name__}."
        )
    return criterion


def _with_relative_bands(criterion: RelativeForceSpread, calculator: Any) -> RelativeForceSpread:
    if criterion.low is not None or criterion.quantile != REFERENCE:
        return criterion
    bands = _calibrated(calculator, "relative_thresholds", criterion, "low=")
    return replace(criterion, low=bands["low"], high=criterion.high or bands["high"])


def _calibrated(calculator: Any, field: str, criterion: Criterion, argument: str) -> Any:
    calibration = getattr(getattr(calculator, "potential", None), "calibration", None)
    if isinstance(calibration, Mapping):
        value = calibration.get(field)
    else:
        value = getattr(calibration, field, None)
    if not value:
        state = "is not calibrated" if calibration is None else f"has no {field} in its calibration"
        raise MonitorError(
            f"No threshold for {criterion.name}: the model {state}. Give {argument}, or calibrate "
            "the model on held-out data."
        )
    return value


def _pick(table: Any, quantile: float, element: str) -> float:
    for key, value in table.items():
        if abs(float(key) - quantile) < 1e-9:
            return float(value)
    stored = ", ".join(str(key) for key in table)
    raise MonitorError(
        f"The calibration holds no {quantile} quantile for {element}, but {stored}; "
        "choose one of these with quantile=."
    )
