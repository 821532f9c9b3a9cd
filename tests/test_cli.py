"""The command line: every command once, and every failure as one line."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "training"))
from small_runs import alloy

from neuralil_ase import Potential, cli, load_potential, save_potential, training
from neuralil_ase.evaluation.model_card import describe

QUICK = [
    *("--epochs", "4", "--members", "2", "--widths", "8,4", "--n-max", "2", "--r-cut", "3.4"),
    *("--validation-fraction", "0.34", "--batch-size", "4", "--learning-rate", "0.02", "--quiet"),
]
PICTURES = {"parity.png", "errors.png", "learning_curve.png", "spread.png"}


@pytest.fixture(autouse=True)
def _quiet_logging() -> Iterator[None]:
    """``main`` configures the root logger; later tests must not notice."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a model trained on them by the command."""
    path = tmp_path_factory.mktemp("cli")
    ase.io.write(path / "data.extxyz", list(alloy(24)))
    words = ["train", str(path / "data.extxyz"), "-o", str(path / "model.safetensors"), *QUICK]
    assert cli.main([*words, "--split-by", "seed"]) == 0
    return path


def test_train_leaves_a_calibrated_model_with_its_card_and_pictures(folder: Path) -> None:
    potential = load_potential(folder / "model.safetensors")
    cards = potential.provenance["accuracy"]
    assert cards["train"]["frames"] == 18
    assert cards["validation"]["frames"] == 6
    assert cards["validation"]["force_meV_per_A"]["mae"] > 0
    assert potential.provenance["settings"]["widths"] == [8, 4]
    assert potential.calibration is not None
    assert "6 validation frames" in potential.calibration.data
    names = {path.name for path in (folder / "model.safetensors.report").iterdir()}
    assert names == PICTURES
    assert len((folder / "model.safetensors.log").read_text().splitlines()) == 4


