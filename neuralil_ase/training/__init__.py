"""Training of NeuralIL potentials: data, loss, optimisation, checkpoints, reports."""

from neuralil_ase.training.run import TrainingResult, train
from neuralil_ase.training.settings import TrainingSettings

__all__ = ["TrainingResult", "TrainingSettings", "train"]
