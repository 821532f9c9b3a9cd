"""The compiled kernel against the pure JAX functions it replaces."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neuralil_ase.engine import kernel, native
from neuralil_ase.engine.derivatives import Backend, Derivatives, energies_and_forces
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.engine.predictor import Predictor, System
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.descriptors import descriptors, descriptors_with_pull_back
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.potential import Potential, cast_params, init_params

SYMBOLS = ("C", "H", "N", "O", "S")
needs_kernel = pytest.mark.skipif(
    not kernel.available(), reason=f"no kernel: {kernel.missing_reason()}"
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


def model_of(descriptor: DescriptorConfig, members: int = 2, **network) -> ModelConfig:
    settings = {"widths": (20, 7), "activation": "swish"} | network
    return ModelConfig(descriptor, NetworkConfig(**settings), members)


def evaluated(
    config: ModelConfig, graph: Graph, backend: Backend, level: str = "forces"
) -> Derivatives:
    params = cast_params(init_params(config, 1), graph.vectors.dtype)
    function = jax.jit(energies_and_forces, static_argnums=(0, 1, 4))
    return function(config, level, params, graph, backend)


def assert_close(found: Derivatives, expected: Derivatives, tolerance: float) -> None:
    for name, a, b in zip(Derivatives._fields, found, expected, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.shape == b.shape, name
            limit = tolerance * max(float(jnp.abs(b).max(initial=0)), 1e-3)
            np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=name)


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
    cross_terms = settings.pop("cross_terms", False)
    descriptor = DescriptorConfig(SYMBOLS[:4], settings.pop("n_max", 4), 3.5, cross_terms)
    network = NetworkConfig(
        "core",
        (32, 16),
        activation=settings.pop("activation", "swish"),
        shared_layers=settings.pop("shared_layers", 0),
    )
    config = ModelConfig(descriptor, network, n_members, **settings)
    return Potential(config, init_params(config, 1), np.zeros(4))


@needs_kernel
@pytest.mark.parametrize(
    ("n_max", "n_elements", "r_cut", "cross_terms"),
    [(1, 1, 3.5, False), (1, 2, 3.5, True), (2, 4, 6.0, False), (3, 2, 3.5, True), (4, 5, 3.5, False),
     (4, 4, 3.5, True), (5, 1, 6.0, False), (6, 1, 3.5, True),
     pytest.param(7, 1, 4.0, False, marks=pytest.mark.slow), pytest.param(8, 2, 6.0, True, marks=pytest.mark.slow)],
)  # fmt: skip
def test_every_descriptor_in_float64(
    n_max: int, n_elements: int, r_cut: float, cross_terms: bool
) -> None:
    config = model_of(DescriptorConfig(SYMBOLS[:n_elements], n_max, r_cut, cross_terms))
    with jax.enable_x64(True):
        graph = random_graph(config.descriptor, n_atoms=21, n_pairs=333)
        expected, found = (evaluated(config, graph, backend) for backend in ("jax", "compiled"))
        assert jnp.abs(expected.member_forces).max() > 1e-2
        assert_close(found, expected, 1e-11)


@needs_kernel
@pytest.mark.parametrize("level", ["energy", "forces"])
@pytest.mark.parametrize(
    "network",
    [{}, {"widths": (1,)}, {"widths": (33, 1, 5), "embed_d": 0}, {"activation": "tanh", "shared_layers": 1},
     {"shared_layers": 2, "activation": "silu"}, {"kind": "resnet", "widths": (20, 7)},
     {"kind": "resnet", "widths": (23, 9, 9, 9), "embed_d": 5, "activation": "tanh"},
     {"widths": (9, 4), "head_widths": (5, 3)}, {"widths": (6,), "head_widths": (4,), "shared_layers": 1},
     {"kind": "heteroscedastic", "widths": (9, 9, 4), "head_widths": (4,)}],
    ids=str,
)  # fmt: skip
def test_every_network_in_float64(network: dict, level: str) -> None:
    config = model_of(DescriptorConfig(SYMBOLS[:3], 2, 3.5), members=3, **network)
    with jax.enable_x64(True):
        graph = random_graph(config.descriptor, n_atoms=21, n_pairs=200)
        expected, found = (
            evaluated(config, graph, backend, level) for backend in ("jax", "compiled")
        )
        assert_close(found, expected, 1e-11)


@needs_kernel
@pytest.mark.parametrize("size", [1e-3, 30.0, 1e3])
@pytest.mark.parametrize("activation", ["swish", "tanh"])
def test_activations_saturate_without_overflow(activation: str, size: float) -> None:
    """Inputs of ±size and beyond, forward and backward."""
    config = model_of(DescriptorConfig(SYMBOLS[:2], 2, 3.5), widths=(16,), activation=activation)
    graph = random_graph(config.descriptor, n_atoms=9, n_pairs=80)
    graph = graph._replace(vectors=graph.vectors.astype(jnp.float32))
    params = init_params(config, 1)
    first = params["network"]["body"]["Dense_0"]
    first["kernel"] = size * first["kernel"]
    expected, found = (
        energies_and_forces(config, "energy", params, graph, backend)
        for backend in ("jax", "compiled")
    )
    assert jnp.isfinite(expected.forces).all()
    # the rounding of features, 1e-7, is magnified by the weights
    assert_close(found, expected, max(2e-5, 2e-7 * size))


@needs_kernel
@pytest.mark.parametrize(
    ("n_pairs", "n_atoms"),
    [(0, 1), (0, 17), (1, 5), (7, 16), (17, 1), (100, 17)],
)
def test_any_number_of_pairs_and_atoms(n_pairs: int, n_atoms: int) -> None:
    config = model_of(DescriptorConfig(SYMBOLS[:3], 4, 3.5))
    with jax.enable_x64(True):
        graph = random_graph(config.descriptor, n_atoms, n_pairs)
        expected, found = (evaluated(config, graph, backend) for backend in ("jax", "compiled"))
        assert_close(found, expected, 1e-11)


@needs_kernel
def test_pairs_beyond_the_cutoff_and_far_away_add_exactly_nothing() -> None:
    config = model_of(DescriptorConfig(SYMBOLS[:2], 4, 3.5))
    with jax.enable_x64(True):
        graph = random_graph(config.descriptor, n_atoms=6, n_pairs=200)
        outside = jnp.linalg.norm(graph.vectors, axis=1) > 3.5 * (1 + 1e-12)
        assert outside.any()
        far = graph._replace(vectors=jnp.where(outside[:, None], 1e6, graph.vectors))
        near = jax.tree.map(lambda x: x[~outside], graph._replace(types=graph.centers))
        expected = evaluated(config, near._replace(types=graph.types), "compiled")
        for found in (evaluated(config, graph, "compiled"), evaluated(config, far, "compiled")):
            assert_close(found, expected, 1e-14)


@needs_kernel
@pytest.mark.parametrize("n_atoms", [511, 512, 1000, 2100])
def test_graphs_that_threads_share(n_atoms: int) -> None:
    """Any number of parts gives what the pure path gives, and always the same to the last bit."""
    config = model_of(DescriptorConfig(SYMBOLS[:2], 2, 3.5))
    with jax.enable_x64(True):
        graph = random_graph(config.descriptor, n_atoms, 3 * n_atoms)
        expected, first, second = (
            evaluated(config, graph, backend) for backend in ("jax", "compiled", "compiled")
        )
        assert_close(first, expected, 1e-11)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@needs_kernel
def test_many_callers_at_once_do_not_mix() -> None:
    """All of them want the same pool of threads."""
    config = model_of(DescriptorConfig(SYMBOLS[:2], 2, 3.5))
    graphs = [random_graph(config.descriptor, 1500, 6000, seed) for seed in range(8)]
    alone = [evaluated(config, graph, "compiled").forces for graph in graphs]
    with ThreadPoolExecutor(8) as executor:
        together = list(executor.map(lambda g: evaluated(config, g, "compiled").forces, graphs))
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


@needs_kernel
@pytest.mark.parametrize("n_atoms", [40, 1200])
@pytest.mark.parametrize("change", ["unsorted", "center", "neighbor", "type"])
def test_a_graph_that_breaks_the_contract_is_refused(change: str, n_atoms: int) -> None:
    config = model_of(DescriptorConfig(SYMBOLS[:2], 2, 3.5))
    graph = random_graph(config.descriptor, n_atoms, n_pairs=n_atoms + 10)
    graph = graph._replace(vectors=graph.vectors.astype(jnp.float32))
    broken = {
        "unsorted": graph._replace(centers=graph.centers[::-1]),
        "center": graph._replace(centers=graph.centers.at[-1].set(n_atoms)),
        "neighbor": graph._replace(neighbors=graph.neighbors.at[3].set(-1)),
        "type": graph._replace(types=graph.types.at[3].set(2)),
    }[change]
    with pytest.raises(Exception, match="sorted by center, with indices"):
        jax.block_until_ready(evaluated(config, broken, "compiled"))


@needs_kernel
def test_not_a_number_is_passed_on() -> None:
    config = model_of(DescriptorConfig(SYMBOLS[:2], 4, 3.5))
    graph = random_graph(config.descriptor, n_atoms=6, n_pairs=50)
    graph = graph._replace(vectors=graph.vectors.astype(jnp.float32).at[10].set(jnp.nan))
    found = evaluated(config, graph, "compiled")
    assert jnp.isnan(found.outputs[:, graph.centers[10]]).all()
    assert jnp.isnan(found.forces[graph.centers[10]]).all()
    assert jnp.isnan(found.forces[graph.neighbors[10]]).all()


@needs_kernel
def test_forces_with_cross_terms_are_minus_the_gradient() -> None:
    """With and without the kernel, and against energies at moved positions; the Hessian against forces there."""
    model, step = potential(2, n_max=2, cross_terms=True), 1e-4
    types, positions, cell = random_box(27)

    def system(moved: np.ndarray) -> System:
        pairs = NeighborList(3.5, 0.0).pairs(moved, cell, np.ones(3, bool), types)
        return System(types, pairs, float(np.linalg.det(cell)))

    predictor, pure = (Predictor(model, "float64", backend) for backend in ("compiled", "jax"))
    found, expected = (x.predict([system(positions)], "forces")[0] for x in (predictor, pure))
    scale = np.abs(expected.member_forces).max()
    np.testing.assert_allclose(found.member_forces, expected.member_forces, atol=1e-11 * scale)
    np.testing.assert_allclose(found.stresses, expected.stresses, rtol=0, atol=1e-12 * scale)
    unit = np.zeros_like(positions)
    unit[5, 1] = step
    ends = [predictor.predict([system(positions + s * unit)], "forces")[0] for s in (1, -1)]
    slope = (ends[0].member_energies - ends[1].member_energies) / (2 * step)
    np.testing.assert_allclose(-slope, found.member_forces[:, 5, 1], atol=1e-6 * scale)
    column = -(ends[0].forces - ends[1].forces) / (2 * step)
    hessian = predictor.hessian(system(positions))
    np.testing.assert_allclose(hessian[:, :, 5, 1], column, atol=1e-6 * np.abs(hessian).max())


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
        Predictor(model, "float64", backend).predict([system], level)[0]
        for backend in ("jax", "compiled")
    )
    for name in ("energies", "forces", "stresses", "member_energies", "member_forces"):
        a, b = vars(found).get(name), vars(expected).get(name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max(), err_msg=name)


@needs_kernel
@pytest.mark.parametrize(("n_members", "level"), [(1, "energy"), (2, "forces")])
def test_float32_at_thousands_of_atoms(n_members: int, level: str) -> None:
    """XLA's CPU compiler once produced wrong sums at this size only."""
    model, system = potential(n_members), box_system(13**3)
    exact = Predictor(model, "float64", "jax").predict([system], level)[0]
    found = Predictor(model, "float32").predict([system], level)[0]
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
    hessians = [
        Predictor(model, "float64", backend).hessian(system) for backend in ("compiled", "jax")
    ]
    np.testing.assert_array_equal(*hessians)


