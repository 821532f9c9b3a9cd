"""Who computes is said in words, and the slow way is never silent."""

import logging
import os
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
    built = any(native.FOLDER.glob("libneuralil.*"))
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


ONE_STEP = """
import sys
from ase import Atoms
from neuralil_ase import NeuralILCalculator
atoms = Atoms("NO3", [[0, 0, 0], [1.25, 0, 0], [-0.62, 1.08, 0], [-0.62, -1.08, 0]], calculator=NeuralILCalculator())
atoms.get_potential_energy(), atoms.get_forces(), atoms.calc.prediction(uncertainty="forces").forces_error_bar
print(atoms.calc.backend.split(",")[0], [name for name in ("jax", "flax", "scipy.optimize") if name in sys.modules])
"""


def one_step(folder: Path, **environment: str) -> str:
    """Who computed in a fresh process, and what it had loaded by then."""
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        environment.setdefault(name, "")
    done = subprocess.run(
        [sys.executable, "-c", ONE_STEP],
        capture_output=True, text=True, timeout=300, cwd=folder, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_core
def test_the_compiled_core_runs_without_jax(tmp_path: Path) -> None:
    if backend.device() != "cpu":
        pytest.skip("JAX computes on an accelerator here")
    assert one_step(tmp_path, JAX_PLATFORMS="cpu") == "compiled []"
    if not backend.may_find_accelerator():
        assert one_step(tmp_path) == "compiled []"


@needs_core
@pytest.mark.slow
def test_jax_is_asked_where_it_may_find_an_accelerator(tmp_path: Path) -> None:
    """A plugin that brings none."""
    plugin = tmp_path / "jax_plugins" / "none"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("def initialize():\n    pass\n")
    found = one_step(tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert found == "compiled ['jax', 'flax', 'scipy.optimize']"


def test_on_an_accelerator_jax_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    calc = NeuralILCalculator(ensemble())
    assert calc.backend == "JAX on gpu: the compiled core has no code for a gpu"


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


@pytest.mark.slow
def test_strict_settings_of_jax_do_not_break_predictions() -> None:
    code = f"TESTS = {str(Path(__file__).parent)!r}\n{STRICT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *energies, settings = done.stdout.splitlines()
    np.testing.assert_allclose(np.array(energies, float), float(energies[-1]), atol=1e-4)
    assert settings == "raise disallow"
