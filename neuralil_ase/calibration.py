"""Error bars from the spread of an ensemble: the calibration record of a model, and how it is applied.

The errors of the members are correlated. The spread is therefore smaller than the error. For each element, the force
error of an atom with spread s is taken as Gaussian with

    σ² = (scale · s)² + floor²

Both σ² and s² are sums over x, y, z. The floor describes noise of the labels and errors that all members share. The
energy of a frame of N atoms likewise has σ² = (scale · s)² + N floor². In models with aleatoric layers, s² is the sum
of the squares of the spread and of the aleatoric standard deviation, which members predict for their own errors. This
prediction is reliable only for structures like the training data. For an atom with an unusually large spread, the error
bar is therefore at least as large as the spread alone would give.

Errors grow more slowly than spreads: in hot copper they are as large as the spread, in cold copper four times as large.
If only spreads are used, the error bar is therefore

    σ² = (scale · s₀ (s / s₀)^exponent)² + floor²

with s₀ the 0.99 quantile of the held-out spreads of the element and an exponent between 0.5 and 1. With an exponent of
1, the default, this is the formula above. Why spreads have to be calibrated is discussed in arXiv:2302.08805.

``neuralil_ase.evaluation.calibration`` fits the record to held-out frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from neuralil_ase.errors import ConfigError, UncertaintyError

USUAL_QUANTILE = 0.99
"""Quantile of the held-out spreads of an element. Larger spreads are unusual. It is the unit of relative spreads."""
ESTIMATOR = (
    "spread: standard deviation over members, ddof 1; of a force, the norm over x, y, z. "
    "error bar: sqrt((scale * spread)^2 + floor^2), per element, where for the spread of a force alone read "
    "s0 (spread / s0)^exponent with its 0.99 quantile s0; of an energy, floor * sqrt(atoms)"
)
ESTIMATOR_WITH_ALEATORIC = (
    f"{ESTIMATOR}; for spread^2 read spread^2 + aleatoric^2, with the aleatoric standard deviation, "
    "which members predict for their own errors, but a force with a spread "
    "above the 0.99 quantile of its element has no smaller error bar than that fitted to spreads alone"
)
_CONSTANTS = {"ddof": 1, "units": {"force": "eV/Å", "energy": "eV", "distance": "Å"}}
_IN_FILES = {"uses_aleatoric": "with_noise"}
"""Fields that have another name in model files."""


@dataclass(frozen=True)
class Calibration:
    """Error bars, thresholds and shortest distances of one potential.

    Attributes
    ----------
    force_scale, force_floor
        By element: factor of the spread, and the smallest error bar in eV/Å.
    force_scale_of_spread, force_floor_of_spread
        The same, fitted to the spread alone. Only for models with aleatoric layers; empty for others.
    force_exponent
        By element: exponent of the formula for spreads alone. It belongs to ``force_scale_of_spread`` or, if that is
        empty, to ``force_scale``. Empty if all exponents are 1.
    energy_scale, energy_floor
        Factor of the spread, and error bar in eV per sqrt(atoms); None if the held-out frames had no energies.
    uses_aleatoric
        Whether scale and floor were fitted to spread and aleatoric standard deviation together.
    force_std_quantiles
        By element and quantile ("0.99"): held-out force spreads in eV/Å.
    thresholds, relative_thresholds
        "low" and "high" for the largest force spread of a structure, in eV/Å and in units of the 0.99 quantile of
        the element.
    shortest_distances
        Shortest distance in Å of every pair of elements, "A-B", in the training data.
    data, n_frames, n_atoms, estimator
        Description of the data and the method of the fit.
    """

    force_scale: Mapping[str, float]
    force_floor: Mapping[str, float]
    force_scale_of_spread: Mapping[str, float] = field(default_factory=dict)
    force_floor_of_spread: Mapping[str, float] = field(default_factory=dict)
    energy_scale: float | None = None
    energy_floor: float | None = None
    uses_aleatoric: bool = False
    force_std_quantiles: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    relative_thresholds: Mapping[str, float] = field(default_factory=dict)
    shortest_distances: Mapping[str, float] = field(default_factory=dict)
    data: str = ""
    n_frames: int = 0
    n_atoms: int = 0
    estimator: str = ESTIMATOR
    force_exponent: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            if not check(getattr(self, name)):
                raise ConfigError(
                    f"the calibration holds an invalid {name}: {getattr(self, name)!r:.200}"
                )
        for first, second in _TOGETHER:
            if _elements(getattr(self, first)) != _elements(getattr(self, second)):
                raise ConfigError(
                    f"the calibration has {first} and {second} for different elements"
                )

        known = {e for e, q in self.force_std_quantiles.items() if str(USUAL_QUANTILE) in q}
        if (
            self.force_exponent
            and not known >= self.force_exponent.keys() == self.force_scale.keys()
        ):
            raise ConfigError(
                f"the calibration has force_exponent for {', '.join(self.force_exponent)}, and needs it, with "
                f"force_scale and the {USUAL_QUANTILE} quantile in force_std_quantiles, for all its elements"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON data, as in the header of a model file; empty fields are left out."""
        plain = {name: value for name, value in asdict(self).items() if value not in (None, {})}
        return _CONSTANTS | {_IN_FILES.get(name, name): value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Calibration":
        """Inverse of :meth:`to_dict`; unknown entries are ignored.

        Raises
        ------
        ConfigError
            If an entry is missing, of the wrong type or not finite.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"a calibration is a table, not {type(data).__name__}")
        names = {_IN_FILES.get(entry.name, entry.name): entry.name for entry in fields(cls)}
        missing = {"force_scale", "force_floor"} - data.keys()
        if missing:
            raise ConfigError(f"the calibration lacks {', '.join(sorted(missing))}")
        return cls(**{names[key]: value for key, value in data.items() if key in names})

    def force_error_bars(
        self, symbols: Sequence[str], spreads: np.ndarray, aleatoric: np.ndarray | None = None
    ) -> np.ndarray:
        """Expected size (root mean square norm) of the force error of every atom in eV/Å.

        Parameters
        ----------
        symbols
            Chemical symbols, N of them; the result is NaN for elements that were not calibrated.
        spreads, aleatoric
            Spreads and aleatoric deviations in eV/Å, shape (N,).

        Returns
        -------
        ndarray, shape (N,)
        """
        spreads = np.asarray(spreads, float)
        if not self.uses_aleatoric:
            return self.force_error_bars_of_spread(symbols, spreads)
        deviations = self._combined(spreads, aleatoric)
        found = np.hypot(
            _of(self.force_scale, symbols) * deviations, _of(self.force_floor, symbols)
        )
        if aleatoric is None or not self.force_scale_of_spread:
            return found
        alone = self.force_error_bars_of_spread(symbols, spreads)
        return np.where(spreads > self._usual_spreads(symbols), np.maximum(found, alone), found)

    def force_error_bars_of_spread(self, symbols: Sequence[str], spreads: np.ndarray) -> np.ndarray:
        """Like :meth:`force_error_bars`, but from spreads alone, for N atoms in eV/Å."""
        spreads = np.asarray(spreads, float)
        scale = _of(self.force_scale_of_spread or self.force_scale, symbols)
        floor = _of(self.force_floor_of_spread or self.force_floor, symbols)
        return np.hypot(scale * self._flattened(symbols, spreads), floor)

    def energy_error_bar(
        self, n_atoms: int, spread: float, aleatoric: float | None = None
    ) -> float:
        """Expected root mean square error of the energy in eV, up to a constant per atom.

        Raises
        ------
        UncertaintyError
            If the held-out frames had no energies.
        """
        if self.energy_scale is None or self.energy_floor is None:
            raise UncertaintyError(
                "this model was calibrated without energies, so that it has error bars only for forces; run "
                "neuralil-ase calibrate MODEL DATA on held-out data with energies"
            )
        floor = self.energy_floor * np.sqrt(n_atoms)
        return float(np.hypot(self.energy_scale * self._combined(spread, aleatoric), floor))

    def scale_of_spread(self, symbols: Sequence[str]) -> float:
        """Ratio of error to spread for derived quantities (a frequency, a barrier), for which only a spread is known.

        It is the ratio for held-out forces: the root mean square of :meth:`usual_scales` over the atoms. It is at least
        1, because members that disagree cannot all be right. The scale of energies cannot be used instead: it is
        fitted to few frames, and if spreads do not correlate with errors, the fit only finds a floor.
        """
        return float(np.maximum(np.sqrt(np.mean(_of(self.usual_scales(), symbols) ** 2)), 1.0))

    def usual_scales(self) -> dict[str, float]:
        """Ratio of force error to spread by element, from spreads only, at the median of the held-out spreads."""
        scales = dict(self.force_scale_of_spread or self.force_scale)
        for element in self.force_exponent:
            median = np.array([self.force_std_quantiles[element].get("0.5", 0.0)])
            if median > 0:
                scales[element] *= float(self._flattened([element], median)[0] / median[0])
        return scales

    def _usual_spreads(self, symbols: Sequence[str]) -> np.ndarray:
        """For each atom, the force spread in eV/Å above which a spread is unusual."""
        quantiles = {
            e: q.get(str(USUAL_QUANTILE), np.nan) for e, q in self.force_std_quantiles.items()
        }
        return _of(quantiles, symbols)

    def _flattened(self, symbols: Sequence[str], spreads: np.ndarray) -> np.ndarray:
        """s₀ (s / s₀)^exponent in eV/Å; the spread itself if there is no exponent."""
        if not self.force_exponent:
            return spreads
        usual = self._usual_spreads(symbols)
        usual = np.where(usual > 0, usual, 1.0)  # no spread at all: any unit will do
        exponent = np.array([self.force_exponent.get(symbol, 1.0) for symbol in symbols])
        return usual * (spreads / usual) ** exponent

    def _combined(self, spread: Any, aleatoric: Any) -> Any:
        """Root of the sum of squares of spread and aleatoric deviation; the spread alone if the latter is not used."""
        if aleatoric is None or not self.uses_aleatoric:
            return spread
        return np.hypot(spread, aleatoric)


def _of(table: Mapping[str, float], symbols: Sequence[str]) -> np.ndarray:
    return np.array([table.get(symbol, np.nan) for symbol in symbols], float)


def _elements(table: Any) -> Any:
    return table.keys() if isinstance(table, Mapping) else table is None


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and bool(np.isfinite(value)) and value >= 0


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and _is_number(item) for key, item in value.items()
    )


def _is_exponents(value: Any) -> bool:
    return _is_table(value) and all(item <= 1 for item in value.values())


def _is_bands(value: Any) -> bool:
    return _is_table(value) and value.keys() in ({"low", "high"}, set())


def _is_quantiles(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and _is_table(item) and all(map(_is_fraction, item))
        for key, item in value.items()
    )


def _is_fraction(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _is_optional_number(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_CHECKS = {
    "force_scale": _is_table,
    "force_floor": _is_table,
    "force_scale_of_spread": _is_table,
    "force_floor_of_spread": _is_table,
    "force_exponent": _is_exponents,
    "energy_scale": _is_optional_number,
    "energy_floor": _is_optional_number,
    "uses_aleatoric": lambda value: isinstance(value, bool),
    "force_std_quantiles": _is_quantiles,
    "thresholds": _is_bands,
    "relative_thresholds": _is_bands,
    "shortest_distances": _is_table,
    "data": _is_text,
    "n_frames": _is_count,
    "n_atoms": _is_count,
    "estimator": _is_text,
}
_TOGETHER = (
    ("force_scale", "force_floor"),
    ("force_scale_of_spread", "force_floor_of_spread"),
    ("energy_scale", "energy_floor"),
)
