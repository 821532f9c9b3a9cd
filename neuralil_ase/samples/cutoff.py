"""Chooses cutoff and radial scaling from the distances and densities in the data, if the settings give none.

Near neighbours determine most of the energy, but far neighbours are more numerous. The radial scaling (1 - r²/r_cut²)^k
makes far neighbours count less. A longer cutoff then helps, because far neighbours do not outweigh near ones (NOTEBOOK,
"Radial scaling").
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neuralil_ase.evaluation.dataset import Frame, pairs_of, types_of

SHORTEST, LONGEST = 3.5, 6.0
"""Smallest and largest cutoff in Å that is chosen if there are short bonds."""
SHORT_BOND, WIDEST = 3.0, 9.0
"""If all bonds are longer than a short bond, as in potassium (4.6 Å) or solid argon, the largest cutoff is twice the
shortest bonds, but no more than the widest cutoff, in Å. With 6 Å, potassium would see no more than copper with 3.3 Å.
Copper with 1.85 times its lengths has nine times smaller errors with 8.5 Å than with 6 Å."""
REACH, REACH_IF_UNEVEN = 2.2, 2.4
"""Cutoff divided by the distance between nearest neighbours, in general and if some bonds are much shorter than others.
The cutoff then includes the second shell. The limits below can change it."""
LEAST_REACH = 5.0
"""Smallest cutoff in Å, unless it would hold too many neighbours."""
MOST_ALIKE, MOST_ALIKE_IF_UNEVEN = 35, 45
"""Largest number of neighbours of one element inside the cutoff. The coefficients of the density cannot resolve more.
Force errors of copper are 82 meV/Å with 4.0 Å, 59 with 4.5 Å (32 neighbours), and 63 with 5.5 Å (59 neighbours), at 1.7
times the cost. In SrTiO3, the best cutoff is 5.5 Å (35 oxygen atoms) without a scaling, and 6.0 Å (41) with a
scaling."""
FEW, FEW_IF_COVALENT = 16, 24
"""If a sphere of ``LONGEST`` holds no more neighbours than this and there are short bonds, the data are of a small
molecule, and this cutoff is chosen. Without short bonds, atoms have few neighbours because they are far apart. The
second number is for covalent bonds: a molecule of 27 atoms has 19 neighbours, and forces become 20 % better."""
COVALENT = 2.0
"""Length in Å below which bonds count as covalent. Small clusters of metals, with longer bonds, are no molecules."""
RANGE, RANGE_OF_MOLECULES = 1.8, 3.0
"""Range of the scaled radial functions, r_cut / √k, divided by the distance between nearest neighbours; in general and
for small molecules, which have few environments and many examples of each."""
UNEVEN = 0.85
"""Bonds are uneven if those of one element are shorter than those of another by more than this factor, as in SrTiO3."""
FAR = 3.0
"""There is a scaling only if the cutoff is more than this multiple of the shortest bonds. In metals (1.9), the second
shell counts as much as the first: with a scaling of 1, the energies of molybdenum have errors of 4.4 instead of 2.8
meV/atom."""
STRONGEST = 5
"""Largest power of the radial scaling that is chosen."""
SAMPLE = 64
"""Number of frames that are analysed, spread over the data."""


class Surroundings(NamedTuple):
    """Distances and numbers of neighbours in a data set.

    Attributes
    ----------
    nearest
        Median distance in Å from an atom to its nearest neighbour, for the element where it is largest. It counts as
        ``SHORT_BOND`` at most if there are short bonds, and as half of ``WIDEST`` at most without.
    shortest
        The same for the element where it is smallest.
    alike
        Mean number of neighbours of one element within ``LONGEST``, for the element where it is largest.
    neighbours
        Mean number of neighbours of all elements within ``LONGEST``.
    """

    nearest: float
    shortest: float
    alike: float
    neighbours: float

    @property
    def is_molecule(self) -> bool:
        """Whether atoms have only few neighbours, but near ones, as in a small molecule."""
        few = FEW_IF_COVALENT if self.shortest < COVALENT else FEW
        return self.neighbours <= few and self.shortest < SHORT_BOND

    @property
    def is_uneven(self) -> bool:
        """Whether some bonds are much shorter than others."""
        return self.shortest < UNEVEN * self.nearest

    @property
    def longest(self) -> float:
        """Largest cutoff in Å for these distances."""
        return min(max(LONGEST, 2 * self.shortest), WIDEST)


def surroundings(frames: Sequence[Frame], elements: tuple[str, ...]) -> Surroundings:
    """Analyse the atoms of at most ``SAMPLE`` frames."""
    types, nearest, counts = [], [], []
    for frame in frames[:: max(1, len(frames) // SAMPLE)]:
        types.append(types_of(frame, elements))
        pairs = pairs_of(frame, types[-1], LONGEST)
        nearest.append(np.full(len(types[-1]), WIDEST / 2))
        np.minimum.at(nearest[-1], pairs.centers, np.linalg.norm(pairs.vectors, axis=1))
        counts.append(np.bincount(types[-1][pairs.neighbors], minlength=len(elements)))
    all_types, all_nearest = np.concatenate(types), np.concatenate(nearest)
    by_element = np.sum(counts, axis=0) / len(all_types)
    medians = [np.median(all_nearest[all_types == k]) for k in np.unique(all_types)]
    shortest = float(min(medians))
    most = SHORT_BOND if shortest < SHORT_BOND else np.inf
    return Surroundings(
        float(min(max(medians), most)), shortest, float(by_element.max()), float(by_element.sum())
    )


class Sight(NamedTuple):
    """The cutoff, and how much less far neighbours count.

    Attributes
    ----------
    r_cut
        Cutoff in Å.
    scaled_range
        Range of the scaled radial functions in Å; infinite without a scaling.
    is_molecule
        Whether the data are of a small molecule, all of which lies within the cutoff.
    """

    r_cut: float
    scaled_range: float
    is_molecule: bool = False

    def scaling(self, r_cut: float) -> int:
        """Power k of the radial scaling with this range, at a cutoff in Å."""
        return min(round((r_cut / self.scaled_range) ** 2), STRONGEST)


def sight_for(found: Surroundings) -> Sight:
    """Cutoff and range from the nearest distance; the cutoff is smaller if one element is dense."""
    if found.is_molecule:
        return Sight(LONGEST, RANGE_OF_MOLECULES * found.nearest, is_molecule=True)
    reach, most = REACH, MOST_ALIKE
    if found.is_uneven:
        reach, most = REACH_IF_UNEVEN, MOST_ALIKE_IF_UNEVEN
    # The radius that holds this many neighbours at the mean density; a count would jump from shell to shell.
    crowded = LONGEST * np.cbrt(most / max(found.alike, 1e-9))
    wanted = min(max(reach * found.nearest, LEAST_REACH), float(crowded))
    r_cut = rounded(wanted, found.longest)
    return Sight(r_cut, RANGE * found.nearest if r_cut > FAR * found.shortest else np.inf)


def rounded(radius: float, longest: float = LONGEST) -> float:
    """Round to half an Å, between the smallest and the largest cutoff."""
    return round(2 * float(np.clip(radius, SHORTEST, longest))) / 2
