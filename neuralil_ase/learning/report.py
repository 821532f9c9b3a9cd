"""Reports what a run has asked and learnt, as text and as a picture."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuralil_ase.errors import MonitorError
from neuralil_ase.learning.history import Step
from neuralil_ase.learning.records import Kind, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WORDS: dict[Kind, str] = {
    "first": "without a model",
    "rattled": "rattled",
    "unsure": "unsure",
    "confirm": "to confirm a minimum",
    "check": "spot checks",
    "found": "found on disk",
}
COLOURS: dict[Kind, str] = {"unsure": "#4477aa", "confirm": "#228833", "check": "#ee6677"}


def summary_text(records: Sequence[Record], evaluations: int, tolerance: float) -> str:
    """Summary of the run in a few lines.

    Parameters
    ----------
    records
        All queries.
    evaluations
        Number of evaluations of the calculator in this run.
    tolerance
        The present tolerance in eV/Å.
    """
    counts = Counter(record.kind for record in records if record.failure is None)
    failures = sum(record.failure is not None for record in records)
    kinds = ", ".join(f"{counts[kind]} {words}" for kind, words in WORDS.items() if counts[kind])
    calls = len(records)
    seconds = sum(record.seconds for record in records)
    lines = [
        f"{evaluations} evaluations in this run; {calls} calls of the teacher in all ({kinds or 'none'}"
        + (f", {failures} failed" if failures else "")
        + f"), {seconds:.1f} s",
        f"tolerance {tolerance:.4g} eV/Å for the error bar of the force on any atom",
    ]
    for kind in COLOURS:
        tests = [r for r in records if r.kind == kind and r.errors]
        if tests:
            lines.append(_line(WORDS[kind], tests))
    return "\n".join(lines)


def progress_text(history: Sequence[Step], records: Sequence[Record]) -> str:
    """The progress of the run on one line."""
    last = history[-1]
    parts = [f"{len(records)} queries"]
    if np.isfinite(last.bar):
        parts.append(f"error bar {last.bar:.3f} of {last.allowed:.3f} eV/Å")
    tests = [record for record in records if record.errors]
    if tests:
        parts.append(
            f"last error {max(tests[-1].errors):.3f} (error bar {max(tests[-1].bars):.3f})"
        )
    return ", ".join(parts)


def draw(history: Sequence[Step], records: Sequence[Record], path: str | Path | None) -> "Figure":
    """Plot queries and error bars along the run, errors against error bars, and the temperature of MD.

    Raises
    ------
    MonitorError
        If nothing has been evaluated yet.
    """
    from matplotlib.figure import Figure

    if not history:
        raise MonitorError("nothing to plot: the calculator has not evaluated anything yet")
    temperatures = np.array([e.temperature for e in history])
    with_temperature = bool(np.isfinite(temperatures).any())
    figure = Figure(figsize=(9.6, 6.4 if with_temperature else 4.4), layout="constrained")
    grid = figure.add_gridspec(2 if with_temperature else 1, 2, width_ratios=(2, 1.3))
    left = figure.add_subplot(grid[0, 0])
    _draw_queries(left, history)
    _draw_errors(figure.add_subplot(grid[:, 1]), records)
    if with_temperature:
        below = figure.add_subplot(grid[1, 0], sharex=left)
        below.plot([e.evaluation for e in history], temperatures, lw=0.8, color="#ccbb44")
        below.set(xlabel="evaluation", ylabel="temperature (K)")
    if path is not None:
        figure.savefig(Path(path), dpi=150)
    return figure


def _draw_queries(axes: "Axes", history: Sequence[Step]) -> None:
    steps = np.array([e.evaluation for e in history])
    bars = np.array([e.bar for e in history])
    asked = np.array([e.asked for e in history])
    shown = np.isfinite(bars)
    axes.plot(steps[shown], bars[shown], lw=0.7, color="#4477aa", label="largest error bar")
    axes.plot(steps, [e.allowed for e in history], lw=1, ls="--", color="black", label="tolerated")
    axes.set(xlabel="evaluation", ylabel="force (eV/Å)", yscale="log")
    _label(axes.yaxis)
    counts = axes.twinx()
    counts.step(steps, np.cumsum(asked), where="post", color="#ee6677", lw=1.5)
    counts.set_ylabel("queries of this run", color="#ee6677")
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _draw_errors(axes: "Axes", records: Sequence[Record]) -> None:
    """Draw the error against the error bar of every frame that was predicted before it was labelled."""
    for kind, colour in COLOURS.items():
        tests = [r for r in records if r.kind == kind and r.errors]
        if tests:
            bars, errors = ([_rms(getattr(r, what)) for r in tests] for what in ("bars", "errors"))
            axes.plot(bars, errors, ".", color=colour, label=WORDS[kind])
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="rms error bar of a frame (eV/Å)",
        ylabel="rms force error of a frame (eV/Å)",
    )
    _label(axes.xaxis)
    _label(axes.yaxis)
    if axes.lines:
        axes.legend(frameon=False, fontsize="small")
        both = [*axes.get_xlim(), *axes.get_ylim()]
        limits = [min(both), max(both)]
        axes.plot(limits, limits, color="black", lw=0.8)
        axes.set(xlim=limits, ylim=limits)


def _label(axis: "Axis") -> None:
    """Label the axis with plain numbers at 1, 2 and 5, which do not overlap even on less than a decade."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    ticks = [first * 10.0**power for power in range(-6, 4) for first in (1, 2, 5)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _line(name: str, tests: Sequence[Record]) -> str:
    errors = np.concatenate([record.errors for record in tests])
    bars = np.concatenate([record.bars for record in tests])
    return (
        f"{name}: {len(tests)} frames, rms force error {_rms(errors):.3f} eV/Å before they were learnt, "
        f"{_rms(errors) / max(_rms(bars), 1e-12):.2f} times the rms error bar"
    )


def _rms(values: "Sequence[float] | np.ndarray") -> float:
    return float(np.sqrt(np.mean(np.square(values))))
