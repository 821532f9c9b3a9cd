"""ASE calculator for NeuralIL, differentiable neural potentials with uncertainties one can act on.

Names are loaded on first use, because ASE imports this package to list its plugins and must not pay for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralil_ase.calculator import NeuralILCalculator, predict_many
    from neuralil_ase.files.model_file import load_potential, save_potential
    from neuralil_ase.model.potential import Potential
    from neuralil_ase.monitor import ExtrapolationMonitor
    from neuralil_ase.prediction import Prediction
    from neuralil_ase.replicas import Replicas
    from neuralil_ase.training.train import train

__version__ = "0.1.0"

__all__ = [
    "ExtrapolationMonitor",
    "NeuralILCalculator",
    "Potential",
    "Prediction",
    "Replicas",
    "load_potential",
    "predict_many",
    "save_potential",
    "train",
]

_ROOMS = {
    "ExtrapolationMonitor": "monitor",
    "NeuralILCalculator": "calculator",
    "Potential": "model.potential",
    "Prediction": "prediction",
    "Replicas": "replicas",
    "load_potential": "files.model_file",
    "predict_many": "calculator",
    "save_potential": "files.model_file",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
