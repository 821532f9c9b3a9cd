"""Training of NeuralIL potentials: data, loss, optimisation, checkpoints, reports."""

from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.train import TrainingResult, train

__all__ = ["TrainingResult", "TrainingSettings", "train"]
