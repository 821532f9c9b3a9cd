"""Pair lists against ASE's own, while atoms and cells move."""

import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.geometry import cellpar_to_cell
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import interrupted_at

from neuralil_ase.engine import native
from neuralil_ase.engine.neighbors import NeighborList, Pairs
from neuralil_ase.errors import StructureError

R_CUT = 3.0
compiled = pytest.mark.skipif(
    isinstance(native.compiled_library(), str), reason="the library was not built"
)
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


def canonical(i: np.ndarray, j: np.ndarray, vectors: np.ndarray | None) -> np.ndarray:
    if vectors is None:
        vectors = np.zeros((len(i), 3))
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
        (
            np.zeros((2, 3)),
            np.diag([0.002, 0.002, 0.002]),
            "no real material is that dense.*not in Å",
        ),
        (np.zeros((2, 3)), np.diag([3.0, 3.0, 1e14]), "the cell is not finite, or longer"),
        ([[0, 0, 0], [0, 1e14, 0]], np.eye(3), "position of atom 1 is farther away than 1e13 Å"),
        ([[0, 0, 0], [0, 1e10, 0]], 9 * np.eye(3), "atom 1 is 1e.10 Å away.*wrap atoms"),
        ([[0, 0, 0], [0, 5e8, 0]], 0.4 * np.eye(3), "atom 1 is 5e.08 Å away.*wrap atoms"),
        (
            np.zeros((2, 3)),
            np.array([[3.0, 0, 0], [1e12, 3.0, 0], [0, 0, 3.0]]),
            "too oblique for float64",
        ),
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


def far_atom(pbc: tuple[bool, bool, bool], distance: float) -> Atoms:
    """Ethylamine in a small cell, its last atom far away along all directions that are not periodic."""
    atoms = molecule("CH3CH2NH2")
    atoms.center(vacuum=2)
    atoms.pbc = pbc
    atoms.positions[-1] += np.where(pbc, 0, distance)
    return atoms


@pytest.mark.parametrize("distance", [1e3, 2e4, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("pbc", [pbc for pbc in PBC if not all(pbc)])
@pytest.mark.parametrize("turned", [False, True])
def test_an_atom_far_away_changes_nothing_for_the_others(
    pbc: tuple[bool, bool, bool], distance: float, turned: bool
) -> None:
    """It took seconds to hours, or the interpreter died of a division by zero, in grids over empty space."""
    atoms = far_atom(pbc, distance)
    if turned:
        atoms.rotate(50, (1, 2, 3), rotate_cell=True)
    positions, cell, mask = atoms.positions, atoms.cell.array, np.array(pbc)
    found = NeighborList(R_CUT, 0.5).pairs(positions, cell, mask, atoms.numbers)
    rest = (found.centers < 9) & (found.neighbors < 9)
    others = Pairs(found.vectors[rest], found.centers[rest], found.neighbors[rest])
    assert_same(others, positions[:9], cell, mask)
    alone = Pairs(found.vectors[~rest], found.centers[~rest] - 9, found.neighbors[~rest] - 9)
    assert_same(alone, np.zeros((1, 3)), cell, mask)  # it still sees its own images


@pytest.mark.parametrize("lengths", [[12, 12, 1e6], [4, 1400, 1400], [3, 1e7, 1e12]])
@pytest.mark.parametrize("n_atoms", [2, 10, 300])
def test_long_periodic_directions(lengths: list[float], n_atoms: int) -> None:
    """Half of the atoms are near a corner, with pairs across the faces, the others all along the cell."""
    rng, half = np.random.default_rng(4), n_atoms // 2
    positions = rng.random((n_atoms, 3)) * np.minimum(lengths, 9e8)
    positions[half:, 2] = np.linspace(30, min(lengths[2], 9e8) - 30, n_atoms - half)
    positions[:half] = rng.normal(size=(half, 3))
    found = NeighborList(R_CUT, 0.5).pairs(
        positions, np.diag(lengths), PERIODIC, np.zeros(n_atoms, int)
    )
    few = found.centers < half
    short = np.diag(np.minimum(lengths, 30.0))
    assert_same(Pairs(*(values[few] for values in found)), positions[:half], short, PERIODIC)


def test_an_oblique_cell_has_the_pairs_of_its_lattice() -> None:
    _, positions, cell, types = random_system(21)
    expected = NeighborList(R_CUT, 0.5).pairs(positions, cell, PERIODIC, types)
    for combination in (
        [[1, 9999, 0], [0, 1, 0], [0, -77, 1]],
        [[0, 1, 0], [1, 300, 5], [0, 40, 1]],
    ):
        found = NeighborList(R_CUT, 0.5).pairs(positions, combination @ cell, PERIODIC, types)
        np.testing.assert_allclose(
            canonical(*found[1:], found[0]), canonical(*expected[1:], expected[0]), atol=1e-9
        )


@pytest.mark.parametrize("skin", [0.0, 0.5])
def test_atoms_many_cells_away(skin: float) -> None:
    """Trajectories that are not wrapped."""
    rng, positions, cell, types = random_system(22)
    expected = canonical(
        *NeighborList(R_CUT, skin).pairs(positions, cell, PERIODIC, types)[1:], None
    )
    for reach in (10, 10**4, 10**7):
        away = positions + rng.integers(-reach, reach, positions.shape) @ cell
        found = NeighborList(R_CUT, skin).pairs(away, cell, PERIODIC, types)
        np.testing.assert_array_equal(canonical(*found[1:], None), expected)


@pytest.mark.parametrize("scale", [0.001, 0.003, 0.01, 0.03])
def test_a_collapsed_cell_is_refused_before_memory_is_asked_for(scale: float) -> None:
    rng = np.random.default_rng(0)
    cell = 13 * scale * np.eye(3)
    positions = rng.random((225, 3)) @ cell
    tracemalloc.start()
    with pytest.raises(StructureError, match="no real material is that dense"):
        NeighborList(R_CUT, 0.7).pairs(positions, cell, PERIODIC, np.zeros(225, int))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("pbc", [PBC[0], PBC[4]])
def test_too_many_atoms_on_one_spot_are_refused(pbc: tuple[bool, bool, bool]) -> None:
    positions = np.full((100_000, 3), 7.0)
    cell = 1000 * np.eye(3)
    with pytest.raises(StructureError, match=r"1e.05 neighbours within 3\.5 Å on average"):
        NeighborList(R_CUT, 0.5).pairs(positions, cell, np.array(pbc), np.zeros(100_000, int))


def test_crowds_are_not_mistaken() -> None:
    """A dense solid of many atoms, and a few hundred atoms on one spot, are answered."""
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3), -1).reshape(-1, 3) * 1.3
    types = np.zeros(len(grid), int)
    found = NeighborList(R_CUT, 0.5).pairs(grid, 24 * 1.3 * np.eye(3), PERIODIC, types)
    assert len(found.centers) == 56 * len(grid)  # 1.3² (1, 2, 3, 4, 5): 6 + 12 + 8 + 6 + 24
    spot = NeighborList(R_CUT, 0.5).pairs(
        np.zeros((300, 3)), np.eye(3), ~PERIODIC, np.zeros(300, int)
    )
    assert len(spot.centers) == 300 * 299


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interruption_at_any_line_leaves_a_list_that_works(kind: type[BaseException]) -> None:
    """A list for many candidates was kept with room for few: the next call wrote beyond it."""
    _, positions, cell, types = random_system(23, 6)
    cells = 0.5 * cell, cell
    expected = [NeighborList(R_CUT, 0.5).pairs(positions, c, PERIODIC, types) for c in cells]
    assert len(expected[0].centers) > 3 * len(expected[1].centers)
    finished, lines = False, 0
    while not finished:
        neighbor_list = NeighborList(R_CUT, 0.5)
        neighbor_list.pairs(positions, cell, PERIODIC, types)
        lines += 1
        with interrupted_at(lines, kind, native) as interruption:
            neighbor_list.pairs(positions, cells[0], PERIODIC, types)
        finished = not interruption.reached
        for k in (0, 1, 0):
            found = neighbor_list.pairs(positions, cells[k], PERIODIC, types)
            np.testing.assert_array_equal(found.neighbors, expected[k].neighbors)
    assert lines > 50


