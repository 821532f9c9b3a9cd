"""Small potentials with random parameters. NumPy draws them, because JAX would compile for every architecture."""

from dataclasses import replace

import numpy as np

from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.parameters import parameters
from neuralil_ase.model.potential import Params, Potential, unflatten


def random_params(config: ModelConfig, seed: int) -> Params:
    """Parameters of the right shapes, none of them zero or one; kernels scaled by their number of inputs."""
    rng = np.random.default_rng(seed)
    flat = {}
    for name, parameter in parameters(config).items():
        shape = parameter.shape
        spread = 1 / np.sqrt(shape[-2]) if name.endswith("kernel") else 0.4
        center = 1.0 if name.endswith("scale") else 0.0
        flat[name] = rng.normal(center, spread, shape).astype(np.float32)
    return unflatten(flat)


def random_potential(seed: int = 0, **changes: object) -> Potential:
    """A small potential of two members for C, H, N, O with random parameters."""
    config = ModelConfig(
        DescriptorConfig(("C", "H", "N", "O"), n_max=2, r_cut=3.0),
        NetworkConfig("core", widths=(8, 6)),
        n_members=2,
    )
    config = replace(config, **changes)  # type: ignore[arg-type]
    reference = np.linspace(-10, -4, len(config.descriptor.elements))
    return Potential(config, random_params(config, seed), reference, {"origin": "random"})
