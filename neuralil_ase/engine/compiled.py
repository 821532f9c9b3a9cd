"""Predictions by the compiled core (``core/``), which replaces JAX on a CPU from pairs to forces.

The JAX functions in ``derivatives`` are the reference and the fallback, and they compute higher derivatives. The
library is called directly, so that nothing is compiled at run time.
"""

import json

import numpy as np
import safetensors.numpy

from neuralil_ase.engine.arrays import Derivatives
from neuralil_ase.engine.native import CoreModel, Evaluated
from neuralil_ase.engine.neighbors import Pairs
from neuralil_ase.model.potential import Potential, flatten
from neuralil_ase.prediction import Uncertainty, to_voigt

_FORMAT = "neuralil-ase"
_TO_VOIGT = to_voigt(np.eye(9).reshape(9, 3, 3))
"""``to_voigt`` as a matrix, (9, 6): a product is faster than picking elements."""


def core_model(potential: Potential, dtype: str) -> CoreModel:
    """The potential in the compiled core, without its energy reference, as in the JAX functions.

    ``native.missing_reason(potential.config)`` must be None.
    """
    arrays = {name: np.asarray(value) for name, value in flatten(potential.params).items()}
    arrays["energy_reference"] = np.zeros(len(potential.elements))
    header = {"format": _FORMAT, "format_version": 1, "config": potential.config.to_dict()}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return CoreModel(safetensors.numpy.save(contiguous, {_FORMAT: json.dumps(header)}), dtype)


def energies_and_forces(
    model: CoreModel, types: np.ndarray, pairs: Pairs, uncertainty: Uncertainty
) -> Derivatives:
    """As ``derivatives.energies_and_forces``, in float64 and without padding.

    Values that are not finite are returned, as in JAX, without a NumPy warning. The predictor then raises an error.
    """
    found = model(
        types, pairs.centers, pairs.neighbors, pairs.vectors, by_member=uncertainty == "forces"
    )
    with np.errstate(over="ignore", invalid="ignore"):
        return _derivatives(found, uncertainty)


def _derivatives(found: Evaluated, uncertainty: Uncertainty) -> Derivatives:
    outputs = found.energies[..., None]
    if found.aleatoric_variances is not None:
        outputs = np.concatenate([outputs, found.aleatoric_variances], axis=-1)
    return Derivatives(
        outputs.mean(axis=0, keepdims=True) if uncertainty == "off" else outputs,
        found.forces,
        _voigt_order(found.virials),
        found.member_forces,
        None if found.member_virials is None else _voigt_order(found.member_virials),
    )


def _voigt_order(virials: np.ndarray) -> np.ndarray:
    return virials.reshape(*virials.shape[:-2], 9) @ _TO_VOIGT
