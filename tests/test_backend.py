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

from neuralil_ase import NeuralILCalculator, Replicas
from neuralil_ase.engine import backend, native
from neuralil_ase.errors import ProcessError

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
    assert Replicas(structure("molecule"), ensemble()).backend == calc.backend
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


def in_fresh_process(code: str, folder: Path, **environment: str) -> str:
    """What a fresh process prints, or the last line of its error."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=300, cwd=folder, env=os.environ | environment,
    )  # fmt: skip
    return done.stdout if done.returncode == 0 else done.stderr.splitlines()[-1]


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
    return in_fresh_process(ONE_STEP, folder, **environment).strip()


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
    assert found == "compiled ['jax']"


def test_on_an_accelerator_jax_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    calc = NeuralILCalculator(ensemble())
    assert calc.backend == "JAX on gpu: the compiled core has no code for a gpu"
    assert backend.expected_backend(ensemble().config) == calc.backend


INFO = """
import sys
from neuralil_ase.cli import main
main(["info"])
print([name for name in ("jax", "flax", "scipy.optimize") if name in sys.modules])
"""


@needs_core
@pytest.mark.parametrize(
    ("platforms", "words"),
    [
        ("cpu", f"compiled, {native.instruction_set()}"),
        ("cpu,cuda", f"compiled, {native.instruction_set()}"),
        ("cuda,cpu", f"compiled, {native.instruction_set()}; JAX if it finds an accelerator"),
        ("cuda", "JAX on cuda, as JAX_PLATFORMS asks"),
    ],
)
def test_info_says_where_jax_may_compute_and_does_not_load_it(
    platforms: str, words: str, tmp_path: Path
) -> None:
    lines = in_fresh_process(INFO, tmp_path, JAX_PLATFORMS=platforms).splitlines()
    (line,) = (line for line in lines if line.startswith("  backend here"))
    assert line.removeprefix("  backend here").strip() == words
    assert lines[-1] == "[]"


def test_without_the_core_the_words_name_both_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing_reason", lambda config=None: "it was left out")
    monkeypatch.setattr(backend, "may_find_accelerator", lambda: True)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    assert backend.expected_backend(ensemble().config) == (
        "JAX on an accelerator if it finds one, else on cpu: it was left out"
    )


NO_DEVICE = """
from ase import Atoms
from neuralil_ase import NeuralILCalculator
calc = NeuralILCalculator()
DONE
"""


@pytest.mark.parametrize(
    "done",
    ["calc.backend", "calc.get_potential_energy(Atoms('H'))", "calc.hessian(Atoms('H'))"],
)
def test_a_jax_that_cannot_start_is_said(done: str, tmp_path: Path) -> None:
    """It was an AssertionError without words."""
    said = in_fresh_process(NO_DEVICE.replace("DONE", done), tmp_path, JAX_PLATFORMS="tpu")
    assert said.startswith("neuralil_ase.errors.ProcessError: JAX cannot start: ")
    assert "it is asked for 'tpu' (JAX_PLATFORMS), which this machine" in said
    assert said.endswith("Unset JAX_PLATFORMS, set JAX_PLATFORMS=cpu, or install what is missing")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AssertionError(), "it found no device to compute on. Usually JAX has a plugin"),
        (RuntimeError("Unable to initialize backend 'cuda': no driver.\nMore"),
         "JAX cannot start: Unable to initialize backend 'cuda': no driver. Usually JAX has a plugin for"),
    ],
)  # fmt: skip
def test_a_plugin_that_fails_is_said(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> str:
        raise error

    monkeypatch.setattr("jax.default_backend", fails)
    with pytest.raises(ProcessError, match=message):
        _ = NeuralILCalculator(ensemble()).backend


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
