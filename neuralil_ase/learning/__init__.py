"""Learning while a run goes on: from any ASE calculator as teacher to a trusted potential."""

from neuralil_ase.learning.calculator import LearningCalculator
from neuralil_ase.learning.learner import Learner
from neuralil_ase.learning.walkers import Walkers

__all__ = ["Learner", "LearningCalculator", "Walkers"]
