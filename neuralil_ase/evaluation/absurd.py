"""Leaves out frames whose labels cannot be right, and names each of them: huge forces, energies that no composition
explains, and atoms on top of each other whose labels know of no repulsion."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.dataset import (
    Frame,
    elements_of,
    fractions_of,
    is_isolated_atom,
    pairs_of,
    types_of,
)
from neuralil_ase.model.screening import screened_coulomb

logger = logging.getLogger(__name__)
MAX_FORCE = 200.0
"""Default of the largest force component in eV/Å of a frame that is used."""
MOST_DEVIATION = 100.0
"""Frames whose energy differs by more than this, in eV/atom, from what their composition implies are left out."""
MOST_ABSURD = 0.1
"""Largest fraction of such frames, and of those with contacts. More of them have another cause than a few calculations
that failed."""
FEWEST = 3
"""Smallest number of frames in which such energies are looked for."""
ALONE = 6.0
"""Distance in Å without a neighbour from which an atom is isolated, so that its energy may have another zero."""
CONTACT = 0.6
"""Distance, divided by the sum of the covalent radii, below which atoms repel each other strongly."""
CLEAR = 20.0
"""A contact is absurd if nuclear repulsion is larger by this factor than the label, and larger than this in eV/Å (or
eV). Ti and O at 1.16 Å, the closest contact of the published SrTiO3 cells, have a tenth of the repulsion."""
ROUNDS, USUAL = 30, 0.01
"""Rounds of the fit by absolute deviations, and the deviation in eV/atom below which it squares them."""
UNDETERMINED = 1e-9
"""Singular values below this fraction of the largest one are ignored: they do not determine any energy."""


class Contact(NamedTuple):
    """Two atoms that are too close for the labels of their frame.

    Attributes
    ----------
    atoms
        Their indices.
    distance
        In Å.
    repulsion, label
        Nuclear repulsion and what the labels have: forces in eV/Å; energies in eV if there are no forces.
    unit
        Of these two.
    """

    atoms: tuple[int, int]
    distance: float
    repulsion: float
    label: float
    unit: str


def without_absurd(
    frames: Sequence[Frame],
    max_force: float = MAX_FORCE,
    *,
    with_energies: bool = True,
    with_contacts: bool = True,
) -> list[Frame]:
    """Leave out frames that no potential should learn or be tested on, and report them.

    Parameters
    ----------
    frames
        All frames, so that a wrong one is known by the others.
    max_force
        Largest force component in eV/Å.
    with_energies, with_contacts
        Whether to look at energies, and at close atoms.

    Raises
    ------
    DataError
        If so many frames are absurd that units, method or geometry are wrong.
    """
    kept = without_large_forces(frames, max_force)
    if with_energies:
        kept = without_absurd_energies(kept)
    return without_false_contacts(kept) if with_contacts else kept


def without_large_forces(frames: Sequence[Frame], max_force: float) -> list[Frame]:
    """Leave out frames with a force component above ``max_force`` (eV/Å), and report them.

    Raises
    ------
    DataError
        If most frames have such forces, which usually means other units.
    """
    largest = np.array([0 if f.forces is None else np.abs(f.forces).max() for f in frames])
    bad = np.flatnonzero(largest > max_force)
    if 2 * len(bad) > len(frames):
        raise DataError(
            f"{len(bad)} of {len(frames)} frames have forces above {max_force:g} eV/Å (the largest: "
            f"{largest.max():.3g}). Usually the forces are not in eV/Å; convert them, or raise max_force"
        )
    for k in bad:
        logger.warning(
            "%s left out: its largest force component is %.3g eV/Å (max_force %g)",
            frames[int(k)].source, largest[k], max_force,
        )  # fmt: skip
    return [frame for frame, force in zip(frames, largest, strict=True) if force <= max_force]


def without_absurd_energies(frames: Sequence[Frame]) -> list[Frame]:
    """Leave out frames whose energy is far from what their composition implies, and report them.

    Raises
    ------
    DataError
        If there are many such frames, which usually means two methods or other units.
    """
    found = _deviations_by_frame(frames)
    bad = [(f, found[id(f)]) for f in frames if abs(found.get(id(f), 0.0)) > MOST_DEVIATION]
    if len(bad) > max(1, MOST_ABSURD * len(found)):
        first, by = bad[0]
        raise DataError(
            f"the energies of {len(bad)} of {len(found)} frames differ by more than {MOST_DEVIATION:g} eV/atom from "
            f"what the compositions of the others imply (the first: {first.source}, by {by:.4g}). Usually they were "
            "computed with another method, whose energies have another zero, or are not in eV. Train on one kind of "
            "energies, or without energies (energy_weight=0)"
        )
    for frame, by in bad:
        logger.warning(
            "%s left out: its energy differs by %.4g eV/atom from what the compositions of the others imply. Usually "
            "the calculation failed",
            frame.source, by,
        )  # fmt: skip
    left_out = {id(frame) for frame, _ in bad}
    return [frame for frame in frames if id(frame) not in left_out]


def without_false_contacts(frames: Sequence[Frame]) -> list[Frame]:
    """Leave out frames with two atoms on top of each other whose labels know nothing of it, and report them.

    The repulsion of nuclei is subtracted from the labels before a model learns the rest. Where the labels do not
    contain it, the rest would be huge, and spoil the whole model.

    Raises
    ------
    DataError
        If there are many such frames, which usually means other units of length or lost cells.
    """
    # Forces tell more than energies, and most data have them.
    energies = _deviations_by_frame(frames) if any(f.forces is None for f in frames) else {}
    found = [_false_contact(frame, energies.get(id(frame))) for frame in frames]
    bad = [(frame, contact) for frame, contact in zip(frames, found, strict=True) if contact]
    if len(bad) > max(1, MOST_ABSURD * len(frames)):
        frame, contact = bad[0]
        raise DataError(
            f"in {len(bad)} of {len(frames)} frames atoms are closer than their labels allow (the first: "
            f"{_words(frame, contact)}). Usually positions or cells are not in Å, or the cells were lost. If these are "
            'no atoms but, for instance, particles in reduced units, give pair_term="none"'
        )
    for frame, contact in bad:
        logger.warning(
            "%s. The frame is left out. Usually an atom is there twice, the cell was lost, or the labels belong to "
            "another frame",
            _words(frame, contact),
        )
    return [frame for frame, contact in zip(frames, found, strict=True) if contact is None]


def deviations(frames: Sequence[Frame], elements: tuple[str, ...]) -> np.ndarray:
    """Energies of the frames minus those that their compositions imply, in eV/atom; all frames must have one.

    The energies of the elements have the smallest sum of absolute deviations, which a few wrong labels hardly change.
    """
    fractions = np.array([fractions_of(frame, elements) for frame in frames])
    energies = np.array([frame.energy for frame in frames], float)
    energies /= [len(frame.symbols) for frame in frames]
    left = weights = np.ones(len(frames))
    for _ in range(ROUNDS):  # least squares with new weights; they end as absolute deviations
        rows, values = fractions * weights[:, None], energies * weights
        left = energies - fractions @ np.linalg.lstsq(rows, values, rcond=UNDETERMINED)[0]
        weights = np.maximum(np.abs(left), USUAL) ** -0.5
    return left


def _deviations_by_frame(frames: Sequence[Frame]) -> dict[int, float]:
    """Deviation in eV/atom by the identity of a frame, for those with an energy; empty if they are too few."""
    known = [f for f in frames if f.energy is not None and not is_isolated_atom(f, ALONE)]
    if len(known) < FEWEST:
        return {}
    found = deviations(known, elements_of(known)).tolist()
    return {id(frame): by for frame, by in zip(known, found, strict=True)}


def _false_contact(frame: Frame, deviation: float | None) -> Contact | None:
    """The contact with the largest repulsion, if the labels know nothing of it."""
    if frame.forces is None and deviation is None:
        return None
    elements = elements_of([frame])
    numbers = np.array([atomic_numbers[symbol] for symbol in frame.symbols.tolist()])
    radii = CONTACT * covalent_radii[numbers]
    vectors, i, j = pairs_of(frame, types_of(frame, elements), 2 * float(radii.max()))
    r = np.linalg.norm(vectors, axis=1)
    close = np.flatnonzero(r < radii[i] + radii[j])
    if not close.size:
        return None
    r, i, j = r[close], i[close], j[close]
    ends = numbers[i].astype(float), numbers[j].astype(float)
    step = 1e-3 * np.maximum(r, 0.1)
    inner = screened_coulomb(*ends, np.maximum(r, 0.1) - step)
    outer = screened_coulomb(*ends, np.maximum(r, 0.1) + step)
    if frame.forces is not None:
        repulsion, unit = (inner - outer) / (2 * step), "eV/Å"
        size = np.linalg.norm(frame.forces, axis=1)
        label = np.maximum(size[i], size[j])
    else:
        repulsion, unit = (inner + outer) / 2, "eV"
        label = np.full(len(r), abs(deviation or 0.0) * len(numbers))
    k = int(np.argmax(repulsion - CLEAR * label))
    if repulsion[k] <= CLEAR * max(1.0, label[k]):
        return None
    return Contact((int(i[k]), int(j[k])), float(r[k]), float(repulsion[k]), float(label[k]), unit)


def _words(frame: Frame, contact: Contact) -> str:
    a, b = contact.atoms
    what = "force on them" if contact.unit == "eV/Å" else "energy"
    return (
        f"{frame.source}: atoms {a} ({frame.symbols[a]}) and {b} ({frame.symbols[b]}) are {contact.distance:.3g} Å "
        f"apart, where their repulsion is about {contact.repulsion:.2g} {contact.unit}, but the {what} is "
        f"{contact.label:.2g} {contact.unit}"
    )
