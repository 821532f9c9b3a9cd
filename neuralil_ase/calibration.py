"""From the spread of an ensemble to an error bar: fitted on held-out frames, stored in the model file.

Members of an ensemble err together, so that their spread is smaller than their error. Per element, the force
error of an atom with spread s is taken as Gaussian with

    σ² = (scale · s)² + floor²

(σ² summed over x, y, z, as s² is; the floor stands for noise of the labels and for errors all members share), and
scale and floor maximise the likelihood of the held-out errors. The energy of a frame of N atoms likewise has
σ² = (scale · s)² + N floor². For deep ensembles s² is the sum of the squares of the spread and of the deviation that
the members themselves expect: on test frames of liquid EAN that ranks force errors with 0.77, the spread alone with
0.70. What members expect was learnt where they were trained, though: an atom whose spread is unusual has an error bar
no smaller than the spread alone would give it. See arXiv:2302.08805 for why spreads need all this.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm, rankdata, spearmanr

from neuralil_ase.errors import DataError, UncertaintyError

QUANTILES = (0.5, 0.68, 0.9, 0.95, 0.99, 0.999, 1.0)
ESTIMATOR = (
    "spread: standard deviation over members, ddof 1; of a force, the norm over x, y, z. "
    "error bar: sqrt((scale * spread)^2 + floor^2), per element; of an energy, floor * sqrt(atoms)"
)
ESTIMATOR_WITH_NOISE = (
    f"{ESTIMATOR}; for spread^2 read spread^2 + (deviation that the members expect)^2, but a force with a spread "
    "above the 0.99 quantile of its element has no smaller error bar than that fitted to spreads alone"
)
MIN_ATOMS = 30
LOW, HIGH = 1.5, 2.0
"""The lower threshold over the largest spread of an ordinary held-out frame, and the higher over the lower."""
ORDINARY = 0.95
"""Quantile over held-out frames of their largest spread, taken for that of an ordinary frame. The very largest would
hand the threshold to one held-out frame that is itself unlike the training data: in liquid EAN a rattled frame
has 2.5 eV/Å, the other 71, up to 700 K, at most 0.21."""
REFERENCE = 0.99
"""Quantile of the held-out spreads of an element: what is more is unusual, and relative spreads are in units of it."""


class HeldOut(NamedTuple):
    """Errors and raw spreads on frames that took no part in training.

    Attributes
    ----------
    symbols
        Chemical symbol of every atom of every frame, shape (atoms,).
    force_errors
        Mean prediction minus label, eV/Å, shape (atoms, 3).
    force_spreads
        In eV/Å, shape (atoms,).
    frame_sizes
        Atoms in every frame, shape (frames,).
    energy_errors, energy_spreads
        In eV, shape (frames,); errors after removing the mean offset per atom. NaN where a label is missing.
    force_noise, energy_noise
        Deep ensembles: the deviations that the members expect, in the units and shapes of the spreads; None for others.
    """

    symbols: np.ndarray
    force_errors: np.ndarray
    force_spreads: np.ndarray
    frame_sizes: np.ndarray
    energy_errors: np.ndarray
    energy_spreads: np.ndarray
    force_noise: np.ndarray | None = None
    energy_noise: np.ndarray | None = None


def calibrate(
    held_out: HeldOut, shortest_distances: Mapping[str, float], data: str
) -> dict[str, Any]:
    """Fit error bars and thresholds.

    Parameters
    ----------
    held_out
        Errors and spreads.
    shortest_distances
        Shortest distance in Å of every pair of elements, "A-B", in the training data.
    data
        What the held-out frames are, for the record.

    Returns
    -------
    dict
        JSON data for ``Potential.calibration``; thresholds and quantiles in eV/Å, relative thresholds in units of
        the 0.99 quantile of the element.

    Raises
    ------
    DataError
        If there are too few atoms of any element, or values that are not finite.
    """
    _check(held_out)
    elements = sorted(set(held_out.symbols.tolist()))
    with_noise = held_out.force_noise is not None
    force = _fit_forces(held_out, elements, "")
    if with_noise:
        force |= _fit_forces(held_out._replace(force_noise=None), elements, "_of_spread")
    spreads = {e: held_out.force_spreads[held_out.symbols == e] for e in elements}
    usual = {e: max(float(np.quantile(spreads[e], REFERENCE)), 1e-12) for e in elements}
    relative = held_out.force_spreads / np.array([usual[e] for e in held_out.symbols.tolist()])
    return {
        "estimator": ESTIMATOR_WITH_NOISE if with_noise else ESTIMATOR,
        "with_noise": with_noise,
        "ddof": 1,
        "units": {"force": "eV/Å", "energy": "eV", "distance": "Å"},
        "data": data,
        "n_frames": len(held_out.frame_sizes),
        "n_atoms": len(held_out.symbols),
        **force,
        **_fit_energy(held_out),
        "force_std_quantiles": {
            e: {str(q): float(np.quantile(spreads[e], q)) for q in QUANTILES} for e in elements
        },
        "thresholds": _bands(held_out.force_spreads, held_out.frame_sizes),
        "relative_thresholds": _bands(relative, held_out.frame_sizes),
        "shortest_distances": dict(shortest_distances),
    }


def force_error_bars(
    calibration: Mapping[str, Any],
    symbols: Sequence[str],
    spreads: np.ndarray,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    """Expected size (root mean square norm) of the force error of every atom, eV/Å, shape (N,).

    Spreads, and the noise that members of deep ensembles expect, in eV/Å, shape (N,).
    """

    def bars(expected: np.ndarray, of: str = "") -> np.ndarray:
        scale, floor = (
            np.array([calibration[f"force_{name}{of}"].get(s, np.nan) for s in symbols])
            for name in ("scale", "floor")
        )
        return np.hypot(scale * expected, floor)

    found = bars(_expected(calibration, spreads, noise))
    if noise is None or "force_scale_of_spread" not in calibration:
        return found
    quantiles = calibration["force_std_quantiles"]
    usual = np.array([quantiles.get(s, {}).get(str(REFERENCE), np.nan) for s in symbols])
    return np.where(spreads > usual, np.maximum(found, bars(spreads, "_of_spread")), found)


def energy_error_bar(
    calibration: Mapping[str, Any], n_atoms: int, spread: float, noise: float | None = None
) -> float:
    """Expected root mean square error of the energy in eV, up to a constant per atom.

    Raises
    ------
    UncertaintyError
        If the frames of the calibration had no energies.
    """
    if "energy_floor" not in calibration:
        raise UncertaintyError(
            "this model was calibrated without energies, so that it has error bars for forces alone; run "
            "neuralil-ase calibrate MODEL DATA on held-out data with energies"
        )
    floor = calibration["energy_floor"] * np.sqrt(n_atoms)
    expected = _expected(calibration, spread, noise)
    return float(np.hypot(calibration["energy_scale"] * expected, floor))


def _expected(calibration: Mapping[str, Any], spread: Any, noise: Any) -> Any:
    """What the calibration was fitted to: models calibrated before it knew of noise have the spread alone."""
    if noise is None or not calibration.get("with_noise"):
        return spread
    return np.hypot(spread, noise)


def quality(errors: np.ndarray, sigma: np.ndarray) -> dict[str, float]:
    """How well error bars describe errors.

    Parameters
    ----------
    errors
        Shape (n, d): d = 3 for forces, 1 for energies.
    sigma
        Error bars of the norm over the d components, shape (n,).

    Returns
    -------
    dict
        rms error / rms sigma (1 is right); the share of components within 1 and 1.96 component sigmas (0.683 and
        0.950 for Gaussian errors); Spearman's rank correlation of norm and sigma; the area between observed and
        expected coverage (0 is right, 0.5 the worst); AUROC of telling the largest 10 % of the errors.
    """
    size = np.linalg.norm(errors, axis=1)
    ratio = np.abs(errors) / (sigma / np.sqrt(errors.shape[1]))[:, None]
    expected, observed = coverage(errors, sigma)
    return {
        "rms_error_over_rms_sigma": float(np.sqrt(np.mean(size**2) / np.mean(sigma**2))),
        "coverage_68": float((ratio <= 1).mean()),
        "coverage_95": float((ratio <= 1.959964).mean()),
        "spearman": float(spearmanr(size, sigma).statistic),
        "miscalibration_area": float(np.abs(observed - expected).mean()),
        "auroc_largest_tenth": auroc(sigma, size > np.quantile(size, 0.9)),
    }


def coverage(errors: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of error components inside a Gaussian interval, for 99 intervals: expected, and observed.

    Parameters are those of :func:`quality`.
    """
    ratio = np.abs(errors) / (sigma / np.sqrt(errors.shape[1]))[:, None]
    expected = np.linspace(0.01, 0.99, 99)
    within = np.searchsorted(np.sort(ratio, axis=None), norm.ppf(0.5 + expected / 2), side="right")
    return expected, within / ratio.size


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive case has the higher score (Mann-Whitney)."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def _fit_forces(held_out: HeldOut, elements: Sequence[str], of: str) -> dict[str, dict[str, float]]:
    """Scale and floor of every element, in entries whose names end with ``of``."""
    squared = (held_out.force_errors**2).sum(axis=1)
    expected = held_out.force_spreads
    if held_out.force_noise is not None:
        expected = np.hypot(expected, held_out.force_noise)
    chosen = [held_out.symbols == element for element in elements]
    fits = [fit_scale_and_floor(squared[atoms], expected[atoms], 3) for atoms in chosen]
    scales, floors = zip(*fits, strict=True)
    return {
        f"force_scale{of}": dict(zip(elements, scales, strict=True)),
        f"force_floor{of}": dict(zip(elements, floors, strict=True)),
    }


