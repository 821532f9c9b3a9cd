"""The universal screening function of Ziegler, Biersack and Littmark, for numpy and JAX."""

from collections.abc import Callable
from typing import Any

import numpy as np

COULOMB = 14.399645478425668
"""e²/(4πε₀) in eV Å (CODATA 2018)."""
WEIGHTS = (0.18175, 0.50986, 0.28022, 0.02817)
DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)


def screened_coulomb(z_i: Any, z_j: Any, r: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
    """Repulsion of two nuclei with their electrons in eV, at the distances ``r`` in Å, element by element.

    Parameters
    ----------
    z_i, z_j, r
        Atomic numbers and distances, arrays of one library.
    exp
        Exponential function of this library.

    References
    ----------
    Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Matter (1985).
    """
    x = r / (0.46850 / (z_i**0.23 + z_j**0.23))
    screening = sum(w * exp(-d * x) for w, d in zip(WEIGHTS, DECAYS, strict=True))
    return COULOMB * z_i * z_j / r * screening
