"""The spread as a variable of PLUMED: derivatives by differences, in ASE and in i-PI; and wrong input."""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import SumCalculator
from ase.calculators.plumed import Plumed
from ase.io import write
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from systems import calculator, ensemble, structure

from neuralil_ase import UncertaintyBias, save_potential
from neuralil_ase.errors import ConfigError
from neuralil_ase.hosts.plumed_cv import CalculatorVariable, plumedInit


class Box(NamedTuple):
    box: np.ndarray

    def getBox(self) -> np.ndarray:
        return self.box


class Action(NamedTuple):
    """What PYCV gives to the function."""

    positions: np.ndarray
    box: np.ndarray
    indices: tuple[int, ...] = tuple(range(6))

    def getPositions(self) -> np.ndarray:
        return self.positions

    def getPbc(self) -> Box:
        return Box(self.box)

    def absoluteIndexes(self) -> np.ndarray:
        return np.array(self.indices, np.uint32)


def action(atoms: Atoms, length: float) -> Action:
    return Action(atoms.positions / length, atoms.cell.array / length)


def variable(atoms: Atoms, length: float = 10.0) -> CalculatorVariable:
    return CalculatorVariable(UncertaintyBias(calculator("forces"), 1.0), atoms, length)


@pytest.mark.parametrize("kind", ["triclinic", "free"])
@pytest.mark.parametrize("length", [1.0, 10.0])
def test_value_and_derivatives(kind: str, length: float) -> None:
    atoms = structure("triclinic")
    if kind == "free":
        atoms = Atoms(atoms.numbers, atoms.positions)
    spread = variable(atoms, length)
    value, gradient, by_box = spread(action(atoms, length))
    assert value == pytest.approx(calculator("forces").prediction(atoms).energy_std)

    def value_at(positions: np.ndarray, box: np.ndarray) -> float:
        return spread(Action(positions / length, box / length))[0]

    step, expected = 1e-4, np.zeros((6, 3))
    for i, k in np.ndindex(6, 3):
        shift = np.zeros((6, 3))
        shift[i, k] = step
        ends = [value_at(atoms.positions + s * shift, atoms.cell.array) for s in (1, -1)]
        expected[i, k] = (ends[0] - ends[1]) / (2 * step / length)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6 * length)
    for i, k in np.ndindex(3, 3):
        strain = np.zeros((3, 3))
        strain[i, k] = strain[k, i] = 1e-5 if i == k else 5e-6
        ends = [
            value_at(atoms.positions @ (np.eye(3) + s * strain), atoms.cell @ (np.eye(3) + s * strain))
            for s in (1, -1)
        ]  # fmt: skip
        assert by_box[i, k] == pytest.approx(-(ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-5)


def test_what_cannot_be_is_refused() -> None:
    atoms = structure("triclinic")
    with pytest.raises(ConfigError, match="number of Å in PLUMED's unit of length, got 0"):
        variable(atoms, 0.0)
    with pytest.raises(ConfigError, match="got nan"):
        variable(atoms, float("nan"))
    few = Action(atoms.positions[:4], atoms.cell.array, (0, 1, 2, 3))
    with pytest.raises(ConfigError, match=r"needs all 6 atoms .* gave it 4: write ATOMS=1-6"):
        variable(atoms)(few)
    with pytest.raises(ConfigError, match="in their order"):
        variable(atoms)(action(atoms, 10.0)._replace(indices=(1, 0, 2, 3, 4, 5)))
    for given, wrong in ((10.0, 1.0), (1.0, 10.0)):
        with pytest.raises(
            ConfigError, match=rf"{given / wrong:g} times as large .* UNITS LENGTH=A"
        ):
            variable(atoms, given)(action(atoms, wrong))


@pytest.fixture
def pycv() -> str:
    """Path of PLUMED's plugin for variables in Python."""
    plumed = pytest.importorskip(
        "plumed",
        reason="PLUMED is not installed: pip install --no-deps hillclimber, whose wheels hold it (no extra: it has "
        "many other dependencies)",
    )
    if not hasattr(plumed, "get_pycv_path"):
        pytest.skip("this PLUMED does not say where its plugin for variables in Python is")
    return plumed.get_pycv_path()


def biased(
    atoms: Atoms, calc: Calculator, lines: list[str], folder: Path, unit: str = "A"
) -> Plumed:
    first = f"UNITS LENGTH={unit} ENERGY=eV TIME=fs"
    return Plumed(
        calc, [first, *lines], timestep=0.2 * units.fs, atoms=atoms, kT=0.03, log=str(folder / "log")
    )  # fmt: skip


spread: Any = None
"""PLUMED finds it here by its name."""


@pytest.mark.parametrize(("unit", "length"), [("A", 1.0), ("nm", 10.0)])
def test_plumed_biases_the_spread(
    unit: str, length: float, pycv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = structure("triclinic")
    monkeypatch.setattr(sys.modules[__name__], "spread", variable(atoms, length))
    assert plumedInit["Value"]["derivative"]
    lines = [
        f"LOAD FILE={pycv}", f"s: PYCVINTERFACE ATOMS=1-6 IMPORT={__name__} CALCULATE=spread",
        "RESTRAINT ARG=s AT=0 KAPPA=0.3", f"PRINT ARG=s FILE={tmp_path}/COLVAR FMT=%.9f",
    ]  # fmt: skip
    calc = calculator("forces")
    with biased(atoms, calc, lines, tmp_path, unit) as atoms.calc:
        std = calc.prediction(atoms).energy_std
        energy = calc.prediction(atoms).energy
        assert atoms.get_potential_energy() - energy == pytest.approx(0.15 * std**2, rel=1e-6)
        numerical = calculate_numerical_forces(atoms, eps=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), numerical, atol=1e-5)
        numerical = calculate_numerical_stress(atoms, eps=1e-5, force_consistent=False)
        np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-6)
    assert np.loadtxt(tmp_path / "COLVAR")[0, 1] == pytest.approx(std, rel=1e-6)


