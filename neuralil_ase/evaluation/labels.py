"""Reads the labels of a structure, under ASE's names or the user's, and finds other entries that look like labels."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from ase import Atoms, units

from neuralil_ase.array_record import ArrayRecord
from neuralil_ase.errors import ConfigError, DataError
from neuralil_ase.model.config import coerced
from neuralil_ase.prediction import to_voigt

StressUnit = Literal["eV/A^3", "GPa", "kB"]
STRESS_UNITS: dict[str, float] = {"eV/A^3": 1.0, "GPa": units.GPa, "kB": 0.1 * units.GPa}
"""In eV/Å³; kB is the kilobar that VASP prints."""
DEFAULTS = {
    "energy": ("energy",),
    "forces": ("forces",),
    "stress": ("stress",),
    "virial": ("virial", "virials"),
}
PREDICTED = ("energy_std", "energies_std", "forces_std", "energy_error_bar", "forces_error_bar")
"""Written beside predictions by ``evaluate --write-predictions`` and by the monitor."""
_MEANINGS = {
    "energy": ({"e", "etot", "toten"}, ("energ", "enrg")),
    "forces": ({"f", "fxyz", "grad", "grads"}, ("forc", "gradient")),
    "stress": (set(), ("stress",)),
    "virial": (set(), ("viri",)),
}
_OTHER_RESULTS = ("free_energy", "energies", "stresses")
"""Other results of ASE's calculators. They are not labels under other names."""
_NO_LABEL = {
    "std", "sd", "err", "error", "errors", "spread", "var", "variance", "uncertainty", "unc", "bar", "kinetic", "kin",
    "ekin", "weight", "weights", "scale", "key", "unit", "units", "cutoff", "fermi", "gap", "homo", "lumo", "zpe",
    "members", "member", "threshold", "max", "min", "rms", "rmse", "mae",
}  # fmt: skip


@dataclass(frozen=True)
class Keys:
    """Names and units of the labels in ``atoms.info``, ``atoms.arrays`` or the results of the calculator.

    Attributes
    ----------
    energy, forces, stress, virial
        Name of the label. If the name differs between frames, give several names separated by commas; the first name
        that a frame has is used. ``a.b`` is the entry b of a table a. With None, the labels that ASE recognises are
        used, and ``virial`` if a frame has no stress.
    weight
        Key in ``atoms.info`` of the weight of each frame; None for equal weights.
    stress_unit
        Unit of the stress: "eV/A^3", "GPa" or "kB". Virials are in eV.
    stress_sign
        1 if stresses are positive under tension, as in ASE, and virials under compression (virial = −V stress). −1 if
        the signs are reversed, as in the output of VASP.
    unused
        Labels that are not needed. Nothing is reported if they are missing.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None
    weight: str | None = None
    stress_unit: StressUnit = "eV/A^3"
    stress_sign: int = 1
    unused: tuple[str, ...] = ()

    @classmethod
    def named(cls, options: Mapping[str, Any]) -> "Keys":
        """Keys from options with the names that they have in training: "energy_key", …, "stress_unit", "stress_sign".

        Raises
        ------
        ConfigError
            If an option is unknown or a value is wrong.
        """
        known = {_option(entry.name): entry for entry in fields(cls) if entry.name != "unused"}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ConfigError(f"unknown options {unknown}; known are {', '.join(known)}")
        return cls(
            **{known[k].name: coerced(known[k].type, k, value) for k, value in options.items()}
        )

    def __post_init__(self) -> None:
        check_units(self.stress_unit, self.stress_sign)
        if self.stress is not None and "viri" in self.stress.lower():
            raise DataError(
                f"the stress key {self.stress!r} is by its name a virial, in eV instead of eV/Å³. Give it as "
                "virial_key (--virial-key), which is divided by the volume and turned to ASE's sign"
            )

    def names(self, label: str) -> tuple[str, ...]:
        """The names to look for; the first that is found is used."""
        given = getattr(self, label)
        if given is None:
            return DEFAULTS[label]
        return tuple(name.strip() for name in given.split(",") if name.strip())


def check_units(stress_unit: str, stress_sign: int) -> None:
    """Refuse an unknown unit or sign of stresses with a ConfigError."""
    if stress_unit not in STRESS_UNITS:
        raise ConfigError(
            f"unknown stress_unit {stress_unit!r}; choose one of {', '.join(STRESS_UNITS)}"
        )
    if stress_sign not in (1, -1):
        raise ConfigError(f"stress_sign must be 1 or -1, got {stress_sign}")


def _option(name: str) -> str:
    return name if name.startswith("stress_") else f"{name}_key"


@dataclass(frozen=True, eq=False, repr=False)
class Labels(ArrayRecord, units={"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"}):
    """The labels of one structure, and entries that were not used.

    Attributes
    ----------
    energy, forces, stress
        In eV, eV/Å, shape (N, 3), and eV/Å³, shape (6,), with ASE's sign; None if missing.
    weight
        Weight of the frame, 1 by default.
    names
        Name under which each label was found.
    lookalikes
        For each label, names of entries that look like it and are not used.
    predicted_by
        Names of entries that a model writes beside its predictions.
    """

    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None
    weight: float
    names: Mapping[str, str]
    lookalikes: Mapping[str, tuple[str, ...]]
    predicted_by: tuple[str, ...] = field(default=())


def read_labels(atoms: Atoms, source: str, keys: Keys) -> Labels:
    """The labels of a structure. ``Atoms.get_forces`` is not used, because it applies constraints.

    Raises
    ------
    DataError
        If a label is not numeric or finite, has the wrong shape, or was computed for other positions.
    """
    results = _results(atoms, source)
    extra = dict(_flat(atoms.info)) | dict(atoms.arrays)
    names: dict[str, str] = {}
    values: dict[str, Any] = {}
    for label in DEFAULTS:
        is_given = getattr(keys, label) is not None
        for name in keys.names(label):
            for place in (extra, results) if is_given else (results, extra):
                if label not in names and place.get(name) is not None:
                    names[label], values[label] = name, place[name]
    stress = _stress(atoms, source, keys, names, values)
    if stress is None:
        names.pop("stress", None)
        names.pop("virial", None)
    energy = forces = None
    if "energy" in names:
        energy = float(_numbers(values["energy"], (1,), source, names["energy"])[0])
    if "forces" in names:
        forces = _numbers(values["forces"], (len(atoms), 3), source, names["forces"])
    return Labels(
        energy,
        forces,
        stress,
        _weight(extra, source, keys.weight),
        names,
        _lookalikes(results | extra, len(atoms), set(names.values())),
        _predicted_by(atoms, extra),
    )


def _results(atoms: Atoms, source: str) -> dict[str, Any]:
    """Results of the calculator, if they belong to this geometry."""
    results = getattr(atoms.calc, "results", {}) or {}
    labelled = getattr(atoms.calc, "atoms", None)
    if results and isinstance(labelled, Atoms) and _has_moved(labelled, atoms):
        raise DataError(
            f"the labels of {source} were computed for other positions than it has now. Label it again, or drop its "
            "calculator"
        )
    return dict(results)


def _has_moved(before: Atoms, now: Atoms) -> bool:
    """Whether atoms moved, other than by whole lattice vectors along periodic directions."""
    if len(before) != len(now) or (before.numbers != now.numbers).any():
        return True
    if not np.allclose(before.cell.array, now.cell.array, rtol=0, atol=1e-6):
        return True
    moved = now.positions - before.positions
    if not np.abs(moved).max(initial=0) > 1e-6:
        return False
    complete = now.cell.complete().array
    shifts = np.linalg.solve(complete.T, moved.T).T
    shifts -= np.where(now.pbc, np.round(shifts), 0)
    return bool(np.abs(shifts @ complete).max() > 1e-6)


def _flat(info: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of a table; entries of tables inside it are named ``a.b``."""
    for key, value in info.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _stress(
    atoms: Atoms, source: str, keys: Keys, names: dict[str, str], values: dict[str, Any]
) -> np.ndarray | None:
    """Stress in ASE's unit and sign, from a stress or a virial; None without a volume."""
    if atoms.cell.rank < 3:
        return None
    virial_is_meant = keys.virial is not None and keys.stress is None
    if "stress" in names and not ("virial" in names and virial_is_meant):
        names.pop("virial", None)
        factor = STRESS_UNITS[keys.stress_unit] * keys.stress_sign
        return factor * _six(values["stress"], source, names["stress"])
    if "virial" in names:
        names.pop("stress", None)
        factor = -keys.stress_sign / atoms.get_volume()
        return factor * _six(values["virial"], source, names["virial"])
    return None


