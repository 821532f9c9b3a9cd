"""Labels of any name, sign and unit: used, or named with their count, or refused."""

import logging
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from small_runs import TINY, alloy

from neuralil_ase.errors import ConfigError, DataError
from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms, read_frames
from neuralil_ase.evaluation.labels import Keys, meaning
from neuralil_ase.training.data import load_data

FULL = ("energy", "forces", "stress")


def renamed(atoms: Atoms, **names: str) -> Atoms:
    """The labels of a structure under other names, in info and arrays; only these."""
    copy = atoms.copy()
    for label, name in names.items():
        value = atoms.calc.results[label]
        (copy.arrays if label == "forces" else copy.info)[name] = np.copy(value)
    return copy


def mixed(first: int, second: int, **names: str) -> list[Atoms]:
    data = alloy(first + second)
    return [*data[:first], *(renamed(atoms, **names) for atoms in data[first:])]


def assert_same_labels(found: Frame, atoms: Atoms) -> None:
    assert found.energy == pytest.approx(atoms.calc.results["energy"])
    np.testing.assert_allclose(found.forces, atoms.calc.results["forces"])
    np.testing.assert_allclose(found.stress, atoms.calc.results["stress"], atol=1e-12)


@pytest.mark.parametrize(
    ("energy", "forces"),
    [("REF_energy", "REF_forces"), ("Energy", "Forces"), ("E_dft", "F_dft"), ("dftEnergy", "dftForce"),
     ("etot", "gradients"), ("energy_pbe0", "pbe0_forces")],
)  # fmt: skip
def test_frames_whose_labels_go_by_other_names_are_not_dropped(energy: str, forces: str) -> None:
    data = mixed(3, 2, energy=energy, forces=forces)
    with pytest.raises(DataError, match=rf"2 of the 5 frames .* have no energies .*{energy}"):
        frames_from_atoms(data)
    keys = Keys(f"energy,{energy}", f"forces,{forces}")
    for found, atoms in zip(frames_from_atoms(data, keys), alloy(5), strict=True):
        assert found.energy == pytest.approx(atoms.calc.results["energy"])
        np.testing.assert_allclose(found.forces, atoms.calc.results["forces"])


def test_two_files_are_told_apart(tmp_path: Path) -> None:
    data = mixed(3, 2, energy="REF_energy", forces="REF_forces")
    ase.io.write(tmp_path / "a.extxyz", data[:3])
    ase.io.write(tmp_path / "b.extxyz", data[3:])
    files = [tmp_path / "a.extxyz", tmp_path / "b.extxyz"]
    with pytest.raises(DataError, match=r"2 of the 2 frames of .*b\.extxyz have no energies"):
        read_frames(files)
    with pytest.raises(DataError, match=r"energy_key='energy,REF_energy'"):
        load_data(files, TINY)


@pytest.mark.parametrize("forces", ["REF_forces", "dft.forces", "F"])
def test_energies_alone_are_not_meant_where_forces_lie_beside_them(forces: str) -> None:
    data = []
    for atoms in alloy(3):
        copy = renamed(atoms, energy="energy")
        if "." in forces:
            copy.info["dft"] = {"forces": atoms.calc.results["forces"]}
        else:
            copy.arrays[forces] = atoms.calc.results["forces"]
        data.append(copy)
    with pytest.raises(DataError, match=rf"no frame .* has forces .*forces_key='{forces}'"):
        frames_from_atoms(data)
    found = frames_from_atoms(data, Keys(forces=forces))
    np.testing.assert_array_equal(found[0].forces, alloy(3)[0].calc.results["forces"])
    assert frames_from_atoms(data, Keys(unused=("forces",)))[0].forces is None
    chosen = TINY.updated({"force_weight": 0.0, "validation_fraction": 0.0})
    assert len(load_data(data, chosen)[0]) == 3


def test_a_key_for_one_label_and_twins_of_it_for_another() -> None:
    data = [renamed(atoms, energy="REF_energy", forces="REF_forces") for atoms in alloy(3)]
    for copy, atoms in zip(data, alloy(3), strict=True):
        copy.arrays["forces"] = 0.9 * atoms.calc.results["forces"]
    with pytest.raises(
        DataError, match=r"REF_forces.*fits the other names .*forces_key='REF_forces'"
    ):
        frames_from_atoms(data, Keys("REF_energy"))
    assert frames_from_atoms(data, Keys("REF_energy", "forces"))[0].forces is not None


def test_frames_without_labels_are_counted_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    data = [*alloy(3), alloy(1)[0].copy()]
    with caplog.at_level(logging.INFO):
        assert len(frames_from_atoms(data)) == 3
    assert "1 of the 4 frames of the structures have neither energy nor forces" in caplog.text
    assert "4 frames, 3 energies ('energy'), 3 forces ('forces'), 3 stresses" in caplog.text


def test_labels_that_are_not_used_are_named(caplog: pytest.LogCaptureFixture) -> None:
    data = [atoms.copy() for atoms in alloy(3)]
    for copy, atoms in zip(data, alloy(3), strict=True):
        copy.calc = atoms.calc
        copy.info |= {"pm6_energy": 1.0, "energy_weight": 2.0, "dft_stress": np.ones(6), "T": 300.0}
    frames_from_atoms(data)
    assert "not used in the structures: 'pm6_energy' (3 frames)" in caplog.text
    assert "'dft_stress' (3 frames)" in caplog.text
    assert "weight" not in caplog.text


