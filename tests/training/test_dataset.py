"""Reading labels: nothing is misread, and every refusal says what to do."""

import logging
from dataclasses import replace
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import TINY, alloy, frames, labelled

from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.absurd import without_large_forces
from neuralil_ase.evaluation.dataset import (
    Keys,
    frames_from_atoms,
    read_frames,
    split,
    types_of,
)
from neuralil_ase.samples.cutoff import surroundings
from neuralil_ase.samples.reference import energy_reference, isolated_energies
from neuralil_ase.training.data import divide
from neuralil_ase.training.settings import TrainingSettings


def test_extxyz_survives_the_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "data.extxyz"
    ase.io.write(path, list(alloy(3)))
    for read, direct in zip(read_frames([path], split_by="seed"), frames(3), strict=True):
        assert read.energy == pytest.approx(direct.energy, abs=1e-7)
        np.testing.assert_allclose(read.forces, direct.forces, atol=1e-7)
        np.testing.assert_allclose(read.stress, direct.stress, atol=1e-9)
        assert read.group in "0123"
    assert len(read_frames([f"{path}@1:"])) == 2


def test_constraints_do_not_zero_forces(tmp_path: Path) -> None:
    atoms = alloy(1)[0].copy()
    atoms.calc = alloy(1)[0].calc
    atoms.set_constraint(FixAtoms(range(16)))
    assert np.abs(atoms.get_forces()).max() == 0
    (frame,) = frames_from_atoms([atoms])
    np.testing.assert_array_equal(frame.forces, alloy(1)[0].get_forces())
    ase.io.write(tmp_path / "fixed.traj", atoms)
    assert read_frames([tmp_path / "fixed.traj"])[0].forces is not None
    np.testing.assert_array_equal(read_frames([tmp_path / "fixed.traj"])[0].forces, frame.forces)


def test_labels_under_other_names(tmp_path: Path) -> None:
    atoms = alloy(1)[0].copy()
    atoms.info |= {"REF_energy": -3.0, "REF_stress": np.arange(9.0).reshape(3, 3)}
    atoms.arrays["REF_forces"] = np.ones((16, 3))
    ase.io.write(tmp_path / "named.extxyz", atoms)
    keys = Keys("REF_energy", "REF_forces", "REF_stress")
    (frame,) = read_frames([tmp_path / "named.extxyz"], keys)
    assert frame.energy == -3
    np.testing.assert_array_equal(frame.forces, 1)
    np.testing.assert_array_equal(frame.stress, [0, 4, 8, 6, 4, 2])
    with pytest.raises(
        DataError, match=r"neither energies nor forces .* energy_key and forces_key"
    ):
        read_frames([tmp_path / "named.extxyz"])
    with pytest.raises(DataError, match=r"no frame of .* has the forces key 'dft_forces'"):
        read_frames([tmp_path / "named.extxyz"], Keys("REF_energy", "dft_forces"))


@pytest.mark.parametrize("suffix", ["db", "json"])
def test_entries_of_a_database_are_read(suffix: str, tmp_path: Path) -> None:
    """Labels, weights and groups are often key-value pairs or data of rows."""
    path = tmp_path / f"all.{suffix}"
    with ase.db.connect(path) as database:
        for k, atoms in enumerate(alloy(4)):
            found = atoms.calc.results
            bare = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
            part = "train" if k else "test"
            data = {"dft_forces": found["forces"]}
            database.write(bare, data=data, dft_energy=found["energy"], part=part, w=k + 1.0)
    keys = Keys(energy="dft_energy", forces="dft_forces", weight="w")
    read = read_frames([path], keys, "part")
    assert [f.group for f in read] == ["test", "train", "train", "train"]
    assert [f.weight for f in read] == [1, 2, 3, 4]
    for frame, expected in zip(read, frames(4), strict=True):
        assert frame.energy == pytest.approx(expected.energy)
        np.testing.assert_allclose(frame.forces, expected.forces)
    for selection, weights in (("1:3", [2, 3]), ("-1", [4]), ("::2", [1, 3]), ("part=test", [1])):
        assert [f.weight for f in read_frames([f"{path}@{selection}"], keys)] == weights
    with pytest.raises(DataError, match="there is no data file"):
        read_frames([tmp_path / f"nothing.{suffix}"])
    assert not (tmp_path / f"nothing.{suffix}").exists()


def test_missing_labels_stay_missing() -> None:
    found = frames_from_atoms([labelled(alloy(1)[0], "energy"), labelled(alloy(1)[0], "forces")])
    assert found[0].forces is None
    assert found[1].energy is None
    assert found[0].stress is None


def with_forces(forces: np.ndarray) -> Atoms:
    atoms = alloy(1)[0].copy()
    atoms.arrays["f"] = forces
    return atoms