def _six(value: Any, source: str, name: str) -> np.ndarray:
    if np.size(value) == 9:
        return to_voigt(_numbers(value, (3, 3), source, name))
    return _numbers(value, (6,), source, name)


def _weight(extra: Mapping[str, Any], source: str, key: str | None) -> float:
    if key is None:
        return 1.0
    if key not in extra:
        raise DataError(f"{source} has no weight {key!r} in its info; give every frame one")
    weight = float(_numbers(extra[key], (1,), source, key)[0])
    if weight < 0:
        raise DataError(f"the weight {key!r} of {source} is {weight:g}; weights are zero or more")
    return weight


def _numbers(value: Any, shape: tuple[int, ...], source: str, name: str) -> np.ndarray:
    try:
        array = np.array(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name!r} of {source} is not numeric: {value!r:.200}") from error
    if array.size != int(np.prod(shape)):
        raise DataError(f"{name!r} of {source} has shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise DataError(
            f"{name!r} of {source} holds values that are not finite; usually the reference calculation failed. "
            "Remove the frame"
        )
    return array.reshape(shape)


def _lookalikes(
    entries: Mapping[str, Any], n_atoms: int, used: set[str]
) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, value in entries.items():
        label = None if name in _OTHER_RESULTS else meaning(name)
        if label and name not in used and _fits(label, value, n_atoms):
            found.setdefault(label, []).append(name)
    return {label: tuple(sorted(names)) for label, names in found.items()}


def meaning(name: str) -> str | None:
    """The label that a name seems to mean: "energy", "forces", "stress", "virial", or none."""
    words = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", name)
    lowered = [word.lower() for word in words]
    if set(lowered) & _NO_LABEL:
        return None
    for label, (exact, starts) in _MEANINGS.items():
        if any(word in exact or word.startswith(starts) for word in lowered):
            return label
        if any(start in name.lower() for start in starts):
            return label
    return None


def _fits(label: str, value: Any, n_atoms: int) -> bool:
    """Whether a value has as many numbers as such a label."""
    sizes = {"energy": (1,), "forces": (3 * n_atoms,), "stress": (6, 9), "virial": (6, 9)}
    try:
        array = np.asarray(value)
    except ValueError:
        return False
    return array.dtype.kind in "fiu" and array.size in sizes[label]


def _predicted_by(atoms: Atoms, extra: Mapping[str, Any]) -> tuple[str, ...]:
    calculator = type(atoms.calc).__name__
    own = (calculator,) if calculator == "NeuralILCalculator" else ()
    return own + tuple(name for name in PREDICTED if name in extra)
