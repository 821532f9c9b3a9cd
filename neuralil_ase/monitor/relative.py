"""Criteria in units of what is usual for an element or a pair, and the shortest distances of training data for them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from neuralil_ase.calibration import USUAL_QUANTILE, Calibration
from neuralil_ase.engine import neighbors
from neuralil_ase.engine.neighbors import NeighborList, Pairs
from neuralil_ase.errors import ConfigError, MonitorError
from neuralil_ase.monitor.criteria import Criterion, entry
from neuralil_ase.monitor.targets import PredictionLike


@dataclass(frozen=True)
class RelativeCriterion(Criterion):
    """Base of criteria that divide by usual values. By default, these values come from the model's calibration."""

    usual: Mapping[str, float] | None = None

    def resolved(self, calibration: Calibration | None) -> Self:
        """As in the base class; also fills in ``usual``."""
        found = super().resolved(calibration)
        if self.usual is not None:
            return found
        return replace(found, usual=self.taken_from(calibration, self.usual_values))

    def usual_values(self, calibration: Calibration) -> dict[str, float]:
        """What is usual for a model with this calibration. Errors become a MonitorError, as in :meth:`bands`."""
        raise NotImplementedError(f"{type(self).__name__} has no usual_values()")


@dataclass(frozen=True)
class RelativeForceSpread(RelativeCriterion):
    """Largest force spread in units of the usual spread of the element; one threshold is valid for all elements.

    Parameters
    ----------
    usual : mapping of str to float, optional
        Usual force spread of each element, eV/Å, e.g. ``{"H": 0.15, "N": 0.3}``. Without it, the `quantile` of the
        spreads on held-out data, which the model's calibration holds.
    quantile : float
        Which of the stored quantiles; only used without `usual`.
    low : float or None
        1 by default: the usual spread itself. None takes the model's own ``relative_thresholds``, which belong to the
        stored spreads and the default `quantile`.
    """

    low: float | None = 1.0
    quantile: float = USUAL_QUANTILE

    kind = "relative_force_std"
    needs = "forces"

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) force spread divided by the usual spread of the element."""
        usual = self.usual or {}
        missing = sorted(set(atoms.symbols) - set(usual))
        if missing:
            raise MonitorError(
                f"{self.name}: no usual spread for {', '.join(missing)}; give usual={{element: eV/Å}} for every "
                "element of the structure"
            )
        return prediction.forces_std / np.array([usual[symbol] for symbol in atoms.symbols])

    def bands(self, calibration: Calibration) -> tuple[float, float | None]:
        """The model's own thresholds. They apply only without `usual` and with the default `quantile`."""
        if self.usual is not None or self.quantile != USUAL_QUANTILE:
            return super().bands(calibration)
        thresholds = entry(calibration, "relative_thresholds")
        return thresholds["low"], thresholds["high"]

    def usual_values(self, calibration: Calibration) -> dict[str, float]:
        """The stored quantile of every element's spreads, eV/Å."""
        table = entry(calibration, "force_std_quantiles")
        return {element: _pick(stored, self.quantile, element) for element, stored in table.items()}


@dataclass(frozen=True)
class ShortestDistance(RelativeCriterion):
    """Shortest distance as a fraction of the shortest one in training, per pair of elements.

    Finds exploded or collapsed frames, even if the members agree on them. Small values are bad: ``low = 0.9``
    flags a pair at 90 % of the shortest distance the model has seen, ``high = 0.8`` at 80 %.

    Parameters
    ----------
    usual : mapping of str to float, optional
        Shortest distance in the training data of each pair, Å, e.g. ``{"H-N": 1.01}`` (see
        `shortest_distances`). Without it, those in the model's calibration.
    """

    low: float | None = 0.9

    kind = "distance_fraction"
    below = True

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) smallest fraction among each atom's pairs; inf where no neighbour is near."""
        shortest = normalised(self.usual or {})
        self._refuse_unknown_pairs(atoms, shortest)
        if not np.isfinite(atoms.positions).all():
            return np.full(len(atoms), np.nan)
        first, second, distance = close_pairs(atoms, 1.2 * max(shortest.values()))
        usual = _usual_distances(atoms, first, second, shortest)
        fractions = np.full(len(atoms), np.inf)
        known = np.isfinite(usual)
        np.minimum.at(fractions, first[known], distance[known] / usual[known])
        return fractions

    def usual_values(self, calibration: Calibration) -> dict[str, float]:
        """The shortest distances in the training data, Å."""
        return dict(entry(calibration, "shortest_distances"))

    def _refuse_unknown_pairs(self, atoms: Atoms, shortest: Mapping[str, float]) -> None:
        counts = atoms.symbols.formula.count()
        pairs = {pair_key(a, b) for a in counts for b in counts if a != b or counts[a] > 1}
        missing = sorted(pairs - set(shortest))
        if missing or not shortest:
            raise MonitorError(
                f"{self.name}: no usual distance for {', '.join(missing) or 'any pair'}; give "
                "usual=shortest_distances(training_frames), or the pairs by hand in Å"
            )


