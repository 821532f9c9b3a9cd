"""What an element's energy is: from the data where they say it, sensible where they do not, and never in the way."""

import logging
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import TINY, alloy, frames, labelled

from neuralil_ase import NeuralILCalculator
from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.absurd import without_absurd_energies
from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms, split
from neuralil_ase.evaluation.evaluate import evaluate
from neuralil_ase.samples.reference import energy_reference, isolated_energies, say_what_is_open
from neuralil_ase.training import train
from neuralil_ase.training.data import load_data, read_data
from neuralil_ase.training.prepare import prepare


def with_energy(atoms: Atoms, energy: float) -> Atoms:
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=np.zeros((len(copy), 3)))
    return copy


def one_composition(count: int = 5) -> list[Frame]:
    """Acetylacetone-like: C5 H8 O2, -9400 eV in all, give or take."""
    atoms = Atoms("C5H8O2", positions=np.random.default_rng(0).uniform(0, 8, (15, 3)))
    return frames_from_atoms([with_energy(atoms, -9400.0 + 0.1 * k) for k in range(count)])


def single(symbol: str, energy: float, cell: float = 0.0) -> Atoms:
    return with_energy(Atoms(symbol, cell=[cell] * 3, pbc=cell > 0), energy)


def test_one_composition_shares_its_energy_among_atoms(caplog: pytest.LogCaptureFixture) -> None:
    elements = ("C", "H", "O")
    data = one_composition()
    np.testing.assert_allclose(energy_reference(data, elements), -9399.8 / 15)
    say_what_is_open(data, elements)
    assert "all frames with energies have the same composition" in caplog.text
    atoms = {"C": -1030.0, "H": -13.6, "O": -2040.0}
    caplog.clear()
    say_what_is_open(data, elements, atoms)
    assert not caplog.records
    say_what_is_open(data, elements, ["C"])
    assert "determine only 2 of 3 energies" in caplog.text
    found = energy_reference(data, elements, atoms)
    cohesive = -9399.8 - (5 * -1030.0 + 8 * -13.6 + 2 * -2040.0)
    np.testing.assert_allclose(found, np.array(list(atoms.values())) + cohesive / 15)


