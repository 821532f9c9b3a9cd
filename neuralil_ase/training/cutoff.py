"""The cutoff of a run that names none, from the distances and densities in its data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neuralil_ase.evaluation.dataset import Frame, pairs_of, types_of

SHORTEST, LONGEST = 3.5, 6.0
"""Cutoffs in Å that a run chooses between."""
REACH = 2.2
"""Cutoff over the distance between nearest neighbours, where neither of the limits below acts: a second shell."""
MOST_ALIKE = 35
"""Neighbours of one element that an environment should hold. The density of one element is one function on a sphere,
and more neighbours than its coefficients resolve blur it. In copper 4.5 Å (32 neighbours) err by 59 meV/Å, 4.0 Å by
82 and 5.5 Å (59 neighbours) by 63, at 1.7 times the cost; in SrTiO3 5.5 Å (35 oxygen atoms) are best."""
FEW = 16
"""Where the longest cutoff holds no more neighbours than this, as in a small molecule, it is taken: they all count."""
SAMPLE = 64
"""Frames looked at, spread over the data."""


class Surroundings(NamedTuple):
    """What stands around the atoms of a data set.

    Attributes
    ----------
    nearest
        Median distance in Å from an atom to its nearest neighbour, of the element for which it is largest. Atoms
        without a neighbour within half the longest cutoff count as if they had one there.
    alike
        Mean number of neighbours of one element within the longest cutoff, of the element that has most.
    neighbours
        Mean number of all of them.
    """

    nearest: float
    alike: float
    neighbours: float


def surroundings(frames: Sequence[Frame], elements: tuple[str, ...]) -> Surroundings:
    """Of the atoms of at most ``SAMPLE`` frames."""
    types, nearest, counts = [], [], []
    for frame in frames[:: max(1, len(frames) // SAMPLE)]:
        types.append(types_of(frame, elements))
        pairs = pairs_of(frame, types[-1], LONGEST)
        nearest.append(np.full(len(types[-1]), LONGEST / 2))
        np.minimum.at(nearest[-1], pairs.centers, np.linalg.norm(pairs.vectors, axis=1))
        counts.append(np.bincount(types[-1][pairs.neighbors], minlength=len(elements)))
    all_types, all_nearest = np.concatenate(types), np.concatenate(nearest)
    by_element = np.sum(counts, axis=0) / len(all_types)
    medians = [np.median(all_nearest[all_types == k]) for k in np.unique(all_types)]
    return Surroundings(float(max(medians)), float(by_element.max()), float(by_element.sum()))


def cutoff_for(found: Surroundings) -> float:
    """Cutoff in Å: ``REACH`` times the nearest distance, less where one element is crowded; all of a small molecule."""
    if found.neighbours <= FEW:
        return LONGEST
    # The radius that holds so many, at the mean density inside the longest cutoff: shells would make it jump.
    crowded = LONGEST * np.cbrt(MOST_ALIKE / max(found.alike, 1e-9))
    return rounded(min(REACH * found.nearest, float(crowded)))


def rounded(radius: float) -> float:
    """To half an Å, between the shortest and the longest cutoff."""
    return float(np.clip(round(2 * radius) / 2, SHORTEST, LONGEST))
