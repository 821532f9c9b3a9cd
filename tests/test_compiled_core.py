"""The compiled core against the pure JAX functions it replaces."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ensembles import random_params

from neuralil_ase.engine import compiled, native
from neuralil_ase.engine.arrays import Derivatives, System
from neuralil_ase.engine.backend import Backend
from neuralil_ase.engine.derivatives import energies_and_forces
from neuralil_ase.engine.jax_backend import jitted
from neuralil_ase.engine.neighbors import NeighborList, Pairs
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.errors import ModelFileError, StructureError
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.descriptors import descriptors, descriptors_with_pull_back
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.parameters import parameters
from neuralil_ase.model.potential import Params, Potential, cast_params, unflatten
from neuralil_ase.prediction import Uncertainty

SYMBOLS = ("C", "H", "N", "O", "S")
needs_core = pytest.mark.skipif(
    native.missing_reason() is not None, reason=f"no compiled core: {native.missing_reason()}"
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


def padded(graph: Graph, n_atoms: int, n_pairs: int) -> Graph:
    """The same with atoms that have no neighbours and pairs beyond the cutoff: JAX compiles once for many."""
    vectors, centers, neighbors, types = map(np.asarray, graph)
    more = n_pairs - len(centers)
    return Graph(
        jnp.asarray(np.concatenate([vectors, np.full((more, 3), 100.0)])),
        jnp.asarray(np.append(centers, np.full(more, n_atoms - 1, centers.dtype))),
        jnp.asarray(np.append(neighbors, np.zeros(more, neighbors.dtype))),
        jnp.asarray(np.append(types, np.zeros(n_atoms - len(types), types.dtype))),
    )


def first_atoms(found: Derivatives, n_atoms: int) -> Derivatives:
    """Without the atoms behind them."""
    outputs, forces, virials, *of_members = found
    return Derivatives(
        outputs[:, :n_atoms],
        forces[:n_atoms],
        virials[:n_atoms],
        *(x[:, :n_atoms] for x in of_members),
    )


def model_of(descriptor: DescriptorConfig, members: int = 2, **network) -> ModelConfig:
    settings = {"widths": (20, 7), "activation": "swish"} | network
    return ModelConfig(descriptor, NetworkConfig(**settings), members)


def evaluated(
    config: ModelConfig, graph: Graph, backend: Backend, level: Uncertainty = "forces"
) -> Derivatives:
    params = cast_params(random_params(config, 1), graph.vectors.dtype)
    return derivatives_of(config, params, graph, backend, level)


def derivatives_of(
    config: ModelConfig, params: Params, graph: Graph, backend: Backend, level: Uncertainty
) -> Derivatives:
    if backend == "compiled":
        model = Potential(config, params, np.zeros(len(config.descriptor.elements)))
        core = compiled.core_model(model, np.asarray(graph.vectors).dtype.name)
        pairs = Pairs(*map(np.asarray, graph[:3]))
        return compiled.energies_and_forces(core, np.asarray(graph.types), pairs, level)
    return jax.jit(energies_and_forces, static_argnums=(0, 1))(config, level, params, graph)


def assert_close(found: Derivatives, expected: Derivatives, tolerance: float) -> None:
    for name, a, b in zip(Derivatives._fields, found, expected, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            a, b = np.asarray(a), np.asarray(b)
            assert a.shape == b.shape, name
            limit = tolerance * max(float(np.abs(b).max(initial=0)), 1e-3)
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
    return Potential(config, random_params(config, 1), np.zeros(4))


@needs_core
@pytest.mark.parametrize(
    ("n_max", "n_elements", "r_cut", "cross_terms", "scaling"),
    [(1, 1, 3.5, False, 0), (1, 2, 3.5, True, 8), (4, 5, 3.5, False, 0), (4, 4, 5.0, True, 5),
     *(pytest.param(*case, marks=pytest.mark.slow) for case in (
         (2, 4, 6.0, False, 1), (3, 2, 3.5, True, 0), (5, 1, 6.0, False, 3), (6, 1, 3.5, True, 2),
         (7, 1, 4.0, False, 0), (8, 2, 6.0, True, 1)
     ))],
)  # fmt: skip
def test_every_descriptor_in_float64(
    n_max: int, n_elements: int, r_cut: float, cross_terms: bool, scaling: int
) -> None:
    descriptor = DescriptorConfig(SYMBOLS[:n_elements], n_max, r_cut, cross_terms, scaling)
    config = model_of(descriptor)
    with jax.enable_x64(True):
        graph = random_graph(config.descriptor, n_atoms=21, n_pairs=333)
        expected, found = (evaluated(config, graph, backend) for backend in ("jax", "compiled"))
        assert jnp.abs(expected.member_forces).max() > 1e-2
        assert_close(found, expected, 1e-11)


@needs_core
@pytest.mark.parametrize("level", ["forces", pytest.param("energy", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "network",
    [{}, {"widths": (33, 1, 5), "embed_d": 0}, {"activation": "tanh", "shared_layers": 1},
     {"kind": "resnet", "widths": (23, 9, 9, 9), "embed_d": 5, "activation": "tanh"},
     {"widths": (6,), "head_widths": (4,), "shared_layers": 1, "linear": True},
     {"kind": "heteroscedastic", "widths": (9, 9, 4), "head_widths": (4,)},
     *(pytest.param(network, marks=pytest.mark.slow) for network in (
         {"widths": (1,)}, {"shared_layers": 2, "activation": "silu"}, {"kind": "resnet", "widths": (20, 7)},
         {"widths": (9, 4), "head_widths": (5, 3)}, {"widths": (5, 3), "linear": True},
     ))],
    ids=str,
)  # fmt: skip
def test_every_network_in_float64(network: dict, level: str) -> None:
    config = model_of(DescriptorConfig(SYMBOLS[:3], 2, 3.5), **network)
    with jax.enable_x64(True):
        graph = random_graph(config.descriptor, n_atoms=21, n_pairs=200)
        expected, found = (
            evaluated(config, graph, backend, level) for backend in ("jax", "compiled")
        )
        assert_close(found, expected, 1e-11)


@needs_core
@pytest.mark.parametrize("size", [1e-3, 30.0, 1e3])
@pytest.mark.parametrize("activation", ["swish", "tanh"])
def test_activations_saturate_without_overflow(activation: str, size: float) -> None:
    """Inputs of ±size and beyond, forward and backward."""
    config = model_of(DescriptorConfig(SYMBOLS[:2], 2, 3.5), widths=(16,), activation=activation)
    graph = random_graph(config.descriptor, n_atoms=9, n_pairs=80)
    graph = graph._replace(vectors=graph.vectors.astype(jnp.float32))
    params = random_params(config, 1)
    first = params["network"]["body"]["Dense_0"]
    first["kernel"] = size * first["kernel"]
    expected, found = (
        derivatives_of(config, params, graph, backend, "energy") for backend in ("jax", "compiled")
    )
    assert jnp.isfinite(expected.forces).all()
    # the rounding of features, 1e-7, is magnified by the weights
    assert_close(found, expected, max(2e-5, 5e-7 * size))


@needs_core
@pytest.mark.parametrize(
    ("n_pairs", "n_atoms"),
    [(0, 1), (0, 17), (1, 5), (7, 16), (17, 1), (100, 17)],
)
def test_any_number_of_pairs_and_atoms(n_pairs: int, n_atoms: int) -> None:
    config = model_of(DescriptorConfig(SYMBOLS[:3], 4, 3.5))
    with jax.enable_x64(True):
        graph = random_graph(config.descriptor, n_atoms, n_pairs)
        expected = evaluated(config, padded(graph, 17, 100), "jax")
        found = evaluated(config, graph, "compiled")
        assert_close(found, first_atoms(expected, n_atoms), 1e-11)


@needs_core
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


@needs_core
@pytest.mark.parametrize(
    "n_atoms", [512, 2100, *(pytest.param(n, marks=pytest.mark.slow) for n in (511, 1000))]
)
def test_graphs_that_threads_share(n_atoms: int) -> None:
    """Any number of parts gives what the pure path gives, and always the same to the last bit."""
    config = model_of(DescriptorConfig(SYMBOLS[:2], 2, 3.5))
    with jax.enable_x64(True):
        graph = random_graph(config.descriptor, n_atoms, 3 * n_atoms)
        expected = evaluated(config, padded(graph, 2100, 6300), "jax")
        first, second = (evaluated(config, graph, "compiled") for _ in range(2))
        assert_close(first, first_atoms(expected, n_atoms), 1e-11)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@needs_core
def test_many_callers_at_once_do_not_mix() -> None:
    """All of them want the same pool of threads."""
    config = model_of(DescriptorConfig(SYMBOLS[:2], 2, 3.5))
    graphs = [random_graph(config.descriptor, 1500, 6000, seed) for seed in range(8)]
    alone = [evaluated(config, graph, "compiled").forces for graph in graphs]
    with ThreadPoolExecutor(8) as executor:
        together = list(executor.map(lambda g: evaluated(config, g, "compiled").forces, graphs))
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


@needs_core
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
    message = "has type 2, and" if change == "type" else "sorted by centre, with indices"
    with pytest.raises(StructureError, match=message):
        evaluated(config, broken, "compiled")


@needs_core
def test_not_a_number_is_passed_on() -> None:
    config = model_of(DescriptorConfig(SYMBOLS[:2], 4, 3.5))
    graph = random_graph(config.descriptor, n_atoms=6, n_pairs=50)
    graph = graph._replace(vectors=graph.vectors.astype(jnp.float32).at[10].set(jnp.nan))
    found = evaluated(config, graph, "compiled")
    assert jnp.isnan(found.outputs[:, graph.centers[10]]).all()
    assert jnp.isnan(found.forces[graph.centers[10]]).all()
    assert jnp.isnan(found.forces[graph.neighbors[10]]).all()


@needs_core
def test_forces_with_cross_terms_are_minus_the_gradient() -> None:
    """With and without the core, and against energies at moved positions; the Hessian against forces there."""
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
    hessian = predictor.force_constants(system(positions), positions, cell).hessian()
    np.testing.assert_allclose(hessian[:, :, 5, 1], column, atol=1e-6 * np.abs(hessian).max())


@needs_core
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
        assert found.holds(name) == expected.holds(name)
        if found.holds(name):
            a, b = getattr(found, name), getattr(expected, name)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max(), err_msg=name)


@needs_core
@pytest.mark.parametrize(
    ("n_members", "level"), [pytest.param(1, "energy", marks=pytest.mark.slow), (2, "forces")]
)
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


@needs_core
def test_jax_is_not_compiled_where_the_core_computes() -> None:
    jitted.cache_clear()  # another test may have compiled this architecture already
    predictors = [Predictor(potential(), backend=backend) for backend in ("compiled", "jax")]
    for predictor in predictors:
        predictor.predict([box_system(27)], "off")
    assert [predictor.compilations for predictor in predictors] == [0, 1]
    assert [predictor.backend for predictor in predictors] == ["compiled", "jax"]
    assert [predictor.backend_reason for predictor in predictors] == [None, "JAX was requested"]


@needs_core
@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"n_max": 0}, "n_max 1 to 8, and the model has n_max 0"),
     pytest.param({"n_max": 9}, "n_max 9", marks=pytest.mark.slow),
     ({"activation": "gelu"}, "activations swish, silu and tanh, and the model has gelu")], ids=str,
)  # fmt: skip
def test_architectures_without_compiled_code_take_the_pure_path(
    settings: dict, reason: str
) -> None:
    model, system = potential(**settings), box_system(27)
    predictor = Predictor(model)
    assert predictor.backend == "jax"
    assert reason in predictor.backend_reason
    with pytest.raises(ModelFileError, match=reason):
        compiled.core_model(model, "float32")
    found, expected = (
        x.predict([system], "off")[0] for x in (predictor, Predictor(model, backend="jax"))
    )
    np.testing.assert_array_equal(found.forces, expected.forces)


@needs_core
def test_the_instruction_set_has_a_name() -> None:
    assert native.instruction_set() in ("AVX-512", "AVX2", "SSE2", "generic code")


@needs_core
@pytest.mark.parametrize(
    ("pair_term", "level", "n_members"),
    [("morse", "forces", 1), ("repulsive-morse", "forces", 6),
     pytest.param("morse", "energy", 3, marks=pytest.mark.slow),
     pytest.param("repulsive-morse", "forces", 2, marks=pytest.mark.slow)],
)  # fmt: skip
def test_morse_terms_in_float64(pair_term: str, level: str, n_members: int) -> None:
    """Every member has a term of its own; few and many energies take different ways."""
    config = ModelConfig(
        DescriptorConfig(SYMBOLS[:3], 2, 3.5), NetworkConfig("core", (8,)), n_members, pair_term
    )
    rng = np.random.default_rng(0)
    params = unflatten(
        {
            name: rng.normal(0.5 if name.startswith("pair") else 0, 0.4, parameter.shape)
            for name, parameter in parameters(config).items()
        }
    )
    with jax.enable_x64(True):
        graph = random_graph(config.descriptor, n_atoms=21, n_pairs=200)
        expected, found = (
            derivatives_of(config, params, graph, backend, level) for backend in ("jax", "compiled")
        )
        assert_close(found, expected, 1e-12)
        bare = derivatives_of(
            replace(config, pair_term="none"), {"network": params["network"]}, graph, "jax", level
        )
        assert np.abs(expected.forces - bare.forces).max() > 1e-2


@needs_core
@pytest.mark.parametrize("n_members", [1, 6])
def test_neighbours_that_are_no_centres_get_forces_and_have_no_energy(n_members: int) -> None:
    """Two halves of the centres, the other half as ghosts behind them, add up to the whole."""
    model, system = potential(n_members, n_max=2), box_system(4**3)
    core = compiled.core_model(model, "float64")
    types, pairs = system.types, system.pairs
    whole = core(types, pairs.centers, pairs.neighbors, pairs.vectors, by_member=True)
    n = len(types)
    forces, member_forces = np.zeros((n, 3)), np.zeros((n_members, n, 3))
    for mine in (np.arange(20), np.arange(20, n)):
        order = np.concatenate([mine, np.setdiff1d(np.arange(n), mine)])
        place = np.argsort(order)
        own = np.isin(pairs.centers, mine)
        centers, neighbors = (place[x[own]] for x in (pairs.centers, pairs.neighbors))
        part = core(types[order], centers, neighbors, pairs.vectors[own], by_member=True,
                    n_centers=len(mine))  # fmt: skip
        np.testing.assert_allclose(part.energies, whole.energies[:, mine], rtol=1e-13)
        np.testing.assert_allclose(part.virials, whole.virials[mine], rtol=0, atol=1e-11)
        np.testing.assert_allclose(
            part.member_virials, whole.member_virials[:, mine], rtol=0, atol=1e-11
        )
        forces[order] += part.forces
        member_forces[:, order] += part.member_forces
    np.testing.assert_allclose(forces, whole.forces, rtol=0, atol=1e-11)
    np.testing.assert_allclose(member_forces, whole.member_forces, rtol=0, atol=1e-11)


@needs_core
def test_any_number_of_threads_gives_the_same_to_rounding() -> None:
    model, system = potential(2, n_max=2), box_system(11**3)
    core, pairs = compiled.core_model(model, "float64"), system.pairs
    results = [
        core(system.types, pairs.centers, pairs.neighbors, pairs.vectors, n_threads=n)
        for n in (1, 2, 5)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(other.energies, results[0].energies)
        np.testing.assert_allclose(other.forces, results[0].forces, rtol=0, atol=1e-12)


@needs_core
def test_a_forked_process_computes_with_threads_of_its_own() -> None:
    """After a fork only the calling thread is left; a pool that lives on in name alone would never answer."""
    predictor, system = Predictor(potential(2)), box_system(11**3)
    expected = predictor.predict([system], "off")[0].forces
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX's own, of threads it has; they are not used
        with get_context("fork").Pool(1) as pool:
            job = pool.apply_async(_forces, (predictor, system))
            np.testing.assert_array_equal(job.get(timeout=60), expected)


def _forces(predictor: Predictor, system: System) -> np.ndarray:
    return predictor.predict([system], "off")[0].forces


@pytest.fixture
def empty_folder(monkeypatch, tmp_path):
    """Where the library is looked for, afresh."""
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native.compiled_library.cache_clear()
    yield tmp_path
    native.compiled_library.cache_clear()


def test_without_the_library_the_pure_path_serves(empty_folder) -> None:
    predictor = Predictor(potential())
    assert predictor.backend == "jax"
    assert "not built" in predictor.backend_reason
    prediction = predictor.predict([box_system(27)], "off")[0]
    assert np.isfinite(prediction.forces).all()


def test_a_library_that_does_not_load_is_reported(empty_folder) -> None:
    (empty_folder / "libneuralil.so").write_bytes(b"not a library")
    assert "the compiled core cannot be loaded" in native.missing_reason()


def test_pull_back_of_the_pure_path_is_the_derivative() -> None:
    config = DescriptorConfig(SYMBOLS[:2], 2, 3.5)
    with jax.enable_x64(True):
        graph = random_graph(config, n_atoms=5, n_pairs=30)
        rng = np.random.default_rng(0)
        cotangents = jnp.asarray(rng.normal(size=(2, 5, config.n_features)))
        found = jax.jit(lambda c: descriptors_with_pull_back(config, graph)[1](c))(cotangents)

        @jax.jit
        @jax.grad
        def slope(vectors: jax.Array, cotangent: jax.Array) -> jax.Array:
            return (descriptors(config, graph._replace(vectors=vectors)) * cotangent).sum()

        for cotangent, gradient in zip(cotangents, found, strict=True):
            expected = slope(graph.vectors, cotangent)
            np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-13)
