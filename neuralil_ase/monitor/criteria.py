"""Criteria: what is watched, and where its bands begin.

A criterion reads one number out of a structure and its prediction and names the atom it belongs to.
Below ``low`` a frame is trusted, from ``low`` it is a candidate for labelling, from ``high`` it is
beyond use. Numbers that are not finite count as high: an exploded frame must never pass as trusted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from neuralil_ase.errors import ConfigError, MonitorError
from neuralil_ase.monitor.pairs import close_pairs, normalised, pair_key
from neuralil_ase.monitor.protocols import Needs, PredictionLike
from neuralil_ase.monitor.readings import Reading


@dataclass(frozen=True)
class Criterion:
    """Base of all criteria: bands, and the atoms that are looked at.

    Parameters
    ----------
    low, high : float, optional
        Where the bands begin, in the unit of the criterion. Without ``low``, the model's own
        calibration is asked for it; without ``high`` there is a single threshold.
    elements : tuple of str, optional
        Look at these elements only, e.g. ``("N", "H")``.
    indices : tuple of int, optional
        Look at these atoms only.
    label : str, optional
        Name in the log; needed when two criteria would otherwise have the same one.

    Raises
    ------
    ConfigError
        If the bands are not finite, not positive or in the wrong order.
    """

    low: float | None = None
    high: float | None = None
    elements: tuple[str, ...] | None = None
    indices: tuple[int, ...] | None = None
    label: str | None = None

    kind: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    needs: ClassVar[Needs] = "energy"
    below: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, bound in (("low", self.low), ("high", self.high)):
            if bound is not None and not (isfinite(bound) and bound > 0):
                raise ConfigError(
                    f"{type(self).__name__}: {name} = {bound} is not a threshold; "
                    "give a finite number above 0."
                )
        if self.high is not None and self.low is not None:
            self._check_order(self.low, self.high)
        for name in ("elements", "indices"):
            chosen = getattr(self, name)
            if isinstance(chosen, str):
                raise ConfigError(f"{type(self).__name__}: give {name} as a tuple, ({chosen!r},).")
            if chosen is not None:
                object.__setattr__(self, name, tuple(chosen))
        if self.label is not None and (not self.label or any(c.isspace() for c in self.label)):
            raise ConfigError(f"label {self.label!r} names a log column: no blanks, not empty.")

    @property
    def name(self) -> str:
        """Name of the criterion in logs: its label, or its kind and elements."""
        if self.label is not None:
            return self.label
        suffix = "" if self.elements is None else "_" + "".join(self.elements)
        return self.kind + suffix + ("" if self.indices is None else "_selection")

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) value of each atom."""
        raise NotImplementedError  # not needed where `read` is replaced: a frame as a whole has one value

    def read(self, atoms: Atoms, prediction: PredictionLike) -> Reading:
        """The worst value among the chosen atoms, the atom it belongs to, and the thresholds."""
        chosen = self.chosen(atoms)
        values = np.asarray(self.values(atoms, prediction))[chosen]
        worst = int(np.argmin(values) if self.below else np.argmax(values))
        return self._reading(float(values[worst]), int(chosen[worst]))

    def chosen(self, atoms: Atoms) -> np.ndarray:
        """Indices of the atoms that are looked at; a MonitorError if there is none."""
        chosen = np.arange(len(atoms))
        if self.indices is not None:
            wanted = np.asarray(self.indices, dtype=int)
            if wanted.size and not (-len(atoms) <= wanted.min() and wanted.max() < len(atoms)):
                raise MonitorError(
                    f"{self.name}: indices reach beyond the {len(atoms)} atoms of the structure; "
                    "count from 0."
                )
            chosen = chosen[wanted]
        if self.elements is not None:
            chosen = chosen[np.isin(np.asarray(atoms.symbols)[chosen], self.elements)]
        if chosen.size == 0:
            raise MonitorError(
                f"{self.name}: no atom to look at: elements = {self.elements}, "
                f"indices = {self.indices}, structure {atoms.symbols.formula}. Usually the element "
                "is misspelled or not part of this system."
            )
        return chosen

    def _reading(self, value: float, atom: int | None) -> Reading:
        if self.low is None:
            raise MonitorError(f"{self.name}: no threshold; give low= to {type(self).__name__}.")
        return Reading(self.name, self.unit, value, atom, self.low, self.high, self.below)

    def _check_order(self, low: float, high: float) -> None:
        if (high > low) if self.below else (high < low):
            raise ConfigError(
                f"{type(self).__name__}: high = {high} comes before low = {low}; high is the band "
                f"of the worse values, here the {'smaller' if self.below else 'larger'} ones."
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


@dataclass(frozen=True)
class MeanForceSpread(Criterion):
    """Mean spread of the forces over the chosen atoms, eV/Å. Steady, blind to one bad atom."""

    kind = "mean_force_std"
    unit = "eV/Å"
    needs = "forces"

    def read(self, atoms: Atoms, prediction: PredictionLike) -> Reading:
        """The mean over the chosen atoms; it belongs to no single atom."""
        return self._reading(float(np.mean(prediction.forces_std[self.chosen(atoms)])), None)


@dataclass(frozen=True)
class MaxEnergySpread(Criterion):
    """Largest spread of an atomic energy over the chosen atoms, eV. Cheap: no member forces."""

    kind = "max_energy_std"
    unit = "eV"

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) spread of the atomic energies, eV."""
        return prediction.energies_std


@dataclass(frozen=True)
class EnergySpreadPerAtom(Criterion):
    """Spread of the total energy divided by the number of atoms, eV. Cheap: no member forces."""

    kind = "energy_std_per_atom"
    unit = "eV"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elements is not None or self.indices is not None:
            raise ConfigError(
                "EnergySpreadPerAtom takes no elements or indices: the spread of the total energy "
                "belongs to the whole frame. MaxEnergySpread looks at single atoms."
            )

    def read(self, atoms: Atoms, prediction: PredictionLike) -> Reading:
        """``energy_std / N``; it belongs to no single atom."""
        return self._reading(float(prediction.energy_std) / len(atoms), None)


@dataclass(frozen=True)
class RelativeForceSpread(Criterion):
    """Largest force spread in units of what is usual for the element; one threshold fits all.

    Parameters
    ----------
    reference : mapping of str to float, optional
        Usual force spread of each element, eV/Å, e.g. ``{"H": 0.15, "N": 0.3}``. Without it the
        `quantile` of the held-out spreads stored in the model's calibration is used.
    quantile : float
        Which of the stored quantiles; only used without `reference`.
    low : float or None
        1 by default: the reference itself. None takes the model's own ``relative_thresholds``, for the default
        `quantile`.
    """

    low: float | None = 1.0
    reference: Mapping[str, float] | None = None
    quantile: float = 0.99

    kind = "relative_force_std"
    needs = "forces"

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) force spread over the reference of the element."""
        reference = self.reference or {}
        missing = sorted(set(atoms.symbols) - set(reference))
        if missing:
            raise MonitorError(
                f"{self.name}: no reference spread for {', '.join(missing)}; "
                "give reference={element: eV/Å} for every element of the structure."
            )
        return prediction.forces_std / np.array([reference[symbol] for symbol in atoms.symbols])


