"""``calibrate``: error bars for a potential, from labelled structures that it was not trained on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuralil_ase.array_record import ArrayRecord, count
from neuralil_ase.engine.neighbors import Pairs, shortest_distances
from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.absurd import MAX_FORCE, without_absurd
from neuralil_ase.evaluation.calibration import (
    calibration_report,
    fit_calibration,
    held_out_errors,
)
from neuralil_ase.evaluation.dataset import Data, Frame, as_frames, items_of, pairs_of, types_of
from neuralil_ase.evaluation.evaluate import Evaluation, evaluate
from neuralil_ase.evaluation.labels import Keys
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.model.potential import Potential


@dataclass(frozen=True, eq=False, repr=False)
class Calibrated(ArrayRecord):
    """A potential with error bars, and a test of them.

    Attributes
    ----------
    potential
        The potential with its calibration; write it with :func:`~neuralil_ase.save_potential`.
    evaluation
        The predictions of the held-out structures, compared with their labels.
    quality
        How well spreads and error bars describe the errors of these structures: ratio, coverage, rank correlation and
        other numbers, by kind ("force spread", "force error bar", …); see ``evaluation.quality.quality``.
    """

    potential: Potential
    evaluation: Evaluation
    quality: dict[str, dict[str, float]]


def calibrate(
    potential: Potential | str | Path,
    data: Data | Sequence[Frame],
    *,
    description: str | None = None,
    **keys: Any,
) -> Calibrated:
    """Fit the error bars of an ensemble to labelled structures. The model file is not changed.

    Parameters
    ----------
    potential
        A loaded potential or the path of its model file, with two members or more. An earlier calibration is replaced,
        but its shortest distances are kept, because they come from the training data.
    data
        Structures with forces that were not used in training and, if possible, not to select the model; as for
        :func:`~neuralil_ase.evaluate`. Frames with absurd labels are reported and left out, as in training.
    description
        Description of the data, for the record; by default the names of the files or the number of structures.
    **keys
        Names and units of the labels, as for :func:`~neuralil_ase.evaluate`.

    Returns
    -------
    Calibrated
        The potential with its calibration, and how good its error bars are for these structures.

    Raises
    ------
    DataError
        If the model has one member, if there are too few forces for some element, or as from ``evaluate``.
    ConfigError, ModelFileError
        As from ``evaluate``.
    """
    loaded = as_potential(potential)
    settings = loaded.provenance.get("settings", {})
    frames = without_absurd(
        as_frames(data, Keys.named(keys)), float(settings.get("max_force", MAX_FORCE))
    )
    _check(loaded, frames)
    evaluation = evaluate(loaded, frames)
    with_bars = calibrate_potential(loaded, evaluation, [], description or _described(data))
    quality = calibration_report(with_bars.calibration, evaluation.comparison)
    return Calibrated(with_bars, evaluation, quality)


def calibrate_potential(
    potential: Potential, held_out: Evaluation, training: Sequence[Frame], data: str
) -> Potential:
    """The same potential with error bars, thresholds and shortest distances in its ``calibration``.

    Parameters
    ----------
    potential
        An ensemble of two members or more.
    held_out
        Its predictions for frames that were not used in training.
    training
        Frames for the shortest distances. If empty, the distances in the potential are kept; if it has none, the
        held-out frames are used.
    data
        Description of the held-out frames, for the record.

    Raises
    ------
    DataError
        If the model has one member, or there are too few labels.
    """
    _check(potential, held_out.frames)
    before = potential.calibration
    if before is not None and before.shortest_distances and not training:
        distances = before.shortest_distances
    else:
        distances = shortest_distances_of(training or held_out.frames, potential)
    calibration = fit_calibration(held_out_errors(held_out.comparison), distances, data)
    return replace(potential, calibration=calibration)


def shortest_distances_of(frames: Sequence[Frame], potential: Potential) -> dict[str, float]:
    """Shortest distance in Å of every pair of elements, "A-B"; r_cut for pairs that never come inside it."""
    elements = potential.elements

    def found() -> Iterable[tuple[Pairs, np.ndarray]]:
        for frame in frames:
            types = types_of(frame, elements)
            yield pairs_of(frame, types, potential.r_cut), types

    shortest = np.minimum(shortest_distances(found(), len(elements)), potential.r_cut)
    return {
        f"{elements[a]}-{elements[b]}": round(float(shortest[a, b]), 4)
        for a, b in zip(*np.triu_indices(len(elements)), strict=True)
    }


def _check(potential: Potential, held_out: Sequence[Frame]) -> None:
    if potential.n_members < 2:
        raise DataError(
            "a model with one member has no spread to calibrate; train an ensemble (--members 8)"
        )
    if all(frame.forces is None for frame in held_out):
        raise DataError(
            "no held-out frame has forces, which calibration needs to compare force errors with spreads"
        )


def _described(data: Data | Sequence[Frame]) -> str:
    items = items_of(data)
    if all(isinstance(item, str | Path) for item in items):
        return ", ".join(Path(item).name for item in items)
    return count(len(items), "structure")
