"""The table of public data sets: folds, errors of a peer, absent files."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import table_sets
import tables
import train_peers
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from neuralil_ase.evaluation.quality import quality


def rattled(count: int) -> list[Atoms]:
    found = []
    for seed in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["number"] = seed
        found.append(atoms)
    return found


def test_folds_hold_every_frame_out_once(tmp_path: Path) -> None:
    write(tmp_path / "all.extxyz", rattled(12))
    splits = table_sets.DataSet((tmp_path / "all.extxyz",)).splits()
    held_out = [[atoms.info["number"] for atoms in test] for _, test in splits]
    assert sorted(number for numbers in held_out for number in numbers) == list(range(12))
    for (train, _), test in zip(splits, held_out, strict=True):
        assert {atoms.info["number"] for atoms in train} == set(range(12)) - set(test)


def test_a_key_of_the_frames_can_name_the_test_frames(tmp_path: Path) -> None:
    frames = rattled(7)
    for k, atoms in enumerate(frames):
        atoms.info["split"] = ("train", "valid", "test")[k % 3]
    write(tmp_path / "all.extxyz", frames)
    ((train, test),) = table_sets.DataSet((tmp_path / "all.extxyz",), key="split").splits()
    assert [atoms.info["number"] for atoms in test] == [2, 5]
    assert [atoms.info["number"] for atoms in train] == [0, 1, 3, 4, 6]


def test_a_peer_that_made_the_labels_has_no_error() -> None:
    card = table_sets.score_peer(EMT(), rattled(3))["card"]
    assert card["energy_meV_per_atom"]["rmse"] < 1e-6
    assert card["force_meV_per_A"]["rmse"] < 1e-6


def test_a_set_that_is_absent_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tables.DATA_SETS, "Cu", table_sets.DataSet((tmp_path / "none.extxyz",)))
    tables.main(["-o", str(tmp_path / "out.jsonl"), "--only", "Cu"])
    assert f"Cu is skipped: its files are not in {tmp_path}" in capsys.readouterr().out


def test_rows_are_means_over_folds() -> None:
    rng = np.random.default_rng(0)
    bars = quality(rng.normal(size=(50, 3)), rng.uniform(1, 2, 50))

    def entry(fold: int, mae: float) -> dict[str, object]:
        card = {
            "energy_meV_per_atom": {
                "mae": 9.0,
                "rmse": 9.0,
                "offset_removed": {"mae": mae, "rmse": 2},
            },
            "force_meV_per_A": {"mae": 10 * mae, "rmse": 30.0},
        }
        return {
            "set": "EAN", "potential": tables.OURS, "fold": fold, "card": card, "train_cpu_s": 100.0,
            "calibration": {"force error bar": bars},
        }  # fmt: skip

    text = tables.table([entry(0, 1.0), entry(1, 3.0)])
    assert "| EAN | NeuralIL | 2.00 / 2.00 (offset removed) | 20.0 / 30.0 |" in text
    assert f"| {bars['rms_error_over_rms_sigma']:.2f} |" in text
    one = tables.table([entry(0, 1.0) | {"set": "acetylacetone", "molecule_rmse_meV": 5.0}])
    assert "9.00 / 9.00; 5.0 a molecule" in one
    assert "MACE (published) | – / 0.9 a molecule | – / 5.1" in one


def test_coverage_is_that_of_moving_atoms() -> None:
    """Two atoms at rest inside their bars do not count; of the six components of the others, two are inside."""
    labels = np.array([[0.0, 0, 0], [1e-4, 0, 0], [1.0, 0, 0], [0, 2.0, 0]])
    errors = np.array([[0.0, 0, 0], [0, 0, 0], [0.5, 2, 2], [0.9, 1.1, 3]])
    evaluation = SimpleNamespace(
        frames=[SimpleNamespace(forces=labels)],
        predictions=[SimpleNamespace(forces=labels + errors, forces_error_bar=np.sqrt([3.0] * 4))],
    )
    assert tables.coverage_of_moving(evaluation) == pytest.approx(2 / 6)
    evaluation.predictions[0].forces_error_bar = None
    assert tables.coverage_of_moving(evaluation) is None


def test_a_peer_that_was_trained_gets_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train.extxyz", rattled(4))
    write(tmp_path / "test.extxyz", rattled(2))
    files = table_sets.DataSet((tmp_path / "train.extxyz",), tmp_path / "test.extxyz")
    monkeypatch.setitem(train_peers.DATA_SETS, "Cu", files)
    seen: list[int] = []

    def train(
        frames: list[Atoms], folder: Path, epochs: int, minutes: float, device: str
    ) -> train_peers.Trained:
        seen.extend([len(frames), epochs])
        assert folder.is_dir()
        assert device == "cpu"
        return train_peers.Trained("the teacher", EMT())

    monkeypatch.setitem(train_peers.PEERS, "mace", train)
    output = tmp_path / "tables.jsonl"
    train_peers.main(["mace", "Cu", "-o", str(output), "--epochs", "7"])
    assert seen == [4, 7]
    (entry,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert "| Cu | the teacher | 0.00 / 0.00 | 0.0 / 0.0 |" in tables.table([entry])


def test_labels_for_a_peer_have_the_names_it_is_told(tmp_path: Path) -> None:
    atoms = rattled(1)[0]
    write(tmp_path / "one.xyz", train_peers.labelled(atoms))
    text = (tmp_path / "one.xyz").read_text()
    assert "REF_energy=" in text
    assert "REF_forces:R:3" in text


def test_a_peer_that_evaluates_batches_is_a_calculator() -> None:
    """One batch for each structure, whatever calculator the structures have."""

    class Peer:
        def batch_eval(self, structures: list[Atoms], batch_size: int, silent: bool) -> list[Atoms]:
            assert len(structures) == batch_size == 1
            assert silent
            structures[0].calc = EMT()
            return structures

    calculator = train_peers.in_batches(Peer())
    for expected in rattled(2):
        atoms = expected.copy()
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(expected.get_potential_energy())
        np.testing.assert_allclose(atoms.get_forces(), expected.get_forces(), atol=1e-9)


def test_the_end_of_the_time_is_no_error_but_a_failure_is() -> None:
    wait = "import time; time.sleep(60)"
    train_peers.run_for([sys.executable, "-c", wait], 0.001)
    with pytest.raises(train_peers.subprocess.CalledProcessError):
        train_peers.run_for([sys.executable, "-c", "raise SystemExit(3)"], 1)
