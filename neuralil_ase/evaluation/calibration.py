"""Fits error bars to frames that a potential was not trained on, and tests error bars and spreads.

``neuralil_ase.calibration`` describes the formula. Scale, exponent and floor minimise the continuous ranked probability
score (CRPS) of the held-out errors (Gneiting et al., Mon. Weather Rev. 133, 1098 (2005)). With the likelihood, the many
atoms with tiny errors, as in perfect crystals, would dominate the fit, and the others would get wrong error bars. For
models with aleatoric layers, the rank correlation with force errors on test frames of liquid EAN is 0.77 for spread and
aleatoric deviation together, and 0.70 for the spread alone.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from neuralil_ase.array_record import ArrayRecord
from neuralil_ase.calibration import (
    ESTIMATOR,
    ESTIMATOR_WITH_ALEATORIC,
    USUAL_QUANTILE,
    Calibration,
)
from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.metrics import Comparison
from neuralil_ase.evaluation.quality import crps, quality

logger = logging.getLogger(__name__)
QUANTILES = (0.5, 0.68, 0.9, 0.95, 0.99, 0.999, 1.0)
MIN_ATOMS = 30
"""Elements with fewer held-out atoms, as an adsorbed atom has, get the error bars of all atoms together."""
LOW, HIGH = 1.5, 2.0
"""LOW times the largest spread of an ordinary held-out frame is the lower threshold, HIGH times this the upper one."""
FLATTEST = 0.5
"""Smallest exponent between spread and error. With few held-out frames (twenty), the fit may prefer a smaller exponent,
but then the error bar would hardly grow in an extrapolation."""
ORDINARY = 0.95
"""Quantile, over held-out frames, of the largest spread in a frame; it defines an ordinary frame. The maximum would
depend on a single held-out frame that is unlike the training data. In liquid EAN the largest spread is 2.5 eV/Å in one
rattled frame, and at most 0.21 eV/Å in the other 71 frames, up to 700 K."""


_UNITS = dict.fromkeys(
    ("force_errors", "force_spreads", "force_aleatoric"), "eV/Å"
) | dict.fromkeys(("energy_errors", "energy_spreads", "energy_aleatoric"), "eV")


@dataclass(frozen=True, eq=False, repr=False)
class HeldOut(ArrayRecord, units=_UNITS):
    """Errors and spreads on frames that were not trained on.

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
    force_aleatoric, energy_aleatoric
        Aleatoric deviations in the units and shapes of the spreads; None without aleatoric layers.
    """

    symbols: np.ndarray
    force_errors: np.ndarray
    force_spreads: np.ndarray
    frame_sizes: np.ndarray
    energy_errors: np.ndarray
    energy_spreads: np.ndarray
    force_aleatoric: np.ndarray | None = None
    energy_aleatoric: np.ndarray | None = None


def fit_calibration(held_out: HeldOut, shortest: Mapping[str, float], data: str) -> Calibration:
    """Fit error bars and thresholds.

    Parameters
    ----------
    held_out
        Errors and spreads.
    shortest
        Shortest distance in Å of every pair of elements, "A-B", in the training data.
    data
        Description of the held-out frames, for the record.

    Raises
    ------
    DataError
        If there are too few atoms of every element, or values that are not finite.
    """
    _check(held_out)
    atoms = _atoms_for(held_out.symbols)
    elements = list(atoms)
    uses_aleatoric = held_out.force_aleatoric is not None
    spreads = {e: held_out.force_spreads[atoms[e]] for e in elements}
    usual = {e: max(float(np.quantile(spreads[e], USUAL_QUANTILE)), 1e-12) for e in elements}
    scale_of_spread, exponent, floor_of_spread = _fit_spreads(held_out, atoms, usual)
    scale, floor = scale_of_spread, floor_of_spread
    if uses_aleatoric:
        scale, floor = _fit_forces(held_out, atoms)
    energy_scale, energy_floor = _fit_energy(held_out)
    relative = held_out.force_spreads / np.array([usual[e] for e in held_out.symbols.tolist()])
    return Calibration(
        force_scale=scale,
        force_floor=floor,
        force_scale_of_spread=scale_of_spread if uses_aleatoric else {},
        force_floor_of_spread=floor_of_spread if uses_aleatoric else {},
        force_exponent=exponent,
        energy_scale=energy_scale,
        energy_floor=energy_floor,
        uses_aleatoric=uses_aleatoric,
        force_std_quantiles={
            e: {str(q): float(np.quantile(spreads[e], q)) for q in QUANTILES} for e in elements
        },
        thresholds=_bands(held_out.force_spreads, held_out.frame_sizes),
        relative_thresholds=_bands(relative, held_out.frame_sizes),
        shortest_distances=dict(shortest),
        data=data,
        n_frames=len(held_out.frame_sizes),
        n_atoms=len(held_out.symbols),
        estimator=ESTIMATOR_WITH_ALEATORIC if uses_aleatoric else ESTIMATOR,
    )


def calibration_report(
    calibration: Calibration | None, comparison: Comparison
) -> dict[str, dict[str, float]]:
    """:func:`quality` of forces and energies, by raw spread and by calibrated error bar.

    Empty without forces. The entry for force error bars leaves out atoms of elements without an error bar.
    """
    if comparison.n_members < 2 or not np.isfinite(comparison.forces).any():
        return {}
    errors = held_out_errors(comparison)
    known = np.isfinite(errors.energy_errors)
    energy_errors = errors.energy_errors[known, None]
    report = {"force spread": quality(errors.force_errors, errors.force_spreads)}
    if known.sum() > 2:
        report["energy spread"] = quality(energy_errors, errors.energy_spreads[known])
    if calibration is None:
        return report
    symbols = errors.symbols.tolist()
    bars = calibration.force_error_bars(symbols, errors.force_spreads, errors.force_aleatoric)
    with_bar = np.isfinite(bars)
    if with_bar.sum() > 2:
        report["force error bar"] = quality(errors.force_errors[with_bar], bars[with_bar])
    if known.sum() > 2 and calibration.energy_scale is not None:
        energy_bars = _energy_error_bars(calibration, errors)
        report["energy error bar"] = quality(energy_errors, energy_bars[known])
    return report


def _energy_error_bars(calibration: Calibration, errors: HeldOut) -> np.ndarray:
    aleatoric = errors.energy_aleatoric
    deviations = [None] * len(errors.frame_sizes) if aleatoric is None else aleatoric
    of_frames = zip(errors.frame_sizes, errors.energy_spreads, deviations, strict=True)
    return np.array([calibration.energy_error_bar(*of_frame) for of_frame in of_frames])


def held_out_errors(comparison: Comparison) -> HeldOut:
    """Errors and raw spreads of the frames with forces; energy errors after removing the mean offset per atom."""
    of_frame = np.repeat(np.arange(len(comparison.sizes)), comparison.sizes)
    with_forces = np.isfinite(comparison.forces).all(axis=1)
    frames = np.unique(of_frame[with_forces])
    return HeldOut(
        comparison.symbols[with_forces],
        comparison.force_errors[with_forces],
        comparison.force_spreads[with_forces],
        comparison.sizes[frames],
        comparison.without_offset(comparison.energy_errors)[frames],
        comparison.energy_spreads[frames],
        None if comparison.force_aleatoric is None else comparison.force_aleatoric[with_forces],
        None if comparison.energy_aleatoric is None else comparison.energy_aleatoric[frames],
    )


def _atoms_for(symbols: np.ndarray) -> dict[str, np.ndarray]:
    """For every element the mask of the atoms that determine its error bars: its own, or all if they are too few."""
    own = {str(element): symbols == element for element in np.unique(symbols)}
    few = [element for element, atoms in own.items() if atoms.sum() < MIN_ATOMS]
    if few:
        logger.warning(
            "error bars of %s are those of all held-out atoms together, because fewer than %d atoms of the element "
            "are held out",
            ", ".join(few), MIN_ATOMS,
        )  # fmt: skip
    return own | {element: np.ones(len(symbols), bool) for element in few}


def _fit_forces(
    held_out: HeldOut, atoms: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, float]]:
    """Scale and floor of every element, from spread and aleatoric deviation together."""
    deviations = _combined(held_out.force_spreads, held_out.force_aleatoric)
    fits = {
        element: fit_scale_and_floor(held_out.force_errors[chosen], deviations[chosen])
        for element, chosen in atoms.items()
    }
    return {e: fit[0] for e, fit in fits.items()}, {e: fit[1] for e, fit in fits.items()}


def _fit_spreads(
    held_out: HeldOut, atoms: Mapping[str, np.ndarray], reference: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Scale, exponent and floor of every element, from spreads alone."""
    fits = {}
    for element, unit in reference.items():
        chosen = atoms[element]
        fits[element] = fit_power_law(
            held_out.force_errors[chosen], held_out.force_spreads[chosen], unit
        )
    scale, exponent, floor = ({e: fit[k] for e, fit in fits.items()} for k in range(3))
    return scale, exponent, floor


