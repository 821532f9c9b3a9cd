"""The i-PI client against the calculator, and in real runs of i-PI over a UNIX socket."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from systems import ensemble, structure

pytest.importorskip("ipi", reason="i-PI is not installed: pip install neuralil-ase[ipi]")

from ipi.utils.units import unit_to_internal

from neuralil_ase import NeuralILCalculator, save_potential
from neuralil_ase.cli import main
from neuralil_ase.hosts.ipi_driver import NeuralILDriver

ANGSTROM = unit_to_internal("length", "angstrom", 1.0)
EV = unit_to_internal("energy", "electronvolt", 1.0)
PATIENCE = 120
"""Seconds until a run counts as hanging: i-PI waits for ever for what does not come."""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A template and a model."""
    template, model = tmp_path / "start.xyz", tmp_path / "model.safetensors"
    write(template, structure("triclinic"), format="extxyz")
    save_potential(ensemble(), model)
    return str(template), str(model)


def atomic_units(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """By i-PI's constants, which differ from ASE's by some 1e-8."""
    return ANGSTROM * atoms.cell.array.T, ANGSTROM * atoms.positions


def moved(count: int) -> list[Atoms]:
    found, rng = [], np.random.default_rng(4)
    for _ in range(count):
        atoms = structure("triclinic")
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.set_cell(atoms.cell.array * rng.uniform(0.98, 1.02), scale_atoms=True)
        found.append(atoms)
    return found


def test_beads_agree_with_the_calculator(files: tuple[str, str]) -> None:
    driver = NeuralILDriver(*files, dtype="float64")
    calculator = NeuralILCalculator(files[1], dtype="float64", uncertainty="forces")
    structures = moved(3)
    cells, positions = map(list, zip(*map(atomic_units, structures), strict=True))
    for atoms, (energy, forces, virial, extras) in zip(
        structures, driver(cells, positions), strict=True
    ):
        expected, committee = calculator.prediction(atoms), json.loads(extras)
        volume = atoms.get_volume()
        near = {"rtol": 1e-9, "atol": 1e-9}
        np.testing.assert_allclose(energy / EV, expected.energy, **near)
        np.testing.assert_allclose(forces * ANGSTROM / EV, expected.forces, **near)
        full = virial.ravel()[[0, 4, 8, 5, 2, 1]] / EV
        np.testing.assert_allclose(full, -volume * expected.stress, **near)
        np.testing.assert_allclose(virial, virial.T)
        members = np.array(committee["committee_pot"]) / EV
        np.testing.assert_allclose(members, expected.member_energies, **near)
        by_member = np.array(committee["committee_force"]) * ANGSTROM / EV
        np.testing.assert_allclose(by_member.reshape(3, -1, 3), expected.member_forces, **near)
        virials = np.array(committee["committee_virial"])
        assert virials.shape == (3, 9)
        np.testing.assert_allclose(virials.mean(axis=0), virial.ravel(), **near)


def test_one_structure_is_what_a_list_of_one_is(files: tuple[str, str]) -> None:
    driver = NeuralILDriver(*files, committee=False)
    cell, positions = atomic_units(structure("triclinic"))
    energy, forces, virial, extras = driver(cell, positions)
    ((energy_of_list, forces_of_list, virial_of_list, _),) = driver([cell], [positions])
    assert extras == ""
    assert energy == energy_of_list
    np.testing.assert_array_equal(forces, forces_of_list)
    np.testing.assert_array_equal(virial, virial_of_list)


@pytest.mark.parametrize("fault", ["element", "model", "template", "no template", "one member"])
def test_what_is_wrong_is_said_in_one_line(
    fault: str, files: tuple[str, str], tmp_path: Path
) -> None:
    template, model = files
    committee = None
    if fault == "element":
        write(template, Atoms("HAr", positions=[[0, 0, 0], [0, 0, 2]]), format="extxyz")
    elif fault == "model":
        Path(model).write_bytes(Path(model).read_bytes()[:-40])
    elif fault == "template":
        Path(template).write_text("nothing\n")
    elif fault == "no template":
        template = str(tmp_path / "absent.xyz")
    else:
        save_potential(ensemble().member(0), model)
        committee = True
    said = {
        "element": "does not know Ar", "model": "model.safetensors", "template": "cannot read the template",
        "no template": "there is no template", "one member": "two members or more",
    }  # fmt: skip
    with pytest.raises(SystemExit, match=said[fault]) as stopped:
        NeuralILDriver(template, model, committee=committee)
    assert "\n" not in str(stopped.value)


def test_options_that_mean_nothing_are_refused(files: tuple[str, str]) -> None:
    with pytest.raises(SystemExit, match=r"no option modle; the options are: template, model"):
        NeuralILDriver(files[0], modle=files[1])
    with pytest.raises(SystemExit, match="committee must be True or False, not no"):
        NeuralILDriver(*files, committee="no")  # type: ignore[arg-type]  # as i-PI reads it
    with pytest.raises(SystemExit, match="there is no template"):
        NeuralILDriver()


def test_a_template_without_periodicity_is_noticed(
    files: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """An xyz file written for i-PI says its cell in a way that ASE does not read."""
    NeuralILDriver(*files)
    assert not caplog.messages
    atoms = structure("triclinic")
    write(files[0], Atoms(atoms.numbers, atoms.positions), format="xyz")
    NeuralILDriver(*files)
    assert [message.endswith("no atom sees an image") for message in caplog.messages] == [True]


def test_another_number_of_atoms_is_refused(files: tuple[str, str]) -> None:
    driver = NeuralILDriver(*files)
    with pytest.raises(SystemExit, match=r"i-PI sends 2 atoms, and the template .* holds 6"):
        driver(np.eye(3), np.zeros((2, 3)))


def test_the_command_line_prints_the_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "ipi"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.is_file()
    assert path.stem != "ipi"  # i-PI would take the file for itself


class Run:
    """i-PI and its client in a folder of their own."""

    def __init__(self, folder: Path, files: tuple[str, str], steps: int, batch: int) -> None:
        self.folder, self.address = folder, f"neuralil-{uuid.uuid4().hex[:12]}"
        self.socket = Path(f"/tmp/ipi_{self.address}")
        (folder / "input.xml").write_text(
            INPUT.format(address=self.address, steps=steps, batch=batch)
        )
        self.template, self.model = files
        self.started: list[subprocess.Popen[str]] = []

    def start(self, program: str, *words: str) -> subprocess.Popen[str]:
        script = Path(sys.executable).parent / program
        command = [
            sys.executable,
            str(script if script.exists() else shutil.which(program)),
            *words,
        ]
        process = subprocess.Popen(
            command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        self.started.append(process)
        return process

    def server(self) -> subprocess.Popen[str]:
        process = self.start("i-pi", "input.xml")
        began = time.monotonic()
        while not self.socket.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.05)
        return process

    def client(self) -> subprocess.Popen[str]:
        import neuralil_ase.hosts.ipi_driver as module

        options = f"template={self.template},model={self.model},dtype=float64"
        return self.start(
            "i-pi-py_driver", "-u", "-a", self.address, "-m", "custom", "-P", str(module.__file__),
            "-o", options,
        )  # fmt: skip

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.socket.unlink(missing_ok=True)


@pytest.fixture
def short_run(tmp_path: Path, files: tuple[str, str]) -> Iterator[Run]:
    run = Run(tmp_path, files, steps=3, batch=2)
    yield run
    run.end()


INPUT = """
<simulation verbosity='low' safe_stride='1000000'>
  <output prefix='run'>
    <properties stride='1' filename='out'> [step, potential{{electronvolt}}, conserved{{electronvolt}}] </properties>
    <trajectory stride='1' filename='beads' format='xyz' cell_units='angstrom'> positions{{angstrom}} </trajectory>
    <trajectory stride='1' filename='members' extra_type='committee_pot'> extras </trajectory>
  </output>
  <total_steps> {steps} </total_steps>
  <prng><seed> 3 </seed></prng>
  <ffcommittee name='committee'>
    <parse_json> True </parse_json>
    <active_thresh units='electronvolt'> 1e-6 </active_thresh>
    <active_output> to_label </active_output>
    <ffsocket mode='unix' name='neuralil' pbc='false'>
      <address> {address} </address>
      <batch_size> {batch} </batch_size>
      <exit_on_disconnect> True </exit_on_disconnect>
    </ffsocket>
  </ffcommittee>
  <system>
    <initialize nbeads='4'>
      <file mode='ase'> start.xyz </file>
      <velocities mode='thermal' units='kelvin'> 100 </velocities>
    </initialize>
    <forces><force forcefield='committee'/></forces>
    <motion mode='dynamics'>
      <dynamics mode='nve'><timestep units='femtosecond'> 0.1 </timestep></dynamics>
    </motion>
    <ensemble><temperature units='kelvin'> 100 </temperature></ensemble>
  </system>
</simulation>
"""


def test_a_path_integral_run_has_the_committee_of_every_bead_and_keeps_frames_to_label(
    short_run: Run, files: tuple[str, str]
) -> None:
    server, client = short_run.server(), short_run.client()
    said = server.communicate(timeout=PATIENCE)[0]
    assert server.returncode == 0, said
    assert client.wait(PATIENCE) == 0
    assert not short_run.socket.exists()
    table = np.loadtxt(short_run.folder / "run.out")
    assert len(table) == 4
    calculator = NeuralILCalculator(files[1], dtype="float64")
    expected = calculator.prediction(structure("triclinic"))
    # All beads start in one place.
    np.testing.assert_allclose(table[0, 1], expected.energy, rtol=1e-6)
    assert np.ptp(table[:, 2]) < 1e-3 * max(np.ptp(table[:, 1]), 0.1)
    for bead in range(4):
        text = (short_run.folder / f"run.members_{bead}").read_text().splitlines()
        members = np.array([float(x) for x in text[1].strip(" []\n").replace(",", " ").split()])
        np.testing.assert_allclose(members / EV, expected.member_energies, rtol=1e-6)
    # Every bead of every step is above the threshold; i-PI writes one object behind the other.
    (path,) = short_run.folder.glob("*to_label*")
    text, frames = path.read_text(), []
    while text:
        frame, end = json.JSONDecoder().raw_decode(text)
        frames.append(frame)
        text = text[end:].lstrip()
    assert len(frames) == 4 * len(table)
    positions = np.array(frames[0]["position"]).reshape(-1, 3) / ANGSTROM
    np.testing.assert_allclose(positions, structure("triclinic").positions, atol=1e-6)
    np.testing.assert_allclose(
        frames[0]["uncertainty"] / EV, expected.member_energies.std(ddof=1), rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_a_client_that_stops_with_an_error_lets_i_pi_stop(
    batch: int, files: tuple[str, str], tmp_path: Path
) -> None:
    """It is in the middle of a conversation, and i-PI 3.3.1 would wait for ever after a reset of the connection."""
    wrong = str(tmp_path / "wrong.xyz")
    write(wrong, structure("triclinic")[:-1], format="extxyz")
    run = Run(tmp_path, (wrong, files[1]), steps=1_000_000, batch=batch)
    try:
        server, client = run.server(), run.client()
        printed = client.communicate(timeout=PATIENCE)[0]
        assert client.returncode == 1
        assert printed.count("i-PI sends 6 atoms") == 1
        assert "Traceback" not in printed
        assert "Client shutdown" in server.communicate(timeout=PATIENCE)[0]
        assert not run.socket.exists()
    finally:
        run.end()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_after_a_killed_client_i_pi_can_be_ended(
    batch: int, files: tuple[str, str], tmp_path: Path
) -> None:
    """i-PI 3.3.1 stops by itself if the client was waiting; else its thread has died, and it must be told to stop."""
    run = Run(tmp_path, files, steps=1_000_000, batch=batch)
    try:
        server, client = run.server(), run.client()
        wait_for_steps(run)
        client.send_signal(signal.SIGKILL)
        try:
            said = server.communicate(timeout=10)[0]
        except subprocess.TimeoutExpired:
            server.terminate()
            said = server.communicate(timeout=PATIENCE)[0]
            assert "ConnectionResetError" in said
        assert "Restartable as is: YES" in said
        assert not run.socket.exists()
        assert list(tmp_path.glob("*RESTART*"))
    finally:
        run.end()


def wait_for_steps(run: Run) -> None:
    began, table = time.monotonic(), run.folder / "run.out"
    while not table.exists() or len(table.read_text().splitlines()) < 6:
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.05)
