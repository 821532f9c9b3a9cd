"""Pictures of a training run or an evaluation: parity, error histograms, learning curve, spread against error."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuralil_ase.calibration import Calibration
from neuralil_ase.evaluation.metrics import Comparison
from neuralil_ase.evaluation.quality import coverage
from neuralil_ase.files.atomic import make_folder, write_atomically

COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")
MAX_POINTS = 20_000
BINS = 12


def write_report(
    folder: str | Path,
    comparisons: Mapping[str, Comparison],
    history: Sequence[Mapping[str, Any]] = (),
    calibration: Calibration | None = None,
) -> list[Path]:
    """Draw all pictures that the data allow.

    Parameters
    ----------
    folder
        Created if it does not exist; pictures of the same names are replaced.
    comparisons
        Labels and predictions by the name of the data set; spreads are drawn for the last data set.
    history
        One record per epoch of training.
    calibration
        Calibration of the model, for the calibrated error bars.

    Returns
    -------
    list of Path
        The pictures.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    figures: dict[str, Figure] = {
        "parity": draw_parity(comparisons),
        "errors": draw_errors(comparisons),
    }
    if len(history) > 1:
        figures["learning_curve"] = draw_learning_curve(history)
    last = list(comparisons.values())[-1]
    if last.n_members > 1 and np.isfinite(last.forces).any():
        figures["spread"] = draw_spread(last, calibration)
    place = make_folder(folder)
    return [_save(figure, place / f"{name}.png") for name, figure in figures.items()]


def draw_parity(comparisons: Mapping[str, Comparison]) -> Figure:
    """Predicted against labelled energies (offset removed) and force components."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, comparison), color in zip(comparisons.items(), COLORS, strict=False):
        errors = comparison.without_offset(comparison.energy_errors) / comparison.sizes
        labels = comparison.energies / comparison.sizes
        if np.isfinite(labels).any():
            centered = labels - np.nanmean(labels)
            left.plot(centered, centered + errors, ".", color=color, label=name, ms=5)
        forces = comparison.forces.reshape(-1)
        predicted = forces + comparison.force_errors.reshape(-1)
        shown = _some(np.flatnonzero(np.isfinite(forces)))
        right.plot(forces[shown], predicted[shown], ".", color=color, label=name, ms=2, alpha=0.5)
    _frame(left, "energy label, mean removed (eV/atom)", "prediction (eV/atom)")
    _frame(right, "force component, label (eV/Å)", "prediction (eV/Å)")
    for axes in (left, right):
        axes.axline((0, 0), slope=1, color="black", lw=0.8)
        axes.set_aspect("equal", adjustable="datalim")
    return figure


def draw_errors(comparisons: Mapping[str, Comparison]) -> Figure:
    """Distributions of energy errors, and of force errors by element for the last data set."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, comparison), color in zip(comparisons.items(), COLORS, strict=False):
        errors = comparison.without_offset(comparison.energy_errors) / comparison.sizes
        _step(left, 1e3 * errors, name, color)
    last = list(comparisons.values())[-1]
    for k, symbol in enumerate(np.unique(last.symbols)):
        errors = last.force_errors[last.symbols == symbol].reshape(-1)
        _step(right, 1e3 * errors, str(symbol), f"C{k}")
    right.set_yscale("log")
    _frame(left, "energy error, offset removed (meV/atom)", "frames")
    _frame(right, f"force component error (meV/Å), {list(comparisons)[-1]}", "components")
    return figure


def draw_learning_curve(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, force and energy errors over the epochs."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = (
        ("loss", "loss", 1.0),
        ("force_mae", "force MAE (meV/Å)", 1e3),
        ("energy_mae", "energy MAE (meV/atom)", 1e3),
    )
    for axes, (key, title, factor) in zip(figure.subplots(1, 3), panels, strict=True):
        names = ((key, "train, one member"), (f"validation_{key}", "validation, mean of members"))
        for (found, label), color in zip(names, COLORS, strict=False):
            points = [(r["epoch"], factor * r[found]) for r in history if found in r]
            if points:
                axes.plot(*zip(*points, strict=True), ".-", color=color, label=label, lw=1, ms=3)
        positive = all(y > 0 for line in axes.lines for y in np.asarray(line.get_ydata()))
        if axes.lines and positive:
            axes.set_yscale("log")
        _frame(axes, "epoch", title)
    return figure


def draw_spread(comparison: Comparison, calibration: Calibration | None) -> Figure:
    """Force errors against spread and error bar, and the share of errors inside them.

    Left: rms norm of the errors in bins of equal population. Right: share of components inside Gaussian intervals.
    Both show the spread over members and, if they are known, the calibrated error bar, and spread and aleatoric
    deviation together.
    """
    known = np.isfinite(comparison.force_errors).all(axis=1)
    errors, spreads = comparison.force_errors[known], comparison.force_spreads[known]
    sigmas, aleatoric = {"spread": spreads}, None
    if comparison.force_aleatoric is not None:
        aleatoric = comparison.force_aleatoric[known]
        sigmas["spread and aleatoric"] = np.hypot(spreads, aleatoric)
    if calibration is not None:
        symbols = comparison.symbols[known].tolist()
        sigmas["calibrated error bar"] = calibration.force_error_bars(symbols, spreads, aleatoric)
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes, shown = np.linalg.norm(errors, axis=1), _some(np.arange(len(errors)))
    left.plot(spreads[shown], sizes[shown], ".", color="0.8", ms=1.5, zorder=0)
    for (label, sigma), color in zip(sigmas.items(), COLORS, strict=False):
        has = np.isfinite(sigma)
        left.plot(*binned_rms(sigma[has], sizes[has]), "o-", ms=4, color=color, label=label)
        right.plot(*coverage(errors[has], sigma[has]), color=color, label=label)
    left.set(xscale="log", yscale="log")
    left.axline((0.1, 0.1), (1, 1), color="black", lw=0.8)
    right.axline((0, 0), slope=1, color="black", lw=0.8)
    _frame(left, "spread or error bar of the force (eV/Å)", "rms norm of the force error (eV/Å)")
    _frame(right, "expected share of components inside", "observed share")
    return figure


def binned_rms(sigma: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rms of sigma and of the errors in up to 12 bins of equal population, ordered by sigma."""
    bins = [b for b in np.array_split(np.argsort(sigma, kind="stable"), BINS) if len(b)]
    return (
        np.array([np.sqrt(np.mean(sigma[b] ** 2)) for b in bins]),
        np.array([np.sqrt(np.mean(errors[b] ** 2)) for b in bins]),
    )


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_atomically(path, buffer.getvalue())
    return path


def _frame(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)


def _step(axes: Axes, values: np.ndarray, name: str, color: str) -> None:
    finite = values[np.isfinite(values)]
    if finite.size:
        limit = max(float(np.quantile(np.abs(finite), 0.999)), 1e-9)
        bins = np.linspace(-limit, limit, min(61, 5 + 2 * round(finite.size**0.5))).tolist()
        axes.hist(finite, bins, histtype="step", color=color, label=name)


def _some(indices: np.ndarray) -> np.ndarray:
    """At most MAX_POINTS of the points, evenly spaced."""
    return indices[:: max(1, -(-len(indices) // MAX_POINTS))]