def test_evaluate_prints_draws_and_writes(folder: Path, capsys: pytest.CaptureFixture) -> None:
    model, data, out = (str(folder / n) for n in ("model.safetensors", "data.extxyz", "out"))
    written = folder / "predicted.extxyz"
    words = ["evaluate", model, data, "--output", out, "--write-predictions", str(written)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "force MAE (meV/Å)" in printed
    assert "energy error bar" in printed
    assert "components within 1 error bar (0.683)" in printed
    assert {path.name for path in Path(out).iterdir()} == (PICTURES - {"learning_curve.png"}) | {
        "accuracy.json"
    }
    card = json.loads((Path(out) / "accuracy.json").read_text())
    assert 0 < card["uncertainty"]["force error bar"]["coverage_68"] <= 1
    structures = ase.io.read(written, ":")
    errors = np.concatenate([a.get_forces() - a.arrays["REF_forces"] for a in structures])
    assert 1e3 * np.abs(errors).mean() == pytest.approx(card["force_meV_per_A"]["mae"], rel=1e-3)
    assert structures[0].info["energy_error_bar"] > 0
    assert structures[0].info["energy_std"] > 0
    assert structures[0].arrays["forces_error_bar"].shape == (16,)
    assert structures[0].info["REF_stress"].shape == (6,)
    assert structures[0].info["REF_energy"] == pytest.approx(alloy(24)[0].get_potential_energy())


def test_calibrate_writes_a_model_with_the_record_of_its_data(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    model, data = str(folder / "model.safetensors"), str(folder / "data.extxyz@12:")
    before = Path(model).read_bytes()
    other = folder / "calibrated.safetensors"
    assert cli.main(["calibrate", model, data, "-o", str(other)]) == 0
    assert "force error bar" in capsys.readouterr().out
    record = load_potential(other).calibration
    assert record is not None
    assert record.n_frames == 12
    assert record.data == "data.extxyz@12:"
    assert Path(model).read_bytes() == before


def test_info_tells_what_is_inside(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["info", str(folder / "model.safetensors")]) == 0
    text = capsys.readouterr().out
    for part in ("Au Cu", "3.4 Å", "widths 8 4", "swish", "training_frames", "force MAE", "√(("):
        assert part in text


def test_import_reads_a_published_file(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    published = original / "EAN_params_committee_1FEB3E08.pkl"
    target = tmp_path / "committee.safetensors"
    assert cli.main(["import", str(published), "-o", str(target)]) == 0
    assert load_potential(target).n_members == 10
    assert cli.main(["info", str(target)]) == 0
    assert "published NeuralIL parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "none.extxyz", "-o", "m"], "there is no data file none.extxyz"),
        (["train", "x", "-o", "m", "--settings", "none.toml"], "cannot read the settings file"),
        (["train", "x", "-o", "m", "--epochs", "-1"], "epochs must lie between"),
        (["evaluate", "none.safetensors", "x"], "none.safetensors does not exist"),
        (["info", "none.safetensors"], "does not exist"),
        (["import", "none.pkl", "-o", "m"], "does not exist"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("neuralil-ase: ")
    assert message in output.err
    assert not list(tmp_path.iterdir())


def test_help_gives_an_example_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from neuralil_ase import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print([m for m in ('jax', 'ase', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "neuralil-ase train data.extxyz -o model.safetensors" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_help_of_train_lists_every_setting(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option in ("--energy-key", "--split-by", "--isolated-atoms", "--resume", "--time-limit"):
        assert option in text


def test_training_goes_on_from_a_model(folder: Path, capsys: pytest.CaptureFixture) -> None:
    old, new = str(folder / "model.safetensors"), str(folder / "new.safetensors")
    words = ["train", str(folder / "data.extxyz@:12"), "-o", new, "--start-from", old, "--quiet"]
    words += ["--epochs", "2", "--batch-size", "4", "--validation-fraction", "0.34", "--no-report"]
    assert cli.main(words) == 0
    assert load_potential(new).config == load_potential(old).config
    assert load_potential(new).provenance["start_from"]["file"] == "model.safetensors"
    assert cli.main(["info", new]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    # The default, but given: it counts, and the model has two.
    assert cli.main([*words, "--members", "8"]) == 2
    assert "members (model: 2, requested: 8)" in capsys.readouterr().err


def test_a_run_that_ended_too_early_says_that_there_is_no_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    early = SimpleNamespace(accuracy={}, output=None, reason="interrupted")
    monkeypatch.setattr(training, "train", lambda *_, **__: early)
    assert cli.main(["train", "x", "-o", "m"]) == cli.INTERRUPTED
    assert "no model was written: the run ended before its first" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_leaves_a_model_that_loads_and_an_interrupted_one_ends_in_order(
    folder: Path,
) -> None:
    """SIGKILL, then the same command with --resume and SIGINT, on a run that would take very long."""
    model = folder / "long.safetensors"
    words = [sys.executable, "-m", "neuralil_ase", "train", str(folder / "data.extxyz@:8")]
    words += ["-o", str(model), *QUICK, "--epochs", "1000000", "--no-report"]
    log = folder / "long.safetensors.log"
    stop(words, log, 3, signal.SIGKILL)
    assert load_potential(model).provenance["epochs"] >= 1
    code = stop([*words, "--resume"], log, 60, signal.SIGINT)
    assert code == cli.INTERRUPTED
    provenance = load_potential(model).provenance
    assert provenance["ended"] == "interrupted"
    epochs = [json.loads(line)["epoch"] for line in log.read_text().splitlines()]
    assert epochs == list(range(1, provenance["epochs"] + 1))


def stop(words: list[str], log: Path, lines: int, number: signal.Signals) -> int:
    """Start a command and send it a signal when its log has some lines."""
    # Tests that run in the background ignore Ctrl-C, and so would the command.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 300
    while not (log.exists() and log.read_text().count("\n") >= lines):
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline, "the run does not get going"
        time.sleep(0.05)
    os.kill(process.pid, number)
    try:
        return process.wait(timeout=120)
    finally:
        process.kill()


SHOWN = [sys.executable, "-m", "neuralil_ase", "info"]


def test_info_loads_nothing_heavy(small_potential: Potential, tmp_path: Path) -> None:
    save_potential(small_potential, tmp_path / "m.safetensors")
    code = (
        "import sys; from neuralil_ase.cli import main; main(['info', sys.argv[1]]); "
        "print([m for m in ('jax', 'flax', 'optax', 'matplotlib', 'scipy', 'vesin') if m in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "m.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "backend here" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """``neuralil-ase info | head -1``."""
    with subprocess.Popen(SHOWN, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    "words",
    [["info"], ["--help"], pytest.param(["train", "--help"], marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_terminals_without_the_signs_show_question_marks(encoding: str, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neuralil_ase", *words],
        capture_output=True,
        timeout=120,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    if words == ["info"]:
        assert (b"eV/?" if encoding == "ascii" else b"eV/\xc5") in done.stdout


ODD = {
    "accuracy": {"train": 5},
    "settings": ["a", "list"],
    "deep": [[[[[[[[[[[[1]]]]]]]]]]]],
    "bell": "\x1b[2J\x07",
    "\x1b[31m": None,
}


def test_info_shows_whatever_the_origin_holds(small_potential: Potential, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for provenance in ({"accuracy": value} for value in (5, "text", ["a"], {"a": {"b": 1}}, None)):
        save_potential(replace(small_potential, provenance=provenance), path)
        assert cli.main(["info", str(path)]) == 0
    save_potential(replace(small_potential, provenance=ODD), path)
    text = describe(load_potential(path))
    assert "…" in text
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("option", ["--write-predictions", "-o"])
def test_nothing_that_is_read_is_written_over(
    option: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    model, data = folder / "model.safetensors", folder / "data.extxyz"
    command = "calibrate" if option == "-o" else "evaluate"
    before = model.read_bytes(), data.read_bytes()
    for output in [data, *([model] if command == "evaluate" else [])]:
        assert cli.main([command, str(model), f"{data}@:3", option, str(output)]) == 2
        assert "must not overwrite it" in capsys.readouterr().err
    assert cli.main([command, str(model), str(data), option, str(folder / "none" / "x")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert (model.read_bytes(), data.read_bytes()) == before
    assert cli.main(["evaluate", str(model), str(data), "--output", str(data)]) == 2
    assert "it is a file" in capsys.readouterr().err
