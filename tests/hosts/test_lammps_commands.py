"""Commands of LAMMPS that a potential must go along with: other styles beside it, restarts, barriers, dynamics."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.io import read
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from lammps_runs import (
    EXAMPLES,
    dumped,
    liquid,
    needs_lammps,
    output,
    saved,
    setup_text,
    shipped,
    thermo,
)
from systems import ensemble, structure

from neuralil_ase import NeuralILCalculator

pytestmark = needs_lammps
MOVE = "timestep 0.0005\nfix move all nve\n"
PRECISE = "dump_modify d sort id format float %20.15g\n"
DIGITS = "thermo_modify format float %20.15g\n"


def warm(atoms: Atoms, temperature: float = 300) -> Atoms:
    thermalize_momenta(atoms, temperature_K=temperature, rng=np.random.default_rng(1))
    Stationary(atoms)
    return atoms


def test_atoms_of_another_style(tmp_path: Path, environment) -> None:
    """hybrid/overlay: argon is NULL to the potential and neighbours of its atoms; LJ acts between all."""
    inner, model = structure("triclinic"), saved(ensemble(), tmp_path)
    atoms = inner + Atoms("Ar2", inner.positions[:2] + np.array([0.9, 0.8, -0.7]))
    text = setup_text(inner, model)
    text = text.replace("start.data", "start.data extra/atom/types 1")
    text += "dump d all custom 1 out.dump id fx fy fz f_u\n" + PRECISE
    places = "\n".join(
        f"create_atoms 5 single {x} {y} {z}" for x, y, z in atoms.positions[len(inner) :]
    )
    lj = "pair_coeff * * {style} 0.01 2.0\n"
    both = f"pair_style hybrid/overlay neuralil {model} precision double lj/cut 3.5"
    text = text.replace(
        f"pair_style neuralil {model} precision double", f"{places}\nmass 5 40\n{both}"
    )
    text = text.replace("pair_coeff * * C", "pair_coeff * * neuralil C").replace("N O", "N O NULL")
    spread = lj.format(style="lj/cut") + "fix u all pair 1 neuralil forces_std 1\n"
    tail = "compute n all pair neuralil\nthermo_style custom step c_n\n" + DIGITS + "run 0\n"
    text = text.replace("dump d all", spread + "dump d all")
    row = thermo(output(text + tail, tmp_path, environment, 2))[0]
    found = dumped(tmp_path)
    alone = f"pair_style lj/cut 3.5\n{lj.format(style='')}"
    lines = [line for line in text.splitlines() if "neuralil" not in line]
    lines = [line.replace("mass 5 40", f"mass 5 40\n{alone}").replace(" f_u", "") for line in lines]
    lines = [line for line in lines if "pair_coeff * * lj/cut" not in line]
    output("\n".join(lines) + "\nrun 0\n", tmp_path, environment)
    others = dumped(tmp_path)
    calculator = NeuralILCalculator(model, dtype="float64", uncertainty="forces")
    expected = calculator.prediction(inner)
    n = len(inner)
    assert row[1] == pytest.approx(expected.energy, abs=1e-9)
    scale = np.abs(found[:, :3]).max()
    np.testing.assert_allclose(
        (found[:n, :3] - others[:n]), expected.forces, rtol=0, atol=1e-10 * scale
    )
    np.testing.assert_allclose(found[n:, :3], others[n:], rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(found[:n, 3], expected.forces_std, rtol=1e-9)
    np.testing.assert_array_equal(found[n:, 3], 0)


def test_dispersion_beside_it(tmp_path: Path, environment) -> None:
    atoms, model = liquid(), shipped(tmp_path)
    text = setup_text(atoms, model)
    both = text.replace("pair_style neuralil", "pair_style hybrid/overlay neuralil")
    both = both.replace("precision double", "precision double dispersion/d3 bj pbe 12.0 8.0")
    both = both.replace("pair_coeff * *", "pair_coeff * * neuralil")
    both += "pair_coeff * * dispersion/d3 C H N O\n"
    both += "compute n all pair neuralil\ncompute d all pair dispersion/d3\n"
    both += f"thermo_style custom step pe c_n c_d\n{DIGITS}run 0\n"
    _, total, energy, dispersion = thermo(output(both, tmp_path, environment, 2))[0]
    expected = NeuralILCalculator(model, dtype="float64").prediction(atoms).energy
    assert energy == pytest.approx(expected, abs=1e-8)
    assert dispersion < -1
    assert total == pytest.approx(energy + dispersion, abs=1e-8)


def test_restart_data_and_rerun(tmp_path: Path, environment) -> None:
    """Each leads to the energies of the run that went on."""
    model = shipped(tmp_path)
    start = setup_text(warm(liquid()), model)
    style = "".join(line + "\n" for line in start.splitlines() if line.startswith("pair_"))
    shown = f"thermo 10\nthermo_style custom step pe\n{DIGITS}"
    whole = f"""{MOVE}{shown}dump d all custom 10 run.dump id type x y z
{PRECISE}run 10
write_restart half.restart
write_data half.data
run 10
run 0
"""
    printed = output(start + whole, tmp_path, environment, 2)
    at_end = thermo(printed)[-1, 1]
    half, end = thermo(printed[: printed.rindex("Step")])[:, 1]
    assert end == at_end
    resumed = f"units metal\natom_modify map yes\nread_restart half.restart\n{style}{MOVE}{shown}"
    again = thermo(output(resumed + "run 10\n", tmp_path, environment, 2))
    np.testing.assert_allclose(again[:, 1], [half, end], rtol=0, atol=1e-6)
    from_data = start.replace("start.data", "half.data") + shown + "run 0\n"
    assert thermo(output(from_data, tmp_path, environment))[0, 1] == pytest.approx(half, abs=1e-6)
    rerun = start + shown + "rerun run.dump dump x y z\n"
    energies = thermo(output(rerun, tmp_path, environment, 2))[:, 1]
    np.testing.assert_allclose(energies[1:], [half, end], rtol=0, atol=1e-6)


def test_elastic_band(tmp_path: Path, environment) -> None:
    """Three images on three ranks: the end images have the energies that ASE has for them."""
    first, model = read(EXAMPLES / "ean_pair.extxyz"), shipped(tmp_path)
    first.set_cell(np.diag([16.0, 16.0, 16.0]))
    first.center()
    first.pbc = True
    last = first.copy()
    last.positions[0] += [0.05, 0.02, -0.03]
    rows = [f"{k + 1} {x:.12f} {y:.12f} {z:.12f}" for k, (x, y, z) in enumerate(last.positions)]
    (tmp_path / "last").write_text("\n".join([str(len(rows)), *rows]) + "\n")
    band = (
        "fix band all neb 1.0\nmin_style quickmin\ntimestep 0.0002\nneb 0 0.1 10 10 10 final last\n"
    )
    text = setup_text(first, model).replace("map yes", "map array sort 0 0.0")
    output(text + band, tmp_path, environment, 3, "-partition", "3x1")
    lines = (tmp_path / "log.lammps").read_text().splitlines()
    columns = next(line for line in lines if line.split()[:1] == ["Step"]).split()
    row = next(line for line in lines if line.split()[:1] == ["0"]).split()
    calculator = NeuralILCalculator(model, dtype="float64")
    for atoms, name in ((first, "PE1"), (last, "PE3")):
        found = float(row[columns.index(name)]) if name in columns else None
        assert found == pytest.approx(calculator.prediction(atoms).energy, abs=1e-5)


def test_constant_pressure_conserves_what_it_should(tmp_path: Path, environment) -> None:
    """The extended system's energy, as the volume moves."""
    text = (
        setup_text(warm(liquid()), shipped(tmp_path))
        + f"""
timestep 0.0005
fix move all npt temp 300 300 0.1 aniso 1000 1000 0.3
thermo 10
thermo_style custom step vol econserve press
{DIGITS}run 100
"""
    )
    rows = thermo(output(text, tmp_path, environment, 2))
    assert np.ptp(rows[:, 1]) > 0.5
    assert np.ptp(rows[:, 2]) / 225 < 2e-4