@compiled
def test_the_filter_refuses_what_would_leave_its_arrays() -> None:
    _, positions, cell, types = random_system(24)
    lists = NeighborList(R_CUT, 0.5)
    lists.pairs(positions, cell, PERIODIC, types)
    shifts, centers = np.zeros((3, 3), np.int32), np.array([0, 1, 2], np.int32)
    room = np.zeros((3, 3)), *np.zeros((2, 3), np.int32)
    for bad in ([0, 1, 3], [0, -1, 2]):
        part = shifts, centers, np.array(bad, np.int32)
        with pytest.raises(IndexError, match="candidates that are not of 3 atoms"):
            native.PairFilter([part], 3, room)(np.zeros((1, 3, 3)), np.eye(3)[None], R_CUT)
    with pytest.raises(IndexError, match="3 candidates need more room than 2"):
        native.PairFilter([(shifts, centers, centers)], 3, [values[:2] for values in room])
    with pytest.raises(IndexError, match="int64"):
        native.PairFilter([(shifts, centers.astype(int), centers)], 3, room)
    search = native.PairFilter([(shifts, centers, centers)], 3, room)
    with pytest.raises(IndexError, match="1 replicas of 3 atoms"):
        search(np.zeros((1, 2, 3)), np.eye(3)[None], R_CUT)
    with pytest.raises(ValueError, match="read-only"):
        centers[0] = 7


@compiled
def test_sorting_says_when_there_is_no_memory() -> None:
    pairs, types = np.zeros((1, 2)), np.array([0, 2**31 - 2])
    with limited_memory(), pytest.raises(MemoryError, match="no memory to sort 1 pairs"):
        native.sorted_pairs(pairs, np.zeros((1, 3)), types)


@contextmanager
def limited_memory() -> Iterator[None]:
    """At most 1 GiB more of addresses than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@compiled
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


@compiled
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


@compiled
@pytest.mark.parametrize(
    ("pairs", "types"),
    [([[0, 1], [5, 0]], [0, 0]), ([[0, 1], [0, -1]], [0, 0]), ([[0, 0]], [-1])],
)
def test_sorting_refuses_what_is_out_of_range(pairs: list, types: list) -> None:
    arrays = (np.array(pairs), np.zeros((len(pairs), 3)), np.array(types))
    with pytest.raises(IndexError, match="pairs or types that are not of"):
        native.sorted_pairs(*arrays)
