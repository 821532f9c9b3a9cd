"""Reports of a run: a summary in words and a picture."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from neuralil_ase.errors import MonitorError
from neuralil_ase.monitor.criteria import Criterion
from neuralil_ase.monitor.log import ESTIMATOR
from neuralil_ase.monitor.restart import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def summary_text(
    criteria: Sequence[Criterion], records: Records, atoms: Atoms, saved: str, stopped: bool
) -> str:
    """The run in a few lines.

    Parameters
    ----------
    criteria : sequence of Criterion
        With their thresholds.
    records : mapping of str to array
        Columns of the log.
    atoms : Atoms
        To name the elements.
    saved : str
        How many frames are in the file.
    stopped : bool
        Whether the monitor ended the run.
    """
    if not records or len(records["step"]) == 0:
        return "ExtrapolationMonitor: no check yet"
    steps, band = records["step"], records["band"]
    lines = [
        f"{len(steps)} checks, steps {steps.min():.0f} to {steps.max():.0f}: "
        f"{np.sum(band == 0)} trusted, {np.sum(band == 1)} candidates, "
        f"{np.sum(band == 2)} high; "
        f"{saved}; {'stopped by the monitor' if stopped else 'not stopped'}",
        f"{'criterion':<24}{'unit':<7}{'mean':>10}{'worst':>10}{'at step':>10}{'atom':>12}"
        f"{'low':>10}{'high':>10}",
    ]
    lines += [_summary_line(criterion, records, atoms) for criterion in criteria]
    return "\n".join([*lines, f"spread: {ESTIMATOR}"])


def plot_table(
    criteria: Sequence[Criterion], records: Records, path: str | PathLike[str] | None
) -> "Figure":
    """One panel for each criterion, then energy with its spread, and the temperature of MD."""
    from matplotlib.figure import Figure

    if not records or len(records["step"]) == 0:
        raise MonitorError("nothing to plot: the monitor has not been called yet")
    in_time = np.isfinite(records["time_fs"]).all()
    x = records["time_fs"] / 1000 if in_time else records["step"]
    with_temperature = bool(np.isfinite(records["temperature_K"]).any())
    n_panels = len(criteria) + 1 + with_temperature
    figure = Figure(figsize=(7, 2.2 * n_panels), layout="constrained")
    panels = list(figure.subplots(n_panels, 1, sharex=True, squeeze=False)[:, 0])
    for criterion, axes in zip(criteria, panels, strict=False):
        _plot_criterion(axes, criterion, x, records)
    _plot_energy(panels[len(criteria)], x, records)
    if with_temperature:
        panels[-1].plot(x, records["temperature_K"], ".-", ms=3, lw=0.8, color="tab:orange")
        panels[-1].set_ylabel("temperature (K)")
    panels[-1].set_xlabel("time (ps)" if in_time else "step")
    if path is not None:
        figure.savefig(Path(path), dpi=150)
    return figure


def _summary_line(criterion: Criterion, records: Records, atoms: Atoms) -> str:
    values = records[criterion.name]
    head = f"{criterion.name:<24}{criterion.unit or '-':<7}"
    seen = np.flatnonzero(~np.isnan(values))
    if seen.size == 0:
        return f"{head}{'never a number':>30}"
    finite = values[seen][np.isfinite(values[seen])]
    worst = seen[np.argmin(values[seen]) if criterion.below else np.argmax(values[seen])]
    atom = int(records[f"{criterion.name}_atom"][worst])
    name = "-" if atom < 0 else f"{atom} ({atoms.symbols[atom]})"
    mean = finite.mean() if finite.size else np.nan
    high = "-" if criterion.high is None else f"{criterion.high:.4g}"
    return (
        f"{head}{mean:>10.4g}{values[worst]:>10.4g}{records['step'][worst]:>10.0f}{name:>12}"
        f"{criterion.low:>10.4g}{high:>10}"
    )


def _plot_criterion(axes: "Axes", criterion: Criterion, x: np.ndarray, records: Records) -> None:
    values = records[criterion.name]
    seen = np.isfinite(values)
    axes.plot(x[seen], values[seen], ".-", ms=3, lw=0.8)
    for bound, colour, label in (
        (criterion.low, "tab:orange", "low"),
        (criterion.high, "tab:red", "high"),
    ):
        if bound is not None:
            axes.axhline(bound, color=colour, lw=1, ls="--", label=f"{label} {bound:.3g}")
    saved = seen & (records["saved"] > 0)
    if saved.any():
        axes.plot(x[saved], values[saved], "o", mfc="none", color="black", ms=6, label="saved")
    unit = f" ({criterion.unit})" if criterion.unit else ""
    axes.set_ylabel(f"{criterion.name}{unit}")
    axes.legend(loc="upper left", fontsize="small", frameon=False, ncols=3)


def _plot_energy(axes: "Axes", x: np.ndarray, records: Records) -> None:
    energy, spread = records["energy_eV"], records["energy_std_eV"]
    for image in np.unique(records["image"]):
        rows = records["image"] == image
        axes.plot(x[rows], energy[rows], lw=0.8, color="tab:blue")
        axes.fill_between(
            x[rows], (energy - spread)[rows], (energy + spread)[rows], alpha=0.3, lw=0
        )
    axes.set_ylabel("energy ± spread (eV)")