@needs_kernel
def test_kernel_is_called_only_when_asked_for() -> None:
    model = potential()
    graph = Predictor(model)._pad(box_system(27).types, box_system(27).pairs)

    def lowered(backend: Backend) -> str:
        function = jax.jit(lambda p, g: energies_and_forces(model.config, "off", p, g, backend))
        return function.lower(model.params, graph).as_text()

    assert "neuralil_" in lowered("compiled")
    assert "neuralil_" not in lowered("jax")


@needs_kernel
@pytest.mark.parametrize(
    "settings", [{"n_max": 0}, {"n_max": kernel.LARGEST_N_MAX + 1}, {"activation": "gelu"}], ids=str
)
def test_architectures_without_compiled_code_take_the_pure_path(settings: dict) -> None:
    model, system = potential(**settings), box_system(27)
    assert not kernel.supports(model.config)
    predictions = [
        Predictor(model, backend=backend).predict([system], "off")[0]
        for backend in ("compiled", "jax")
    ]
    np.testing.assert_array_equal(predictions[0].forces, predictions[1].forces)


@pytest.fixture
def empty_folder(monkeypatch, tmp_path):
    """Where the library is looked for, afresh."""

    def forget() -> None:
        native.compiled_library.cache_clear()
        kernel.missing_reason.cache_clear()

    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    forget()
    yield tmp_path
    forget()


def test_without_the_library_the_pure_path_serves(empty_folder) -> None:
    assert not kernel.available()
    assert "not built" in kernel.missing_reason()
    prediction = Predictor(potential()).predict([box_system(27)], "off")[0]
    assert np.isfinite(prediction.forces).all()


def test_a_library_that_does_not_load_is_reported(empty_folder) -> None:
    broken = empty_folder / f"evaluation_v1{native.EXTENSION_SUFFIXES[0]}"
    broken.write_bytes(b"not a library")
    assert not kernel.available()
    assert "does not load" in kernel.missing_reason()


def test_pull_back_of_the_pure_path_is_the_derivative() -> None:
    config = DescriptorConfig(SYMBOLS[:2], 2, 3.5)
    with jax.enable_x64(True):
        graph = random_graph(config, n_atoms=5, n_pairs=30)
        features, pull_back = descriptors_with_pull_back(config, graph)
        cotangents = jax.random.normal(jax.random.key(0), (2, *features.shape))
        found = pull_back(cotangents)
        for cotangent, gradient in zip(cotangents, found, strict=True):
            expected = jax.grad(
                lambda v, c=cotangent: (descriptors(config, graph._replace(vectors=v)) * c).sum()
            )(graph.vectors)
            np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-13)
