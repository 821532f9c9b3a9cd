"""Calibrate the spreads of a potential on frames that it was not trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from neuralil_ase.calibration import HeldOut, calibrate, energy_error_bar, force_error_bars, quality
from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.dataset import Frame, pairs_of, types_of
from neuralil_ase.evaluation.metrics import Comparison
from neuralil_ase.evaluation.predict import evaluate
from neuralil_ase.model.potential import Potential


def calibrate_potential(
    potential: Potential,
    held_out: Sequence[Frame],
    training: Sequence[Frame],
    data: str,
    comparison: Comparison | None = None,
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
    comparison
        Of the held-out frames, if it has been made already.

    Raises
    ------
    DataError
        If the model has one member, or there are too few labels.
    """
    if potential.n_members < 2:
        raise DataError(
            "a model with one member has no spread to calibrate; train an ensemble (--members 8)"
        )
    if all(frame.forces is None for frame in held_out):
        raise DataError(
            "no held-out frame has forces; calibration compares their errors to spreads"
        )
    comparison = comparison or evaluate(potential, held_out).comparison
    kept = (potential.calibration or {}).get("shortest_distances")
    distances = kept
    if training or not kept:
        distances = shortest_distances(training or held_out, potential)
    return replace(
        potential, calibration=calibrate(held_out_errors(comparison), distances or {}, data)
    )


def calibration_report(
    calibration: Mapping[str, object] | None, comparison: Comparison
) -> dict[str, dict[str, float]]:
    """``calibration.quality`` of forces and energies, by raw spread and by calibrated error bar.

    Empty without forces. Atoms of elements that the calibration has no error bar for are left out of its columns.
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
    bars = force_error_bars(calibration, symbols, errors.force_spreads, errors.force_noise)
    with_bar = np.isfinite(bars)
    if with_bar.sum() > 2:
        report["force error bar"] = quality(errors.force_errors[with_bar], bars[with_bar])
    if known.sum() > 2 and "energy_floor" in calibration:
        noise = [None] * len(known) if errors.energy_noise is None else errors.energy_noise
        energy_bars = [
            energy_error_bar(calibration, *of_frame)
            for of_frame in zip(errors.frame_sizes, errors.energy_spreads, noise, strict=True)
        ]
        report["energy error bar"] = quality(energy_errors, np.array(energy_bars)[known])
    return report


def held_out_errors(comparison: Comparison) -> HeldOut:
    """Errors and raw spreads of the frames with forces; energies after removing the mean offset per atom."""
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
