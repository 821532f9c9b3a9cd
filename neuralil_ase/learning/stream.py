"""Error bars from the stream of labels. Every frame is predicted before it is learnt, and so is an independent test.

The force error of an atom with spread s is taken as Gaussian with σ² = (scale · s)² + floor², as everywhere
(``neuralil_ase.calibration``). The floor of an element is the residual on the learnt frames. The scale comes from the
recent tests, each of which gives the ratio of its errors to its spreads:

    scale² = (n₀ w^n prior² + Σ_k w^(n-k) r_k²) / (n₀ w^n + Σ_k w^(n-k))
    r_k² = Σ_i (error_i² - floor²) / Σ_i s_i²  (≥ 0)

over the tests k = 1 … n and their atoms i of the element. Each further test makes the earlier ones count less, w < 1:
they belong to a model that knew less, and the first two labels are so near each other that the model is far off at the
third. The prior counts as n₀ tests before the first one, so that a few small errors do not make error bars too small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError
from neuralil_ase.learning.records import Record
from neuralil_ase.model.potential import Potential

FADING = 0.75
"""Weight w of a test relative to the next one. The latest three have 58 % of the weight."""
RECENT = 40
"""Number of recent tests that are used; all older ones together have a weight of 1e-5."""
PRIOR_SCALE, PRIOR_WEIGHT = 2.0, 2.0
"""Prior ratio of error to spread, and the number of tests that the prior counts as."""
MOST = 10.0
"""Largest ratio with which a test counts: a single surprise must not make all error bars too large."""
TINY = 1e-12

Floors = Mapping[str, float]
"""Root mean square norm of the force residuals of each element on the learnt frames, eV/Å."""


def stream_calibration(
    records: Sequence[Record],
    floors: Floors,
    energy_floor: float,
    prior: Calibration | None = None,
) -> Calibration:
    """Error bars of the present model.

    Parameters
    ----------
    records
        Queries in their order; those without errors are ignored.
    floors
        Floor of every element of the model in eV/Å.
    energy_floor
        Root mean square residual of the energy in eV per sqrt(atoms).
    prior
        The calibration of the initial model; its scales then replace the default prior.
    """
    tests = [record for record in records if record.errors][-RECENT:]
    scale = {
        symbol: _scale([_ratio(test, symbol, floor) for test in tests], _prior(prior, symbol))
        for symbol, floor in floors.items()
    }
    energy_scale = _scale([_energy_ratio(test) for test in tests], PRIOR_SCALE)
    return Calibration(
        force_scale=scale,
        force_floor=dict(floors),
        energy_scale=energy_scale,
        energy_floor=energy_floor,
        data=f"{len(tests)} frames, each predicted before it was learnt",
        n_frames=len(tests),
        n_atoms=sum(len(test.symbols) for test in tests),
    )


def with_thresholds(calibration: Calibration, tolerance: float) -> Calibration:
    """Add thresholds for a monitor: the spread whose error bar is the tolerance (eV/Å), and twice that spread."""
    largest = max(calibration.force_scale.values())
    low = tolerance / max(largest, TINY)
    return replace(calibration, thresholds={"low": low, "high": 2 * low})


def with_error_bars(potential: Potential) -> Potential:
    """The potential, with prior error bars if it is not calibrated."""
    if potential.n_members < 2:
        raise ConfigError(
            "the initial model has one member, but learning needs the spread of an ensemble: train a model with "
            "members=4 or more"
        )
    if potential.calibration is not None:
        return potential
    floors = dict.fromkeys(potential.elements, 0.0)
    return replace(potential, calibration=stream_calibration([], floors, 0.0))


def usual_error_bar(potential: Potential) -> float | None:
    """The error bar at the lower threshold of the model's own calibration, eV/Å."""
    record = potential.calibration
    if record is None or not record.thresholds:
        return None
    elements = list(record.force_scale)
    low = np.full(len(elements), record.thresholds["low"])
    return float(record.force_error_bars_of_spread(elements, low).max())


def _scale(ratios: Sequence[float | None], prior: float) -> float:
    squares = np.array([prior**2, *(ratio for ratio in ratios if ratio is not None)])
    weights = FADING ** np.arange(len(squares) - 1, -1, -1.0)
    weights[0] *= PRIOR_WEIGHT
    return float(np.sqrt((weights @ squares) / weights.sum()))


def _ratio(test: Record, symbol: str, floor: float) -> float | None:
    """Squared error over squared spread; None if the frame has no such atom, or its spreads are too small."""
    chosen = np.array(test.symbols) == symbol
    errors, spreads = np.array(test.errors)[chosen], np.array(test.spreads)[chosen]
    square = float((spreads**2).sum())
    if square <= TINY:
        return None
    found = max(float((errors**2).sum()) - chosen.sum() * floor**2, 0.0) / square
    return min(found, MOST**2)


def _energy_ratio(test: Record) -> float | None:
    if test.energy_error is None or not test.energy_spread:
        return None
    return min((test.energy_error / test.energy_spread) ** 2, MOST**2)


def _prior(prior: Calibration | None, symbol: str) -> float:
    if prior is None:
        return PRIOR_SCALE
    return prior.usual_scales().get(symbol, PRIOR_SCALE)
