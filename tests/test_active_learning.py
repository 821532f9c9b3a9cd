"""The example of active learning: its parts, and the script as a newcomer runs it."""

import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

EXAMPLES = Path(__file__).resolve().parents[1] / "md_examples" / "active_learning"
sys.path.insert(0, str(EXAMPLES))

import active_learning as script  # noqa: E402
import active_steps as steps  # noqa: E402

from neuralil_ase import load_potential, train  # noqa: E402

NEEDS_TBLITE = 'the labels need tblite: pip install "neuralil-ase[data]"'


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for a data set like the default one, of boxes with two ion pairs: quick to label."""
    pytest.importorskip("tblite", reason=NEEDS_TBLITE)
    from ean_boxes import build_box
    from ean_sampling import labelled

    frames, box = [], build_box(2)
    kinds = [(300.0, "train")] * 3 + [(300.0, "valid")] * 2 + [(500.0, "test")] * 2
    for seed, (T, split) in enumerate(kinds):
        frame = box.copy()
        frame.rattle(0.03, seed=seed)
        frame.info = {"charge": 0, "T": T, "split": split, "config_type": "md", "seed": seed}
        frames.append(labelled(frame))
    path = tmp_path_factory.mktemp("data") / "small.extxyz.xz"
    text = io.StringIO()
    write(text, frames, format="extxyz")
    path.write_bytes(lzma.compress(text.getvalue().encode()))
    return ["--data", str(path), "--atoms", "30", "--steps", "4", "--interval", "2"]


def command(work: Path, *options: str) -> list[str]:
    return [
        sys.executable, str(EXAMPLES / "active_learning.py"), "--quick", "--work", str(work), *options
    ]  # fmt: skip


def run(work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(work, *options), capture_output=True, text=True, timeout=600)


def run_here(work: Path, *options: str) -> str:
    """What the script prints, in this process, where much is compiled; with a small network and no pictures of it."""
    output, errors = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    small = patch.object(steps, "train", partial(train, widths=(16, 8), n_max=2, report=False))
    try:
        with small, patch.dict(os.environ), redirect_stdout(output), redirect_stderr(errors):
            script.main(["--quick", "--work", str(work), *options])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert "\r" not in errors.getvalue()  # progress goes to a file line by line, and seldom
    return output.getvalue()


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> tuple[Path, str]:
    """The work folder and the output of a whole short run."""
    work = tmp_path_factory.mktemp("active") / "work"
    return work, run_here(work, *small)


def model(work: Path, folder: str) -> Path:
    return work / folder / "training" / "model.safetensors"


def rows(text: str) -> list[list[str]]:
    """Rows of the table at the end of the run."""
    return [line.split() for line in text.splitlines() if line[:5].strip().isdigit()]


# --- the script as it is run -------------------------------------------------------------------


def test_both_loops_teach_their_frames_and_are_judged(quick: tuple[Path, str]) -> None:
    work, printed = quick
    table = rows((work / "table.txt").read_text(encoding="utf-8"))
    assert [row[:3] for row in table] == [
        ["0", "both", "2"], ["1", "active", "3"], ["1", "random", "3"],
    ]  # fmt: skip
    assert rows(printed)[-3:] == table
    assert "3/3" in table[0]  # with the threshold of --quick everything is flagged
    assert (work / "overview.png").stat().st_size > 10_000
    assert not list(work.rglob("partial-*"))


def test_labels_are_those_of_gfn1_at_frames_of_the_trajectory(quick: tuple[Path, str]) -> None:
    from ean_sampling import labelled

    work, _ = quick
    md = work / "round_0" / "both" / "md"
    for name, source in (
        ("active", "box_0_0.flagged.extxyz"),
        ("random", "box_0_0.checked.extxyz"),
    ):
        (frame,) = read(work / "round_0" / f"{name}_labels.extxyz", ":")
        if name == "active":
            again = labelled(frame)
            np.testing.assert_allclose(frame.get_forces(), again.get_forces(), atol=1e-4)
            energy = again.get_potential_energy()
            assert frame.get_potential_energy() == pytest.approx(energy, abs=1e-4)
        same = [
            np.abs(steps.bare(other).positions - frame.positions).max() < 1e-5
            for other in read(md / source, ":")
        ]
        assert sum(same) == 1


def test_every_model_goes_on_from_the_one_before(quick: tuple[Path, str]) -> None:
    from neuralil_ase.training.warm_start import start_of

    work, _ = quick
    first = start_of(model(work, "round_0/both"))
    assert "start_from" not in first.potential.provenance
    for loop in ("active", "random"):
        provenance = load_potential(model(work, f"round_1/{loop}")).provenance
        assert provenance["start_from"]["sha256"] == first.sha256
        assert (provenance["training_frames"], provenance["validation_frames"]) == (3, 2)
        assert provenance["epochs"] == script.QUICK["epochs"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(small: list[str], tmp_path: Path) -> None:
    """SIGTERM in the middle, leftovers of a harder kill, then the same command again."""
    whole, work = tmp_path / "whole", tmp_path / "work"
    assert run(whole, *small).returncode == 0
    process = subprocess.Popen(
        command(work, *small), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not (work / "round_0" / "both" / "training").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the same command continues from there" in errors.decode()
    (work / "round_0" / "both" / "partial-md").mkdir(exist_ok=True)
    (work / "round_0" / "both" / "partial-md" / "box_0.log").write_text("half a line")
    done = run(work, *small)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (work / "table.txt").read_bytes() == (whole / "table.txt").read_bytes()
    again = run(work, *small)  # everything is there
    assert rows(again.stdout)[-3:] == rows(done.stdout)[-3:]


def test_the_loop_ends_when_nothing_is_flagged(
    quick: tuple[Path, str], small: list[str], tmp_path: Path
) -> None:
    """The first model is taken over; only the thresholds are others."""
    work = tmp_path / "work"
    shutil.copytree(quick[0] / "round_0" / "both" / "training", work / "round_0/both/training")
    assert "0/3" in rows(run_here(work, *small, "--threshold", "100", "200"))[0]
    assert not (work / "round_1").exists()
    assert len(rows((work / "table.txt").read_text(encoding="utf-8"))) == 1


def test_a_folder_of_other_settings_is_refused(quick: tuple[Path, str], small: list[str]) -> None:
    work, _ = quick
    before = (work / "settings.json").read_bytes()
    with pytest.raises(SystemExit, match="another folder with --work"):
        run_here(work, *small, "--seed", "1")
    assert (work / "settings.json").read_bytes() == before


def test_without_tblite_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'pip install "neuralil-ase\[data\]"'):
        script.main(["--work", str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()


def test_a_missing_data_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "find_spec", lambda name: name)
    with pytest.raises(SystemExit, match=r"no data set .*none\.xz"):
        script.main(["--data", str(tmp_path / "none.xz"), "--work", str(tmp_path / "work")])


# --- parts -------------------------------------------------------------------------------------


def test_the_default_data_hold_the_frames_of_the_defaults() -> None:
    """Counted in the text: ASE takes seconds to read it."""
    defaults = script.Settings("")
    lines = lzma.decompress(script.DATA.read_bytes()).decode().splitlines()
    heads = [
        after
        for line, after in pairwise(lines)
        if line == str(defaults.atoms) and "config_type=md" in after
    ]
    for T, splits, count in (
        (300.0, ("train",), defaults.start_frames),
        (defaults.temperature, ("valid", "test"), defaults.test_frames // 2),
    ):
        found = [
            head for head in heads if f"T={T}" in head and any(f"split={s}" in head for s in splits)
        ]
        assert len(found) >= count


def test_frames_of_the_right_kind_are_spread_over_the_trajectories() -> None:
    data = []
    for seed in range(4):
        for T, split, kind in (
            (300.0, "train", "md"), (300.0, "valid", "md"), (500.0, "train", "md"), (300.0, "train", "rattle")
        ):  # fmt: skip
            for _ in range(3):
                info = {"T": T, "split": split, "config_type": kind, "seed": seed}
                data.append(Atoms("H120", np.zeros((120, 3)), info=info))
    chosen = steps.md_frames(data, 120, 300.0, ("train",), 4)
    assert [atoms.info["seed"] for atoms in chosen] == [0, 1, 2, 3]
    assert {(a.info["T"], a.info["split"], a.info["config_type"]) for a in chosen} == {
        (300.0, "train", "md")
    }
    assert len(steps.md_frames(data, 120, 300.0, ("train", "valid"), 100)) == 24


def test_the_most_unsure_frames_of_every_stretch_are_taken() -> None:
    assert steps.most_unsure([1, 9, 2, 5, 4, 3, 8, 6, 7], 3) == [1, 3, 6]
    assert steps.most_unsure([3, 1], 5) == [0, 1]
    assert steps.most_unsure([], 5) == []
    assert steps.most_unsure([1, 2], 0) == []


def test_the_control_takes_any_frame_and_none_twice() -> None:
    first = steps.at_random(1000, 10, 0)
    assert len(set(first)) == 10
    assert first == steps.at_random(1000, 10, 0) != steps.at_random(1000, 10, 1)
    assert steps.at_random(3, 10, 0) == [0, 1, 2]
    assert steps.at_random(3, 0, 0) == []


def test_a_product_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "new" / "result.txt"

    def breaks(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        steps.product(target, breaks)
    assert not target.exists()
    steps.product(target, lambda path: path.write_text("whole"))
    assert target.read_text() == "whole"
    steps.product(target, breaks)  # is not made twice
    assert [path.name for path in target.parent.iterdir()] == ["result.txt"]


def test_hopeless_labels_are_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from ean_boxes import build_cluster

    frames = [build_cluster(1, seed=k) for k in range(3)]
    write(tmp_path / "box_0_0.checked.extxyz", frames, format="extxyz")
    calls: list[int] = []

    def label(frame: Atoms) -> Atoms:
        calls.append(1)
        if len(calls) == 1:
            raise steps.CalculationFailed("no convergence")
        force = 1e3 if len(calls) == 2 else 0.1
        results = {"energy": 0.0, "forces": np.full((15, 3), force)}
        frame.calc = steps_calculator(frame, results)
        return frame

    monkeypatch.setattr(steps, "labelled", label)
    kept = steps.taught(tmp_path / "labels.extxyz", tmp_path, "checked", 3, 0)
    assert len(kept) == 1
    text = capsys.readouterr().out
    assert "no solution" in text
    assert "belongs to no liquid" in text
    calls.clear()
    frames_file = tmp_path / "none" / "box_0_0.checked.extxyz"
    frames_file.parent.mkdir()
    write(frames_file, frames[:1], format="extxyz")
    assert steps.taught(tmp_path / "none.extxyz", frames_file.parent, "checked", 3, 0) == []


def steps_calculator(atoms: Atoms, results: dict[str, object]):
    from ase.calculators.singlepoint import SinglePointCalculator

    return SinglePointCalculator(atoms, **results)


def test_the_settings_of_a_run_are_all_in_its_record(tmp_path: Path) -> None:
    settings = script.Settings("abc", threshold=(0.5, 1.0))
    script.prepare(tmp_path, settings)
    record = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    assert record["data_sha256"] == "abc"
    assert record["threshold"] == [0.5, 1.0]
    script.prepare(tmp_path, settings)
