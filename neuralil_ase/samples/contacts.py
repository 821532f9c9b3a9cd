"""Contacts that are in no frame, where the linear part must not fall.

The labels say nothing about atoms that come into contact as in no frame: closer than any, or as close as bonded ones,
but to an atom that has all its bonds. There the linear part goes on with the slope it has in the data, and members fell
by tens of eV: holes, from which a relaxation does not come back. Physics knows one thing about such a contact: its
energy is high. The linear part is therefore asked to rise by ``RISE`` when an atom of a frame is moved there, or a
whole molecule with all its bonds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers, covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from neuralil_ase.engine.neighbors import Pairs, shortest_distances
from neuralil_ase.evaluation.dataset import pairs_of
from neuralil_ase.progress import Progress
from neuralil_ase.samples.batches import Packer, Sample, densities, features_of
from neuralil_ase.samples.equations import Unknowns

CLOSENESS = (0.5, 1.25)
"""Range of the distances of the contacts, divided by the shortest distance of their elements in the data."""
CLOSENESS_OF_MOLECULES = (0.5, 0.9)
"""The same for the closest atoms of two molecules, one of which moved as a whole. Only distances between molecules
count there."""
BOND = 1.25
"""Atoms are bonded if they are closer than this multiple of the sum of their covalent radii."""
APART = 1.5
"""Smallest distance of two atoms before they come into contact, divided by the same shortest distance: not a bond.

It is never more than halfway from this shortest distance to the cutoff."""
RISE, RISE_OF_MOLECULES = 4.0, 1.0
"""Rise of the linear part in eV that is asked for, where one atom moved and where a molecule did. Between ions that
keep their bonds, GFN1-xTB rises by 0.25 to 2.6 eV at 0.8 to 0.9 of the shortest distance (NOTEBOOK)."""
TOLERANCE = 0.2
"""Standard deviation in eV of this rule. It weighs as much as a label with an error of this size."""
MOST_OF_PAIR = 96
"""Largest number of contacts of each kind for two elements. There are no more than frames, either."""
MOST = 2000
"""Largest number of contacts, which are shared by the pairs of elements."""


class Contact(NamedTuple):
    """A frame before and after the atoms ``moved``, one or a molecule, come close to another atom.

    ``rise`` is the rise of the energy that is asked for, in eV.
    """

    before: Sample
    after: Sample
    moved: np.ndarray
    rise: float


class Known(NamedTuple):
    """A sample with its pairs. ``between`` tells which of them join two molecules."""

    sample: Sample
    pairs: Pairs
    molecules: np.ndarray
    between: np.ndarray


def contact_rows(
    packer: Packer, unknowns: Unknowns, samples: Sequence[Sample], progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Changes of the energy by :func:`contacts_of`, and the rises that are asked for.

    Returns
    -------
    rows, rises
        The changes are linear in the unknowns: shape (contacts, U), in eV. Shape (contacts,), in eV.
    """
    rows, rises = [], []
    with Progress(None, "contact", "linear fit", progress) as bar:
        for contact in contacts_of(packer, samples):
            change = _change(packer, contact) * unknowns.factor
            rows.append(np.append(change, np.zeros(unknowns.n_elements)))
            rises.append(contact.rise)
            bar.update(len(rows))
    return np.array(rows).reshape(len(rows), unknowns.size), np.array(rises)


