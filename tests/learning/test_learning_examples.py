"""The examples of learning, as a newcomer would run them, in short form."""

import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from ase.calculators.emt import EMT
from ase.io import write
from pupils import SMALL, crystal

from neuralil_ase import LearningCalculator

EXAMPLES = Path(__file__).parents[2] / "md_examples" / "learning"


def example(name: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_metal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, where much is compiled already, and with a small network."""
    monkeypatch.chdir(tmp_path)
    small = partial(LearningCalculator, settings=SMALL)
    monkeypatch.setattr("neuralil_ase.LearningCalculator", small)
    monkeypatch.setattr(sys, "argv", ["learn_metal.py", "6"])
    runpy.run_path(str(EXAMPLES / "learn_metal.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert "7 evaluations in this run" in output
    assert "last frame: rms force error" in output
    assert (tmp_path / "learn_metal.png").stat().st_size > 10_000
    assert (tmp_path / "learned_copper" / "model.safetensors").exists()


@pytest.mark.slow
def test_adsorbate(tmp_path: Path) -> None:
    """The same energies in fewer calls."""
    output = example("learn_adsorbate", tmp_path)
    rows = [line.split() for line in output.splitlines() if line.startswith("O on Cu")]
    for row in rows:
        numbers = [float(word) for word in row if word.replace(".", "").replace("-", "").isdigit()]
        alone, calls, found, asked = numbers
        assert found == pytest.approx(alone, abs=0.005)
        assert asked < calls


@pytest.mark.slow
def test_ean(tmp_path: Path) -> None:
    pytest.importorskip("tblite", reason='the teacher needs an extra: "neuralil-ase[data]"')
    assert "evaluations in this run" in example("learn_ean", tmp_path, "10")


@pytest.mark.slow
def test_the_template_runs_with_another_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """EMT in the place of VASP."""
    monkeypatch.chdir(tmp_path)
    write("start.extxyz", crystal(rattle=0))
    monkeypatch.setattr("ase.calculators.vasp.Vasp", lambda **options: EMT())
    monkeypatch.setattr(sys, "argv", ["learn_dft.py", "vasp", "start.extxyz", "10"])
    runpy.run_path(str(EXAMPLES / "learn_dft.py"), run_name="__main__")
    assert "11 evaluations in this run" in capsys.readouterr().out
    assert (tmp_path / "learn_vasp.png").exists()
