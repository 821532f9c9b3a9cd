"""Criteria: the numbers that are monitored, and their thresholds.

A criterion reads one number from a structure and its prediction, and names the atom to which this number belongs. Below
``low`` a frame is trusted, from ``low`` on it is a candidate for labelling, from ``high`` on it is useless. A number
that is not finite counts as high, so that an exploded frame is never trusted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from numbers import Integral, Real
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError, MonitorError
from neuralil_ase.monitor.readings import Band, Check, Reading
from neuralil_ase.monitor.targets import PredictionLike
from neuralil_ase.prediction import Uncertainty

_T = TypeVar("_T")


@dataclass(frozen=True)
class Criterion:
    """Base of all criteria: thresholds, and the atoms that are considered.

    A criterion of your own sets ``kind`` (its name in the log) and ``unit``, and has either ``values`` (one number per
    atom, of which the worst counts) or ``read`` (one number for the frame). With ``needs = "forces"`` the members'
    forces are evaluated. With ``bands`` it takes its thresholds from the model's calibration.

    Parameters
    ----------
    low, high : float, optional
        Where the bands begin, in the unit of the criterion. Without ``low``, :meth:`bands` gives both; without ``high``
        there is a single threshold.
    elements : tuple of str, optional
        Look at these elements only, e.g. ``("N", "H")``.
    indices : tuple of int, optional
        Look at these atoms only.
    label : str, optional
        Name in the log; needed when two criteria would otherwise have the same one.

    Raises
    ------
    ConfigError
        If the thresholds are not finite, not positive or in the wrong order, or if another option makes no sense.

    Examples
    --------
    >>> class NitrogenSpread(MaxForceSpread):
    ...     kind = "nitrogen_std"
    ...     def bands(self, calibration):
    ...         usual = calibration.force_std_quantiles["N"]["0.99"]
    ...         return 2 * usual, 4 * usual
    >>> criterion = NitrogenSpread(elements=("N",))
    """

    low: float | None = None
    high: float | None = None
    elements: tuple[str, ...] | None = None
    indices: tuple[int, ...] | None = None
    label: str | None = None

    kind: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    needs: ClassVar[Uncertainty] = "energy"
    below: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._check_thresholds()
        for name in ("elements", "indices"):
            chosen = getattr(self, name)
            if isinstance(chosen, str | int):
                raise ConfigError(f"{type(self).__name__}: give {name} as a tuple, ({chosen!r},)")
            if chosen is not None:
                object.__setattr__(self, name, tuple(chosen))
        unknown: list[Any] = [s for s in self.elements or () if s not in atomic_numbers]
        unknown += [
            i for i in self.indices or () if isinstance(i, bool) or not isinstance(i, Integral)
        ]
        if unknown:
            raise ConfigError(
                f"{type(self).__name__}: {unknown[0]!r} is neither the symbol of an element nor the index of an atom"
            )
        if self.label is not None and not names_column(self.label):
            raise ConfigError(
                f"label {self.label!r} names a column of the log: give a name that is not empty and has no blanks"
            )

    @property
    def name(self) -> str:
        """Name of the criterion in logs: its label, or its kind and elements."""
        if self.label is not None:
            return self.label
        suffix = "" if self.elements is None else "_" + "".join(self.elements)
        return self.kind + suffix + ("" if self.indices is None else "_selection")

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) value of each atom, in the unit of the criterion.

        Raises
        ------
        NotImplementedError
            If a criterion of your own has neither this method nor ``read``.
        UncertaintyError
            If the prediction lacks what the criterion reads.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither values() nor read()")

    def read(self, atoms: Atoms, prediction: PredictionLike) -> Reading:
        """The worst value among the chosen atoms, the atom it belongs to, and the thresholds."""
        chosen = self.chosen(atoms)
        values = np.asarray(self.values(atoms, prediction), dtype=float)
        if values.shape != (len(atoms),):
            raise MonitorError(
                f"{self.name}: values() of {type(self).__name__} has the shape {values.shape} for {len(atoms)} atoms; "
                "it must return one number per atom"
            )
        values = values[chosen]
        worst = int(np.argmin(values) if self.below else np.argmax(values))
        return self.reading(values[worst], int(chosen[worst]))

    def reading(self, value: float, atom: int | None = None) -> Reading:
        """A reading of this criterion: its value, the atom it belongs to (None: the whole frame), the thresholds."""
        if self.low is None:
            raise MonitorError(f"{self.name}: no threshold; give low= to {type(self).__name__}")
        return Reading(self.name, self.unit, float(value), atom, self.low, self.high, self.below)

    def chosen(self, atoms: Atoms) -> np.ndarray:
        """Indices of the chosen atoms, in the order of ``indices``.

        Raises
        ------
        MonitorError
            If there are none, or an index is larger than the structure.
        """
        chosen = np.arange(len(atoms))
        if self.indices is not None:
            wanted = np.asarray(self.indices, dtype=int)
            if wanted.size and not (-len(atoms) <= wanted.min() and wanted.max() < len(atoms)):
                raise MonitorError(
                    f"{self.name}: indices reach beyond the {len(atoms)} atoms of the structure; count from 0"
                )
            chosen = chosen[wanted]
        if self.elements is not None:
            chosen = chosen[np.isin(np.asarray(atoms.symbols)[chosen], self.elements)]
        if chosen.size == 0:
            raise MonitorError(
                f"{self.name}: no atom to look at: elements = {self.elements}, indices = {self.indices}, structure "
                f"{atoms.symbols.formula}. Usually the element is misspelled or not part of this system"
            )
        return chosen

    def bands(self, calibration: Calibration) -> tuple[float, float | None]:
        """Thresholds (low, high) for a model with this calibration, used if ``low`` was not given.

        Raises
        ------
        MonitorError
            If this criterion takes none from a model.
        KeyError, AttributeError
            If the calibration lacks what is needed; :meth:`resolved` turns it into a MonitorError that says so.
        """
        raise MonitorError(
            f"{self.name} has no threshold and none can be taken from a model; give low= to {type(self).__name__}"
        )

    def resolved(self, calibration: Calibration | None) -> Self:
        """This criterion, with missing thresholds filled in from the model's calibration.

        Parameters
        ----------
        calibration : Calibration or None
            None for a model without one.

        Raises
        ------
        MonitorError
            If the calibration lacks what is needed.
        """
        if self.low is not None:
            return self
        low, high = self.taken_from(calibration, self.bands)
        return replace(self, low=low, high=high if self.high is None else self.high)

    def taken_from(self, calibration: Calibration | None, take: Callable[[Any], _T]) -> _T:
        """``take(calibration)``; a MonitorError if the calibration lacks what ``take`` needs."""
        try:
            return take(calibration)
        except (AttributeError, LookupError, TypeError, ValueError) as problem:
            why = (
                "it has no calibration"
                if calibration is None
                else f"its calibration does not hold them ({type(problem).__name__}: {problem})"
            )
            raise MonitorError(
                f"{self.name} takes numbers from the calibration of the model, but {why}. Give them yourself "
                "(threshold= of the monitor; low= or usual= of the criterion), or calibrate the model on held-out "
                "data with neuralil-ase calibrate MODEL DATA"
            ) from problem

    def _check_thresholds(self) -> None:
        for name, value in (("low", self.low), ("high", self.high)):
            if value is not None and not (
                isinstance(value, Real) and isfinite(value) and value > 0
            ):
                raise ConfigError(
                    f"{type(self).__name__}: {name} = {value!r} is not a threshold; give a finite number above 0"
                )
        if self.high is None or self.low is None:
            return
        if (self.high > self.low) if self.below else (self.high < self.low):
            raise ConfigError(
                f"{type(self).__name__}: high = {self.high} comes before low = {self.low}; high is the band of the "
                f"worse values, here the {'smaller' if self.below else 'larger'} ones"
            )


@dataclass(frozen=True)
class MaxForceSpread(Criterion):
    """Largest spread of a force over the chosen atoms, eV/Å. Follows the single worst atom."""

    kind = "max_force_std"
    unit = "eV/Å"
    needs = "forces"

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) force spread, eV/Å."""
        return prediction.forces_std

    def bands(self, calibration: Calibration) -> tuple[float, float | None]:
        """The model's own thresholds for this criterion, eV/Å."""
        thresholds = entry(calibration, "thresholds")
        return thresholds["low"], thresholds["high"]


