"""Reports data that are not used (labels, frames, parts of a file), or raises an error if the user probably meant to
use them."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.labels import Keys, Labels

logger = logging.getLogger(__name__)
OPTIONS = {
    "energy": "energy_key",
    "forces": "forces_key",
    "stress": "stress_key",
    "virial": "virial_key",
}
_PLURAL = {"energy": "energies", "forces": "forces", "stress": "stresses", "virial": "virials"}
_SYNONYMS = {"stress": ("stress", "virial")}


class Part(NamedTuple):
    """The labels of all frames of one file, or of the structures in memory."""

    name: str
    labels: Sequence[Labels]

    def without(self, label: str) -> list[Labels]:
        """The frames that lack this label."""
        return [found for found in self.labels if getattr(found, label) is None]


def audit(parts: Sequence[Part], keys: Keys) -> None:
    """Log what is used and what is not.

    Raises
    ------
    DataError
        If there are no labels, or if labels that the user probably meant to use would be ignored.
    """
    everything = [found for part in parts for found in part.labels]
    names = ", ".join(part.name for part in parts)
    _check_named(everything, keys, names)
    _check_something(everything, keys, names)
    for label in ("energy", "forces"):
        _check_missing_everywhere(label, everything, keys, names)
    for part in parts:
        _check_part(part, keys)
    _check_predictions(everything, keys, names)
    _name_what_is_left(everything, keys, names)
    logger.info("labels of %s: %s", names, _summary(everything))


def _check_named(labels: Sequence[Labels], keys: Keys, names: str) -> None:
    """Check that labels requested by name exist in some frame."""
    for label, option in OPTIONS.items():
        key = getattr(keys, label)
        if key is not None and not any(found.names.get(label) for found in labels):
            raise DataError(
                f"no frame of {names} has the {label} key {key!r}"
                f"{_suggestion(label, labels, keys) or '; look at the file for the name it uses'}"
                + (
                    f". Stresses and virials ({option}) need a cell of three lattice vectors"
                    if label in ("stress", "virial")
                    else ""
                )
            )


def _check_something(labels: Sequence[Labels], keys: Keys, names: str) -> None:
    if any(found.energy is not None or found.forces is not None for found in labels):
        return
    found = "".join(_suggestion(label, labels, keys) for label in ("energy", "forces"))
    raise DataError(
        f"neither energies nor forces were found in {names}. Usually they have other names there (REF_energy, "
        f"dft_forces, …): name them with energy_key and forces_key{found}"
    )


def _check_missing_everywhere(label: str, labels: Sequence[Labels], keys: Keys, names: str) -> None:
    """Refuse data in which no frame has a label under the expected name, but some have it under another name."""
    if any(getattr(found, label) is not None for found in labels) or label in keys.unused:
        return
    suggestion = _suggestion(label, labels, keys)
    if suggestion:
        raise DataError(
            f"no frame of {names} has {_PLURAL[label]} under the name {_looked_for(label, keys)}{suggestion}"
            f"{_way_out(label)}"
        )


def _check_part(part: Part, keys: Keys) -> None:
    """Report frames of one file without energies or forces; refuse them if these seem to have another name."""
    n_frames = len(part.labels)
    bare = [found for found in part.labels if found.energy is None and found.forces is None]
    for label in ("energy", "forces"):
        lacking = part.without(label)
        if not lacking or label in keys.unused:
            continue
        suggestion = _suggestion(label, lacking, keys)
        text = (
            f"{len(lacking)} of the {n_frames} frames of {part.name} have no {_PLURAL[label]} "
            f"({_looked_for(label, keys)}){suggestion}"
        )
        if suggestion and getattr(keys, label) is None:
            raise DataError(f"{text}. Several names are given as in {_several(label, lacking)}")
        logger.warning("%s", text)
    if bare:
        lost = Counter(name for found in bare for name in found.names.values())
        logger.warning(
            "%d of the %d frames of %s have neither energy nor forces and are left out%s",
            len(bare), n_frames, part.name, f", with their {_listed(lost)}" if lost else "",
        )  # fmt: skip


def _check_predictions(labels: Sequence[Labels], keys: Keys, names: str) -> None:
    """Report labels that are predictions of a model: nothing new can be learnt from them."""
    predicted = [
        found
        for found in labels
        if found.predicted_by
        and any(found.names.get(x) == x and getattr(keys, x) is None for x in ("energy", "forces"))
    ]
    if not predicted:
        return
    text = (
        f"the labels of {len(predicted)} frames of {names} seem to be predictions of a model: they are stored with "
        f"{', '.join(sorted({name for found in predicted for name in found.predicted_by}))}"
    )
    others = [
        f"{OPTIONS[x]}={name!r}"
        for x in ("energy", "forces")
        if getattr(keys, x) is None
        for name in sorted({n for found in predicted for n in found.lookalikes.get(x, ())})
    ]
    if others:
        raise DataError(f"{text}. The labels have other names there: give {', '.join(others)}")
    logger.warning("%s. Use them only if this is intended", text)


def _name_what_is_left(labels: Sequence[Labels], keys: Keys, names: str) -> None:
    """Report other entries that look like labels."""
    affixes = {affix for x in ("energy", "forces") for affix in _affixes(getattr(keys, x), x)}
    for label in OPTIONS:
        counts = _counts(label, labels)
        if label == "virial" and any("stress" in found.names for found in labels):
            continue  # the same in other units
        twins = [name for name in counts if affixes & _affixes(name, label)]
        is_open = all(getattr(keys, x) is None for x in _SYNONYMS.get(label, (label,)))
        if label in ("energy", "forces") and twins and is_open and label not in keys.unused:
            raise DataError(
                f"{_PLURAL[label]} are taken from {_looked_for(label, keys)}, but {_listed(counts)} of {names} "
                f"fits the other names that were given. Say which one to use: {OPTIONS[label]}={twins[0]!r}, or "
                f"{OPTIONS[label]}={label!r}"
            )
        if counts:
            logger.warning("not used in %s: %s", names, _listed(counts))
    units = sum("stress" not in f.names and "virial" in f.names for f in labels)
    if units and keys.virial is None:
        logger.warning(
            "the stresses of %d frames of %s are made from their virials (in eV; stress = −virial / volume)",
            units, names,
        )  # fmt: skip


def _summary(labels: Sequence[Labels]) -> str:
    parts = [f"{len(labels)} frames"]
    for label in ("energy", "forces", "stress"):
        used = Counter(
            found.names.get(label) or found.names.get("virial", "")
            for found in labels
            if getattr(found, label) is not None
        )
        parts.append(f"{sum(used.values())} {_PLURAL[label]}{_quoted(used)}")
    return ", ".join(parts)


def _quoted(names: Iterable[str]) -> str:
    shown = ", ".join(sorted(f"{name!r}" for name in names))
    return f" ({shown})" if shown else ""


def _counts(label: str, labels: Sequence[Labels]) -> Mapping[str, int]:
    return Counter(name for found in labels for name in found.lookalikes.get(label, ()))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name!r} ({n} frames)" for name, n in counts.items())


def _looked_for(label: str, keys: Keys) -> str:
    return " or ".join(repr(name) for name in keys.names(label))


def _suggestion(label: str, labels: Sequence[Labels], keys: Keys) -> str:
    counts = _counts(label, labels)
    if not counts:
        return ""
    likely = max(counts, key=lambda name: counts[name])
    sign = ". A gradient has the opposite sign of a force" if "grad" in likely.lower() else ""
    return f"; they may be {_listed(counts)}: give {OPTIONS[label]}={likely!r}{sign}"


def _several(label: str, lacking: Sequence[Labels]) -> str:
    counts = _counts(label, lacking)
    return f"{OPTIONS[label]}='{label},{max(counts, key=lambda name: counts[name])}'"


def _way_out(label: str) -> str:
    weight = {"energy": "energy_weight", "forces": "force_weight"}[label]
    return f", or {weight}=0 to train without"


def _affixes(names: str | None, label: str) -> set[str]:
    """Prefixes and suffixes in the names: "ref" in REF_energy."""
    stem = {"energy": "energ", "forces": "force", "stress": "stress", "virial": "virial"}[label]
    found = set()
    for name in (names or "").lower().split(","):
        before, word, after = name.strip().partition(stem)
        rest = (before.strip("_-. "), after.removeprefix("y").removeprefix("s").strip("_-. "))
        if word and any(rest):
            found.add("|".join(rest))
    return found
