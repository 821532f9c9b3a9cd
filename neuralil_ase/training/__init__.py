"""Training of NeuralIL potentials: data, loss, optimisation, checkpoints, reports."""

from importlib.util import find_spec

from neuralil_ase.errors import DependencyError

if find_spec("optax") is None:
    raise DependencyError(
        "training needs optax, which is not installed: pip install 'neuralil-ase[train]'"
    )

from neuralil_ase.training.settings import TrainingSettings  # says first what is missing
from neuralil_ase.training.train import TrainingResult, train  # likewise

__all__ = ["TrainingResult", "TrainingSettings", "train"]