@dataclass(frozen=True)
class MaxForceErrorBar(Criterion):
    """Largest calibrated error bar of a force over the chosen atoms, eV/Å: the expected size of its error.

    Unlike a spread, an error bar can be compared with the accuracy that a study needs. ``low`` has no default. The
    model must be calibrated for all elements of the structure.
    """

    kind = "max_force_error_bar"
    unit = "eV/Å"
    needs = "forces"

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) error bar of each force, eV/Å.

        Raises
        ------
        MonitorError
            If the calibration of the model does not know an element of the structure.
        UncertaintyError
            If the prediction holds no error bars.
        """
        bars = prediction.forces_error_bar
        without = np.isnan(bars) & np.isfinite(prediction.forces_std)
        if without.any():
            missing = ", ".join(sorted(set(atoms.symbols[without])))
            raise MonitorError(
                f"{self.name}: the model has no error bars for {missing}; calibrate it on held-out data with these "
                "elements, or leave them out with elements="
            )
        return bars

    def resolved(self, calibration: Calibration | None) -> Self:
        """As in the base class; also refuses a model that is not calibrated."""
        found = super().resolved(calibration)
        if calibration is None:
            raise MonitorError(
                f"{self.name} needs error bars, and the model is not calibrated: run neuralil-ase calibrate MODEL DATA "
                "on held-out data, or watch MaxForceSpread"
            )
        return found


@dataclass(frozen=True)
class MeanForceSpread(Criterion):
    """Mean spread of the forces over the chosen atoms, eV/Å. Fluctuates little, but does not see a single bad atom."""

    kind = "mean_force_std"
    unit = "eV/Å"
    needs = "forces"

    def read(self, atoms: Atoms, prediction: PredictionLike) -> Reading:
        """The mean over the chosen atoms, with no atom named."""
        return self.reading(np.mean(prediction.forces_std[self.chosen(atoms)]))


@dataclass(frozen=True)
class MaxEnergySpread(Criterion):
    """Largest spread of an atomic energy over the chosen atoms, eV. Cheap: needs no forces of the members."""

    kind = "max_energy_std"
    unit = "eV"

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) spread of the atomic energies, eV."""
        return prediction.energies_std


