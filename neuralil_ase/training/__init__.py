"""Training of NeuralIL potentials: data, loss, optimisation, checkpoints, reports."""

from importlib.util import find_spec

from neuralil_ase.errors import DependencyError

if find_spec("optax") is None:
    raise DependencyError(
        "training needs optax, which is not installed: pip install 'neuralil-ase[train]'"
    )

# After the check above, so that a missing optax is reported first.
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.train import TrainingResult, train

__all__ = ["TrainingResult", "TrainingSettings", "train"]