@pytest.mark.slow
def test_energy_drifts_as_in_ase(tmp_path: Path, environment) -> None:
    """10,000 steps of 0.5 fs at 300 K from the same start, single precision."""
    atoms, model = warm(liquid()), shipped(tmp_path)
    text = setup_text(atoms, model, extra="") + MOVE
    text += f"thermo 50\nthermo_style custom step etotal\n{DIGITS}run 10000\n"
    rows = thermo(output(text, tmp_path, environment))
    atoms.calc = NeuralILCalculator(model, uncertainty="off")
    dyn = VelocityVerlet(atoms, 0.5 * units.fs)
    ours: list[float] = []
    dyn.attach(lambda: ours.append(atoms.get_total_energy()), interval=50)
    dyn.run(10000)
    times = rows[:, 0] * 0.5e-3  # ps
    drifts = [np.polyfit(times, e, 1)[0] / len(atoms) for e in (rows[:, 1], np.array(ours))]
    print("drift in eV/atom/ps, LAMMPS and ASE:", drifts)
    assert np.abs(drifts).max() < 1e-5
    assert np.std(rows[:, 1]) == pytest.approx(np.std(ours), rel=0.5)


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path: Path, environment) -> None:
    """100,000 steps with spreads at every tenth: the peak is that of the first 10,000."""
    atoms = warm(read(EXAMPLES / "ean_pair.extxyz"), 100)
    atoms.set_cell(np.diag([16.0, 16.0, 16.0]))
    atoms.center()
    atoms.pbc = True
    text = (
        setup_text(atoms, shipped(tmp_path), extra="")
        + MOVE
        + """
fix u all pair 10 neuralil forces_std 1
compute worst all reduce max f_u
thermo_style custom step temp c_worst
thermo 1000
run 10000
info memory
run 90000
info memory
"""
    )
    printed = output(text, tmp_path, environment)
    peaks = [float(line.split()[-2]) for line in printed.splitlines() if "Maximum resident" in line]
    assert len(peaks) == 2
    assert peaks[1] - peaks[0] < 2, peaks  # MB