@dataclass(frozen=True)
class ShortestDistance(Criterion):
    """Shortest distance as a fraction of the shortest one in training, per pair of elements.

    Finds exploded or collapsed frames that a committee may agree on. Small is bad: ``low = 0.9``
    flags a pair at 90 % of the shortest distance the model has seen, ``high = 0.8`` at 80 %.

    Parameters
    ----------
    reference : mapping of str to float, optional
        Shortest distance in the training data of each pair, Å, e.g. ``{"H-N": 1.01}`` (see
        `shortest_distances`). Without it, the model's calibration is asked for it.
    """

    low: float | None = 0.9
    reference: Mapping[str, float] | None = None

    kind = "distance_fraction"
    below = True

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) smallest fraction among each atom's pairs; inf where no neighbour is near."""
        reference = normalised(self.reference or {})
        self._refuse_unknown_pairs(atoms, reference)
        if not np.isfinite(atoms.positions).all():
            return np.full(len(atoms), np.nan)
        first, second, distance = close_pairs(atoms, 1.2 * max(reference.values()))
        usual = _usual_distances(atoms, first, second, reference)
        fractions = np.full(len(atoms), np.inf)
        known = np.isfinite(usual)
        np.minimum.at(fractions, first[known], distance[known] / usual[known])
        return fractions

    def _refuse_unknown_pairs(self, atoms: Atoms, reference: Mapping[str, float]) -> None:
        counts = atoms.symbols.formula.count()
        pairs = {pair_key(a, b) for a in counts for b in counts if a != b or counts[a] > 1}
        missing = sorted(pairs - set(reference))
        if missing or not reference:
            raise MonitorError(
                f"{self.name}: no reference distance for {', '.join(missing) or 'any pair'}; give "
                "reference=shortest_distances(training_frames), or the pairs by hand in Å."
            )


def _usual_distances(
    atoms: Atoms, first: np.ndarray, second: np.ndarray, reference: Mapping[str, float]
) -> np.ndarray:
    """(P,) reference distance of each pair, Å.

    NaN where there is none: that is an element with a single atom, which meets only its own images.
    """
    table = np.full((119, 119), np.nan)
    for pair, distance in reference.items():
        a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
        table[a, b] = table[b, a] = distance
    return table[atoms.numbers[first], atoms.numbers[second]]


def named(criteria: Iterable[Criterion]) -> tuple[Criterion, ...]:
    """The criteria as a tuple; a ConfigError when there is none or two share a name."""
    chosen = tuple(criteria)
    names = [criterion.name for criterion in chosen]
    if not chosen:
        raise ConfigError("criteria is empty: give at least one, e.g. (MaxForceSpread(0.5),).")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"two criteria are called {twice[0]}; tell them apart with label=, which names the "
            "log column."
        )
    return chosen
