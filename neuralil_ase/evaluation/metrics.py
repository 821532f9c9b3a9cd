"""Error metrics: one card of numbers per data set, and its table for a terminal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralil_ase.array_record import ArrayRecord
from neuralil_ase.prediction import force_spread, spread

Card = dict[str, Any]


_UNITS = dict.fromkeys(("energies", "member_energies", "energy_aleatoric"), "eV") | {
    "forces": "eV/Å", "member_forces": "eV/Å", "force_aleatoric": "eV/Å",
    "stresses": "eV/Å³", "predicted_stresses": "eV/Å³",
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(ArrayRecord, units=_UNITS):
    """Labels of F frames with A atoms in all, and the predictions of M members. Missing labels are NaN.

    Attributes
    ----------
    sizes
        Atoms of every frame, shape (F,).
    symbols
        Chemical symbol of every atom, shape (A,).
    energies, member_energies
        In eV, shapes (F,) and (M, F).
    forces, member_forces
        In eV/Å, shapes (A, 3) and (M, A, 3).
    stresses, predicted_stresses
        In eV/Å³, shape (F, 6); the prediction is the mean over members.
    energy_aleatoric, force_aleatoric
        The aleatoric deviation in eV, shape (F,), and of a force (norm over x, y, z) in eV/Å, shape (A,); None without
        aleatoric layers.
    """

    sizes: np.ndarray
    symbols: np.ndarray
    energies: np.ndarray
    member_energies: np.ndarray
    forces: np.ndarray
    member_forces: np.ndarray
    stresses: np.ndarray
    predicted_stresses: np.ndarray
    energy_aleatoric: np.ndarray | None = None
    force_aleatoric: np.ndarray | None = None

    @property
    def n_members(self) -> int:
        """Number of members of the ensemble."""
        return len(self.member_energies)

    @property
    def energy_spreads(self) -> np.ndarray:
        """Standard deviation over members, ddof 1, in eV, shape (F,)."""
        return spread(self.member_energies)

    @property
    def force_spreads(self) -> np.ndarray:
        """Norm over x, y, z of the standard deviations over members, ddof 1, in eV/Å, shape (A,)."""
        return force_spread(self.member_forces)

    @property
    def energy_errors(self) -> np.ndarray:
        """Mean over members minus label in eV, shape (F,)."""
        return self.member_energies.mean(axis=0) - self.energies

    @property
    def force_errors(self) -> np.ndarray:
        """Mean over members minus label in eV/Å, shape (A, 3)."""
        return self.member_forces.mean(axis=0) - self.forces

    def without_offset(self, energy_errors: np.ndarray) -> np.ndarray:
        """Energy errors in eV after removing their mean per atom; the last axis runs over frames."""
        per_atom = energy_errors / self.sizes
        known = np.isfinite(self.energies)
        if not known.any():
            return energy_errors
        offset = per_atom[..., known].mean(axis=-1, keepdims=True)
        return self.sizes * (per_atom - offset)


def accuracy(comparison: Comparison) -> Card:
    """The card of one data set: JSON data whose keys name the units. There are no entries for missing labels.

    "mae" and "rmse" of forces run over components; "norm" is the mean length of the error vector, which does not depend
    on the orientation of the axes. "offset_removed" is after subtracting the mean energy error per atom. "members" are
    the errors of single members, averaged over the members. "spread" compares the error of the mean with the spread
    over members (standard deviation, ddof 1; of a force the norm over components). With aleatoric layers there are
    also "energy_aleatoric" and "force_aleatoric", with the aleatoric deviation instead of the spread, and
    "energy_total" and "force_total", with the root of the sum of the squares of spread and aleatoric deviation.
    """
    card: Card = {"frames": len(comparison.sizes), "atoms": int(comparison.sizes.sum())}
    if np.isfinite(comparison.energies).any():
        card["energy_meV_per_atom"] = _energy_card(comparison)
    if np.isfinite(comparison.forces).any():
        card["force_meV_per_A"] = _force_card(comparison)
    stress = comparison.predicted_stresses - comparison.stresses
    if np.isfinite(stress).any():
        card["stress_meV_per_A3"] = _mae_rmse(stress)
    if comparison.n_members > 1:
        card["members"] = _member_card(comparison)
        card["spread"] = _spread_card(comparison)
    return card


def errors_in_words(card: Card) -> str:
    """The mean absolute errors of a card on one line; empty without labels."""
    entries = {
        "energy_meV_per_atom": ("energy", "meV/atom"),
        "force_meV_per_A": ("force", "meV/Å"),
        "stress_meV_per_A3": ("stress", "meV/Å³"),
    }
    return ", ".join(
        f"{name} MAE {card[key]['mae']:.3g} {unit}"
        for key, (name, unit) in entries.items()
        if key in card
    )


def format_table(cards: Mapping[str, Card]) -> str:
    """Cards side by side, one column each, as plain text."""
    rows = [(name, [_cell(card, path) for card in cards.values()]) for name, path in _rows(cards)]
    rows = [(name, cells) for name, cells in rows if any(cells)]
    first = max(len(name) for name, _ in rows)
    widths = [max(9, len(title)) for title in cards]
    header = " " * first + "".join(
        f"  {title:>{width}}" for title, width in zip(cards, widths, strict=True)
    )
    lines = [
        f"{name:<{first}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for name, cells in rows
    ]
    return "\n".join([header.rstrip(), *lines, *_notes(cards)])


def _energy_card(comparison: Comparison) -> Card:
    errors = comparison.energy_errors
    removed = comparison.without_offset(errors)
    card = _mae_rmse(errors / comparison.sizes)
    card["offset"] = _milli(np.nanmean(errors / comparison.sizes))
    card["offset_removed"] = _mae_rmse(removed / comparison.sizes)
    return card


def _force_card(comparison: Comparison) -> Card:
    errors = comparison.force_errors
    by_element = {
        str(symbol): _vector_card(errors[comparison.symbols == symbol])
        for symbol in np.unique(comparison.symbols[np.isfinite(errors).all(axis=1)])
    }
    return {**_vector_card(errors), "by_element": by_element}


def _vector_card(errors: np.ndarray) -> Card:
    return {**_mae_rmse(errors), "norm": _milli(np.nanmean(np.linalg.norm(errors, axis=-1)))}


def _member_card(comparison: Comparison) -> Card:
    """Errors of single members, averaged over the members."""
    card: Card = {"number": comparison.n_members}
    if np.isfinite(comparison.energies).any():
        errors = comparison.member_energies - comparison.energies
        card["energy_mae"] = _mae_rmse(errors / comparison.sizes)["mae"]
        removed = comparison.without_offset(errors) / comparison.sizes
        card["energy_mae_offset_removed"] = _mae_rmse(removed)["mae"]
    if np.isfinite(comparison.forces).any():
        card["force_mae"] = _mae_rmse(comparison.member_forces - comparison.forces)["mae"]
    return card


def _spread_card(comparison: Comparison) -> Card:
    energies = np.abs(comparison.without_offset(comparison.energy_errors))
    forces = np.linalg.norm(comparison.force_errors, axis=-1)
    card: Card = {}
    for name, errors, spreads, aleatoric in (
        ("energy", energies, comparison.energy_spreads, comparison.energy_aleatoric),
        ("force", forces, comparison.force_spreads, comparison.force_aleatoric),
    ):
        expected = {name: spreads}
        if aleatoric is not None:
            expected[f"{name}_aleatoric"] = aleatoric
            expected[f"{name}_total"] = np.hypot(spreads, aleatoric)
        known = np.isfinite(errors)
        for key, values in expected.items():
            card |= _agreement(key, errors[known], values[known])
    return card


def _agreement(key: str, errors: np.ndarray, expected: np.ndarray) -> Card:
    """Rank correlation and ratio of root mean squares; empty where they have no meaning."""
    if len(errors) < 3 or np.ptp(expected) == 0 or np.ptp(errors) == 0:
        return {}
    from scipy.stats import (
        spearmanr,  # takes longer to load than all that ``neuralil-ase info`` does
    )

    ratio = np.sqrt(np.mean(errors**2) / np.mean(expected**2))
    return {
        key: {
            "spearman": round(float(spearmanr(errors, expected).statistic), 4),
            "rms_error_over_rms_spread": _four_digits(ratio),
        }
    }


def _mae_rmse(errors: np.ndarray) -> Card:
    return {
        "mae": _milli(np.nanmean(np.abs(errors))),
        "rmse": _milli(np.sqrt(np.nanmean(errors**2))),
    }


def _milli(value: Any) -> float:
    return _four_digits(1e3 * value)


def _four_digits(value: Any) -> float:
    return float(f"{float(value):.4g}")


def _rows(cards: Mapping[str, Card]) -> list[tuple[str, tuple[str, ...]]]:
    """Name of every row, and where a card keeps its value."""
    energy, force, stress = "energy_meV_per_atom", "force_meV_per_A", "stress_meV_per_A3"
    elements = {e for card in cards.values() for e in card.get(force, {}).get("by_element", {})}
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("frames", ("frames",)),
        ("atoms", ("atoms",)),
        ("energy MAE (meV/atom)", (energy, "mae")),
        ("energy RMSE", (energy, "rmse")),
        ("energy MAE, offset removed", (energy, "offset_removed", "mae")),
        ("energy RMSE, offset removed", (energy, "offset_removed", "rmse")),
        ("force MAE (meV/Å)", (force, "mae")),
        ("force RMSE", (force, "rmse")),
        ("force error, mean norm", (force, "norm")),
    ]
    for element in sorted(elements):
        rows.append((f"  {element} MAE", (force, "by_element", element, "mae")))
        rows.append((f"  {element} mean norm", (force, "by_element", element, "norm")))
    rows += [
        ("stress MAE (meV/Å³)", (stress, "mae")),
        ("stress RMSE", (stress, "rmse")),
        ("one member: energy MAE, offset removed", ("members", "energy_mae_offset_removed")),
        ("one member: force MAE", ("members", "force_mae")),
    ]
    for name in ("energy", "force"):
        for suffix, title in _EXPECTED.items():
            path = ("spread", name + suffix)
            rows.append((f"{name} error: rank correlation with {title}", (*path, "spearman")))
            rows.append((f"{name} rms error / rms {title}", (*path, "rms_error_over_rms_spread")))
    return rows


def _cell(card: Card, path: tuple[str, ...]) -> str:
    value: Any = card
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return ""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _notes(cards: Mapping[str, Card]) -> list[str]:
    members = {card["members"]["number"] for card in cards.values() if "members" in card}
    if not members:
        return []
    return [
        f"Errors of the mean over {members.pop()} members. Spread: standard deviation over members (ddof 1);",
        "of a force the norm over x, y, z, which is compared with the norm of the force error.",
        *_NOTE_ON_ALEATORIC
        * any("force_aleatoric" in card.get("spread", {}) for card in cards.values()),
    ]


_EXPECTED = {"": "spread", "_aleatoric": "aleatoric", "_total": "spread and aleatoric"}
"""What errors are compared with: endings of the keys in a card, and the words of the table."""
_NOTE_ON_ALEATORIC = (
    "Aleatoric: standard deviation that members predict for their own errors. Spread and aleatoric: root of the sum of",
    "their squares.",
)
