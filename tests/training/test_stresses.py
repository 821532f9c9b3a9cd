"""Stresses of another sign, unit, order or frame are noticed; right ones are left in peace."""

import logging
import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from small_runs import TINY, alloy, labelled

from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms
from neuralil_ase.evaluation.stresses import check_stresses, verdict
from neuralil_ase.training import train


@lru_cache
def metal() -> tuple[Frame, ...]:
    """Alloys under pressure and tension."""
    rng = np.random.default_rng(3)
    found = []
    for atoms in alloy(24):
        copy = atoms.copy()
        copy.set_cell(copy.cell * (1 + rng.uniform(-0.04, 0.04, 3)), scale_atoms=True)
        found.append(labelled(copy))
    return tuple(frames_from_atoms(found))


@lru_cache
def crystals() -> tuple[Frame, ...]:
    """Crystals at many volumes, whose forces are small, and sheared ones."""
    rng, found = np.random.default_rng(1), []
    for a in np.linspace(3.45, 3.8, 20):
        atoms = bulk("Cu", cubic=True, a=a) * (2, 1, 1)
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
        atoms.rattle(0.03, rng=rng)
        found.append(labelled(atoms))
    return tuple(frames_from_atoms(found))


def changed(frames: tuple[Frame, ...], factor: float) -> list[Frame]:
    return [replace(frame, stress=factor * np.asarray(frame.stress)) for frame in frames]


@pytest.mark.parametrize("frames", [metal, crystals])
@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1.0, None),
        (1.3, None),
        (-1.0, "have the opposite sign .* stress_sign -1"),
        (1 / units.GPa, "times as large .* stress_unit GPa"),
        (10 / units.GPa, "times as large .* stress_unit kB"),
        (-10 / units.GPa, "opposite sign .* and are .* stress_unit kB"),
    ],
)
def test_sign_and_unit(frames: object, factor: float, message: str | None) -> None:
    said = check_stresses(changed(frames(), factor))  # type: ignore[operator]  # one of the functions above
    if message is None:
        assert said is None
    else:
        assert said is not None
        assert re.search(message, said), said


def test_virials_are_noticed() -> None:
    virials = [replace(f, stress=-np.asarray(f.stress) * f.volume) for f in metal()]
    said = check_stresses(virials)
    assert said is not None
    assert "opposite sign" in said
    assert "virial_key" in said


def test_stresses_of_other_frames(caplog: pytest.LogCaptureFixture) -> None:
    order = np.random.default_rng(0).permutation(len(metal()))
    shuffled = [replace(f, stress=metal()[k].stress) for f, k in zip(metal(), order, strict=True)]
    said = check_stresses(shuffled)
    assert said is not None
    assert "belong to other frames" in said
    assert said in caplog.text


def test_another_order_of_the_shear_components() -> None:
    order = [0, 1, 2, 5, 3, 4]  # xx yy zz xy yz xz
    said = check_stresses([replace(f, stress=np.asarray(f.stress)[order]) for f in crystals()])
    assert said is not None
    assert "seem to end with xy yz xz instead of yz xz xy" in said


def test_little_data_is_not_judged() -> None:
    assert check_stresses(changed(metal()[:5], -1.0)) is None
    assert check_stresses([replace(f, forces=None) for f in changed(metal(), -1.0)]) is None
    noise = np.random.default_rng(0).normal(size=(24, 16, 3))
    senseless = [replace(f, forces=n) for f, n in zip(changed(metal(), -1.0), noise, strict=True)]
    assert check_stresses(senseless) is None
    assert verdict(np.zeros((9, 6)), np.ones((9, 6)), 1.0) is None


@pytest.mark.parametrize("with_energies", [True, False])
@pytest.mark.parametrize("elements", [("Cu",), ("Cu", "Au")])
def test_small_cells_give_no_false_alarm(elements: tuple[str, ...], with_energies: bool) -> None:
    """The forces of four atoms hardly tell how the energy depends on the cell."""
    for seed in range(4):
        rng, found = np.random.default_rng(seed), []
        for _ in range(16):
            atoms = bulk("Cu", cubic=True, a=3.7 + rng.uniform(-0.2, 0.3))
            atoms.symbols[:] = [elements[k] for k in rng.integers(0, len(elements), 4)]
            strain = np.eye(3) + rng.uniform(-0.04, 0.04, (3, 3))
            atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            atoms.rattle(0.1, rng=rng)
            found.append(labelled(atoms))
        data = frames_from_atoms(found)
        assert (
            check_stresses(data if with_energies else [replace(f, energy=None) for f in data])
            is None
        )


def test_without_energies_the_message_does_not_name_them() -> None:
    data = [replace(frame, energy=None) for frame in changed(metal(), -1)]
    assert "opposite sign of what forces imply" in str(check_stresses(data))


def test_training_says_so(caplog: pytest.LogCaptureFixture) -> None:
    data = [atoms.copy() for atoms in alloy(24)]
    for copy, atoms in zip(data, alloy(24), strict=True):
        copy.calc = atoms.calc
        copy.info["kbar"] = -atoms.calc.results["stress"] * 10 / units.GPa
    options = {"stress_key": "kbar", "epochs": 1, "validation_fraction": 0.25}
    with caplog.at_level(logging.WARNING):
        train(data, settings=TINY.updated(options), report=False)
    assert "give stress_sign -1" in caplog.text
    caplog.clear()
    train(
        data,
        settings=TINY.updated(options | {"stress_sign": -1, "stress_unit": "kB"}),
        report=False,
    )
    assert "stress_sign" not in caplog.text
