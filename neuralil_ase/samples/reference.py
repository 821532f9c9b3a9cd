"""The energy reference: one energy per element, subtracted from the labels. The network learns the rest."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.absurd import UNDETERMINED
from neuralil_ase.evaluation.dataset import Frame, fractions_of, types_of

logger = logging.getLogger(__name__)


def energy_reference(
    frames: Sequence[Frame],
    elements: tuple[str, ...],
    isolated_atoms: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Energy of every element in eV: the least-squares fit to the energies per atom.

    The compositions may not determine the fit, for instance if all frames have the same composition. The fit closest to
    the energies of the isolated atoms is then used, after all of these have been shifted by the same energy. Without
    isolated atoms, all elements begin with the same energy. The energy that the network has to learn is therefore
    always small.

    Returns
    -------
    ndarray, shape (elements,)
    """
    with_energy = [frame for frame in frames if frame.energy is not None]
    if not with_energy:
        return np.array([(isolated_atoms or {}).get(symbol, 0.0) for symbol in elements])
    counts = np.array(
        [np.bincount(types_of(f, elements), minlength=len(elements)) for f in with_energy], float
    )
    sizes = counts.sum(axis=1)
    energies = np.array([frame.energy for frame in with_energy], dtype=float) / sizes
    fractions = counts / sizes[:, None]
    known = np.array([symbol in (isolated_atoms or {}) for symbol in elements])
    reference = np.array([(isolated_atoms or {}).get(symbol, 0.0) for symbol in elements])
    present = counts.sum(axis=0) > 0
    if not known[present].all():
        # First fit the elements without an isolated atom to the energy that the others do not explain.
        reference = _closest(fractions, energies, reference, present & ~known)
    return _closest(fractions, energies, reference, present)


def say_what_is_open(
    frames: Sequence[Frame], elements: tuple[str, ...], isolated: Collection[str] = ()
) -> None:
    """Warn if compositions and ``isolated`` atoms of known energy do not determine the energies of all elements."""
    with_energy = [frame for frame in frames if frame.energy is not None]
    if not with_energy or len(elements) == 1:
        return
    fractions = {tuple(fractions_of(frame, elements).round(9)) for frame in with_energy}
    atoms = np.eye(len(elements))[[symbol in isolated for symbol in elements]]
    rows = np.concatenate([np.array(sorted(fractions)), atoms])
    rank = int(np.linalg.matrix_rank(rows, tol=1e-6))
    if len(rows) == 1:
        logger.warning(
            "all frames with energies have the same composition. The energies of single elements (%s) are therefore "
            "arbitrary, and predicted energies of other compositions have no meaning. Add such frames, or isolated "
            "atoms, if you need them",
            ", ".join(elements),
        )
    elif rank < len(elements):
        logger.warning(
            "the compositions of the frames determine only %d of %d energies of elements (%s). Predicted energies of "
            "compositions that differ in another way have no meaning. Add such frames, or isolated atoms, if you need "
            "them",
            rank, len(elements), ", ".join(elements),
        )  # fmt: skip


def isolated_energies(
    atoms: Iterable[Frame], given: Mapping[str, float] | None, elements: tuple[str, ...]
) -> dict[str, float]:
    """Energies in eV of isolated atoms by element: given by the user, or taken from frames of one atom.

    Raises
    ------
    DataError
        If energies are given, but not for every element.
    """
    missing = sorted(set(elements) - set(given or elements))
    if missing:
        raise DataError(f"isolated_atoms lacks the energy of {', '.join(missing)}")
    found: dict[str, list[Frame]] = {}
    for frame in atoms:
        if frame.energy is not None:
            found.setdefault(str(frame.symbols[0]), []).append(frame)
    for symbol, frames in found.items():
        lowest = min(frames, key=lambda frame: frame.energy or 0.0)
        use = "not used: no other frame holds the element"
        if symbol in elements:
            use = "not used: isolated_atoms is given" if given else "the energy of its element"
        logger.info(
            "%s is a single %s atom%s, %.6g eV: %s",
            lowest.source, symbol, "" if len(frames) == 1 else f", the lowest of {len(frames)}",
            lowest.energy, use,
        )  # fmt: skip
    lowest_energies = {
        symbol: min(float(frame.energy or 0.0) for frame in frames)
        for symbol, frames in found.items()
    }
    chosen = lowest_energies | dict(given or {})
    return {symbol: chosen[symbol] for symbol in elements if symbol in chosen}


def _closest(
    fractions: np.ndarray, energies: np.ndarray, start: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """Move the free entries to the least-squares fit: first all by the same energy, then as little as possible."""
    moved = start.copy()
    together = fractions[:, free].sum(axis=1)
    scale = float(together @ together)
    if scale > 0:
        moved[free] += float(together @ (energies - fractions @ moved)) / scale
    moved[free] += np.linalg.lstsq(
        fractions[:, free], energies - fractions @ moved, rcond=UNDETERMINED
    )[0]
    return moved