def test_wrong_values_are_refused() -> None:
    bad = np.ones((16, 3))
    bad[3, 1] = np.nan
    with pytest.raises(DataError, match=r"'f' of structure 0 holds values that are not finite"):
        frames_from_atoms([with_forces(bad)], Keys(forces="f"))
    with pytest.raises(DataError, match=r"'f' of structure 0 has shape \(16, 2\)"):
        frames_from_atoms([with_forces(np.ones((16, 2)))], Keys(forces="f"))
    atoms = alloy(1)[0].copy()
    atoms.info["e"] = "many"
    with pytest.raises(DataError, match="'e' of structure 0 is not numeric"):
        frames_from_atoms([atoms], Keys(energy="e"))
    atoms = alloy(1)[0].copy()
    atoms.positions[4, 2] = np.inf
    with pytest.raises(DataError, match="structure 0 cannot be used: the position of atom 4"):
        frames_from_atoms([atoms])
    with pytest.raises(DataError, match="no structures were given"):
        frames_from_atoms([])
    with pytest.raises(DataError, match="holds no atoms"):
        frames_from_atoms([Atoms()])
    with pytest.raises(DataError, match=r"no info key 'seeds' to split by; it has .*'seed'"):
        frames_from_atoms(alloy(1), split_by="seeds")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data file"):
        read_frames([tmp_path / "nothing.extxyz"])
    path = tmp_path / "cut.extxyz"
    ase.io.write(path, list(alloy(3)))
    path.write_text(path.read_text()[:-700])
    with pytest.raises(DataError, match=r"cannot read .*cut\.extxyz beyond frame 1: .*cut off"):
        read_frames([path])
    path.write_text("")
    with pytest.raises(DataError):
        read_frames([path])


def test_absurd_frames_are_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    data = [frame for frame in frames(4)]
    forces = np.array(data[2].forces)
    forces[0, 0] = 400
    data[2] = frames_from_atoms([with_forces(forces)], Keys(forces="f"))[0]
    with caplog.at_level(logging.WARNING):
        kept = without_large_forces(data, 50)
    assert len(kept) == 3
    assert "structure 0 left out" in caplog.text
    assert "400 eV/Å" in caplog.text
    with pytest.raises(DataError, match=r"Usually the forces are not in eV/Å"):
        without_large_forces([data[2]], 50)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.floats(0.01, 0.9), st.integers(0, 5))
def test_a_split_by_group_never_tears_a_group(count: int, fraction: float, seed: int) -> None:
    data = frames_from_atoms([alloy()[k % 12] for k in range(count)], split_by="seed")
    n_groups = len({frame.group for frame in data})
    if max(1, round(fraction * n_groups)) >= n_groups:
        with pytest.raises(DataError, match="nothing would be left to train on"):
            split(data, fraction, seed)
        return
    train, validation = split(data, fraction, seed)
    assert len(train) + len(validation) == count
    assert not {f.group for f in train} & {f.group for f in validation}
    assert validation


def test_a_fraction_of_zero_holds_nothing_back() -> None:
    data = frames(3)
    assert split(data, 0, 0) == (data, [])


def test_the_energy_reference_finds_atomic_energies() -> None:
    """Energies that are sums of atomic energies are reproduced, whatever isolated atoms are said to have."""
    elements = ("Au", "Cu")
    structures = []
    for atoms in alloy():
        copy = atoms.copy()
        copy.info["e"] = -3.25 * copy.symbols.count("Au") - 1.5 * copy.symbols.count("Cu")
        structures.append(copy)
    data = frames_from_atoms(structures, Keys(energy="e"))
    np.testing.assert_allclose(energy_reference(data, elements), [-3.25, -1.5], atol=1e-9)
    given_energies = energy_reference(data, elements, {"Cu": 1.0, "Au": 2.0})
    np.testing.assert_allclose(given_energies, [-3.25, -1.5], atol=1e-9)
    with pytest.raises(DataError, match="isolated_atoms lacks the energy of Au"):
        isolated_energies([], {"Cu": 1.0}, elements)
    with pytest.raises(DataError, match="holds Au, but the model knows only Cu"):
        types_of(data[0], ("Cu",))


def test_a_subset_keeps_every_element(caplog: pytest.LogCaptureFixture) -> None:
    """Silver is in one frame of twelve. A subset of one frame cannot hold silver and all others."""
    data = list(frames(12))
    data[7] = replace(data[7], symbols=np.array(["Ag"] * 16))
    for seed in range(20):
        chosen = TrainingSettings(max_frames=3, seed=seed, validation_fraction=0)
        training, _ = divide(data, [], chosen)
        assert len(training) == 3
        assert data[7] in training
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    divide(data, [], TrainingSettings(max_frames=1, validation_fraction=0))
    assert "the model will not know A" in caplog.text


def test_validation_frames_that_are_trained_on_are_named(caplog: pytest.LogCaptureFixture) -> None:
    divide(frames(12), [], TrainingSettings())
    assert "among the training frames" not in caplog.text
    divide([replace(f, source=f"copy {k}") for k, f in enumerate(4 * frames(3))], [], TINY)
    assert "of 3 validation frames are also among the training frames" in caplog.text


def test_a_frame_in_other_units_of_length_is_named() -> None:
    """Nanometres, in one frame of three."""
    dense = alloy()[1].copy()
    dense.set_cell(dense.cell / 10, scale_atoms=True)
    dense.calc = SinglePointCalculator(dense, energy=0.0)
    data = frames_from_atoms([alloy()[0], dense, alloy()[2]])
    with pytest.raises(DataError, match=r"structure 1 cannot be used: .*not in Å"):
        surroundings(data, ("Au", "Cu"))