def test_compositions_that_say_too_little_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Water and clusters of it, beside hydrogen: three elements would need three kinds of compositions."""
    two = [molecule("H2O"), molecule("H2O2")]
    data = frames_from_atoms([with_energy(a, -1.0 * len(a)) for a in two])
    say_what_is_open(data, ("H", "O"))
    assert not caplog.records
    salt = [
        Atoms(f"Na{n}Cl{n}O{m}", positions=np.arange(3.0 * (2 * n + m)).reshape(-1, 3))
        for n, m in ((1, 1), (2, 1))
    ]
    data = frames_from_atoms([with_energy(a, -1.0) for a in salt])
    say_what_is_open(data, ("Cl", "Na", "O"))
    assert "determine only 2 of 3 energies of elements (Cl, Na, O)" in caplog.text


@settings(max_examples=50, deadline=None)
@given(
    references=st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=2),
    isolated=st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=2),
)
def test_what_the_data_say_does_not_depend_on_isolated_atoms(
    references: list[float], isolated: list[float]
) -> None:
    elements = ("Au", "Cu")
    data = [
        replace(f, energy=float(sum(references[elements.index(str(s))] for s in f.symbols)))
        for f in frames(8)
    ]
    found = energy_reference(data, elements, dict(zip(elements, isolated, strict=True)))
    np.testing.assert_allclose(found, references, atol=1e-7)


def test_single_atoms_set_the_energies_of_elements(caplog: pytest.LogCaptureFixture) -> None:
    atoms = [single("Cu", 3.5), single("Cu", 3.9, 12.0), single("Au", 3.8, 15.0), single("Ag", 1.0)]
    data = [*alloy(8), *atoms]
    training, validation = load_data(data, TINY)
    assert [len(f.symbols) for f in validation] == [16, 16]
    assert sum(len(f.symbols) == 1 for f in training) == 4
    with caplog.at_level(logging.INFO):
        task = prepare(TINY, training, validation)
    assert (
        "structure 8 is a single Cu atom, the lowest of 2, 3.5 eV: the energy of its element"
        in caplog.text
    )
    assert "structure 11 is a single Ag atom, 1 eV: not used: no other frame holds" in caplog.text
    assert task.config.descriptor.elements == ("Au", "Cu")
    assert [len(s.types) for s in task.train[-3:]] == [16, 1, 1]
    for sample, energy in zip(task.train[-2:], (3.8, 3.5), strict=True):
        assert sample.targets.energy == pytest.approx(energy - task.reference[sample.types[0]])
    plain = prepare(TINY, training[:6], validation)
    np.testing.assert_allclose(task.reference, plain.reference)
    assert task.config == plain.config
    np.testing.assert_array_equal(task.scaling.factor, plain.scaling.factor)
    given = {"Cu": 2.0, "Au": 1.0}
    found = isolated_energies([f for f in training if len(f.symbols) == 1], given, ("Au", "Cu"))
    assert found == {"Au": 1.0, "Cu": 2.0}


def test_a_primitive_cell_is_no_isolated_atom() -> None:
    crystals = [labelled(bulk("Cu", a=3.6 + 0.05 * k)) for k in range(6)]
    training, validation = load_data(crystals, TINY)
    assert len(training) + len(validation) == 6
    assert validation
    with pytest.raises(DataError, match="all frames are isolated atoms"):
        load_data([single("Cu", 1.0), single("Cu", 2.0)], TINY)


def test_accuracy_does_not_depend_on_the_energies_of_isolated_atoms() -> None:
    """8 eV off, where the cohesive energy would have to grow through output layers that start near zero."""
    errors = {}
    for energy in (None, 8.0):
        given = None if energy is None else {"Cu": energy, "Au": energy}
        result = train(list(alloy()), settings=TINY, report=False, isolated_atoms=given)
        errors[energy] = result.history[-1]["validation_energy_mae"]
    assert errors[8.0] < 2 * errors[None]
    assert errors[8.0] < 1  # eV/atom, after twelve steps


def test_an_element_that_would_be_held_out_alone_stays_in_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever the seed; silver is in one frame, gold in two."""
    data = []
    for k, frame in enumerate(frames(10)):
        symbols = np.array(["Cu"] * 16)
        symbols[0] = "Ag" if k == 3 else "Cu"
        symbols[1] = "Au" if k in (3, 4) else "Cu"
        data.append(replace(frame, symbols=symbols))
    with caplog.at_level(logging.INFO):
        for seed in range(30):
            training, validation = split(data, 0.3, seed)
            assert len(validation) == 3
            assert {s for f in training for s in f.symbols} == {"Ag", "Au", "Cu"}
    assert "not held out for validation" in caplog.text
    alone = [
        replace(f, symbols=np.array([s] * 16)) for f, s in zip(frames(2), ("Cu", "Ag"), strict=True)
    ]
    with pytest.raises(DataError, match="nothing can be held out"):
        split(alone, 0.3, 0)


def test_an_element_of_validation_frames_alone_is_a_fault_of_the_split() -> None:
    strange = replace(frames(1)[0], symbols=np.array(["Ag"] * 16))
    with pytest.raises(
        DataError, match="validation frame structure 0 holds Ag, which no training frame"
    ):
        prepare(TINY, frames(6), [strange])


def test_parts_of_a_split_with_other_names_are_refused() -> None:
    data = [
        replace(f, group=g)
        for f, g in zip(frames(4), ("train", "train", "val", "test"), strict=True)
    ]
    training, validation = split(data, 0.1, 0)
    assert (len(training), len(validation)) == (2, 1)
    data[2] = replace(data[2], group="holdout")
    with pytest.raises(DataError, match="split with unknown names: holdout"):
        split(data, 0.1, 0)


