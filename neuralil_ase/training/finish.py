"""The end of a run: how good the model is, error bars, pictures, and all of it in the model file."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.calibration import calibrate_potential
from neuralil_ase.evaluation.dataset import Frame
from neuralil_ase.evaluation.evaluate import Evaluation, evaluation_of, predict_frames
from neuralil_ase.evaluation.metrics import Card
from neuralil_ase.evaluation.report import write_report
from neuralil_ase.files.model_file import save_potential
from neuralil_ase.model.potential import Potential

logger = logging.getLogger(__name__)
MAX_TRAINING_FRAMES = 200
"""Training frames beyond this number are not evaluated; the card says how many were."""


def finish(
    potential: Potential,
    train: Sequence[Frame],
    validation: Sequence[Frame],
    output: str | Path | None,
    history: Sequence[Mapping[str, Any]],
) -> tuple[Potential, dict[str, Card]]:
    """Evaluate and calibrate a trained potential; write it again, and its pictures, where ``output`` is given.

    Returns
    -------
    Potential
        With the accuracy in its provenance and, where the validation frames suffice, a calibration.
    dict
        The cards of "train" and "validation".
    """
    evaluations = _evaluations(potential, train, validation)
    cards = {name: evaluation.card for name, evaluation in evaluations.items()}
    potential = replace(potential, provenance={**potential.provenance, "accuracy": cards})
    if "validation" in evaluations:
        potential = _calibrated(potential, train, evaluations["validation"])
    if output is not None:
        save_potential(potential, output)
        comparisons = {name: evaluation.comparison for name, evaluation in evaluations.items()}
        write_report(f"{output}.report", comparisons, history, potential.calibration)
    return potential, cards


def _evaluations(
    potential: Potential, train: Sequence[Frame], validation: Sequence[Frame]
) -> dict[str, Evaluation]:
    shown = train[:: -(-len(train) // MAX_TRAINING_FRAMES)]
    # Together, so that few shapes are compiled.
    predictions = predict_frames(potential, [*shown, *validation])
    n = len(shown)
    evaluations = {"train": evaluation_of(shown, predictions[:n])}
    if validation:
        evaluations["validation"] = evaluation_of(validation, predictions[n:])
    return evaluations


def _calibrated(potential: Potential, train: Sequence[Frame], held_out: Evaluation) -> Potential:
    data = f"the {len(held_out.frames)} validation frames of the training run"
    try:
        return calibrate_potential(potential, held_out.frames, train, data, held_out.comparison)
    except DataError as error:
        logger.warning("not calibrated: %s", error)
        return potential
