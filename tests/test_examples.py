"""Every example runs as a newcomer would run it, in short form; the README's Python blocks too."""

import fcntl
import io
import os
import re
import runpy
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from ase.io import read

from neuralil_ase import train

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "md_examples"


def run(code_or_path: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *code_or_path], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Exception ignored" not in done.stderr, done.stderr[-3000:]
    assert "\r" not in done.stderr  # progress goes to a pipe line by line, and seldom
    return done.stdout


SMALL = {"widths": (16, 8), "n_max": 3}
"""Settings of the potentials that examples train here."""


def example(name: str, folder: Path, *arguments: str) -> str:
    """Its output, given these arguments; it must draw the picture that it promises.

    Examples run in this process, where the package has been imported and much of it is compiled.
    """
    path, output = str(EXAMPLES / f"{name}.py"), io.StringIO()
    with (
        chdir(folder),
        patch.object(sys, "argv", [path, *arguments]),
        patch.object(sys, "path", [str(EXAMPLES), *sys.path]),
        patch("neuralil_ase.train", partial(train, **SMALL, report=name == "train")),
        redirect_stdout(output),
        redirect_stderr(io.StringIO()),  # progress
    ):
        runpy.run_path(path, run_name="__main__")
    if f"{name}.png" in (EXAMPLES / f"{name}.py").read_text(encoding="utf-8"):
        assert (folder / f"{name}.png").stat().st_size > 5_000
    return output.getvalue()


def number(pattern: str, output: str) -> float:
    """What stands in the place of NUMBER in the pattern."""
    wanted = re.escape(pattern).replace("NUMBER", r"\s*(-?[\d.]+(?:e-?\d+)?)")
    found = re.search(wanted, output)
    assert found, output
    return float(found[1])


def test_monitored_md_leaves_what_it_promises(tmp_path: Path) -> None:
    arguments = ["--steps", "40", "--output", "out", "--threshold", "50", "100"]
    output = run([str(EXAMPLES / "monitored_md.py"), *arguments], tmp_path)
    assert "5 checks" in output
    assert len(read(tmp_path / "out" / "trajectory.traj", ":")) == 1
    assert (tmp_path / "out" / "md.log").read_text().count("\n") > 5
    assert (tmp_path / "out" / "overview.png").stat().st_size > 10_000


@pytest.mark.parametrize("ensemble", [pytest.param("nve", marks=pytest.mark.slow), "npt"])
def test_monitored_md_in_the_other_ensembles(tmp_path: Path, ensemble: str) -> None:
    arguments = ["--steps", "20", "--ensemble", ensemble, "--threshold", "50", "100"]
    assert "3 checks" in example("monitored_md", tmp_path, *arguments)


def test_a_low_threshold_stops_the_run(tmp_path: Path) -> None:
    arguments = ["--steps", "200", "--threshold", "1e-5", "1e-4"]
    assert "stopped by the monitor" in example("monitored_md", tmp_path, *arguments)


def test_nve(tmp_path: Path) -> None:
    assert number("total energy: NUMBER meV/atom", example("nve", tmp_path, "60")) < 0.1


def test_nvt(tmp_path: Path) -> None:
    """A hydrogen bond is about 2 Å long."""
    assert 1.4 < number("is largest at NUMBER Å", example("nvt", tmp_path, "60")) < 2.4


def test_npt(tmp_path: Path) -> None:
    assert 0.8 < number(": NUMBER g/cm³", example("npt", tmp_path, "60")) < 1.6


# jax-md 0.2.29 asks for float64 sums, which JAX refuses in a float32 run.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64:UserWarning")
def test_jax_md_nvt(tmp_path: Path) -> None:
    pytest.importorskip(
        "jax_md", reason="jax-md is not installed: pip install neuralil-ase[jax-md]"
    )
    output = example("jax_md_nvt", tmp_path, "60")
    assert 100 < number("temperature NUMBER K", output) < 500
    assert number("conserved energy: NUMBER meV/atom", output) < 0.5
    assert 0 < number("spread of the energy: NUMBER meV/atom", output) < 5


@pytest.mark.slow
def test_path_integral(tmp_path: Path) -> None:
    """Real i-PI over its socket, twice; even a short run has wider bonds with more beads.

    Shorter runs with i-PI are in tests/hosts/test_ipi.py.
    """
    pytest.importorskip("ipi", reason="i-PI is not installed: pip install neuralil-ase[ipi]")
    output = example("path_integral", tmp_path, "60", "--beads", "4")
    classical, quantum = output.splitlines()
    for line in (classical, quantum):
        assert 1.0 < number("N-H distance NUMBER", line) < 1.3
        assert 0 < number("over the members NUMBER eV", line) < 0.1
    deviation = "standard deviation NUMBER Å"
    assert number(deviation, quantum) > number(deviation, classical)


def test_relax(tmp_path: Path) -> None:
    output = example("relax", tmp_path, "3")
    assert number("cell edge NUMBER Å", output) == pytest.approx(12.9, abs=0.3)
    relaxed = read(tmp_path / "relaxed.extxyz")
    largest = relaxed.arrays["forces_std"].max()
    assert largest == pytest.approx(number("largest force spread NUMBER eV/Å", output), abs=1e-3)
    assert (tmp_path / "relax.png").stat().st_size > 10_000


def test_neb(tmp_path: Path) -> None:
    """Turning a methyl group costs a tenth of an eV, half way."""
    output = example("neb", tmp_path, "40")
    assert 0.05 < number("barrier NUMBER eV", output) < 0.3
    assert number(", image NUMBER of 8", output) == 4


