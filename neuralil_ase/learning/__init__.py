"""Learning during a run: a potential is trained on the fly with any ASE calculator as teacher."""

from neuralil_ase.learning.calculator import LearningCalculator
from neuralil_ase.learning.confirmed import Confirmed
from neuralil_ase.learning.learner import Learner
from neuralil_ase.learning.walkers import Walkers

__all__ = ["Confirmed", "Learner", "LearningCalculator", "Walkers"]
