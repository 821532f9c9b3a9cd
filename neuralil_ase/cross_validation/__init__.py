"""Cross-validation: training on parts of the data, evaluation on the rest."""

from neuralil_ase.cross_validation.cross_validate import cross_validate
from neuralil_ase.cross_validation.folds import CrossValidation, FoldScore

__all__ = ["CrossValidation", "FoldScore", "cross_validate"]