def test_compositions_outside_the_training_data_are_named(caplog: pytest.LogCaptureFixture) -> None:
    potential = train(list(alloy()), settings=TINY.updated({"epochs": 1}), report=False).potential
    assert potential.provenance["element_fractions"] == {"Au": [0.25, 0.4375], "Cu": [0.5625, 0.75]}
    evaluate(potential, frames(3))
    assert "compositions" not in caplog.text
    copper = [labelled(bulk("Cu", cubic=True, a=3.7) * (1, 1, 2))]
    evaluate(potential, frames_from_atoms([*alloy(2), *copper]))
    assert "1 of 3 frames have compositions outside those" in caplog.text
    assert "structure 2, which is 0% Au" in caplog.text
    caplog.clear()
    own = []
    for atoms in alloy(3):
        copy = atoms.copy()
        copy.calc = NeuralILCalculator(potential)
        own.append(with_energy(copy, copy.get_potential_energy()))
        own[-1].calc.results["forces"] = copy.get_forces()
    evaluate(potential, frames_from_atoms(own))
    assert "are the predictions of this model itself" in caplog.text


def test_weights_count_in_training() -> None:
    """Only their ratios; an isolated atom weighs as much as the mean frame."""
    data = frames(8)
    weighted = [replace(f, weight=300.0 if k < 6 else 100.0) for k, f in enumerate(data)]
    atom = frames_from_atoms([single("Cu", 3.5)])
    task = prepare(TINY, [*weighted, *atom], data[:2])
    assert [s.weight for s in task.train] == pytest.approx([1.2] * 6 + [0.4] * 2 + [1])
    batch = next(task.packer.pack(task.train[5:7], np.ones((2, 2))))
    np.testing.assert_allclose(batch.energy_weight[:2], [1.2, 0.4])
    np.testing.assert_allclose(batch.force_weight[[0, 16]], [1.2, 0.4])
    np.testing.assert_allclose(batch.stress_weight[:2], [1.2, 0.4])


def test_frames_of_weight_zero_are_left_out(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Validation files need no weights."""
    ase.io.write(tmp_path / "validation.extxyz", list(alloy(2)))
    chosen = TINY.updated(
        {"weight_key": "w", "validation_files": [str(tmp_path / "validation.extxyz")]}
    )
    data = [labelled(atoms) for atoms in alloy(4)]
    for k, atoms in enumerate(data):
        atoms.info["w"] = min(k, 2)
    with caplog.at_level(logging.INFO):
        training, validation = read_data(data, chosen)
    assert [f.weight for f in training] == [1, 2, 2]
    assert len(validation) == 2
    assert "1 frame of weight 0 left out" in caplog.text
    with pytest.raises(DataError, match="all frames have weight 0"):
        read_data(data[:1], chosen)


def test_absurd_energies_are_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A failed calculation would move the energies of the elements, and with them every other frame."""
    data = list(frames(12))
    data[5] = replace(data[5], energy=1e6)
    atom = frames_from_atoms([single("Cu", -45000.0)])  # its zero may be another one
    kept = without_absurd_energies([*data, *atom])
    assert kept == [f for f in [*data, *atom] if f is not data[5]]
    assert "structure 5 left out: its energy differs by 6.25e+04 eV/atom" in caplog.text
    assert without_absurd_energies(list(frames(12))) == list(frames(12))
    half = [replace(f, energy=f.energy - 8000 * (k % 2)) for k, f in enumerate(frames(12))]
    with pytest.raises(DataError, match=r"6 of 12 frames differ .* another method"):
        without_absurd_energies(half)
    assert read_data(half, TINY.updated({"energy_weight": 0.0}))[0] == half


def test_energies_of_elements_of_any_size_are_not_absurd() -> None:
    zeros = {"Au": -5e5, "Cu": -4.5e4}
    data = [replace(f, energy=f.energy + sum(zeros[s] for s in f.symbols)) for f in frames(12)]
    assert without_absurd_energies(data) == data
