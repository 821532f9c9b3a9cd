"""Fixtures shared by all tests."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuralil_ase.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.potential import Potential, init_params

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Background data beside the repository, never part of it."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of background data; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with the reference data of the original is not here")
    return SHARED


@pytest.fixture(scope="session")
def original(shared: Path) -> Path:
    """The published parameter files and what the original code computes with them."""
    return shared / "original"


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


@pytest.fixture(scope="session")
def small_potential() -> Potential:
    """See :func:`random_potential`."""
    return random_potential()
