"""Contacts that are in no frame, where the linear part must not fall.

The labels say nothing about atoms that come into contact as in no frame: closer than any, or as close as bonded ones,
but to an atom that has all its bonds. There the linear part goes on with the slope it has in the data, and members fell
by tens of eV: holes, from which a relaxation does not come back. Physics knows one thing about such a contact: its
energy is high. The linear part is therefore asked to rise by ``RISE`` when an atom of a frame is moved there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from neuralil_ase.engine.neighbors import Pairs, shortest_distances
from neuralil_ase.evaluation.dataset import pairs_of
from neuralil_ase.progress import Progress
from neuralil_ase.samples.batches import Packer, Sample, densities, features_of
from neuralil_ase.samples.equations import Unknowns

CLOSENESS = (0.5, 1.25)
"""Range of the distances of the contacts, divided by the shortest distance of their elements in the data."""
APART = 1.5
"""Smallest distance of two atoms before they come into contact, divided by the same shortest distance: not a bond.

It is never more than halfway from this shortest distance to the cutoff."""
RISE = 4.0
"""Rise of the linear part in eV that is asked for."""
TOLERANCE = 0.2
"""Standard deviation in eV of this rule. It weighs as much as a label with an error of this size."""
MOST_OF_PAIR = 96
"""Largest number of contacts for two elements. There are no more than frames, either."""
MOST = 2000
"""Largest number of contacts, which are shared by the pairs of elements."""


class Contact(NamedTuple):
    """A frame before and after the atom ``moved`` comes close to another."""

    before: Sample
    after: Sample
    moved: int


def contact_rows(
    packer: Packer, unknowns: Unknowns, samples: Sequence[Sample], progress: bool = False
) -> np.ndarray:
    """Changes of the energy by :func:`contacts_of`, linear in the unknowns: shape (contacts, U), in eV."""
    rows: list[np.ndarray] = []
    with Progress(None, "contact", "linear fit", progress) as bar:
        for contact in contacts_of(packer, samples):
            change = _change(packer, contact) * unknowns.factor
            rows.append(np.append(change, np.zeros(unknowns.n_elements)))
            bar.update(len(rows))
    return np.array(rows).reshape(len(rows), unknowns.size)


def contacts_of(packer: Packer, samples: Sequence[Sample]) -> Iterator[Contact]:
    """Bring atoms of random samples into contact that were not bonded.

    In each contact, one atom moves along the line to an atom inside its cutoff, which may belong to another molecule.
    Each distance between them is about as likely before. All other atoms stay. There are about as many contacts for
    each pair of elements. The seed is fixed.
    """
    rng = np.random.default_rng(0)
    known = ((_pairs(packer, sample), sample.types) for sample in samples)
    shortest = shortest_distances(known, len(packer.slots))
    met = np.argwhere(np.triu(np.isfinite(shortest)))
    for _ in range(min(MOST_OF_PAIR, len(samples), MOST // max(len(met), 1))):
        for pair in met:
            sample, least = samples[int(rng.integers(len(samples)))], shortest[tuple(pair)]
            distance = least * rng.uniform(*CLOSENESS)
            elements = rng.permutation(pair)
            apart = min(APART * least, (least + packer.config.descriptor.r_cut) / 2)
            pairs = _pairs(packer, sample)
            chosen = _choose(pairs, sample.types, elements, apart, rng)
            if chosen is not None:
                # Whoever evaluates the contact needs these pairs again.
                yield _contact(replace(sample, pairs=pairs), pairs, chosen, distance)


def _pairs(packer: Packer, sample: Sample) -> Pairs:
    if sample.pairs is not None:
        return sample.pairs
    return pairs_of(sample.frame, sample.types, packer.config.descriptor.r_cut)


def _choose(
    pairs: Pairs, types: np.ndarray, elements: np.ndarray, apart: float, rng: np.random.Generator
) -> int | None:
    """Number of a pair of atoms of these elements that are so far apart; None if a frame has none.

    An atom and its image are no pair.
    """
    squares = np.einsum("px,px->p", pairs.vectors, pairs.vectors)
    is_pair = (types[pairs.centers] == elements[0]) & (types[pairs.neighbors] == elements[1])
    found = np.flatnonzero(is_pair & (pairs.centers != pairs.neighbors) & (squares > apart**2))
    if not len(found):
        return None
    # There are as many pairs in each shell as its area.
    chances = 1 / squares[found]
    return int(rng.choice(found, p=chances / chances.sum()))


def _contact(sample: Sample, pairs: Pairs, chosen: int, distance: float) -> Contact:
    """The neighbour of a pair moves to this distance from its centre."""
    vector, moved = pairs.vectors[chosen], int(pairs.neighbors[chosen])
    positions = sample.frame.positions.copy()
    positions[moved] += vector * (distance / np.linalg.norm(vector) - 1)
    frame = replace(sample.frame, positions=positions)
    return Contact(sample, replace(sample, frame=frame, pairs=None, arrays=None), moved)


def _change(packer: Packer, contact: Contact) -> np.ndarray:
    """Change of the sums of the descriptors over the atoms of each element, shape (elements, F).

    Only atoms change that have the moved one inside their cutoff, before or after.
    """
    descriptor, types = packer.config.descriptor, contact.before.types
    every = _pairs(packer, contact.before), _pairs(packer, contact.after)
    near = [contact.moved, *(pairs.centers[pairs.neighbors == contact.moved] for pairs in every)]
    changed = np.unique(np.hstack(near))
    parts = []
    for pairs in every:
        is_needed = np.isin(pairs.centers, changed)
        needed = Pairs(*(values[is_needed] for values in pairs))
        parts.append(densities(descriptor, needed, types, len(packer.slots))[changed])
    features = features_of(descriptor, np.concatenate(parts)).astype(np.float64)
    change = np.subtract(features[len(changed) :], features[: len(changed)])
    is_of = types[changed] == np.arange(len(packer.slots))[:, None]
    return is_of.astype(np.float64) @ change