def test_virials_become_stresses(caplog: pytest.LogCaptureFixture) -> None:
    data = [renamed(atoms, energy="energy", forces="forces") for atoms in alloy(3)]
    matrix = (0, 5, 4), (5, 1, 3), (4, 3, 2)
    for copy, atoms in zip(data, alloy(3), strict=True):
        copy.info["virial"] = -atoms.calc.results["stress"][np.array(matrix)] * atoms.get_volume()
    for found, atoms in zip(frames_from_atoms(data), alloy(3), strict=True):
        assert_same_labels(found, atoms)
    assert "stresses of 3 frames" in caplog.text
    assert "stress = −virial / volume" in caplog.text
    for copy in data:
        copy.info["v9"] = -copy.info.pop("virial").reshape(9)
    for keys in (Keys(virial="v9", stress_sign=-1),):
        assert_same_labels(frames_from_atoms(data, keys)[0], alloy(3)[0])
    with pytest.raises(DataError, match=r"'my_virial' is by its name a virial.*virial_key"):
        Keys(stress="my_virial")


@pytest.mark.parametrize(("unit", "factor"), [("GPa", units.GPa), ("kB", units.GPa / 10)])
def test_units_and_signs_of_stresses(unit: Any, factor: float) -> None:
    data = [renamed(atoms, energy="energy", forces="forces") for atoms in alloy(2)]
    for copy, atoms in zip(data, alloy(2), strict=True):
        copy.info["pressure_tensor"] = -atoms.calc.results["stress"] / factor
    keys = Keys(stress="pressure_tensor", stress_unit=unit, stress_sign=-1)
    for found, atoms in zip(frames_from_atoms(data, keys), alloy(2), strict=True):
        assert_same_labels(found, atoms)
    with pytest.raises(ConfigError, match="stress_sign must be 1 or -1"):
        TINY.updated({"stress_sign": 0})
    with pytest.raises(ConfigError, match="unknown stress_unit 'Pa'"):
        TINY.updated({"stress_unit": "Pa"})


def test_a_stress_asked_for_needs_a_cell() -> None:
    atoms = renamed(alloy(1)[0], energy="energy", stress="s")
    atoms.cell[:] = 0
    atoms.pbc = False
    with pytest.raises(DataError, match=r"no frame .* stress key 's'.* three lattice vectors"):
        frames_from_atoms([atoms], Keys(stress="s"))


@pytest.mark.parametrize("marker", ["forces_std", "energy_std", "energy_error_bar"])
def test_predictions_are_no_labels(marker: str, caplog: pytest.LogCaptureFixture) -> None:
    data = [atoms.copy() for atoms in alloy(3)]
    for copy, atoms in zip(data, alloy(3), strict=True):
        copy.calc = atoms.calc
        (copy.arrays if "forces" in marker else copy.info)[marker] = np.ones(len(copy))[
            0 if "energy" in marker else slice(None)
        ]
    frames_from_atoms(data)
    assert (
        f"labels of 3 frames of the structures seem to be predictions of a model: they are stored with {marker}"
        in caplog.text
    )
    for copy in data:
        copy.info["REF_energy"] = 1.0
        copy.arrays["REF_forces"] = np.ones((16, 3))
    with pytest.raises(DataError, match=r"energy_key='REF_energy', forces_key='REF_forces'"):
        frames_from_atoms(data)
    assert frames_from_atoms(data, Keys("REF_energy", "REF_forces"))[0].energy == 1


def test_labels_of_other_positions_are_refused() -> None:
    atoms = alloy(2)[1].copy()
    atoms.calc = alloy(2)[1].calc
    atoms.positions += atoms.cell[0]
    atoms.positions[3] -= atoms.cell[1]
    assert frames_from_atoms([atoms])[0].energy is not None
    atoms.positions[3, 0] += 0.1
    with pytest.raises(DataError, match="labels of structure 0 were computed for other positions"):
        frames_from_atoms([atoms])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("REF_energy", "energy"), ("TotEnergy", "energy"), ("E0", "energy"), ("e_pbe", "energy"),
        ("DFTEnergy", "energy"), ("toten", "energy"), ("REF_forces", "forces"), ("MP2Forces", "forces"),
        ("f_dft", "forces"), ("gradient", "forces"), ("REF_stress", "stress"), ("REF_virials", "virial"),
        ("energy_std", None), ("kinetic_energy", None), ("forces_error_bar", None), ("temperature", None),
        ("charge", None), ("efermi_level", None), ("energy_weight", None), ("seed", None), ("fold", None),
        ("momenta", None), ("dihedral_angle", None),
    ],
)  # fmt: skip
def test_what_names_mean(name: str, label: str | None) -> None:
    assert meaning(name) == label


def test_weights_are_read_and_checked() -> None:
    data = [atoms.copy() for atoms in alloy(3)]
    for k, (copy, atoms) in enumerate(zip(data, alloy(3), strict=True)):
        copy.calc = atoms.calc
        copy.info["w"] = float(k)
    assert [f.weight for f in frames_from_atoms(data, Keys(weight="w"))] == [0, 1, 2]
    for bad, message in ((-1.0, "weights are zero or more"), (np.nan, "not finite")):
        data[1].info["w"] = bad
        with pytest.raises(DataError, match=message):
            frames_from_atoms(data, Keys(weight="w"))
    del data[1].info["w"]
    with pytest.raises(DataError, match="structure 1 has no weight 'w'"):
        frames_from_atoms(data, Keys(weight="w"))