def _fit_energy(held_out: HeldOut) -> tuple[float, float] | tuple[None, None]:
    known = np.isfinite(held_out.energy_errors)
    if known.sum() < 2:
        return None, None
    root = np.sqrt(held_out.frame_sizes[known])
    errors = (held_out.energy_errors[known] / root)[:, None]
    deviations = _combined(held_out.energy_spreads, held_out.energy_aleatoric)
    return fit_scale_and_floor(errors, deviations[known] / root)


def _combined(spreads: np.ndarray, aleatoric: np.ndarray | None) -> np.ndarray:
    return spreads if aleatoric is None else np.hypot(spreads, aleatoric)


def fit_scale_and_floor(errors: np.ndarray, deviations: np.ndarray) -> tuple[float, float]:
    """Scale and floor that minimise the CRPS of error bars with σ² = (scale · deviation)² + floor².

    Parameters
    ----------
    errors
        Shape (n, d): d = 3 for forces, 1 for energies.
    deviations
        Norm over components, shape (n,).
    """
    found = _smallest(
        lambda x: np.hypot(np.exp(x[0]) * deviations, np.exp(x[1])), errors, deviations
    )
    return float(np.exp(found[0])), float(np.exp(found[1]))


def fit_power_law(
    errors: np.ndarray, spreads: np.ndarray, reference: float
) -> tuple[float, float, float]:
    """Scale, exponent and floor that minimise the CRPS of force error bars.

    σ² = (scale · reference · (spread / reference)^exponent)² + floor², with an exponent from ``FLATTEST`` to 1.

    Parameters
    ----------
    errors
        In eV/Å, shape (n, 3).
    spreads
        Norm over components in eV/Å, shape (n,).
    reference
        In eV/Å, more than 0.
    """
    relative = spreads / reference

    def exponent(logit: float) -> float:
        return FLATTEST + (1 - FLATTEST) * float(expit(logit))

    def bars(x: np.ndarray) -> np.ndarray:
        return np.hypot(np.exp(x[0]) * reference * relative ** exponent(x[2]), np.exp(x[1]))

    fits = [_smallest(bars, errors, spreads, logit) for logit in (-1.0, 3.0)]
    scale, floor, logit = min(fits, key=lambda fit: crps(errors, bars(np.array(fit))))
    return float(np.exp(scale)), exponent(logit), float(np.exp(floor))


