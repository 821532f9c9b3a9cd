"""Error bars from the stream of labels. Every frame is predicted before it is learnt: an independent test.

The force error of an atom with spread s is taken as Gaussian with σ² = (scale · s)² + floor², as in
``neuralil_ase.calibration``. The floor of an element is the residual on the learnt frames. Each recent test k gives the
ratio of its errors to its spreads, over its atoms i of the element:

    r_k² = Σ_i (error_i² - floor²) / Σ_i s_i²

The ratios are taken as log-normal, and the scale is the root mean square of this distribution:

    scale² = exp(2 μ + 2 σ²) ≤ max r_k²,    μ, σ² = weighted mean and variance of ln r_k

Each further test halves the weight of the earlier tests, because these belong to a model that knew less. For instance,
the first two frames of a run are near each other, and the model that has learnt only these predicts the third frame
badly. Because logarithms are averaged, such a large ratio does not outweigh the tests that follow. The prior counts as
n₀ tests before the first one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError
from neuralil_ase.learning.records import Record
from neuralil_ase.model.potential import Potential

FADING, FADING_OF_ENERGIES = 0.5, 0.75
"""Weight of a test relative to the next one, for forces and for energies."""
RECENT = 40
"""Number of recent tests that are used; all older ones together have a weight of 1e-5."""
PRIOR_SCALE, PRIOR_WEIGHT = 2.0, 2.0
"""Prior ratio of error to spread, and the number of tests that the prior counts as."""
LEAST, MOST = 0.1, 10.0
"""Smaller or larger ratios are replaced by these limits."""
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
    energy_scale = _energy_scale([_energy_ratio(test) for test in tests])
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


def usual_error_bar(record: Calibration | None) -> float | None:
    """The error bar at the lower threshold of a calibration, eV/Å; None without thresholds."""
    if record is None or not record.thresholds:
        return None
    elements = list(record.force_scale)
    low = np.full(len(elements), record.thresholds["low"])
    return float(record.force_error_bars_of_spread(elements, low).max())


def _scale(ratios: Sequence[float | None], prior: float) -> float:
    """Root mean square of a log-normal distribution of the ratios, at most the largest of them."""
    known, weights = _weighted(ratios, prior, FADING)
    logarithms = np.log(np.clip(known, LEAST, MOST))
    mean = weights @ logarithms
    found = mean + weights @ (logarithms - mean) ** 2
    return float(np.exp(min(found, logarithms.max())))


def _energy_scale(ratios: Sequence[float | None]) -> float:
    """Root mean square of the ratios. The ratio of two single energies fluctuates, and its logarithm says little."""
    known, weights = _weighted(ratios, PRIOR_SCALE, FADING_OF_ENERGIES)
    return float(np.sqrt(weights @ np.minimum(known, MOST) ** 2))


def _weighted(
    ratios: Sequence[float | None], prior: float, fading: float
) -> tuple[np.ndarray, np.ndarray]:
    """Prior and known ratios, and their weights."""
    known = np.array([prior, *(ratio for ratio in ratios if ratio is not None)])
    weights = fading ** np.arange(len(known) - 1, -1, -1.0)
    weights[0] *= PRIOR_WEIGHT
    return known, weights / weights.sum()


def _ratio(test: Record, symbol: str, floor: float) -> float | None:
    """Error over spread; None if the frame has no such atom, or its spreads are too small."""
    chosen = np.array(test.symbols) == symbol
    errors, spreads = np.array(test.errors)[chosen], np.array(test.spreads)[chosen]
    square = float((spreads**2).sum())
    if square <= TINY:
        return None
    return float(np.sqrt(max((errors**2).sum() - chosen.sum() * floor**2, 0.0) / square))


def _energy_ratio(test: Record) -> float | None:
    if test.energy_error is None or not test.energy_spread:
        return None
    return abs(test.energy_error / test.energy_spread)


def _prior(prior: Calibration | None, symbol: str) -> float:
    if prior is None:
        return PRIOR_SCALE
    return prior.usual_scales().get(symbol, PRIOR_SCALE)
