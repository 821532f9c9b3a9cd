"""Relax oxygen on a copper surface without a model, and then on a second site with the model that was learnt.

    python md_examples/learning/learn_adsorbate.py

With ``Confirmed``, only the forces of the teacher end the relaxation.
"""

import tempfile

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from ase.optimize.optimize import Optimizer

from neuralil_ase import Confirmed, Learner, LearningCalculator

FMAX = 0.05  # eV/Å


def slab(site: str) -> Atoms:
    """Three layers of copper, the lowest held fixed, with oxygen beside a hollow site."""
    atoms = fcc111("Cu", (2, 2, 3), vacuum=7)
    add_adsorbate(atoms, "O", 1.6, site, offset=(0.05, 0.0))
    atoms.pbc = True
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    atoms.set_constraint(FixAtoms([atom.index for atom in atoms if atom.tag == 3]))
    return atoms


class Counting(EMT):
    """EMT, as a stand-in for a DFT code; counts its calls."""

    calls = 0

    def calculate(self, *args, **kwargs):
        Counting.calls += 1
        super().calculate(*args, **kwargs)


def relaxed(atoms: Atoms, optimizer: Optimizer) -> tuple[float, int]:
    """Energy in eV, and the number of calls of the teacher."""
    before = Counting.calls
    optimizer.run(fmax=FMAX)
    return atoms.get_potential_energy(), Counting.calls - before


with tempfile.TemporaryDirectory() as folder:  # keep yours: it is what was learnt
    learner = Learner(Counting(), folder)
    for site in ("fcc", "hcp"):
        alone = slab(site)
        alone.calc = Counting()
        energy, calls = relaxed(alone, BFGS(alone, logfile=None))
        learning = slab(site)
        learning.calc = LearningCalculator(learner=learner)
        found, asked = relaxed(learning, Confirmed(learning).optimizer(BFGS, logfile=None))
        print(f"O on Cu(111), {site}: BFGS alone {energy:.4f} eV in {calls} calls; "
              f"learning {found:.4f} eV in {asked} calls")  # fmt: skip
    print(learning.calc.summary())