def _usual_distances(
    atoms: Atoms, first: np.ndarray, second: np.ndarray, shortest: Mapping[str, float]
) -> np.ndarray:
    """(P,) usual distance of each pair, Å.

    NaN where no usual distance is known: for an element with a single atom, which has pairs only with its own images.
    """
    table = np.full((len(chemical_symbols), len(chemical_symbols)), np.nan)
    for pair, distance in shortest.items():
        a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
        table[a, b] = table[b, a] = distance
    return table[atoms.numbers[first], atoms.numbers[second]]


def close_pairs(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ordered pairs closer than `cutoff` (Å), periodic images included: i, j, distance in Å."""
    pairs = _pairs(atoms, cutoff)
    return pairs.centers, pairs.neighbors, np.linalg.norm(pairs.vectors, axis=1)


def _pairs(atoms: Atoms, cutoff: float) -> Pairs:
    types = np.zeros(len(atoms), dtype=int)
    found = NeighborList(cutoff, skin=0)
    return found.pairs(atoms.positions, atoms.cell.array, atoms.pbc, types)


def pair_key(a: str, b: str) -> str:
    """The name of a pair of elements: symbols in alphabetic order, e.g. ``"H-N"``."""
    return "-".join(sorted((a, b)))


def normalised(distances: Mapping[str, float]) -> dict[str, float]:
    """Distances (Å) under the names of `pair_key`.

    Raises
    ------
    ConfigError
        If a key is not a pair of elements or a distance is not a positive, finite number.
    """
    result = {}
    for pair, distance in distances.items():
        symbols = pair.split("-")
        if len(symbols) != 2 or not all(symbol in atomic_numbers for symbol in symbols):
            raise ConfigError(f"{pair!r} is not a pair of elements; write it as in 'H-N'")
        if not (np.isfinite(distance) and distance > 0):
            raise ConfigError(f"{pair} = {distance} is not a distance in Å above 0")
        result[pair_key(*symbols)] = float(distance)
    return result


def shortest_distances(frames: Iterable[Atoms], cutoff: float = 3.0) -> dict[str, float]:
    """Shortest distance of every pair of elements over `frames`, as `usual` of :class:`ShortestDistance`.

    Parameters
    ----------
    frames : iterable of Atoms
        The training data.
    cutoff : float
        Å. A pair that never comes closer gets the cutoff itself, so that much shorter distances count as new.

    Returns
    -------
    dict of str to float
        Å, by ``"A-B"`` with symbols in alphabetic order, for all pairs of the elements that occur.
    """
    elements: set[int] = set()

    def structures() -> Iterator[tuple[Pairs, np.ndarray]]:
        for atoms in frames:
            elements.update(atoms.numbers.tolist())
            yield _pairs(atoms, cutoff), atoms.numbers

    table = np.minimum(neighbors.shortest_distances(structures(), len(chemical_symbols)), cutoff)
    return {
        pair_key(chemical_symbols[a], chemical_symbols[b]): float(table[a, b])
        for a in sorted(elements)
        for b in sorted(elements)
        if a <= b
    }


def _pick(quantiles: Mapping[str, float], wanted: float, element: str) -> float:
    for key, value in quantiles.items():
        if abs(float(key) - wanted) < 1e-9:
            return value
    stored = ", ".join(quantiles)
    raise MonitorError(
        f"the calibration holds no {wanted} quantile for {element}, but {stored}; choose one of these with quantile="
    )
