"""Describes the content of a model file in words."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuralil_ase.calibration import USUAL_QUANTILE, Calibration
from neuralil_ase.engine.backend import expected_backend
from neuralil_ase.evaluation.metrics import format_table
from neuralil_ase.model.potential import Potential, flatten


def describe(potential: Potential) -> str:
    """Architecture, origin, accuracy and calibration of a potential, as plain text for a terminal.

    Does not load JAX, so that it is fast.
    """
    parts = [_architecture(potential), _provenance(potential.provenance)]
    if accuracy := potential.provenance.get("accuracy"):
        parts.append("accuracy\n" + _indent(_accuracy(accuracy)))
    parts.append(_calibration(potential))
    return "\n\n".join(part for part in parts if part)


def _architecture(potential: Potential) -> str:
    config = potential.config
    descriptor, network = config.descriptor, config.network
    count = sum(np.size(array) for array in flatten(potential.params).values())
    products = "with" if descriptor.cross_terms else "without"
    rows = {
        "elements": " ".join(potential.elements),
        "members": config.n_members,
        "cutoff": f"{descriptor.r_cut:g} Å",
        "radial scaling": descriptor.radial_scaling or "",
        "descriptor": f"{descriptor.n_features} features, n_max {descriptor.n_max}, {products} cross terms",
        "network": f"{network.kind}, widths {_words(network.widths)}, {network.activation}",
        "aleatoric layers": _words(network.head_widths),
        "shared layers": network.shared_layers or "",
        "linear part": "fitted by least squares" if network.linear else "",
        "repulsion": config.pair_term,
        "parameters": f"{count:,}".replace(",", " "),
        "atomic energies": ", ".join(
            f"{element} {energy:.4f}"
            for element, energy in zip(potential.elements, potential.energy_reference, strict=True)
        )
        + " eV",
        "backend here": expected_backend(config),
    }
    return _table("model", rows)


def _accuracy(cards: Any) -> str:
    """The accuracy as a table, or as plain words if it is no valid table: a file may hold anything here."""
    try:
        return format_table(cards)
    except (AttributeError, KeyError, TypeError, ValueError):
        return _words(cards)


def _provenance(provenance: Mapping[str, Any]) -> str:
    hidden = {"settings", "accuracy", "last_epoch", "history", "element_fractions"}
    hidden |= {
        "own_linear",
        "error_bars_of_given_model",
    }  # for a learner, which continues with them
    rows = {key: value for key, value in provenance.items() if key not in hidden}
    text = _table("origin", {_words(key): _words(value) for key, value in rows.items()})
    settings = provenance.get("settings")
    if isinstance(settings, Mapping) and settings:
        shown = {_words(key): _words(value) for key, value in settings.items()}
        text += "\n\n" + _table("settings of the training", shown)
    return text


def _power(record: Calibration, element: str) -> str:
    """What the scale multiplies: s, or s₀ (s/s₀)^exponent."""
    exponent = record.force_exponent.get(element, 1.0)
    if record.uses_aleatoric or exponent == 1:
        return "s"
    unit = record.force_std_quantiles[element][str(USUAL_QUANTILE)]
    return f"{unit:.3g} (s/{unit:.3g})^{exponent:.2f}"


def _calibration(potential: Potential) -> str:
    record = potential.calibration
    if record is None:
        return "calibration\n  none; see neuralil-ase calibrate"
    rows = {
        "fitted on": f"{record.n_frames} frames: {_words(record.data)}",
        "force error bar": ", ".join(
            f"{element} √(({scale:.2f} {_power(record, element)})² + {record.force_floor[element]:.3f}²)"
            for element, scale in record.force_scale.items()
        )
        + f" eV/Å, {'s² = spread² + aleatoric²' if record.uses_aleatoric else 's the spread'}",
        "thresholds (eV/Å)": _words(record.thresholds),
        "shortest distances (Å)": _words(record.shortest_distances),
    }
    return _table("calibration", rows)


def _table(title: str, rows: Mapping[str, Any]) -> str:
    shown = {name: str(value) for name, value in rows.items() if str(value)}
    first = max((len(name) for name in shown), default=0)
    return "\n".join([title, *(f"  {name:<{first}}  {value}" for name, value in shown.items())])


def _words(value: Any, depth: int = 0) -> str:
    """JSON data on one line, without characters that a terminal would take for commands."""
    if depth > 9:
        return "…"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(k)} {_words(item, depth + 1)}" for k, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_words(item, depth + 1) for item in value)
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else "�" for c in text)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
