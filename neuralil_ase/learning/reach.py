"""Where a model that began from nothing is not trusted, whatever its error bars: far from what it has learnt."""

import numpy as np
from ase import Atoms

from neuralil_ase.learning.pupil import Pupil

GROWN = 10
"""A model that has learnt fewer frames is young."""
REACH, REACH_OF_OPTIMISER = 0.06, 0.15
"""Distance in Å per learnt frame within which a young model is trusted, in MD and in an optimisation."""
ALIKE = 0.15
"""Largest difference of the logarithms of two coordinations that are alike. In MD of liquid EAN and of solid and molten
copper, one of 121 spot checks is farther away from the frames learnt before it, by 0.16."""


def too_far(pupil: Pupil, atoms: Atoms, is_descending: bool) -> str | None:
    """The reason why the model must not be trusted here; None if it may be trusted.

    At first all members extrapolate in the same way, and spreads are too small. After two frames of copper rattled by
    0.05 Å, the error was twice the spread at a distance of 0.08 Å from them, and eight times at 0.27 Å. Later the same
    holds for atoms with fewer neighbours than any that was learnt: when a copper atom left a surface that had been
    learnt in 13 frames, errors were up to 1.2 eV/Å, error bars 0.015 to 0.15, and the energy was wrong by 1.6 eV.

    Parameters
    ----------
    pupil
        The pupil with its potential.
    atoms
        The structure.
    is_descending
        Whether the teacher is to confirm a minimum. Then young models have a longer reach, and the coordination does
        not matter: a strange minimum is not confirmed.
    """
    frames = pupil.n_learnt
    if frames >= GROWN:
        return None if is_descending else _strange(pupil, atoms)
    reach = (REACH_OF_OPTIMISER if is_descending else REACH) * frames
    moved = pupil.moved(
        atoms
    )  # atoms that constraints fix count, too: a script may have moved them
    if moved <= reach:
        return None
    if not np.isfinite(moved):
        return "no learnt frame has the same atoms, and a young model is not trusted without one"
    return (
        f"an atom is {moved:.2f} Å from its position in the nearest learnt frame, but a model that has learnt {frames} "
        f"frames is trusted only within {reach:.2f} Å"
    )


def _strange(pupil: Pupil, atoms: Atoms) -> str | None:
    found = pupil.strangest(atoms)
    if found.distance <= ALIKE:
        return None
    return (
        f"the coordination of atom {found.atom} ({atoms.symbols[found.atom]}) is {found.coordination:.2f}, and "
        f"{found.nearest:.2f} at the most similar atom that was learnt"
    )
