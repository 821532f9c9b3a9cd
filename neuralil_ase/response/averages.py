"""Error bars of averages along a run, by reweighting. No further runs are needed.

A run at temperature T samples exp(-V/kT), where V is the mean potential. A run with member m would have given
the average

    ⟨a⟩_m = ⟨a w_m⟩ / ⟨w_m⟩,    w_m = exp(-(V_m - V)/kT)                      (direct)
    ⟨a⟩_m ≈ ⟨a⟩ - [⟨a (V_m - V)⟩ - ⟨a⟩ ⟨V_m - V⟩] / kT                        (second cumulant)

The first formula is exact except for sampling errors. It fails if a few frames carry all the weight, as in large
systems. The second is its linear approximation and works for any size. Imbalzano et al., J. Chem. Phys. 154, 074102
(2021).
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from scipy.special import logsumexp

from neuralil_ase.array_record import ArrayRecord
from neuralil_ase.errors import DataError, UncertaintyError
from neuralil_ase.farm import predict_many
from neuralil_ase.model.potential import Potential
from neuralil_ase.response.estimate import Estimate, error_scale

FEWEST = 0.1
"""Smallest effective fraction of the frames, averaged over members, for which direct reweighting is used."""


@dataclass(frozen=True, eq=False, repr=False)
class ThermalAverage(ArrayRecord):
    """An average along a run of T frames, and the averages that runs with the M members would have given.

    Attributes
    ----------
    direct, cumulant
        Estimates by direct reweighting and by the second cumulant. The members are first scaled by the calibration
        (V + scale (V_m - V)), so that spread and error bar are the same.
    statistical_error
        Standard error of the average from a block analysis. A longer run makes it smaller.
    effective_frames
        Effective number of frames (Σ w)² / Σ w² of the direct estimate for each member, shape (M,).
    n_frames
        Number of frames T.
    """

    direct: Estimate
    cumulant: Estimate
    statistical_error: float | np.ndarray
    effective_frames: np.ndarray
    n_frames: int

    @property
    def method(self) -> Literal["direct", "cumulant"]:
        """The estimate to use: "direct" if at least a tenth of the frames are effective, else "cumulant"."""
        is_carried = self.effective_frames.mean() >= FEWEST * self.n_frames
        return "direct" if is_carried else "cumulant"

    @property
    def estimate(self) -> Estimate:
        """The estimate of :attr:`method`."""
        return self.direct if self.method == "direct" else self.cumulant


def thermal_average(
    observable: np.ndarray | Callable[[Atoms], Any],
    frames: Iterable[Atoms],
    potential: Potential,
    temperature: float,
    *,
    unit: str = "",
    member_energies: np.ndarray | None = None,
) -> ThermalAverage:
    """Average of an observable along a run, with its error bar from the members of the potential.

    Parameters
    ----------
    observable
        Values along the run, shape (T, …), or a function of a frame that returns a number or an array.
    frames
        Structures sampled with the mean potential after equilibration, all with equal weight; for instance a trajectory
        file read by ASE.
    potential
        The ensemble that was used for the run.
    temperature
        Temperature of the run in K.
    unit
        Unit of the observable.
    member_energies
        Energies of the members in eV, shape (T, M), if they were saved. Otherwise they are computed from the frames.

    Raises
    ------
    UncertaintyError
        If the potential has one member.
    DataError
        If there are fewer than two frames, shapes differ, or the temperature is not positive.

    Warns
    -----
    UserWarning
        If less than a tenth of the frames are effective in the direct estimate. The second cumulant is then used.
    """
    if potential.n_members < 2:
        raise UncertaintyError("the model has one member, and a spread needs two; use an ensemble")
    if not temperature > 0:
        raise DataError(f"the temperature must be positive, in K, got {temperature}")
    structures = list(frames)
    values = np.asarray(
        [observable(frame) for frame in structures] if callable(observable) else observable, float
    )
    if member_energies is None:
        predictions = predict_many(potential, structures, uncertainty="energy")
        energies = np.array([np.asarray(p.member_energies) for p in predictions])
    else:
        energies = np.asarray(member_energies, float)
    if len(values) < 2 or energies.shape != (len(values), potential.n_members):
        raise DataError(
            f"{len(values)} values along the run and member energies of shape {energies.shape} do not belong together; "
            f"give at least two frames, and energies of shape (frames, {potential.n_members})"
        )
    scale = error_scale(potential, potential.elements)
    found = _reweighted(values, energies, units.kB * temperature, scale, unit)
    if found.method == "cumulant":
        warnings.warn(
            f"on average only {found.effective_frames.mean():.1f} of {found.n_frames} frames are effective in the "
            "reweighted averages, too few to be trusted. The estimate is the second cumulant instead, which is valid "
            "if the averages of the members differ little",
            stacklevel=2,
        )
    return found


def _reweighted(
    values: np.ndarray, energies: np.ndarray, kt: float, scale: float | None, unit: str
) -> ThermalAverage:
    flat = values.reshape(len(values), -1)
    deviations = (energies - energies.mean(axis=1, keepdims=True)) * (scale or 1.0) / kt
    log_weights = -deviations - logsumexp(-deviations, axis=0)
    weights = np.exp(log_weights)  # (T, M), of sum 1
    mean = flat.mean(axis=0)
    direct = weights.T @ flat
    centred = deviations - deviations.mean(axis=0)
    cumulant = mean - centred.T @ (flat - mean) / len(flat)
    value, shape = _plain(mean.reshape(values.shape[1:])), (-1, *values.shape[1:])
    bar = None if scale is None else 1.0
    return ThermalAverage(
        Estimate(value, direct.reshape(shape), unit, bar),
        Estimate(value, cumulant.reshape(shape), unit, bar),
        _plain(_block_error(flat).reshape(values.shape[1:])),
        1 / (weights**2).sum(axis=0),
        len(values),
    )


def _block_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean: the largest value over all block lengths with at least sixteen blocks.

    Flyvbjerg and Petersen, J. Chem. Phys. 91, 461 (1989).
    """
    errors = []
    while True:
        errors.append(values.std(axis=0, ddof=1) / np.sqrt(len(values)))
        if len(values) < 32:
            return np.max(errors, axis=0)
        even = len(values) // 2 * 2
        values = (values[:even:2] + values[1:even:2]) / 2


def _plain(value: np.ndarray) -> float | np.ndarray:
    return value.item() if value.ndim == 0 else value
