"""The compiled pair kernel against the pure JAX functions it replaces."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neuralil_ase import pair_kernel
from neuralil_ase.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.derivatives import evaluate
from neuralil_ase.descriptors import descriptors, descriptors_with_pull_back
from neuralil_ase.evaluator import Evaluator, System
from neuralil_ase.graph import Graph
from neuralil_ase.neighbors import NeighborList
from neuralil_ase.potential import Potential, init_params

SYMBOLS = ("C", "H", "N", "O", "S")
needs_kernel = pytest.mark.skipif(
    not pair_kernel.available(), reason=f"no pair kernel: {pair_kernel.missing_reason()}"
)


def random_graph(config: DescriptorConfig, n_atoms: int, n_pairs: int, seed: int = 0) -> Graph:
    """Random pairs of all lengths up to 1.2 r_cut, with a coincident one and one exactly at the cutoff."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_pairs, 3))
    lengths = rng.uniform(0, 1.2 * config.r_cut, (n_pairs, 1))
    vectors = lengths * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    if n_pairs > 1:
        vectors[0] = 0
        vectors[1] = (0, config.r_cut, 0)
    centers = np.sort(rng.integers(0, n_atoms, n_pairs)).astype(np.int32)
    neighbors = rng.integers(0, n_atoms, n_pairs).astype(np.int32)
    types = rng.integers(0, len(config.elements), n_atoms).astype(np.int32)
    order = np.lexsort((types[neighbors], centers))
    return Graph(*(jnp.asarray(x) for x in (vectors, centers[order], neighbors[order], types)))


def relative_error(found: jax.Array, expected: jax.Array) -> float:
    """Largest deviation over the largest value."""
    assert found.shape == expected.shape
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())


def pulled_back(config: DescriptorConfig, graph: Graph, kernel: bool, n_members: int = 3):
    features, pull_back = descriptors_with_pull_back(config, graph, kernel)
    shape = (n_members, *features.shape)
    return features, pull_back(jax.random.normal(jax.random.key(1), shape, features.dtype))