def test_plumed_on_top_of_a_bias_along_the_spread_keeps_the_energy(
    pycv: str, tmp_path: Path
) -> None:
    """The total energy rises and falls with the square of the time step; and metadynamics adds its hills."""
    ranges = []
    for scale in (1, 2):
        atoms = structure("triclinic")
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(1))
        calc = calculator("forces")
        both = SumCalculator([calc, UncertaintyBias(calc, -0.1)])
        lines = ["d: DISTANCE ATOMS=1,2", "RESTRAINT ARG=d AT=1 KAPPA=5"]
        with biased(atoms, both, lines, tmp_path) as atoms.calc:
            energies = []
            dynamics = VelocityVerlet(atoms, 0.2 * units.fs / scale)
            dynamics.attach(lambda a=atoms, e=energies: e.append(a.get_total_energy()))
            dynamics.run(20 * scale)
        ranges.append(np.ptp(energies))
    assert ranges[1] < 0.4 * ranges[0]
    lines = [f"metad: METAD ARG=d SIGMA=0.1 HEIGHT=0.01 PACE=5 FILE={tmp_path}/HILLS"]
    with biased(atoms, both, ["d: DISTANCE ATOMS=1,2", *lines], tmp_path) as atoms.calc:
        VelocityVerlet(atoms, 0.2 * units.fs).run(20)
    assert len(np.loadtxt(tmp_path / "HILLS")) >= 3


SPREAD = """
from ase.io import read
from neuralil_ase import NeuralILCalculator, UncertaintyBias
from neuralil_ase.hosts.plumed_cv import CalculatorVariable, plumedInit
calculator = NeuralILCalculator("model.safetensors", dtype="float64", uncertainty="forces")
spread = CalculatorVariable(UncertaintyBias(calculator, 1.0), read("start.xyz"), length=1.0)
"""
INPUT = """
<simulation verbosity='low' safe_stride='1000000'>
  <output prefix='run'>
    <properties filename='out'> [step, potential{{electronvolt}}, conserved{{electronvolt}},
      ensemble_bias{{electronvolt}}] </properties>
  </output>
  <total_steps> 20 </total_steps>
  <prng><seed> 3 </seed></prng>
  <ffsocket mode='unix' name='neuralil' pbc='false'>
    <address> {address} </address>
    <exit_on_disconnect> True </exit_on_disconnect>
  </ffsocket>
  <ffplumed name='plumed' pbc='false'>
    <file mode='ase'> start.xyz </file>
    <plumed_dat> plumed.dat </plumed_dat>
  </ffplumed>
  <system>
    <initialize nbeads='1'>
      <file mode='ase'> start.xyz </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces><force forcefield='neuralil'/></forces>
    <motion mode='dynamics'>
      <dynamics mode='nve'><timestep units='femtosecond'> 0.1 </timestep></dynamics>
    </motion>
    <ensemble>
      <temperature units='kelvin'> 300 </temperature>
      <bias><force forcefield='plumed' nbeads='1'/></bias>
    </ensemble>
  </system>
</simulation>
"""


@pytest.mark.slow
def test_i_pi_biases_the_spread(pycv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipi", reason="i-PI is not installed: pip install neuralil-ase[ipi]")
    from test_ipi import PATIENCE, Run

    template, model = tmp_path / "start.xyz", tmp_path / "model.safetensors"
    write(template, structure("triclinic"), format="extxyz")
    save_potential(ensemble(), model)
    (tmp_path / "spread.py").write_text(SPREAD)
    lines = [
        "UNITS LENGTH=A ENERGY=eV", f"LOAD FILE={pycv}",
        "s: PYCVINTERFACE ATOMS=1-6 IMPORT=spread CALCULATE=spread", "RESTRAINT ARG=s AT=0 KAPPA=0.3",
    ]  # fmt: skip
    (tmp_path / "plumed.dat").write_text("\n".join([*lines, ""]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    run = Run(tmp_path, (str(template), str(model)), steps=20, batch=1)
    (tmp_path / "input.xml").write_text(INPUT.format(address=run.address))
    try:
        server, client = run.server(), run.client()
        said = server.communicate(timeout=PATIENCE)[0]
        assert server.returncode == 0, said
        assert client.wait(PATIENCE) == 0
    finally:
        run.end()
    table = np.loadtxt(tmp_path / "run.out")
    found = calculator("forces").prediction(structure("triclinic"))
    assert len(table) == 21
    assert table[0, 3] == pytest.approx(0.15 * found.energy_std**2, rel=1e-5)
    assert np.ptp(table[:, 2]) < 1e-3 * np.ptp(table[:, 3])
