"""Scales that make training easy, and how they disappear into the first and last layers.

Training works on normalised descriptors and energies. Both scalings are linear, so that they fold into the layers
that read the descriptor and into the last one: the potential that is evaluated and saved has the published
architecture, without any normalisation.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from neuralil_ase.errors import ConfigError
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.network import init_params
from neuralil_ase.model.parameters import ALEATORIC
from neuralil_ase.model.potential import Params, flatten, unflatten

ALEATORIC_FACTOR = 10.0
"""From the last layers of the variances to what softplus turns into σ²: forces known to 0.05 eV/Å need -6, energies -9,
which is farther than a learning rate of 2e-3 moves a weight in a usual run."""


FEATURE_EXPONENT = 0.5
"""How far features of different spread are made alike: 1 gives all of them unit variance, 0 keeps their ratios.

What varies little is a product of small coefficients; made as large as the rest, it is learnt by heart first. With 0.5
in place of 1, held-out forces of SrTiO3 err by 113 meV/Å in place of 121, and the largest errors of metals shrink."""


class Scaling(NamedTuple):
    """Affine map of the descriptor and factor of the energy.

    Attributes
    ----------
    mean
        Subtracted from the features, shape (F,), in Å^-3.
    factor
        Then multiplied, shape (F,), in Å^3.
    energy
        Factor from the network's output to eV.
    """

    mean: np.ndarray
    factor: np.ndarray
    energy: float


def scaling_of(features: np.ndarray, force_rms: float) -> Scaling:
    """Unit variance for the feature that varies most, energies in units of the forces times 1 Å.

    Parameters
    ----------
    features
        Descriptors of many atoms, shape (N, F).
    force_rms
        Root mean square of the force components in eV/Å; NaN or 0 counts as 1.
    """
    deviation = features.std(axis=0, dtype=np.float64)
    largest = max(float(deviation.max(initial=0)), 1e-12)
    relative = np.maximum(deviation / largest, 1e-3)
    return Scaling(
        features.mean(axis=0, dtype=np.float64).astype(np.float32),
        (relative**-FEATURE_EXPONENT / largest).astype(np.float32),
        float(force_rms) if np.isfinite(force_rms) and force_rms > 0 else 1.0,
    )


def first_params(config: ModelConfig, seed: int) -> Params:
    """Random parameters to begin a run with.

    Variances begin alike for all atoms, at softplus(-5) = 0.007: for forces that is a σ of 0.08 eV/Å.
    """
    flat = dict(flatten(init_params(config, seed)))
    for name in ALEATORIC if config.is_heteroscedastic else ():
        layer = f"network/body/{name}_denormalizer"
        flat[f"{layer}/kernel"] = np.zeros_like(flat[f"{layer}/kernel"])
        flat[f"{layer}/bias"] = np.full_like(flat[f"{layer}/bias"], -5 / ALEATORIC_FACTOR)
    return unflatten(flat)


def fold(config: ModelConfig, scaling: Scaling, params: Params) -> Params:
    """Parameters of the published architecture from those that training works on."""
    flat: dict[str, Any] = dict(flatten(params))
    n_features = config.descriptor.n_features
    for layer in inlets(config):
        kernel = flat[f"{layer}/kernel"]
        scaled = kernel[..., :n_features, :] * scaling.factor[:, None]
        shift = jnp.einsum("f,...fh->...h", scaling.mean, scaled, precision="highest")
        flat[f"{layer}/kernel"] = jnp.concatenate([scaled, kernel[..., n_features:, :]], axis=-2)
        flat[f"{layer}/bias"] = flat[f"{layer}/bias"] - shift
    for name, scale in _outlets(config, scaling).items():
        flat[name] = flat[name] * scale
    return unflatten(flat)


def unfold(config: ModelConfig, scaling: Scaling, params: Params) -> Params:
    """Inverse of :func:`fold`: parameters for training to go on with, from those of a potential, in float32.

    With any scaling, the folded parameters, and so the predictions, are the same to float32 rounding.
    """
    flat: dict[str, Any] = dict(flatten(params))
    n_features = config.descriptor.n_features
    factor, mean = scaling.factor[:, None].astype(np.float64), scaling.mean.astype(np.float64)
    for layer in inlets(config):
        kernel = np.asarray(flat[f"{layer}/kernel"], np.float64)
        scaled, rest = kernel[..., :n_features, :], kernel[..., n_features:, :]
        flat[f"{layer}/kernel"] = np.concatenate([scaled / factor, rest], axis=-2)
        flat[f"{layer}/bias"] = flat[f"{layer}/bias"] + np.einsum("f,...fh->...h", mean, scaled)
    for name, scale in _outlets(config, scaling).items():
        flat[name] = np.asarray(flat[name], np.float64) / scale
    return unflatten({name: np.asarray(value, np.float32) for name, value in flat.items()})


def inlets(config: ModelConfig) -> list[str]:
    """Layers that read the descriptor.

    Raises
    ------
    ConfigError
        If it also goes past them, so that training cannot normalise it.
    """
    network = config.network
    if network.kind == "core":
        return ["network/body/Dense_0"]
    n_inputs = config.descriptor.n_features + network.embed_d
    if network.widths[:2] == (n_inputs, n_inputs):
        raise ConfigError(
            f"a residual network whose first two widths equal its {n_inputs} inputs passes the raw descriptor on, "
            "which training cannot normalise; choose another width"
        )
    block = f"network/body/{'blocks' if network.kind == 'resnet' else 'trunk'}/block_0"
    return [f"{block}/Dense_0", f"{block}/Dense_3"]


def _outlets(config: ModelConfig, scaling: Scaling) -> dict[str, float]:
    """Parameters of the last layers, and their factors."""
    is_published = config.network.kind == "heteroscedastic"
    energy = "energy_denormalizer" if is_published else "denormalizer"
    outlets = {f"network/body/{energy}/{leaf}": scaling.energy for leaf in ("kernel", "bias")}
    if config.is_heteroscedastic:
        # Those of the published architecture have no bias.
        leaves = ("kernel",) if is_published else ("kernel", "bias")
        for name in ALEATORIC:
            outlets |= {f"network/body/{name}_denormalizer/{x}": ALEATORIC_FACTOR for x in leaves}
    return outlets
