"""Pair lists against ASE's own, while atoms and cells move."""

import numpy as np
import pytest
from ase.geometry import cellpar_to_cell
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralil_ase.engine import native
from neuralil_ase.engine.neighbors import NeighborList, Pairs
from neuralil_ase.errors import StructureError

R_CUT = 3.0
PERIODIC = np.array([True, True, True])
PBC = [
    (True, True, True),
    (True, True, False),
    (True, False, True),
    (False, True, False),
    (False, False, False),
]


def random_system(
    seed: int, n_atoms: int = 12
) -> tuple[np.random.Generator, np.ndarray, np.ndarray, np.ndarray]:
    """Generator, unwrapped positions, triclinic cell (some narrower than the cutoff), types."""
    rng = np.random.default_rng(seed)
    cell = cellpar_to_cell([*rng.uniform(2.2, 7, 3), *rng.uniform(65, 115, 3)])
    positions = rng.uniform(-1.5, 2.5, (n_atoms, 3)) @ cell
    return rng, positions, cell, rng.integers(0, 4, n_atoms)


def expected_pairs(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Rows i, j, x, y, z of ASE's list, in a canonical order."""
    i, j, vectors = primitive_neighbor_list("ijD", pbc, cell, positions, R_CUT)
    return canonical(i, j, vectors)


def canonical(i: np.ndarray, j: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    rows = np.column_stack([i, j, vectors]) if len(i) else np.empty((0, 5))
    return rows[np.lexsort(np.round(rows, 6).T)]


def assert_same(found: Pairs, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    rows = canonical(found.centers, found.neighbors, found.vectors)
    expected = expected_pairs(positions, cell, pbc)
    assert rows.shape == expected.shape
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("pbc", PBC)
def test_pairs_agree_with_ase(seed: int, pbc: tuple[bool, bool, bool]) -> None:
    _, positions, cell, types = random_system(seed)
    found = NeighborList(R_CUT, 0.5).pairs(positions, cell, np.array(pbc), types)
    assert_same(found, positions, cell, np.array(pbc))


@pytest.mark.parametrize("skin", [0.0, 0.5, 4.0])
def test_pairs_are_sorted_by_center_then_type(skin: int) -> None:
    _, positions, cell, types = random_system(3, 20)
    found = NeighborList(R_CUT, skin).pairs(positions, cell, PERIODIC, types)
    keys = found.centers.astype(int) * 4 + types[found.neighbors]
    assert (np.diff(keys) >= 0).all()
    assert found.vectors.dtype == np.float64


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pbc", PBC)
def test_no_pair_is_missed_while_atoms_move(seed: int, pbc: tuple[bool, bool, bool]) -> None:
    rng, positions, cell, types = random_system(seed)
    neighbor_list = NeighborList(R_CUT, 0.5)
    for _ in range(25):
        positions = positions + rng.normal(scale=0.05, size=positions.shape)
        assert_same(
            neighbor_list.pairs(positions, cell, np.array(pbc), types),
            positions,
            cell,
            np.array(pbc),
        )
    assert 1 < neighbor_list.builds < 25, "a list serves more than one step, and not for ever"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pbc", PBC)
def test_no_pair_is_missed_while_the_cell_breathes(seed: int, pbc: tuple[bool, bool, bool]) -> None:
    """As a barostat does: strain, shear and rotation of cell and positions, and atoms that move besides."""
    rng, positions, cell, types = random_system(seed)
    neighbor_list = NeighborList(R_CUT, 0.6)
    for _ in range(25):
        deformation = np.eye(3) + rng.normal(scale=0.01, size=(3, 3))
        cell = cell @ deformation
        positions = positions @ deformation + rng.normal(scale=0.01, size=positions.shape)
        assert_same(
            neighbor_list.pairs(positions, cell, np.array(pbc), types),
            positions,
            cell,
            np.array(pbc),
        )
    assert neighbor_list.builds < 25


def test_cell_changes_without_scaled_positions() -> None:
    """``set_cell(scale_atoms=False)``: images move, atoms stay."""
    rng, positions, cell, types = random_system(5)
    neighbor_list = NeighborList(R_CUT, 0.6)
    for _ in range(15):
        cell = cell * (1 + rng.normal(scale=0.02))
        assert_same(
            neighbor_list.pairs(positions, cell, PERIODIC, types), positions, cell, PERIODIC
        )


def test_the_list_is_kept_until_an_atom_may_have_crossed_the_skin() -> None:
    _, positions, cell, types = random_system(1)
    neighbor_list = NeighborList(R_CUT, 0.5)

    def builds_after(move: float) -> int:
        moved = positions.copy()
        moved[4, 0] += move
        neighbor_list.pairs(moved, cell, PERIODIC, types)
        return neighbor_list.builds

    assert [builds_after(move) for move in (0.0, 0.24, -0.24, 0.26)] == [1, 1, 1, 2]


def test_a_collective_strain_within_the_skin_keeps_the_list() -> None:
    """3.5 Å scaled by 0.99 is still 3.465 Å; by 0.85 it is below the cutoff."""
    _, positions, cell, types = random_system(1)
    neighbor_list = NeighborList(R_CUT, 0.5)
    for scale, builds in ((1.0, 1), (0.99, 1), (1.02, 1), (0.85, 2)):
        found = neighbor_list.pairs(scale * positions, scale * cell, PERIODIC, types)
        assert_same(found, scale * positions, scale * cell, PERIODIC)
        assert neighbor_list.builds == builds


def test_without_a_skin_the_list_is_rebuilt_when_anything_moves() -> None:
    _, positions, cell, types = random_system(2)
    neighbor_list = NeighborList(R_CUT, 0.0)
    for step in range(4):
        moved = positions + 1e-3 * step * np.eye(len(positions), 3)
        assert_same(neighbor_list.pairs(moved, cell, PERIODIC, types), moved, cell, PERIODIC)
    assert neighbor_list.builds >= 4


@pytest.mark.parametrize("change", ["types", "pbc", "atoms", "permutation", "wrapping"])
def test_another_structure_is_never_served_from_the_old_list(change: str) -> None:
    _, positions, cell, types = random_system(6)
    pbc = PERIODIC
    neighbor_list = NeighborList(R_CUT, 0.5)
    neighbor_list.pairs(positions, cell, pbc, types)
    if change == "types":
        types = (types + 1) % 4
    elif change == "pbc":
        pbc = np.array([True, False, True])
    elif change == "atoms":
        positions, types = positions[:-1], types[:-1]
    elif change == "permutation":
        positions = positions[::-1].copy()
    else:
        positions = (np.linalg.solve(cell.T, positions.T).T % 1) @ cell
    found = neighbor_list.pairs(positions, cell, pbc, types)
    assert_same(found, positions, cell, pbc)
    keys = found.centers.astype(int) * 4 + types[found.neighbors]
    assert (np.diff(keys) >= 0).all()


def test_arrays_changed_in_place_after_the_call_do_no_harm() -> None:
    """ASE hands out its own arrays; MD changes them in place."""
    _, positions, cell, types = random_system(7)
    neighbor_list = NeighborList(R_CUT, 0.5)
    neighbor_list.pairs(positions, cell, PERIODIC, types)
    positions += np.linspace(0, 2, positions.size).reshape(positions.shape)
    assert_same(neighbor_list.pairs(positions, cell, PERIODIC, types), positions, cell, PERIODIC)


def test_vectors_of_directions_that_are_not_periodic_play_no_part() -> None:
    _, positions, cell, types = random_system(8)
    pbc = np.array([True, True, False])
    without = cell.copy()
    without[2] = 0
    degenerate = cell.copy()
    degenerate[2] = cell[0] + cell[1]
    expected = NeighborList(R_CUT, 0.5).pairs(positions, cell, pbc, types)
    for other in (without, degenerate):
        found = NeighborList(R_CUT, 0.5).pairs(positions, other, pbc, types)
        np.testing.assert_allclose(
            canonical(found.centers, found.neighbors, found.vectors),
            canonical(expected.centers, expected.neighbors, expected.vectors),
            atol=1e-12,
        )


def test_exact_images_in_a_cell_smaller_than_the_cutoff() -> None:
    """One atom in a cube of 1 Å: the integer vectors shorter than 3, counted by hand."""
    found = NeighborList(R_CUT, 0.5).pairs(np.zeros((1, 3)), np.eye(3), PERIODIC, np.zeros(1, int))
    grid = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3)
    squares = (grid**2).sum(axis=1)
    assert len(found.centers) == np.count_nonzero((squares > 0) & (squares < 9))


def test_no_atoms_have_no_pairs() -> None:
    found = NeighborList(R_CUT, 0.5).pairs(np.zeros((0, 3)), np.eye(3), PERIODIC, np.zeros(0, int))
    assert found.vectors.shape == (0, 3)
    assert len(found.centers) == len(found.neighbors) == 0


def test_coincident_atoms_are_a_pair_of_length_zero() -> None:
    none = np.zeros(3, bool)
    found = NeighborList(R_CUT, 0.5).pairs(
        np.ones((2, 3)), np.zeros((3, 3)), none, np.zeros(2, int)
    )
    np.testing.assert_array_equal(found.centers, [0, 1])
    np.testing.assert_array_equal(found.vectors, np.zeros((2, 3)))


FLAT = np.array([[3.0, 0, 0], [0, 3.0, 0], [3.0, 3.0, 0]])


@pytest.mark.parametrize(
    ("positions", "cell", "message"),
    [
        (
            [[0, 0, 0], [np.nan, 0, 0]],
            np.eye(3),
            "position of atom 1 is not finite.*smaller time step",
        ),
        ([[0, 0, -np.inf], [0, 0, 0]], np.eye(3), "position of atom 0 is not finite"),
        (np.zeros((2, 3)), np.full((3, 3), np.nan), "the cell is not finite"),
        (
            np.zeros((2, 3)),
            np.zeros((3, 3)),
            "no extent along a periodic direction.*switch pbc off",
        ),
        (np.zeros((2, 3)), FLAT, "no extent along a periodic direction"),
        (np.zeros((2, 3)), np.diag([3.0, 3.0, 1e-5]), "no extent along a periodic direction"),
        (np.zeros((2, 3)), np.diag([0.002, 0.002, 0.002]), "so thin.*is the cell in Å"),
    ],
)
def test_geometries_without_a_pair_list_are_refused(
    positions: list, cell: np.ndarray, message: str
) -> None:
    with pytest.raises(StructureError, match=message):
        NeighborList(R_CUT, 0.5).pairs(np.array(positions, float), cell, PERIODIC, np.zeros(2, int))


def test_a_refused_geometry_does_not_spoil_the_next_call() -> None:
    _, positions, cell, types = random_system(9)
    neighbor_list = NeighborList(R_CUT, 0.5)
    neighbor_list.pairs(positions, cell, PERIODIC, types)
    with pytest.raises(StructureError):
        neighbor_list.pairs(positions * np.nan, cell, PERIODIC, types)
    assert_same(neighbor_list.pairs(positions, cell, PERIODIC, types), positions, cell, PERIODIC)


@pytest.mark.skipif(isinstance(native.compiled_library(), str), reason="the library was not built")
@pytest.mark.parametrize("pbc", PBC)
def test_without_the_library_pairs_come_in_the_same_order(
    pbc: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, positions, cell, types = random_system(17)
    given_ = positions, cell, np.array(pbc), types
    compiled = NeighborList(R_CUT, 0.5).pairs(*given_)
    monkeypatch.setattr(native, "compiled_library", lambda: "switched off")
    for found, expected in zip(NeighborList(R_CUT, 0.5).pairs(*given_), compiled, strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.skipif(isinstance(native.compiled_library(), str), reason="the library was not built")
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), n_atoms=st.integers(1, 40), count=st.integers(0, 200))
def test_sorting_in_the_library_is_a_stable_sort_of_both_directions(
    seed: int, n_atoms: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 4, n_atoms)
    pairs = rng.integers(0, n_atoms, (count, 2))
    shifts = rng.integers(-3, 4, (count, 3)).astype(np.int32)
    i, j = np.concatenate([pairs, pairs[:, ::-1]]).T
    order = np.lexsort((types[j], i))
    given_ = np.concatenate([shifts, -shifts]), i, j
    for found, values in zip(native.sorted_pairs(pairs, shifts, types), given_, strict=True):
        np.testing.assert_array_equal(found, values[order])


@pytest.mark.skipif(isinstance(native.compiled_library(), str), reason="the library was not built")
@pytest.mark.parametrize(
    ("pairs", "types"),
    [([[0, 1], [5, 0]], [0, 0]), ([[0, 1], [0, -1]], [0, 0]), ([[0, 0]], [-1])],
)
def test_sorting_refuses_what_is_out_of_range(pairs: list, types: list) -> None:
    arrays = (np.array(pairs), np.zeros((len(pairs), 3)), np.array(types))
    with pytest.raises(IndexError, match="pairs or types that are not of"):
        native.sorted_pairs(*arrays)
