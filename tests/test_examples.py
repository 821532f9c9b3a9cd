"""Every example runs as a newcomer would run it, in short form; the README's Python block too."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ase.io import read

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "md_examples"


def run(code_or_path: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *code_or_path], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Exception ignored" not in done.stderr, done.stderr[-3000:]
    return done.stdout


def shortened(name: str, **replacements: str) -> str:
    """The example's code with smaller numbers; each replacement must have something to replace."""
    code = (EXAMPLES / name).read_text(encoding="utf-8")
    code = code.replace("Path(__file__).parent", f"Path({str(EXAMPLES)!r})")
    for old, new in replacements.items():
        assert old in code
        code = code.replace(old, new)
    return code


def test_monitored_md_leaves_what_it_promises(tmp_path: Path) -> None:
    arguments = ["--steps", "40", "--output", "out", "--threshold", "50", "100"]
    output = run([str(EXAMPLES / "monitored_md.py"), *arguments], tmp_path)
    assert "5 checks" in output
    assert len(read(tmp_path / "out" / "trajectory.traj", ":")) == 1
    assert (tmp_path / "out" / "md.log").read_text().count("\n") > 5
    assert (tmp_path / "out" / "overview.png").stat().st_size > 10_000


@pytest.mark.parametrize("ensemble", ["nve", "npt"])
def test_monitored_md_in_the_other_ensembles(tmp_path: Path, ensemble: str) -> None:
    arguments = ["--steps", "20", "--ensemble", ensemble, "--threshold", "50", "100"]
    assert "3 checks" in run([str(EXAMPLES / "monitored_md.py"), *arguments], tmp_path)


def test_a_low_threshold_stops_the_run(tmp_path: Path) -> None:
    arguments = ["--steps", "200", "--threshold", "1e-5", "1e-4"]
    output = run([str(EXAMPLES / "monitored_md.py"), *arguments], tmp_path)
    assert "stopped by the monitor" in output


def test_nve(tmp_path: Path) -> None:
    output = run(["-c", shortened("nve.py", **{"dyn.run(500)": "dyn.run(50)"})], tmp_path)
    totals = [float(total) for total in re.findall(r"(-[\d.]+) eV", output)]
    assert len(totals) == 2
    assert abs(totals[0] - totals[-1]) < 0.5


def test_uncertainty_search(tmp_path: Path) -> None:
    """Twice the spread of the relaxed structure for less than 5 meV/atom."""
    output = run([str(EXAMPLES / "uncertainty_search.py")], tmp_path)
    relaxed, found = map(float, re.findall(r"spread of energy \(eV\) +(\S+) +(\S+)", output)[0])
    (above,) = re.findall(r"above relaxed: (\S+) meV/atom", output)
    assert found > 2 * relaxed
    assert float(above) < 5
    assert (tmp_path / "unsure.extxyz").exists()


def test_npt(tmp_path: Path) -> None:
    code = shortened("npt.py", **{"dyn.run(1000)": "dyn.run(100)"})
    densities = re.findall(r"([\d.]+) g/cm³", run(["-c", code], tmp_path))
    assert len(densities) == 2
    assert 0.8 < float(densities[-1]) < 1.6


def test_relax(tmp_path: Path) -> None:
    shorter = {"steps=200": "steps=3", "steps=100": "steps=2"}
    output = run(["-c", shortened("relax.py", **shorter)], tmp_path)
    assert re.search(r"cell edge \d+\.\d+ Å, largest force spread", output)


def test_the_readme_blocks_run_one_after_another(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) > 1
    code = "\n".join(blocks).replace('"md_examples/', f'"{EXAMPLES}/')
    assert "checks" in run(["-c", code], tmp_path)
    assert (tmp_path / "md.log").exists()