def _smallest(
    bars: Callable[[np.ndarray], np.ndarray],
    errors: np.ndarray,
    deviations: np.ndarray,
    *more: float,
) -> np.ndarray:
    """Parameters that minimise the CRPS: logarithms of scale and floor, then those that start at ``more``."""
    size = np.sqrt(np.mean(np.sum(errors**2, axis=1)))
    scale = size / max(np.sqrt(np.mean(deviations**2)), 1e-15)
    start = [*np.log([np.clip(scale, 1e-6, 1e6), max(0.3 * size, 1e-9)]), *more]

    def score(x: np.ndarray) -> float:
        # With the logarithm, tolerances are relative in any unit. Floors so small that they have no effect are cut off.
        return float(np.log(max(crps(errors, bars(np.maximum(x, -30))), 1e-30)))

    options = {"xatol": 1e-3, "fatol": 1e-6, "maxiter": 2000}
    return np.asarray(minimize(score, start, method="Nelder-Mead", options=options).x)


def _check(held_out: HeldOut) -> None:
    if not (np.isfinite(held_out.force_errors).all() and np.isfinite(held_out.force_spreads).all()):
        raise DataError(
            "held-out force errors or spreads are not finite; evaluate the model on these frames first"
        )
    symbols, counts = np.unique(held_out.symbols, return_counts=True)
    if counts.max(initial=0) < MIN_ATOMS:
        found = [f"{symbol} ({n})" for symbol, n in zip(symbols, counts, strict=True)]
        raise DataError(
            f"too few held-out atoms to calibrate: {', '.join(found) or 'none at all'}; one element at least needs "
            f"{MIN_ATOMS}. Hold more frames out, or give a larger data set to calibrate on"
        )


def _bands(spreads: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Thresholds on the largest spread of a frame, above the largest spreads of ordinary held-out frames."""
    largest = np.maximum.reduceat(spreads, _starts(sizes))
    low = float(LOW * np.quantile(largest, ORDINARY))
    return {"low": low, "high": HIGH * low}


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
