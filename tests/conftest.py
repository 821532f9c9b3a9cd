"""Fixtures shared by all tests."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

# Before NumPy is imported: threads of BLAS only get into each other's way in tests this small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Tests compile for longer than they compute, here and in the programs that they start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# 40 % less compilation. XLA aborts where it does not know a flag: JAX 0.8 to 0.10 know these.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one process has compiled, the others of this run need not compile again: workers, examples.
    _cache = tempfile.mkdtemp(prefix="neuralil-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import pytest
from ensembles import random_potential

from neuralil_ase.model.potential import Potential

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Background data beside the repository, never part of it."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Neighbouring tests go to one process with ``-n``, because they share what has been compiled and trained.

    Without this, processes get every other test of the last files, and do all of that twice.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


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