@dataclass(frozen=True)
class EnergySpreadPerAtom(Criterion):
    """Spread of the total energy divided by the number of atoms, eV. Cheap: needs no forces of the members."""

    kind = "energy_std_per_atom"
    unit = "eV"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elements is not None or self.indices is not None:
            raise ConfigError(
                "EnergySpreadPerAtom takes no elements or indices: the spread of the total energy belongs to the "
                "whole frame. MaxEnergySpread looks at single atoms"
            )

    def read(self, atoms: Atoms, prediction: PredictionLike) -> Reading:
        """``energy_std / N``, with no atom named."""
        return self.reading(prediction.energy_std / len(atoms))


def checked(
    criteria: Sequence[Criterion], calculator: Any, atoms: Atoms, with_forces: bool
) -> Check | None:
    """Evaluate the criteria that are due; None if there are none. The caller sets step and image.

    Without `with_forces` only the criteria that need no member forces are due. When one of these leaves the trusted
    band, all are evaluated, so that a flagged frame always has its force spread.
    """
    due = [c for c in criteria if with_forces or c.needs == "energy"]
    if not due:
        return None
    needs: Uncertainty = "forces" if any(c.needs == "forces" for c in due) else "energy"
    result = _check(due, calculator, atoms, needs, complete=len(due) == len(criteria))
    if needs == "energy" and result.band > Band.TRUSTED:
        return _check(criteria, calculator, atoms, "forces", complete=True)
    return result


def one_member() -> MonitorError:
    """The error for a model without a spread."""
    return MonitorError(
        "the model has a single member, so it has no spread to watch. Use an ensemble of two or "
        "more members (train with several, or import a committee)"
    )


def _check(
    criteria: Sequence[Criterion],
    calculator: Any,
    atoms: Atoms,
    needs: Uncertainty,
    complete: bool,
) -> Check:
    prediction = calculator.prediction(atoms, uncertainty=needs)
    if len(prediction.member_energies) < 2:
        raise one_member()
    readings = tuple(criterion.read(atoms, prediction) for criterion in criteria)
    return Check(0, None, prediction, readings, complete)


def names_column(name: str) -> bool:
    """Whether a column of the log can have this name."""
    return bool(name) and name.isprintable() and not any(character.isspace() for character in name)


def entry(calibration: Calibration, name: str) -> Any:
    """A field of a calibration; a KeyError where it is empty."""
    found = getattr(calibration, name)
    if not found:
        raise KeyError(name)
    return found
