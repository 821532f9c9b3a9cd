"""Cross-validation: training on parts of the data, evaluation on the rest."""

from neuralil_ase.cross_validation.folds import CrossValidation, FoldScore
from neuralil_ase.cross_validation.run import cross_validate

__all__ = ["CrossValidation", "FoldScore", "cross_validate"]
