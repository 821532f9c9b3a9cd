"""ASE calculator for NeuralIL, differentiable neural potentials with uncertainties one can act on.

Names are loaded on first use, because ASE imports this package to list its plugins and must not wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuralil_ase import errors

if TYPE_CHECKING:
    from neuralil_ase.bias import UncertaintyBias
    from neuralil_ase.calculator import NeuralILCalculator
    from neuralil_ase.calibration import Calibration
    from neuralil_ase.cross_validation.cross_validate import cross_validate
    from neuralil_ase.cross_validation.folds import CrossValidation
    from neuralil_ase.evaluation.calibrate import calibrate
    from neuralil_ase.evaluation.evaluate import evaluate
    from neuralil_ase.farm import Labelled, label, predict_many
    from neuralil_ase.files.model_file import load_potential, save_potential
    from neuralil_ase.files.published_files import import_published
    from neuralil_ase.learning import Confirmed, Learner, LearningCalculator
    from neuralil_ase.model.potential import Potential
    from neuralil_ase.monitor import (
        Criterion,
        EnergySpreadPerAtom,
        Event,
        ExtrapolationMonitor,
        ExtrapolationWarning,
        MaxEnergySpread,
        MaxForceErrorBar,
        MaxForceSpread,
        MeanForceSpread,
        NoveltyFilter,
        RelativeForceSpread,
        ShortestDistance,
        annotate,
        read_log,
    )
    from neuralil_ase.prediction import Prediction
    from neuralil_ase.replicas import ReplicaPrediction, Replicas
    from neuralil_ase.training.settings import TrainingSettings
    from neuralil_ase.training.train import TrainingResult, train

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "Confirmed",
    "Criterion",
    "CrossValidation",
    "EnergySpreadPerAtom",
    "Event",
    "ExtrapolationMonitor",
    "ExtrapolationWarning",
    "Labelled",
    "Learner",
    "LearningCalculator",
    "MaxEnergySpread",
    "MaxForceErrorBar",
    "MaxForceSpread",
    "MeanForceSpread",
    "NeuralILCalculator",
    "NoveltyFilter",
    "Potential",
    "Prediction",
    "RelativeForceSpread",
    "ReplicaPrediction",
    "Replicas",
    "ShortestDistance",
    "TrainingResult",
    "TrainingSettings",
    "UncertaintyBias",
    "annotate",
    "calibrate",
    "cross_validate",
    "errors",
    "evaluate",
    "import_published",
    "label",
    "load_potential",
    "predict_many",
    "read_log",
    "save_potential",
    "train",
]

_HOMES = {
    "bias": ("UncertaintyBias",),
    "calculator": ("NeuralILCalculator",),
    "calibration": ("Calibration",),
    "evaluation.calibrate": ("calibrate",),
    "evaluation.evaluate": ("evaluate",),
    "cross_validation": ("CrossValidation", "cross_validate"),
    "farm": ("Labelled", "label", "predict_many"),
    "files.model_file": ("load_potential", "save_potential"),
    "files.published_files": ("import_published",),
    "learning": ("Confirmed", "Learner", "LearningCalculator"),
    "model.potential": ("Potential",),
    "monitor": (
        "Criterion", "EnergySpreadPerAtom", "Event", "ExtrapolationMonitor", "ExtrapolationWarning", "MaxEnergySpread",
        "MaxForceErrorBar", "MaxForceSpread", "MeanForceSpread", "NoveltyFilter", "RelativeForceSpread",
        "ShortestDistance", "annotate", "read_log",
    ),
    "prediction": ("Prediction",),
    "replicas": ("ReplicaPrediction", "Replicas"),
    "training": ("TrainingResult", "TrainingSettings", "train"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