@pytest.mark.slow
def test_proton_transfer(tmp_path: Path) -> None:
    """Some tenths of an eV, with an error bar."""
    output = example("proton_transfer", tmp_path, "40")
    assert 0.05 < number("barrier NUMBER ±", output) < 2
    assert 0 < number("± NUMBER eV", output) < 1


def test_vibrations(tmp_path: Path) -> None:
    """The ion pair is at rest: no mode is imaginary, and the fastest are those of X-H bonds."""
    output = example("vibrations", tmp_path)
    waves = [float(value) for value in re.findall(r"(\S+) ± +\S+ 1/cm", output)]
    assert len(waves) == 39
    assert min(waves) > 20
    assert 3300 < max(waves) < 3800
    assert 2 < number("zero-point energy NUMBER ±", output) < 5


@pytest.fixture(scope="module")
def copper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which train.py has run, and what it printed; all processes of the tests share it."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "copper"
    folder.mkdir(exist_ok=True)
    with (folder / "printed.txt").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        printed = file.read()
        if not printed:
            printed = example("train", folder, "12")
            file.write(printed)
    return folder, printed


def test_train(copper: tuple[Path, str]) -> None:
    folder, output = copper
    assert abs(number("perfect crystal: error NUMBER meV/atom", output)) < 50
    assert "vacancy: error" in output
    assert (folder / "copper.safetensors.report" / "parity.png").exists()


def test_equation_of_state(copper: tuple[Path, str]) -> None:
    """Near the teacher's."""
    output = example("equation_of_state", copper[0])
    rows = re.findall(r"(\S+), spread (\S+) .*; EMT (\S+)", output)
    (volume, volume_spread, true_volume), (modulus, modulus_spread, true_modulus) = (
        map(float, row) for row in rows
    )
    assert volume == pytest.approx(true_volume, rel=0.03)
    assert modulus == pytest.approx(true_modulus, rel=0.3)
    assert volume_spread > 0
    assert modulus_spread > 0


def test_phonons(copper: tuple[Path, str]) -> None:
    """Near the teacher's, whose highest frequency is 7 THz."""
    output = example("phonons", copper[0])
    assert number("violated by NUMBER eV/Å²", output) < 1e-8
    assert number("rms error of the bands NUMBER THz", output) < 0.5
    assert 50 < number("bulk modulus NUMBER GPa", output) < 250


def test_green_kubo(copper: tuple[Path, str]) -> None:
    """Far too short for a number; heat flows downhill."""
    assert number("lattice conductivity NUMBER ±", example("green_kubo", copper[0], "60")) > 0


def test_evaluate(tmp_path: Path) -> None:
    output = example("evaluate", tmp_path, "6")
    assert number("force MAE NUMBER meV/Å", output) < 150
    assert 0.3 < number("rms error bar: NUMBER (1 is right)", output) < 2


def test_own_criterion(tmp_path: Path) -> None:
    output = example("own_criterion", tmp_path, "40")
    assert "longest_NH" in output
    assert "5 checks" in output


def test_dispersion(tmp_path: Path) -> None:
    pytest.importorskip("dftd3", reason='D3 needs an extra: pip install "neuralil-ase[dispersion]"')
    assert number("D3 added: NUMBER meV/Å", example("dispersion", tmp_path, "1")) < 3000


def test_uncertainty_search(tmp_path: Path) -> None:
    """Twice the spread of the relaxed structure for less than 5 meV/atom."""
    output = example("uncertainty_search", tmp_path)
    relaxed, found = map(float, re.findall(r"spread of energy \(eV\) +(\S+) +(\S+)", output)[0])
    assert found > 2 * relaxed
    assert number("above relaxed: NUMBER meV/atom", output) < 5
    assert (tmp_path / "unsure.extxyz").exists()
    assert (tmp_path / "uncertainty_search.png").stat().st_size > 10_000


def scripts() -> set[str]:
    """Every example, in folders too. What others import and nobody starts is a part of them."""
    texts = {path: path.read_text(encoding="utf-8") for path in EXAMPLES.rglob("*.py")}
    imported = set(re.findall(r"^from (\w+) import", "\n".join(texts.values()), re.MULTILINE))
    return {
        path.relative_to(EXAMPLES).as_posix()
        for path, text in texts.items()
        if path.stem not in imported or "__main__" in text
    }


def test_the_gallery_shows_every_example() -> None:
    gallery = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert scripts() == set(re.findall(r"\]\(([\w/]+\.py)\)", gallery))


def test_every_example_has_a_test() -> None:
    tests = [
        path
        for path in Path(__file__).parent.rglob("test_*.py")
        if path.parent.name != "benchmarks"
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in tests)
    names = [Path(script).stem for script in scripts()]
    assert [name for name in names if not re.search(rf'[/"]{name}(\.py)?"', text)] == []


@pytest.mark.parametrize(
    "page", ["README.md", "md_examples/README.md", "tests/benchmarks/RESULTS.md"]
)
def test_links_and_pictures_of_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert targets
    assert [
        target for target in targets if not (ROOT / page).parent.joinpath(target).exists()
    ] == []


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_readme_blocks_run_one_after_another(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) > 1
    code = "\n".join(blocks).replace('"md_examples/', f'"{EXAMPLES}/')
    assert "checks" in run(["-c", code], tmp_path)
    assert (tmp_path / "md.log").exists()
