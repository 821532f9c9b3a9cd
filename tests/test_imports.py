"""Which room may know which: imports go down only, and importing costs and changes nothing."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import neuralil_ase

ROOT = Path(neuralil_ase.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
FLOORS = (
    ("errors", "progress", "array_record"),
    ("calibration", "workers"),
    ("model",),
    ("prediction",),
    ("engine",),
    ("files",),
    ("calculator",),
    ("bias", "farm", "replicas", "hosts"),
    ("evaluation", "response"),
    ("monitor", "samples"),
    ("training",),
    ("cross_validation", "learning", "options"),
    ("cli",),
)
"""Rooms from the ground up; a room knows those below it, and no other on its own floor."""
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
OUTSIDE = {"__init__", "__main__", "ase_plugin", "core"}
"""Doors, and the C++ core, which Python reaches through the engine alone."""
ALLOWED = {
    "ase": {
        "calculator",
        "bias",
        "replicas",
        "farm",
        "hosts",
        "evaluation",
        "response",
        "monitor",
        "samples",
        "training",
        "learning",
        "cli",
        "ase_plugin",
    },
    "flax": {"model"},
    "vesin": {"engine"},
    "optax": {"training"},
}
WITHOUT_JAX = {
    "__init__", "array_record", "ase_plugin", "bias", "calculator", "calibration", "errors", "evaluation", "farm",
    "files", "monitor", "prediction", "replicas", "response", "model/config", "engine/arrays", "engine/backend",
    "engine/compiled", "engine/force_constants", "engine/native", "engine/neighbors", "engine/predictor",
    "model/elements", "model/parameters", "model/potential", "progress", "workers",
}  # fmt: skip


def room(path: Path) -> str:
    """``calculator`` for calculator.py, ``monitor`` for everything in the folder monitor."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path, for_types: bool = False) -> set[str]:
    """Dotted names of all modules a file imports; those under TYPE_CHECKING only if they are wanted."""
    names: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if not for_types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            assert node.module is not None
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_rooms_below(path: Path) -> None:
    mine = room(path)
    if mine in OUTSIDE:
        return
    others = {name.split(".")[1] for name in imports(path) if name.startswith("neuralil_ase.")}
    others -= {mine, *neuralil_ase.__all__, "__version__"}
    wrong = {other for other in others if FLOOR.get(other, len(FLOORS)) >= FLOOR[mine]}
    assert not wrong, f"{mine} must not know {sorted(wrong)}"


def test_modules_of_a_room_form_no_circle() -> None:
    arrows = {
        str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): {
            name.removeprefix("neuralil_ase.")
            for name in imports(path, for_types=True)
            if name.startswith("neuralil_ase.")
        }
        for path in MODULES
    }
    order = TopologicalSorter(
        {name: known & arrows.keys() for name, known in arrows.items() if not name.startswith("__")}
    )
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_are_known_only_where_they_belong(path: Path) -> None:
    found = {name for name in imports(path) if not name.startswith("ase.data")}
    found.discard("ase" if imports(path) & {"ase.data"} else "")
    for library, rooms in ALLOWED.items():
        if any(name.split(".")[0] == library for name in found):
            assert room(path) in rooms, f"{path.name} must not know {library}"


@pytest.mark.parametrize("name", sorted(WITHOUT_JAX))
def test_host_code_does_without_jax(name: str) -> None:
    found = [
        path
        for path in MODULES
        if name in (room(path), str(path.relative_to(ROOT).with_suffix("")))
    ]
    assert found
    for path in found:
        assert not {n for n in imports(path) if n.split(".")[0] == "jax"}, path


def fresh(code: str, **environment: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | environment,
    )
    return done.stdout.strip()


def test_importing_the_package_or_its_plugin_loads_nothing_heavy() -> None:
    """ASE imports the plugin at every start of ``ase``."""
    code = (
        "import sys, neuralil_ase, neuralil_ase.ase_plugin; "
        "print([m for m in ('jax', 'flax', 'optax', 'matplotlib', 'vesin') if m in sys.modules])"
    )
    assert fresh(code) == "[]"


CONSTRUCTION = """
import os, sys
import jax  # which sets variables of its own
before = dict(os.environ)
flags = dict(jax.config.values)
import numpy as np
from ase.calculators.calculator import Calculator, external_calculators, names
classes = list(Calculator.implemented_properties)
known = (list(names), dict(external_calculators))
printing, errors = np.get_printoptions(), np.geterr()
import neuralil_ase
from neuralil_ase import NeuralILCalculator, Potential, Prediction, load_potential, save_potential, predict_many
sys.path.insert(0, TESTS)
from systems import ensemble
calc = NeuralILCalculator(ensemble(), dtype='float64')
now = (list(names), dict(external_calculators))
print(dict(os.environ) == before, dict(jax.config.values) == flags, now == known,
      Calculator.implemented_properties == classes, np.geterr() == errors,
      np.get_printoptions() == printing, calc.compilations)
"""


def test_construction_changes_no_flag_no_environment_and_compiles_nothing() -> None:
    tests = str(Path(__file__).parent)
    assert fresh(f"TESTS = {tests!r}\n{CONSTRUCTION}") == " ".join(["True"] * 6 + ["0"])


def test_public_names_are_listed_and_found() -> None:
    for name in neuralil_ase.__all__:
        assert name in dir(neuralil_ase)
    assert neuralil_ase.NeuralILCalculator.__module__ == "neuralil_ase.calculator"
    with pytest.raises(AttributeError, match="has no attribute 'NeuralIL'"):
        _ = neuralil_ase.NeuralIL


def test_the_library_does_not_print() -> None:
    """Only the command line may."""
    for path in MODULES:
        if room(path) in ("cli",) or path.name == "__main__.py":
            continue
        calls = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ]
        assert not calls, f"{path.name} prints on lines {calls}"


TESTS = Path(__file__).parent
TEST_MODULES = sorted(path for path in TESTS.rglob("*.py") if path.parent.name != "benchmarks")
PUBLIC = {"_replace", "_fields", "_asdict", "_fields_", "_exit"}
"""Of named tuples, ctypes and os: they only look private."""
FOREIGN = {"units", "pickle"}
"""Modules of others that have no public name for it."""


@pytest.mark.parametrize("path", TEST_MODULES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_tests_use_public_names(path: Path) -> None:
    """What a test needs is worth a name; what it takes from the inside breaks when nothing is wrong."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            names = [node.attr] if owner not in FOREIGN | {"self"} else []
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neuralil_ase"):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            names = [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
        found += [
            f"line {node.lineno}: {name}"
            for name in names
            if name.rpartition(".")[2].startswith("_")
            and not name.startswith("__")
            and name not in PUBLIC
        ]
    assert found == []
