"""Normalises descriptors and energies for training, and folds the scales into the layers afterwards.

Both scalings are linear. They fold into the layers that read the descriptor and into the last layer. The potential
that is evaluated and saved therefore has the published architecture, without normalisation.
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
"""Factor between the last aleatoric layers and the argument of softplus, which gives σ². An error of 0.05 eV/Å
needs an argument of -6, an energy -9. With a learning rate of 2e-3, a weight does not change by so much in a usual
run."""


FEATURE_EXPONENT = 0.5
"""Exponent of the standard deviation by which each feature is divided: 1 gives all features unit variance, 0 keeps
their ratios.

Features of small variance, scaled up to unit variance, cause overfitting. With 0.5 instead of 1, the errors of
held-out forces of SrTiO3 fall from 121 to 113 meV/Å, and the largest errors of metals shrink."""


ROUNDING = 1e-5
"""Deviations below this fraction of the largest feature are rounding errors of float32. Atoms with equal surroundings,
as in a perfect crystal, have no others."""


class Scaling(NamedTuple):
    """Affine map of the descriptor and factor of the energy.

    Attributes
    ----------
    mean
        Is subtracted from the features, shape (F,), in Å^-3.
    factor
        Multiplies the difference, shape (F,), in Å^3.
    energy
        Factor from the network's output to eV, shape (1,), or (M,) if the members learn different targets.
    """

    mean: np.ndarray
    factor: np.ndarray
    energy: np.ndarray

    def of_member(self, member: int) -> "Scaling":
        """The scaling of one member."""
        return self._replace(energy=self.energy[[member if len(self.energy) > 1 else 0]])


def scaling_of(features: np.ndarray, force_rms: np.ndarray) -> Scaling:
    """Scale the feature that varies most to unit variance; energies are in units of the typical force times 1 Å.

    Parameters
    ----------
    features
        Descriptors of many atoms, shape (N, F).
    force_rms
        Root mean square of the force components in eV/Å, shape (1 or M,); NaN or 0 counts as 1.
    """
    return Scaling(
        features.mean(axis=0, dtype=np.float64).astype(np.float32),
        factor_of(features).astype(np.float32),
        np.where(np.isfinite(force_rms) & (force_rms > 0), force_rms, 1.0).astype(np.float32),
    )


def factor_of(features: np.ndarray) -> np.ndarray:
    """Factor of every feature, shape (F,): see :data:`FEATURE_EXPONENT`."""
    deviation = features.std(axis=0, dtype=np.float64)
    least = max(ROUNDING * float(np.abs(features).max(initial=0)), 1e-12)
    largest = max(float(deviation.max(initial=0)), least)
    relative = np.maximum(deviation / largest, 1e-3)
    return relative**-FEATURE_EXPONENT / largest


def first_params(config: ModelConfig, seed: int) -> Params:
    """Random initial parameters.

    All aleatoric variances begin at softplus(-5) = 0.007. For forces this is a σ of 0.08 eV/Å.
    """
    flat = dict(flatten(init_params(config, seed)))
    for name in ALEATORIC if config.has_aleatoric else ():
        layer = f"network/body/{name}_denormalizer"
        flat[f"{layer}/kernel"] = np.zeros_like(flat[f"{layer}/kernel"])
        flat[f"{layer}/bias"] = np.full_like(flat[f"{layer}/bias"], -5 / ALEATORIC_FACTOR)
    return unflatten(flat)


def fold(config: ModelConfig, scaling: Scaling, params: Params) -> Params:
    """Convert the parameters used in training to those of the published architecture."""
    flat: dict[str, Any] = dict(flatten(params))
    n_features = config.descriptor.n_features
    for layer in inlets(config):
        kernel = flat[f"{layer}/kernel"]
        scaled = kernel[..., :n_features, :] * scaling.factor[:, None]
        shift = jnp.einsum("f,...fh->...h", scaling.mean, scaled, precision="highest")
        flat[f"{layer}/kernel"] = jnp.concatenate([scaled, kernel[..., n_features:, :]], axis=-2)
        flat[f"{layer}/bias"] = flat[f"{layer}/bias"] - shift
    for name, scale in _outlets(config, scaling).items():
        flat[name] = flat[name] * _by_member(scale, flat[name])
    return unflatten(flat)


def unfold(config: ModelConfig, scaling: Scaling, params: Params) -> Params:
    """Inverse of :func:`fold`: convert the parameters of a potential to those used in training, in float32.

    Folding them again, with any scaling, gives the same predictions to float32 rounding.
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
        flat[name] = np.asarray(flat[name], np.float64) / _by_member(scale, flat[name])
    return unflatten({name: np.asarray(value, np.float32) for name, value in flat.items()})


def inlets(config: ModelConfig) -> list[str]:
    """Names of the layers that read the descriptor.

    Raises
    ------
    ConfigError
        If the raw descriptor also bypasses these layers, so that it cannot be normalised.
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


def _by_member(scale: Any, leaf: Any) -> Any:
    """A factor for all members, or one for each, in the shape of a parameter whose first axis is the member."""
    return scale.reshape(-1, *(1,) * (leaf.ndim - 1))


def _outlets(config: ModelConfig, scaling: Scaling) -> dict[str, Any]:
    """Parameters of the last layers, and their factors, shape (1 or M,)."""
    is_published = config.network.kind == "heteroscedastic"
    energy = "energy_denormalizer" if is_published else "denormalizer"
    outlets = {f"network/body/{energy}/{leaf}": scaling.energy for leaf in ("kernel", "bias")}
    if config.has_aleatoric:
        # In the published architecture, these layers have no bias.
        leaves = ("kernel",) if is_published else ("kernel", "bias")
        for name in ALEATORIC:
            factor = np.full(1, ALEATORIC_FACTOR, np.float32)
            outlets |= {f"network/body/{name}_denormalizer/{x}": factor for x in leaves}
    return outlets