def random_box(n_atoms: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A jittered lattice of 1.5 Å spacing: types, positions, cell."""
    rng = np.random.default_rng(seed)
    side = round(n_atoms ** (1 / 3))
    grid = np.array(list(product(range(side), repeat=3)), float)
    positions = 1.5 * grid + rng.uniform(-0.25, 0.25, grid.shape)
    return rng.integers(0, 4, len(grid)), positions, 1.5 * side * np.eye(3)


def box_system(n_atoms: int) -> System:
    types, positions, cell = random_box(n_atoms)
    pairs = NeighborList(3.5, 0.0).pairs(positions, cell, np.ones(3, bool), types)
    return System(types, pairs, float(np.linalg.det(cell)))


def potential(n_members: int = 1, **settings) -> Potential:
    descriptor = DescriptorConfig(SYMBOLS[:4], settings.pop("n_max", 4), 3.5)
    network = NetworkConfig("core", (32, 16), shared_layers=settings.pop("shared_layers", 0))
    config = ModelConfig(descriptor, network, n_members, **settings)
    return Potential(config, init_params(config, 1), np.zeros(4))


@needs_kernel
@pytest.mark.parametrize(
    ("n_max", "n_elements", "r_cut"),
    [(1, 1, 3.5), (2, 4, 6.0), (3, 2, 3.5), (4, 5, 3.5), (5, 1, 6.0), (6, 2, 3.5), (7, 1, 4.0), (8, 2, 6.0)],
)  # fmt: skip
def test_descriptors_and_pullback_in_float64(n_max: int, n_elements: int, r_cut: float) -> None:
    config = DescriptorConfig(SYMBOLS[:n_elements], n_max, r_cut)
    with jax.enable_x64(True):
        graph = random_graph(config, n_atoms=21, n_pairs=333)
        expected, found = (pulled_back(config, graph, kernel) for kernel in (False, True))
        assert relative_error(found[0], expected[0]) < 1e-12
        assert relative_error(found[1], expected[1]) < 1e-12


@needs_kernel
@pytest.mark.parametrize("n_pairs", [0, 1, 7, 16, 17, 100])
def test_any_number_of_pairs_and_atoms(n_pairs: int) -> None:
    config = DescriptorConfig(SYMBOLS[:3], 4, 3.5)
    with jax.enable_x64(True):
        graph = random_graph(config, n_atoms=5, n_pairs=n_pairs)
        expected, found = (pulled_back(config, graph, kernel) for kernel in (False, True))
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-11, atol=1e-12)


@needs_kernel
def test_cross_terms_use_the_kernel_for_the_density() -> None:
    config = DescriptorConfig(SYMBOLS[:2], 3, 3.5, cross_terms=True)
    with jax.enable_x64(True):
        graph = random_graph(config, n_atoms=9, n_pairs=80)
        expected, found = (pulled_back(config, graph, kernel) for kernel in (False, True))
        assert relative_error(found[0], expected[0]) < 1e-12
        assert relative_error(found[1], expected[1]) < 1e-12


@needs_kernel
def test_pairs_beyond_the_cutoff_and_far_away_add_exactly_nothing() -> None:
    config = DescriptorConfig(SYMBOLS[:2], 4, 3.5)
    with jax.enable_x64(True):
        graph = random_graph(config, n_atoms=6, n_pairs=40)
        lengths = jnp.linalg.norm(graph.vectors, axis=1)
        outside = lengths > 3.5
        features, gradients = pulled_back(config, graph, kernel=True)
        assert outside.any()
        assert (
            jnp.abs(gradients[:, lengths == 3.5]) < 1e-25
        ).all()  # but for rounding of r² / r_c²
        assert (gradients[:, outside] == 0).all()
        far = graph._replace(vectors=jnp.where(outside[:, None], 1e6, graph.vectors))
        found = descriptors_with_pull_back(config, far, True)[0]
        np.testing.assert_allclose(found, features, rtol=1e-14)


@needs_kernel
def test_segments_out_of_order_or_out_of_range_are_harmless() -> None:
    config = DescriptorConfig(SYMBOLS[:2], 4, 3.5)
    with jax.enable_x64(True):
        graph = random_graph(config, n_atoms=6, n_pairs=50)
        mixed = np.random.default_rng(2).permutation(50)
        shuffled = graph._replace(
            vectors=graph.vectors[mixed],
            centers=graph.centers[mixed],
            neighbors=graph.neighbors[mixed],
        )
        ordered = descriptors_with_pull_back(config, graph, True)[0]
        found = descriptors_with_pull_back(config, shuffled, True)[0]
        assert relative_error(found, ordered) < 1e-13
        strange = shuffled._replace(centers=shuffled.centers.at[3].set(10**6).at[4].set(-7))
        kept = jnp.delete(jnp.arange(50), jnp.array([3, 4]))
        rest = Graph(*(x[kept] for x in shuffled[:3]), shuffled.types)
        expected, _ = descriptors_with_pull_back(config, rest, True)
        assert (
            relative_error(descriptors_with_pull_back(config, strange, True)[0], expected) < 1e-13
        )
        assert (pulled_back(config, strange, True)[1][:, 3:5] == 0).all()


@needs_kernel
def test_not_a_number_is_passed_on() -> None:
    config = DescriptorConfig(SYMBOLS[:2], 4, 3.5)
    graph = random_graph(config, n_atoms=6, n_pairs=50)
    graph = graph._replace(vectors=graph.vectors.astype(jnp.float32).at[10].set(jnp.nan))
    features, gradients = pulled_back(config, graph, kernel=True)
    assert jnp.isnan(features[graph.centers[10]]).any()
    assert jnp.isnan(gradients[:, 10]).all()


@needs_kernel
@pytest.mark.parametrize(
    ("level", "settings"),
    [("off", {}), ("energy", {"pair_term": "zbl"}), ("forces", {"shared_layers": 1}),
     ("forces", {"pair_term": "zbl"})],
)  # fmt: skip
def test_evaluation_in_float64(level: str, settings: dict) -> None:
    if "pair_term" in settings:
        settings = settings | {"zbl_radii": (1.6,) * 10}
    model, system = potential(3, n_max=2, **settings), box_system(6**3)
    expected, found = (
        Evaluator(model, "float64", kernel=kernel).evaluate([system], level)[0]
        for kernel in (False, True)
    )
    for name in ("energies", "forces", "stresses", "member_energies", "member_forces"):
        a, b = vars(found).get(name), vars(expected).get(name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max(), err_msg=name)


@needs_kernel
@pytest.mark.parametrize(("n_members", "level"), [(1, "energy"), (2, "forces")])
def test_float32_in_chunks_at_thousands_of_atoms(n_members: int, level: str) -> None:
    """XLA's CPU compiler once produced wrong sums at this size only."""
    model, system = potential(n_members), box_system(13**3)
    exact = Evaluator(model, "float64", kernel=False).evaluate([system], level)[0]
    found = Evaluator(model, "float32").evaluate([system], level)[0]
    assert np.abs(exact.forces).max() > 0.1
    assert np.abs(found.forces - exact.forces).max() < 1e-3
    np.testing.assert_allclose(found.energies, exact.energies, atol=1e-4)
    np.testing.assert_allclose(
        found.stresses, exact.stresses, atol=1e-3 * np.abs(exact.stresses).max()
    )
    if level == "forces":
        assert np.abs(found.member_forces - exact.member_forces).max() < 1e-3


@needs_kernel
def test_hessian_needs_no_derivative_of_the_kernel() -> None:
    model, system = potential(1, n_max=1), box_system(2**3)
    hessians = [Evaluator(model, "float64", kernel=k).hessian(system) for k in (True, False)]
    np.testing.assert_array_equal(*hessians)


@needs_kernel
def test_kernel_is_called_only_when_asked_for() -> None:
    model = potential()
    graph = Evaluator(model)._pad(box_system(27).types, box_system(27).pairs)

    def lowered(kernel: bool) -> str:
        function = jax.jit(lambda p, g: evaluate(model.config, "off", p, g, kernel))
        return function.lower(model.params, graph).as_text()

    assert "neuralil_" in lowered(True)
    assert "neuralil_" not in lowered(False)


@needs_kernel
@pytest.mark.parametrize("n_max", [0, pair_kernel.LARGEST_N_MAX + 1])
def test_orders_without_compiled_code_take_the_pure_path(n_max: int) -> None:
    assert not pair_kernel.supports(DescriptorConfig(("C",), n_max))
    model, system = potential(n_max=n_max), box_system(27)
    predictions = [Evaluator(model, kernel=k).evaluate([system], "off")[0] for k in (True, False)]
    np.testing.assert_array_equal(predictions[0].forces, predictions[1].forces)


def test_without_the_library_the_pure_path_serves(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(pair_kernel, "_FOLDER", tmp_path)
    pair_kernel.missing_reason.cache_clear()
    try:
        assert not pair_kernel.available()
        assert "not built" in pair_kernel.missing_reason()
        prediction = Evaluator(potential()).evaluate([box_system(27)], "off")[0]
        assert np.isfinite(prediction.forces).all()
    finally:
        pair_kernel.missing_reason.cache_clear()


def test_a_library_that_does_not_load_is_reported(monkeypatch, tmp_path) -> None:
    broken = tmp_path / f"pair_sums_v1{pair_kernel.EXTENSION_SUFFIXES[0]}"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(pair_kernel, "_FOLDER", tmp_path)
    pair_kernel.missing_reason.cache_clear()
    try:
        assert not pair_kernel.available()
        assert "does not load" in pair_kernel.missing_reason()
    finally:
        pair_kernel.missing_reason.cache_clear()


def test_pull_back_of_the_pure_path_is_the_derivative() -> None:
    config = DescriptorConfig(SYMBOLS[:2], 2, 3.5)
    with jax.enable_x64(True):
        graph = random_graph(config, n_atoms=5, n_pairs=30)
        features, pull_back = descriptors_with_pull_back(config, graph, kernel=False)
        cotangents = jax.random.normal(jax.random.key(0), (2, *features.shape))
        found = pull_back(cotangents)
        for cotangent, gradient in zip(cotangents, found, strict=True):
            expected = jax.grad(
                lambda v, c=cotangent: (descriptors(config, graph._replace(vectors=v)) * c).sum()
            )(graph.vectors)
            np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-13)