def _fit_energy(held_out: HeldOut) -> dict[str, float]:
    known = np.isfinite(held_out.energy_errors)
    if known.sum() < 2:
        return {}
    root = np.sqrt(held_out.frame_sizes[known])
    squared = (held_out.energy_errors[known] / root) ** 2
    expected = held_out.energy_spreads
    if held_out.energy_noise is not None:
        expected = np.hypot(expected, held_out.energy_noise)
    scale, floor = fit_scale_and_floor(squared, expected[known] / root, 1)
    return {"energy_scale": scale, "energy_floor": floor}


def fit_scale_and_floor(
    squared_errors: np.ndarray, spreads: np.ndarray, components: int
) -> tuple[float, float]:
    """Maximise the Gaussian likelihood of errors with σ² = (scale · spread)² + floor².

    Parameters
    ----------
    squared_errors
        Sum over components, shape (n,).
    spreads
        Norm over components, shape (n,).
    components
        Number of components of each error.
    """
    scale = np.sqrt(squared_errors.mean() / max((spreads**2).mean(), 1e-30))
    start = np.log([max(scale, 1e-6), max(0.3 * np.sqrt(squared_errors.mean()), 1e-9)])

    def negative_log_likelihood(logs: np.ndarray) -> float:
        variance = np.exp(2 * logs[0]) * spreads**2 + np.exp(2 * logs[1])
        return float(np.mean(np.log(variance) + squared_errors / variance) * components)

    best = minimize(negative_log_likelihood, start, method="Nelder-Mead")
    return float(np.exp(best.x[0])), float(np.exp(best.x[1]))


def _check(held_out: HeldOut) -> None:
    if not (np.isfinite(held_out.force_errors).all() and np.isfinite(held_out.force_spreads).all()):
        raise DataError(
            "held-out force errors or spreads are not finite; evaluate the model on these frames first"
        )
    symbols, counts = np.unique(held_out.symbols, return_counts=True)
    few = [f"{s} ({n})" for s, n in zip(symbols, counts, strict=True) if n < MIN_ATOMS]
    if few or len(symbols) == 0:
        raise DataError(
            f"too few held-out atoms to calibrate: {', '.join(few) or 'none at all'}; each element needs "
            f"{MIN_ATOMS}. Hold more frames out, or give a larger data set to calibrate on"
        )


def _bands(spreads: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Thresholds on the largest spread of a frame: above what held-out frames have."""
    largest = np.maximum.reduceat(spreads, _starts(sizes))
    low = float(LOW * np.quantile(largest, ORDINARY))
    return {"low": low, "high": HIGH * low}


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
