"""Evaluate a potential: predict labelled frames, in batches, and compare with the labels."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from neuralil_ase.calculator import predict_many
from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.dataset import Frame, types_of
from neuralil_ase.evaluation.metrics import Card, Comparison, accuracy
from neuralil_ase.files.atomic import write_atomically
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Prediction, Uncertainty


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a data set, compared with its labels.

    Attributes
    ----------
    frames, predictions
        One prediction, with members' forces, for every frame.
    comparison
        Labels and predictions as arrays.
    card
        The numbers; see ``metrics.accuracy``.
    """

    frames: list[Frame]
    predictions: list[Prediction]
    comparison: Comparison
    card: Card


def evaluate(potential: Potential, frames: Sequence[Frame]) -> Evaluation:
    """Predict and compare.

    Raises
    ------
    DataError
        If there are no frames, or one holds an element that the potential does not know.
    """
    return evaluation_of(frames, predict_frames(potential, frames))


def evaluation_of(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> Evaluation:
    """Compare predictions that are already there."""
    if not frames:
        raise DataError("there are no frames to evaluate")
    comparison = compare(frames, predictions)
    return Evaluation(list(frames), list(predictions), comparison, accuracy(comparison))


def predict_frames(
    potential: Potential, frames: Sequence[Frame], uncertainty: Uncertainty = "forces"
) -> list[Prediction]:
    """Predictions, by default with members' forces, evaluated in batches.

    Raises
    ------
    DataError
        If a frame holds an element that the potential does not know.
    """
    for frame in frames:
        types_of(frame, potential.elements)
    return predict_many(potential, map(_bare_atoms, frames), uncertainty=uncertainty)


def compare(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> Comparison:
    """Put labels and predictions (with uncertainty "forces") side by side."""
    none = np.full(6, np.nan)
    is_deep = all(p.holds("forces_aleatoric_std") for p in predictions)
    return Comparison(
        np.array([len(frame.symbols) for frame in frames]),
        np.concatenate([frame.symbols for frame in frames]),
        np.array([np.nan if frame.energy is None else frame.energy for frame in frames]),
        np.stack([np.asarray(p.member_energies) for p in predictions], axis=1),
        np.concatenate([_or_nan(frame.forces, (len(frame.symbols), 3)) for frame in frames]),
        np.concatenate([np.asarray(p.member_forces) for p in predictions], axis=1),
        np.array([_or_nan(frame.stress, (6,)) for frame in frames]),
        np.array([p.stress if p.holds("stress") else none for p in predictions]),
        np.array([p.energy_aleatoric_std for p in predictions]) if is_deep else None,
        np.concatenate([p.forces_aleatoric_std for p in predictions]) if is_deep else None,
    )


def write_predictions(evaluation: Evaluation, path: str | Path) -> None:
    """Write structures with predictions as results and labels beside them to an extended XYZ file.

    ``energy``, ``forces`` and ``stress`` are predictions; ``REF_energy``, ``REF_forces`` and ``REF_stress`` labels;
    ``energy_std`` and ``forces_std`` spreads over members (ddof 1; of a force the norm over components); and
    ``energy_error_bar`` and ``forces_error_bar`` calibrated error bars, where the model has them.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    text = io.StringIO()
    pairs = zip(evaluation.frames, evaluation.predictions, strict=True)
    write_extxyz(text, [_predicted_atoms(frame, prediction) for frame, prediction in pairs])
    write_atomically(path, text.getvalue().encode())


def _bare_atoms(frame: Frame) -> Atoms:
    return Atoms(frame.symbols.tolist(), positions=frame.positions, cell=frame.cell, pbc=frame.pbc)


def _predicted_atoms(frame: Frame, prediction: Prediction) -> Atoms:
    atoms = _bare_atoms(frame)
    results: dict[str, Any] = {"energy": prediction.energy, "forces": prediction.forces}
    if prediction.holds("stress"):
        results["stress"] = prediction.stress
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info["source"] = frame.source
    if frame.group is not None:
        atoms.info["group"] = frame.group
    for name in ("energy", "stress"):
        if getattr(frame, name) is not None:
            atoms.info[f"REF_{name}"] = getattr(frame, name)
    if frame.forces is not None:
        atoms.arrays["REF_forces"] = frame.forces
    for name in ("energy_std", "energy_error_bar"):
        if prediction.holds(name):
            atoms.info[name] = getattr(prediction, name)
    for name in ("forces_std", "forces_error_bar"):
        if prediction.holds(name):
            atoms.arrays[name] = np.asarray(getattr(prediction, name))
    return atoms


def _or_nan(values: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, np.nan) if values is None else values
