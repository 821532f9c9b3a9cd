"""How well error bars describe errors: coverage, ranking, and one score for both."""

import numpy as np
from scipy.special import ndtr
from scipy.stats import norm, rankdata, spearmanr


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
        rms error / rms error bar (1 is right); the share of components within 1 and 1.96 error bars of a component
        (0.683 and 0.950 for Gaussian errors); Spearman's rank correlation of norm and error bar; the area between
        observed and expected coverage (0 is right, 0.5 the worst); AUROC of finding the largest 10 % of the errors; the
        mean continuous ranked probability score of the components, in the unit of the errors (smaller is better).
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
        "crps": crps(errors, sigma),
    }


def coverage(errors: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of error components inside a Gaussian interval, for 99 intervals: expected, and observed.

    Parameters are those of :func:`quality`.
    """
    ratio = np.abs(errors) / (sigma / np.sqrt(errors.shape[1]))[:, None]
    expected = np.linspace(0.01, 0.99, 99)
    within = np.searchsorted(np.sort(ratio, axis=None), norm.ppf(0.5 + expected / 2), side="right")
    return expected, within / ratio.size


def crps(errors: np.ndarray, sigma: np.ndarray) -> float:
    """Mean continuous ranked probability score of Gaussian error bars.

    Gneiting and Raftery, J. Am. Stat. Assoc. 102, 359 (2007), eq. 21.

    Parameters are those of :func:`quality`. The score rewards error bars that are right and small. With error bars of
    zero, it is the MAE.
    """
    component = np.maximum(sigma / np.sqrt(errors.shape[1]), 1e-30)[:, None]
    z = np.abs(errors) / component
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    score = component * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))
    return float(score.mean())


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive case has the higher score (Mann-Whitney)."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
