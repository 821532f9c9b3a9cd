"""Who computes is said in words, and the slow way is never silent."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from systems import ensemble, structure

from neuralil_ase import NeuralILCalculator
from neuralil_ase.engine import backend, native

needs_core = pytest.mark.skipif(
    native.missing_reason() is not None, reason=f"no compiled core: {native.missing_reason()}"
)


def test_where_a_library_can_be_built_it_is_there_and_fits_the_package() -> None:
    """Otherwise a stale or missing library lets every test of it be skipped; install the package again then."""
    built = any(native._FOLDER.glob("libneuralil.*"))
    if not built and shutil.which("c++") is None:
        pytest.skip("no C++ compiler on this machine, and no library")
    assert native.missing_reason() is None


@needs_core
def test_the_compiled_core_names_its_instructions(caplog: pytest.LogCaptureFixture) -> None:
    calc = NeuralILCalculator(ensemble())
    with caplog.at_level(logging.WARNING):
        calc.get_potential_energy(structure("molecule"))
    assert calc.backend == f"compiled, {native.instruction_set()}"
    assert backend.expected_backend(ensemble().config) == calc.backend
    assert not caplog.records


def test_the_slow_way_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        native, "missing_reason", lambda config=None: "it was left out of this test"
    )
    calc = NeuralILCalculator(ensemble())
    assert calc.backend == "JAX on cpu: it was left out of this test"
    with caplog.at_level(logging.WARNING, "neuralil_ase"):
        for name in ("molecule", "tiny"):
            calc.get_potential_energy(structure(name))
            NeuralILCalculator(ensemble()).get_potential_energy(structure(name))
    (record,) = caplog.records
    assert record.getMessage() == (
        "energies and forces are computed by JAX, several times slower than by the compiled core: "
        "it was left out of this test"
    )


STRICT = """
import sys
import jax
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_transfer_guard", "disallow")
sys.path.insert(0, TESTS)
from systems import ensemble, structure
from neuralil_ase.calculator import to_system
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.engine.predictor import Predictor
for dtype in ("float32", "float64"):
    for backend in ("jax", "compiled"):
        predictor = Predictor(ensemble(), dtype, backend)
        system = to_system(structure("tiny"), ensemble(), NeighborList(3.0, 0.0))
        predictor.descriptors(system)
        print(predictor.predict([system], "forces")[0].energy)
print(jax.config.jax_numpy_rank_promotion, jax.config.jax_transfer_guard)
"""


def test_strict_settings_of_jax_do_not_break_predictions() -> None:
    code = f"TESTS = {str(Path(__file__).parent)!r}\n{STRICT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *energies, settings = done.stdout.splitlines()
    np.testing.assert_allclose(np.array(energies, float), float(energies[-1]), atol=1e-4)
    assert settings == "raise disallow"
