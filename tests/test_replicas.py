"""Replicas evaluated together against each of them alone."""

import numpy as np
import pytest
from systems import ensemble, structure

from neuralil_ase import NeuralILCalculator, Replicas
from neuralil_ase.engine import native
from neuralil_ase.errors import ConfigError, StructureError

NAMES = ["triclinic", "tiny", "molecule"]


def moved(name: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (R, N, 3) and cells (R, 3, 3) of slightly different replicas."""
    rng, atoms = np.random.default_rng(seed), structure(name)
    deformations = np.eye(3) + rng.normal(scale=0.01, size=(count, 3, 3))
    cells = atoms.cell.array @ deformations
    positions = atoms.positions @ deformations
    return positions + rng.normal(scale=0.03, size=positions.shape), cells


def assert_each_as_alone(
    replicas: Replicas, name: str, positions: np.ndarray, cells: np.ndarray
) -> None:
    together = replicas.predict(positions, cells)
    alone = NeuralILCalculator(ensemble(), dtype="float64", uncertainty="forces")
    atoms = structure(name)
    for k in range(len(positions)):
        atoms.set_cell(cells[k])
        atoms.positions = positions[k]
        expected = alone.prediction(atoms)
        assert together.energy[k] == pytest.approx(expected.energy, abs=1e-9)
        np.testing.assert_allclose(together.forces[k], expected.forces, rtol=0, atol=1e-9)
        if expected.holds("stress"):
            stress = together.virial[k] / atoms.cell.volume
            np.testing.assert_allclose(stress, expected.stress, rtol=0, atol=1e-10)
        assert together.energies_std is not None
        assert together.forces_std is not None
        np.testing.assert_allclose(together.energies_std[k], expected.energies_std, atol=1e-9)
        np.testing.assert_allclose(together.forces_std[k], expected.forces_std, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "has_library"),
    [*((name, True) for name in NAMES), ("tiny", False),
     *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("triclinic", "molecule"))],
)  # fmt: skip
def test_every_replica_is_as_alone_while_atoms_and_cells_move(
    name: str, has_library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_library:
        monkeypatch.setattr(native, "compiled_library", lambda: "switched off")
    replicas = Replicas(structure(name), ensemble(), dtype="float64", uncertainty="forces")
    for seed in range(3):
        assert_each_as_alone(replicas, name, *moved(name, 4, seed))


def test_lists_are_rebuilt_for_the_replica_that_moved_alone() -> None:
    replicas = Replicas(structure("triclinic"), ensemble(), dtype="float64", uncertainty="forces")
    positions, cells = moved("triclinic", 4, seed=1)
    replicas.predict(positions, cells)
    assert replicas.neighbor_list_builds == 4
    positions[2, 0] += 0.6
    assert_each_as_alone(replicas, "triclinic", positions, cells)
    assert replicas.neighbor_list_builds == 5
    assert_each_as_alone(replicas, "triclinic", positions[:2], cells[:2])


def test_the_cell_of_the_system_serves_all() -> None:
    atoms = structure("tiny")
    replicas = Replicas(atoms, ensemble(), dtype="float64")
    positions, _ = moved("tiny", 3, seed=2)
    same = np.broadcast_to(atoms.cell.array, (3, 3, 3))
    found = replicas.predict(positions)
    for other in (
        replicas.predict(positions, atoms.cell.array),
        replicas.predict(positions, same),
    ):
        np.testing.assert_array_equal(found.forces, other.forces)
    assert found.energies_std is None
    assert found.forces_std is None


def test_compilations_stay_constant_while_replicas_move() -> None:
    replicas = Replicas(structure("triclinic"), ensemble())
    replicas.predict(*moved("triclinic", 4, seed=0))
    before = replicas.compilations
    for seed in range(5):
        replicas.predict(*moved("triclinic", 4, seed))
    assert replicas.compilations == before


def test_no_replica_is_an_empty_result() -> None:
    atoms = structure("triclinic")
    found = Replicas(atoms, ensemble()).predict(np.empty((0, len(atoms), 3)))
    assert found.energy.shape == (0,)
    assert found.forces.shape == (0, len(atoms), 3)


def test_bad_input_is_named() -> None:
    atoms = structure("triclinic")
    replicas = Replicas(atoms, ensemble())
    positions, cells = moved("triclinic", 3, seed=0)
    with pytest.raises(StructureError, match=r"shape \(6, 3\); replicas of this system need"):
        replicas.predict(positions[0])
    with pytest.raises(StructureError, match=r"cells have the shape \(2, 3, 3\); give one"):
        replicas.predict(positions, cells[:2])
    positions[1, 3, 0] = np.nan
    with pytest.raises(StructureError, match="replica 1: the position of atom 3 is not finite"):
        replicas.predict(positions, cells)
    with pytest.raises(ConfigError, match="skin must be"):
        Replicas(atoms, ensemble(), skin=-1)
    with pytest.raises(ConfigError, match="unknown uncertainty"):
        Replicas(atoms, ensemble(), uncertainty="all")  # type: ignore[arg-type]
