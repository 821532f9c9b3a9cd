"""Evaluate a potential: predict labelled frames, in batches, and compare with the labels."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from neuralil_ase.array_record import ArrayRecord, count
from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.dataset import Data, Frame, as_frames, types_of
from neuralil_ase.evaluation.labels import Keys
from neuralil_ase.evaluation.metrics import Card, Comparison, accuracy, errors_in_words
from neuralil_ase.evaluation.stresses import FEWEST_FRAMES, verdict
from neuralil_ase.farm import predict_many
from neuralil_ase.files.atomic import write_atomically
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.files.outputs import check_is_no_input
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Prediction, Uncertainty

logger = logging.getLogger(__name__)
OWN_PREDICTION = 1e-5
"""Labels with smaller errors, in eV/atom and eV/Å, are predictions of the model itself, rounded in a file."""
MARGIN = 0.05
"""A composition is new if an element's fraction is outside the range of the training data by more than this."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(ArrayRecord):
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

    def __repr__(self) -> str:
        return f"Evaluation: {count(len(self.frames), 'frame')}, {errors_in_words(self.card)}"


def evaluate(
    potential: Potential | str | Path, data: Data | Sequence[Frame], **keys: Any
) -> Evaluation:
    """Predict labelled structures and compare with their labels.

    >>> from ase.build import molecule
    >>> from ase.calculators.singlepoint import SinglePointCalculator
    >>> from neuralil_ase import NeuralILCalculator, evaluate
    >>> atoms = molecule("CH3CH2NH2")
    >>> atoms.calc = SinglePointCalculator(atoms, energy=-601.0, forces=0 * atoms.positions)
    >>> evaluate(NeuralILCalculator().potential, [atoms]).card["frames"]
    1

    Parameters
    ----------
    potential
        A loaded potential or the path of its model file.
    data
        One or several files that ASE reads, a list of ``Atoms`` with calculator results, or frames of
        :mod:`neuralil_ase.evaluation.dataset`.
    **keys
        Names and units of the labels, as for :func:`~neuralil_ase.train`: ``energy_key``, ``forces_key``,
        ``stress_key``, ``virial_key``, ``stress_unit``, ``stress_sign``. By default the labels that ASE recognises.

    Returns
    -------
    Evaluation
        Predictions, labels and errors. Its ``card`` has the errors in meV/atom, meV/Å and meV/Å³. A warning is logged
        if the labels are predictions of the potential itself, if stresses have another sign or unit, or if compositions
        are outside those of the training data.

    Raises
    ------
    DataError
        If a file cannot be read, there are no labels, or a structure holds an element that the potential does not know.
    ConfigError
        If a key is unknown or wrong.
    ModelFileError
        If the model file cannot be read.
    """
    loaded, frames = as_potential(potential), as_frames(data, Keys.named(keys))
    evaluation = evaluation_of(frames, predict_frames(loaded, frames))
    _say_what_is_strange(loaded, evaluation)
    return evaluation


def evaluation_of(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> Evaluation:
    """Compare existing predictions with the labels; a DataError if there are no frames."""
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
    """Combine labels and predictions (with uncertainty "forces")."""
    none = np.full(6, np.nan)
    has_aleatoric = all(p.holds("forces_aleatoric_std") for p in predictions)
    return Comparison(
        np.array([len(frame.symbols) for frame in frames]),
        np.concatenate([frame.symbols for frame in frames]),
        np.array([np.nan if frame.energy is None else frame.energy for frame in frames]),
        np.stack([np.asarray(p.member_energies) for p in predictions], axis=1),
        np.concatenate([_or_nan(frame.forces, (len(frame.symbols), 3)) for frame in frames]),
        np.concatenate([np.asarray(p.member_forces) for p in predictions], axis=1),
        np.array([_or_nan(frame.stress, (6,)) for frame in frames]),
        np.array([p.stress if p.holds("stress") else none for p in predictions]),
        np.array([p.energy_aleatoric_std for p in predictions]) if has_aleatoric else None,
        np.concatenate([p.forces_aleatoric_std for p in predictions]) if has_aleatoric else None,
    )


def write_predictions(evaluation: Evaluation, path: str | Path) -> None:
    """Write structures to an extended XYZ file, with predictions as results and with labels.

    ``energy``, ``forces`` and ``stress`` are predictions. ``REF_energy``, ``REF_forces`` and ``REF_stress`` are labels.
    ``energy_std`` and ``forces_std`` are spreads over members (ddof 1; of a force the norm over components).
    ``energy_error_bar`` and ``forces_error_bar`` are calibrated error bars, if the model is calibrated.

    Raises
    ------
    OutputError
        If the file cannot be written.
    ConfigError
        If ``path`` is the file that the frames were read from.
    """
    check_is_no_input(
        [path], {frame.source.rpartition(" frame ")[0] for frame in evaluation.frames} - {""}
    )
    text = io.StringIO()
    pairs = zip(evaluation.frames, evaluation.predictions, strict=True)
    write_extxyz(text, [_predicted_atoms(frame, prediction) for frame, prediction in pairs])
    write_atomically(path, text.getvalue().encode())


def _say_what_is_strange(potential: Potential, evaluation: Evaluation) -> None:
    comparison = evaluation.comparison
    errors = [comparison.energy_errors / comparison.sizes, comparison.force_errors]
    known = np.concatenate([e[np.isfinite(e)] for e in errors])
    if len(known) > 1 and np.abs(known).max() < OWN_PREDICTION:
        logger.warning(
            "the labels are the predictions of this model itself, so that errors mean nothing. Do the labels of the "
            "reference method have other names (energy_key, forces_key)?"
        )
    stresses = np.isfinite(comparison.stresses + comparison.predicted_stresses).all(axis=1)
    if stresses.sum() >= FEWEST_FRAMES:
        volume = float(np.median([f.volume for f in evaluation.frames if f.volume]))
        labels = comparison.stresses[stresses]
        said = verdict(labels, comparison.predicted_stresses[stresses], volume)
        if said:
            logger.warning("%s", said)
    unlike = [frame for frame in evaluation.frames if unseen_composition(potential, frame)]
    if unlike:
        logger.warning(
            "%d of %d frames have compositions outside those that the model was trained on (%s), the first of them %s, "
            "which %s: energies there may be off by a constant per atom",
            len(unlike), len(evaluation.frames), _trained_on(potential), unlike[0].source,
            unseen_composition(potential, unlike[0]),
        )  # fmt: skip


def unseen_composition(potential: Potential, frame: Frame) -> str | None:
    """How the composition of a frame differs from all compositions in the training data; None if it does not.

    Only known if the provenance of the model holds the fractions of each element in its training frames.
    """
    for symbol, (low, high) in _fractions(potential).items():
        fraction = float(np.mean(frame.symbols == symbol))
        if not low - MARGIN <= fraction <= high + MARGIN:
            return f"is {fraction:.0%} {symbol}"
    return None


def _fractions(potential: Potential) -> dict[str, tuple[float, float]]:
    found = potential.provenance.get("element_fractions")
    try:
        return {str(s): (float(low), float(high)) for s, (low, high) in dict(found or {}).items()}
    except (TypeError, ValueError):
        return {}


def _trained_on(potential: Potential) -> str:
    return ", ".join(
        f"{symbol} {low:.0%}" + (f" to {high:.0%}" if high - low > 0.005 else "")
        for symbol, (low, high) in _fractions(potential).items()
    )


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
