"""The monitor's thresholds in LAMMPS: variables from a model, the input that ships, the same verdicts afterwards."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase.io import read
from ensembles import random_potential
from lammps_runs import EXAMPLES, PACKAGE, liquid, lmp, needs_lammps, saved, setup_text, shipped

from neuralil_ase import NeuralILCalculator, cli, load_potential
from neuralil_ase.errors import ModelFileError
from neuralil_ase.hosts.lammps.variables import variables
from neuralil_ase.monitor import Band, MaxForceSpread

MONITOR = (PACKAGE / "hosts" / "lammps" / "in.monitor").read_text()


def test_what_lammps_must_know_of_a_model(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    model = shipped(tmp_path)
    assert cli.main(["info", str(model), "--lammps"]) == 0
    bands = load_potential(model).calibration.thresholds
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"variable model index {model.resolve()}",
        'variable elements index "C H N O"',
        "variable members index 8",
        f"variable cutoff index {load_potential(model).r_cut}",
        f"variable low index {bands['low']:.8g}",
        f"variable high index {bands['high']:.8g}",
    ]
    assert cli.main(["info", "--lammps", "real"]) == 0
    low = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("variable low"))
    assert float(low.split()[-1]) == pytest.approx(23.060549 * bands["low"], rel=1e-7)


def test_a_model_without_thresholds_says_so(tmp_path: Path) -> None:
    text = variables(saved(random_potential(), tmp_path))
    assert "variable low" not in text
    assert "not calibrated" in text


def test_a_path_that_no_line_of_lammps_can_hold(tmp_path: Path) -> None:
    folder = tmp_path / "5$ model"
    folder.mkdir()
    with pytest.raises(ModelFileError, match="Move or rename the model"):
        variables(saved(random_potential(), folder))


def test_the_variables_need_no_jax(tmp_path: Path) -> None:
    code = (
        "import sys; from neuralil_ase.cli import main; main(['info', '--lammps']); "
        "print([m for m in ('jax', 'flax', 'matplotlib', 'vesin') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def monitored(folder: Path, environment: dict[str, str], steps: int = 20, **values: object):
    """in.monitor on two ranks, for the liquid in `folder`."""
    words = [w for name, value in values.items() for w in ("-var", name, str(value))]
    words += ["-var", "data", "start.data", "-var", "steps", str(steps)]
    return lmp(MONITOR, folder, environment, 2, *words)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A folder with a liquid, a model whose path has a blank, and its variables."""
    folder = tmp_path / "my models"
    folder.mkdir()
    model = shipped(folder)
    setup_text(liquid(), model)
    (folder / "model.lmp").write_text(variables(model))
    return folder


@needs_lammps
def test_a_dump_gets_the_same_verdicts_from_the_monitor(start: Path, environment) -> None:
    """Read back by ASE: spreads, bands and the atom to blame, with thresholds between those of the frames."""
    done = monitored(start, environment, 60, low=0.0, high=99)
    assert done.returncode == 0, done.stdout[-2000:]
    frames = read(start / "flagged.dump", ":", format="lammps-dump-text")
    assert [len(frame) for frame in frames] == [225] * 7
    largest = [frame.arrays["f_uncertainty"].max() for frame in frames]
    criterion = MaxForceSpread(low=sorted(largest)[2] + 1e-4, high=sorted(largest)[4] + 1e-4)
    calculator = NeuralILCalculator(start / "model.safetensors", uncertainty="forces")
    bands = []
    for frame in frames:
        spreads = np.ravel(frame.arrays["f_uncertainty"])
        expected = criterion.read(frame, calculator.prediction(frame))
        found = criterion.read(frame, SimpleNamespace(forces_std=spreads))
        assert found.value == pytest.approx(expected.value, abs=2e-5)
        assert (found.band, found.atom) == (expected.band, expected.atom)
        bands.append(found.band)
    assert set(bands) == {Band.TRUSTED, Band.CANDIDATE, Band.HIGH}


@needs_lammps
def test_frames_between_the_thresholds_are_dumped_and_the_higher_one_stops(
    start: Path, environment
) -> None:
    done = monitored(start, environment, low=50, high=100)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (start / "flagged.dump").read_text() == ""
    done = monitored(start, environment, low=0, high=1e-3)
    assert done.returncode != 0
    assert "halt" in (done.stdout + done.stderr).lower()
    assert (start / "flagged.dump").read_text() == ""  # too far off to learn from


@needs_lammps
def test_the_models_own_thresholds_are_used(start: Path, environment) -> None:
    """With bands that lie around the spreads of a calm liquid, every frame is flagged."""
    model = start / "model.safetensors"
    potential = load_potential(model)
    bands = replace(potential.calibration, thresholds={"low": 1e-3, "high": 50.0})
    saved(replace(potential, calibration=bands), start)
    (start / "model.lmp").write_text(variables(model))
    assert monitored(start, environment).returncode == 0
    assert len(read(start / "flagged.dump", ":", format="lammps-dump-text")) == 3


def example(folder: Path, environment: dict[str, str], high: float) -> str:
    """What the example prints for the calm liquid, with thresholds of 1e-3 and `high` eV/Å."""
    potential = load_potential(shipped(folder))
    bands = replace(potential.calibration, thresholds={"low": 1e-3, "high": high})
    model = saved(replace(potential, calibration=bands), folder)
    options = ["--model", model, "--repeat", 1, "--steps", 20, "--temperature", 300, 320]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "lammps" / "monitored_lammps.py"), *map(str, options)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "monitored_lammps" / "monitored_lammps.png").stat().st_size > 10_000
    return done.stdout


@needs_lammps
def test_the_example_harvests_what_was_flagged(tmp_path: Path, environment) -> None:
    printed = example(tmp_path, environment, high=50.0)
    assert "225 atoms, 2 rank(s): the run went to its end" in printed
    frames = read(tmp_path / "monitored_lammps" / "harvest.extxyz", ":")
    assert 1 <= len(frames) <= 3  # checks in 20 steps
    assert f"{len(frames)} frames to label" in printed
    for frame in frames:
        assert frame.info["monitor_atoms"] == frame.arrays["forces_std"].argmax()
        assert frame.arrays["forces_std"].max() > 1e-3
        assert frame.calc is None  # the model's own forces are no labels


@needs_lammps
def test_the_example_stops_at_the_upper_threshold(tmp_path: Path, environment) -> None:
    printed = example(tmp_path, environment, high=2e-3)
    assert "the run stopped at step 10, force spread" in printed
    assert "0 frames to label" in printed


@needs_lammps
def test_without_thresholds_the_input_asks_for_them(start: Path, environment) -> None:
    text = (start / "model.lmp").read_text()
    kept = [line for line in text.splitlines() if " low " not in line and " high " not in line]
    (start / "model.lmp").write_text("\n".join(kept) + "\n")
    done = monitored(start, environment)
    assert done.returncode != 0
    assert "Give -var low and -var high" in done.stdout