def contacts_of(packer: Packer, samples: Sequence[Sample]) -> Iterator[Contact]:
    """Bring atoms of random samples into contact that were not bonded.

    In each contact, one atom moves along the line to an atom inside its cutoff, which may belong to another molecule.
    All other atoms stay. Where there are molecules, there are as many contacts again in which an atom takes along all
    that is bonded to it, until the first atom of its molecule is close to one of another molecule. Each distance
    between the two atoms is about as likely before. There are about as many contacts for each pair of elements. The
    seed is fixed.
    """
    rng = np.random.default_rng(0)
    every, between = _shortest(packer, samples)
    kinds = [
        (pair, shortest, shortest is between)
        for shortest in (every, between)
        for pair in np.argwhere(np.triu(np.isfinite(shortest)))
    ]
    for _ in range(min(MOST_OF_PAIR, len(samples), MOST // max(len(kinds), 1))):
        for pair, shortest, is_whole in kinds:
            known = _known(packer, samples[int(rng.integers(len(samples)))])
            contact = _contact(packer, known, pair, shortest, is_whole, rng)
            if contact is not None:
                yield contact


def _shortest(packer: Packer, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Shortest distances of each pair of elements: of all atoms, and of atoms of two molecules."""
    n_types = len(packer.slots)
    every = between = np.full((n_types, n_types), np.inf)
    for sample in samples:
        known = _known(packer, sample)
        joining = Pairs(*(values[known.between] for values in known.pairs))
        every = np.minimum(every, shortest_distances([(known.pairs, sample.types)], n_types))
        between = np.minimum(between, shortest_distances([(joining, sample.types)], n_types))
    return every, between


def _known(packer: Packer, sample: Sample) -> Known:
    pairs, n_atoms = _pairs(packer, sample), len(sample.types)
    radii = covalent_radii[[atomic_numbers[x] for x in packer.config.descriptor.elements]]
    longest = BOND * (radii[sample.types[pairs.centers]] + radii[sample.types[pairs.neighbors]])
    is_bond = _squares(pairs) < longest**2
    bonds = (np.ones(is_bond.sum()), (pairs.centers[is_bond], pairs.neighbors[is_bond]))
    _, molecules = connected_components(coo_array(bonds, shape=(n_atoms, n_atoms)), directed=False)
    between = molecules[pairs.centers] != molecules[pairs.neighbors]
    # Whoever evaluates a contact needs these pairs again.
    return Known(replace(sample, pairs=pairs), pairs, molecules, between)


def _pairs(packer: Packer, sample: Sample) -> Pairs:
    if sample.pairs is not None:
        return sample.pairs
    return pairs_of(sample.frame, sample.types, packer.config.descriptor.r_cut)


def _squares(pairs: Pairs) -> np.ndarray:
    return np.einsum("px,px->p", pairs.vectors, pairs.vectors)


def _contact(
    packer: Packer,
    known: Known,
    pair: np.ndarray,
    shortest: np.ndarray,
    is_whole: bool,
    rng: np.random.Generator,
) -> Contact | None:
    """The neighbour of some pair of these elements moves close to its centre, with its molecule if this is whole.

    None if no atoms of these elements are so far apart before.
    """
    sample, pairs = known.sample, known.pairs
    least, r_cut = shortest[tuple(pair)], packer.config.descriptor.r_cut
    closeness = rng.uniform(*(CLOSENESS_OF_MOLECULES if is_whole else CLOSENESS))
    apart = min(APART * least, (least + r_cut) / 2)
    chosen = _choose(known, rng.permutation(pair), apart, is_whole, rng)
    if chosen is None:
        return None
    length = float(np.linalg.norm(pairs.vectors[chosen]))
    direction = -pairs.vectors[chosen] / length
    if is_whole:
        molecule = known.molecules[pairs.neighbors[chosen]]
        moved = np.flatnonzero(known.molecules == molecule)
        way = _way(known, molecule, direction, closeness * shortest)
    else:
        moved = pairs.neighbors[[chosen]]
        way = length - closeness * least
    positions = sample.frame.positions.copy()
    positions[moved] += way * direction
    frame = replace(sample.frame, positions=positions)
    after = replace(sample, frame=frame, pairs=None, arrays=None)
    after = replace(after, pairs=_pairs(packer, after))
    return Contact(sample, after, moved, RISE_OF_MOLECULES if is_whole else RISE)


def _way(known: Known, molecule: int, direction: np.ndarray, distances: np.ndarray) -> float:
    """How far a molecule moves until the first of its atoms is that close to one of another molecule.

    ``distances`` holds the distance for each pair of elements.
    """
    pairs, types = known.pairs, known.sample.types
    meets = known.between & (known.molecules[pairs.neighbors] == molecule)
    vectors = pairs.vectors[meets]
    reached = distances[types[pairs.centers[meets]], types[pairs.neighbors[meets]]]
    # |v + t d|² = r² for the unit vector d.
    along = vectors @ direction
    root = along**2 - _squares(pairs)[meets] + reached**2
    ways = -along - np.sqrt(np.where(root >= 0, root, np.nan))
    return float(np.nanmin(np.where(ways > 0, ways, np.nan)))


def _choose(
    known: Known, elements: np.ndarray, apart: float, is_whole: bool, rng: np.random.Generator
) -> int | None:
    """Number of a pair of atoms of these elements that are so far apart; None if a frame has none.

    An atom and its image are no pair.
    """
    pairs, types = known.pairs, known.sample.types
    squares = _squares(pairs)
    is_pair = (types[pairs.centers] == elements[0]) & (types[pairs.neighbors] == elements[1])
    is_pair &= known.between if is_whole else pairs.centers != pairs.neighbors
    found = np.flatnonzero(is_pair & (squares > apart**2))
    if not len(found):
        return None
    # There are as many pairs in each shell as its area.
    chances = 1 / squares[found]
    return int(rng.choice(found, p=chances / chances.sum()))


def _change(packer: Packer, contact: Contact) -> np.ndarray:
    """Change of the sums of the descriptors over the atoms of each element, shape (elements, F).

    Only atoms change that have a moved one inside their cutoff, before or after.
    """
    descriptor, types = packer.config.descriptor, contact.before.types
    every = _pairs(packer, contact.before), _pairs(packer, contact.after)
    near = (pairs.centers[np.isin(pairs.neighbors, contact.moved)] for pairs in every)
    changed = np.unique(np.hstack([contact.moved, *near]))
    parts = []
    for pairs in every:
        is_needed = np.isin(pairs.centers, changed)
        needed = Pairs(*(values[is_needed] for values in pairs))
        parts.append(densities(descriptor, needed, types, len(packer.slots))[changed])
    features = features_of(descriptor, np.concatenate(parts)).astype(np.float64)
    change = np.subtract(features[len(changed) :], features[: len(changed)])
    is_of = types[changed] == np.arange(len(packer.slots))[:, None]
    return is_of.astype(np.float64) @ change
