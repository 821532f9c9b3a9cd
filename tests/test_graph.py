"""The padding contract that compiled functions rely on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralil_ase.model.graph import Graph, bucket, pad_graph


@given(st.integers(0, 10**7))
def test_buckets_hold_the_count_with_little_waste(count: int) -> None:
    size = bucket(count)
    assert max(count, 8) <= size <= max(count * 9 / 8, 8)
    assert bucket(size) == size


def test_buckets_are_few_and_grow() -> None:
    sizes = [bucket(count) for count in range(20_000)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 100


def padded(n_atoms: int = 8, n_pairs: int = 8, dtype: str = "float64") -> Graph:
    vectors = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]])
    centers, neighbors = np.array([0, 1, 1, 2]), np.array([1, 0, 2, 1])
    return pad_graph(
        vectors,
        centers,
        neighbors,
        np.array([1, 0, 2]),
        n_atoms=n_atoms,
        n_pairs=n_pairs,
        r_cut=3.0,
        dtype=dtype,
    )


def test_real_atoms_and_pairs_come_first() -> None:
    graph = padded()
    np.testing.assert_array_equal(graph.vectors[:4, :2], [[1, 0], [-1, 0], [0, 1], [0, -1]])
    np.testing.assert_array_equal(graph.centers[:4], [0, 1, 1, 2])
    np.testing.assert_array_equal(graph.neighbors[:4], [1, 0, 2, 1])
    np.testing.assert_array_equal(graph.types, [1, 0, 2, 0, 0, 0, 0, 0])


def test_padding_pairs_belong_to_the_last_atom_and_lie_beyond_the_cutoff() -> None:
    graph = padded()
    assert (graph.centers[4:] == 7).all()
    assert (graph.neighbors[4:] == 7).all()
    assert (np.linalg.norm(graph.vectors[4:], axis=1) > 3.0).all()
    assert (np.diff(graph.centers) >= 0).all(), "compiled sums rely on sorted centers"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_is_that_asked_for_and_indices_are_narrow(dtype: str) -> None:
    graph = padded(dtype=dtype)
    assert graph.vectors.dtype == dtype
    assert {graph.centers.dtype, graph.neighbors.dtype, graph.types.dtype} == {np.dtype("int32")}


def test_nothing_is_added_where_nothing_is_missing() -> None:
    graph = padded(n_atoms=3, n_pairs=4)
    assert graph.vectors.shape == (4, 3)
    assert graph.types.shape == (3,)


def test_pairs_are_never_truncated() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        padded(n_pairs=3)
