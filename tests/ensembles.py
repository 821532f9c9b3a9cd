"""Small potentials with random parameters."""

from dataclasses import replace

import numpy as np

from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.network import init_params
from neuralil_ase.model.potential import Potential


def random_potential(seed: int = 0, **changes: object) -> Potential:
    """A small potential of two members for C, H, N, O with random parameters."""
    config = ModelConfig(
        DescriptorConfig(("C", "H", "N", "O"), n_max=2, r_cut=3.0),
        NetworkConfig("core", widths=(8, 6)),
        n_members=2,
    )
    config = replace(config, **changes)  # type: ignore[arg-type]
    reference = np.linspace(-10, -4, len(config.descriptor.elements))
    return Potential(config, init_params(config, seed), reference, {"origin": "random"})
