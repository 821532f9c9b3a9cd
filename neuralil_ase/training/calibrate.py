"""Calibrate the spreads of a potential on frames that it was not trained on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from neuralil_ase.calibration import HeldOut, calibrate, energy_error_bar, force_error_bars, quality
from neuralil_ase.errors import DataError
from neuralil_ase.evaluator import Evaluator, System
from neuralil_ase.potential import Potential
from neuralil_ase.prediction import Prediction
from neuralil_ase.training.dataset import Frame
from neuralil_ase.training.labels import pairs_of, types_of

BATCH_ATOMS = 4096


def calibrate_potential(
    potential: Potential, held_out: Sequence[Frame], training: Sequence[Frame], data: str
) -> Potential:
    """The same potential with error bars, thresholds and shortest distances in its ``calibration``.

    Parameters
    ----------
    potential
        An ensemble of two members or more.
    held_out
        Frames with forces, in neither the training set nor, better, the selection of the model.
    training
        Frames that the shortest distances are taken from; empty to keep those the potential has already, or
        else to take the held-out ones.
    data
        What the held-out frames are, for the record.

    Raises
    ------
    DataError
        If the model has one member, or there are too few labels.
    """
    if potential.n_members < 2:
        raise DataError(
            "a model with one member has no spread to calibrate; train an ensemble (--members 8)"
        )
    labelled = [frame for frame in held_out if frame.forces is not None]
    if not labelled:
        raise DataError("no held-out frame has forces; calibration compares their errors to spreads")
    predictions = predict_frames(potential, labelled)
    kept = (potential.calibration or {}).get("shortest_distances")
    distances = (
        shortest_distances(training or labelled, potential) if training or not kept else kept
    )
    record = calibrate(held_out_errors(labelled, predictions), distances, data)
    return replace(potential, calibration=record)


def calibration_report(
    potential: Potential, frames: Sequence[Frame]
) -> dict[str, dict[str, float]]:
    """``calibration.quality`` of forces and energies, by raw spread and by calibrated error bar."""
    labelled = [frame for frame in frames if frame.forces is not None]
    predictions = predict_frames(potential, labelled)
    errors = held_out_errors(labelled, predictions)
    report = {"force spread": quality(errors.force_errors, errors.force_spreads)}
    known = np.isfinite(errors.energy_errors)
    energy_errors = errors.energy_errors[known, None]
    if known.sum() > 2:
        report["energy spread"] = quality(energy_errors, errors.energy_spreads[known])
    if potential.calibration is not None:
        bars = force_error_bars(
            potential.calibration, errors.symbols.tolist(), errors.force_spreads
        )
        report["force error bar"] = quality(errors.force_errors, bars)
        energy_bars = np.array(
            [
                energy_error_bar(potential.calibration, n, s)
                for n, s in zip(errors.frame_sizes, errors.energy_spreads, strict=True)
            ]
        )
        if known.sum() > 2:
            report["energy error bar"] = quality(energy_errors, energy_bars[known])
    return report


def predict_frames(potential: Potential, frames: Sequence[Frame]) -> list[Prediction]:
    """Predictions with members' forces, evaluated in batches."""
    evaluator, predictions = Evaluator(potential), []
    batch: list[System] = []
    for k, frame in enumerate(frames):
        types = types_of(frame, potential.elements)
        batch.append(System(types, pairs_of(frame, types, potential.r_cut), frame.volume))
        if k + 1 == len(frames) or sum(len(s.types) for s in batch) >= BATCH_ATOMS:
            predictions += evaluator.evaluate(batch, "forces")
            batch = []
    return predictions


def held_out_errors(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> HeldOut:
    """Errors and raw spreads of labelled frames; energies after removing the mean offset per atom."""
    sizes = np.array([len(frame.symbols) for frame in frames])
    energy_errors = np.array(
        [
            np.nan if frame.energy is None else p.energy - frame.energy
            for frame, p in zip(frames, predictions, strict=True)
        ]
    )
    if np.isfinite(energy_errors).any():
        energy_errors = energy_errors - sizes * np.nanmean(energy_errors / sizes)
    return HeldOut(
        np.concatenate([frame.symbols for frame in frames]),
        np.concatenate(
            [p.forces - frame.forces for frame, p in zip(frames, predictions, strict=True)]
        ),
        np.concatenate([p.forces_std for p in predictions]),
        sizes,
        energy_errors,
        np.array([p.energy_std for p in predictions]),
    )


def shortest_distances(frames: Sequence[Frame], potential: Potential) -> dict[str, float]:
    """Shortest distance in Å of every pair of elements, "A-B"; r_cut for pairs that never come inside it."""
    elements = potential.elements
    n = len(elements)
    shortest = np.full(n * n, potential.r_cut)
    for frame in frames:
        types = types_of(frame, elements)
        pairs = pairs_of(frame, types, potential.r_cut)
        lengths = np.linalg.norm(pairs.vectors, axis=1)
        np.minimum.at(shortest, types[pairs.centers] * n + types[pairs.neighbors], lengths)
    return {
        f"{elements[a]}-{elements[b]}": round(float(shortest[a * n + b]), 4)
        for a in range(n)
        for b in range(a, n)
    }
