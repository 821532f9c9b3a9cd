"""Frames that cannot be right are named and left out, in training, validation and calibration."""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import TINY, alloy, frames, labelled

from neuralil_ase import NeuralILCalculator, calibrate
from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.absurd import without_absurd, without_false_contacts
from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms
from neuralil_ase.training.data import load_data, read_data


def moved(frame: Frame, distance: float, **labels: Any) -> Frame:
    """The frame with atom 1 at this distance in Å from atom 0, and the labels of before."""
    positions = frame.positions.copy()
    positions[1] = positions[0] + (0, 0, distance)
    return replace(frame, positions=positions, **labels)


@pytest.mark.parametrize("distance", [0.0, 0.01, 0.7, 1.2])
def test_a_contact_that_the_labels_do_not_know_is_named(
    distance: float, caplog: pytest.LogCaptureFixture
) -> None:
    data = frames(12)
    data[5] = moved(data[5], distance)
    assert without_false_contacts(data) == [*data[:5], *data[6:]]
    words = rf"structure 5: atoms 0 \(\w\w\) and 1 \(\w\w\) are {distance:.3g} Å apart"
    assert caplog.text.count("left out") == 1
    assert re.search(words, caplog.text)


@pytest.mark.parametrize("distance", [0.4, 0.7, 1.0, 1.2, 1.5])
def test_a_contact_with_its_own_labels_is_kept(distance: float) -> None:
    atoms = alloy()[5].copy()
    atoms.positions[1] = atoms.positions[0] + (0, 0, distance)
    data = [*frames(11), *frames_from_atoms([labelled(atoms)])]
    assert without_false_contacts(data) == data


def test_energies_alone_tell_it_too(caplog: pytest.LogCaptureFixture) -> None:
    data = [replace(frame, forces=None) for frame in frames(12)]
    close = moved(data[5], 0.7)
    right = replace(close, energy=(close.energy or 0) + 2000)
    assert without_false_contacts([*data[:5], right, *data[6:]])[5] is right
    assert len(without_false_contacts([*data[:5], close, *data[6:]])) == 11
    assert "but the energy is" in caplog.text


def test_many_contacts_are_a_wrong_length() -> None:
    shrunk = [
        replace(f, positions=f.positions / 1.889726 / 2, cell=f.cell / 1.889726 / 2)
        for f in frames(12)
    ]
    with pytest.raises(DataError, match=r"in 12 of 12 frames .* not in Å, or the cells were lost"):
        read_data(shrunk, TINY)
    assert read_data(shrunk, TINY.updated({"pair_term": "none"}))[0] == shrunk


@settings(max_examples=25, deadline=None)
@given(st.floats(0.82, 1.3), st.sampled_from(["Cu", "Al", "Au", "Pt"]), st.integers(0, 9))
def test_compressed_and_hot_crystals_have_no_false_contacts(
    strain: float, metal: str, seed: int
) -> None:
    atoms = bulk(metal, cubic=True)
    atoms.set_cell(strain * atoms.cell, scale_atoms=True)
    atoms.rattle(0.15, seed=seed)
    data = frames_from_atoms([labelled(atoms)])
    assert without_false_contacts(data) == data


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    """Six good frames, one with huge forces, one with a huge energy, one with a contact."""
    structures = [a.copy() for a in alloy(12)]
    for k, atoms in enumerate(structures):
        results = {n: np.copy(v) for n, v in alloy(12)[k].calc.results.items()}
        if k == 3:
            results["forces"] = 1e5 * results["forces"]
        if k == 4:
            results["energy"] = results["energy"] + 1e5
        atoms.calc = SinglePointCalculator(atoms, **results)
    ase.io.write(tmp_path / "bad.extxyz", structures)
    return tmp_path / "bad.extxyz"


def test_validation_files_are_looked_at_like_the_others(
    bad_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = TINY.updated({"validation_files": (str(bad_file),)})
    training, held_out = load_data(list(frames(12, seed=1)), chosen)
    assert len(training) == 12
    assert [f.source.split()[-1] for f in held_out] == [
        str(k) for k in range(12) if k not in (3, 4)
    ]
    assert "bad.extxyz frame 3 left out" in caplog.text
    assert "bad.extxyz frame 4 left out" in caplog.text


def test_calibration_is_not_spoilt(bad_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    potential = NeuralILCalculator().potential
    pair = ase.io.read(Path(__file__).parents[2] / "md_examples" / "ean_pair.extxyz")
    assert isinstance(pair, Atoms)
    structures = []
    for seed in range(20):
        atoms = pair.copy()
        atoms.rattle(0.05, seed=seed)
        atoms.calc = NeuralILCalculator()
        results = {
            "energy": atoms.get_potential_energy() + 0.01 * seed,
            "forces": atoms.get_forces(),
        }
        noise = np.random.default_rng(seed).normal(0, 0.05, results["forces"].shape)
        results["forces"] = results["forces"] + noise
        structures.append(atoms.copy())
        structures[-1].calc = SinglePointCalculator(structures[-1], **results)
    good = calibrate(potential, structures)
    structures.append(structures[3].copy())
    wrong = structures[3].calc.results
    structures[-1].calc = SinglePointCalculator(
        structures[-1], energy=wrong["energy"] + 1e5, forces=wrong["forces"]
    )
    with caplog.at_level(logging.WARNING):
        found = calibrate(potential, structures)
    assert "structure 20 left out: its energy differs" in caplog.text
    assert found.potential.calibration.force_scale == good.potential.calibration.force_scale
    assert found.potential.calibration.energy_scale == good.potential.calibration.energy_scale


def test_all_three_together_keep_good_frames() -> None:
    assert without_absurd(frames(12)) == frames(12)
