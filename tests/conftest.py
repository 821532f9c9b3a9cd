"""Fixtures shared by all tests."""

import os
from pathlib import Path

# Before NumPy is imported: threads of BLAS only get into each other's way in tests this small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from ensembles import random_potential

from neuralil_ase.model.potential import Potential

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


@pytest.fixture(scope="session")
def small_potential() -> Potential:
    """See :func:`ensembles.random_potential`."""
    return random_potential()
