"""A criterion of your own: flag frames in which a proton is leaving its nitrogen.

    python md_examples/own_criterion.py [STEPS]

A criterion reads one number per atom and has two thresholds. Here it is used together with the spread of
the forces; the worse of the two decides. Writes own_criterion.png and flagged.extxyz.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from neuralil_ase import ExtrapolationMonitor, NeuralILCalculator
from neuralil_ase.monitor import Criterion, MaxForceSpread, PredictionLike

STEPS = int(sys.argv[1]) if sys.argv[1:] else 2000
CATION = 11  # atoms; the first is nitrogen, the next three its hydrogens


@dataclass(frozen=True)
class LongestNH(Criterion):
    """Longest N-H bond, Å: a candidate for labelling from ``low`` on, too long from ``high`` on."""

    low: float | None = 1.15
    high: float | None = 1.40

    kind = "longest_NH"
    unit = "Å"

    def values(self, atoms: Atoms, prediction: PredictionLike) -> np.ndarray:
        """(N,) length of the N-H bond of each ammonium hydrogen, 0 for all other atoms."""
        found = np.zeros(len(atoms))
        for nitrogen in range(0, 15 * CATION, CATION):
            hydrogens = range(nitrogen + 1, nitrogen + 4)
            found[hydrogens] = atoms.get_distances(nitrogen, hydrogens, mic=True)
        return found


atoms = read(Path(__file__).parent / "ean_start.extxyz")
atoms.calc = NeuralILCalculator()
rng = np.random.default_rng(0)
thermalize_momenta(atoms, temperature_K=500, rng=rng)
dyn = Langevin(
    atoms, 0.5 * units.fs, temperature_K=500, friction=0.01 / units.fs, fixcm=False, rng=rng
)
monitor = ExtrapolationMonitor(
    dyn, criteria=[LongestNH(), MaxForceSpread()], save="flagged.extxyz", stop=True
)
dyn.attach(monitor, interval=10)
dyn.run(STEPS)
print(monitor.summary())
monitor.plot("own_criterion.png")
