"""Networks against plain NumPy, and which parameters belong to whom."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from ensembles import random_params
from scipy.special import expit

from neuralil_ase.engine.jax_backend import precision
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig, NetworkKind
from neuralil_ase.model.network import activation, build_network, member_axes, network_outputs
from neuralil_ase.model.potential import cast_params, flatten

ELEMENTS = ("H", "O")
DESCRIPTOR = DescriptorConfig(ELEMENTS, n_max=1)
FEATURES = np.random.default_rng(0).normal(size=(5, DESCRIPTOR.n_features))
TYPES = np.array([0, 1, 1, 0, 1])


def parameters(config: ModelConfig) -> dict[str, Any]:
    return cast_params(random_params(config, seed=1), "float64")


def outputs(config: ModelConfig, params: dict[str, Any]) -> np.ndarray:
    with precision("float64"):
        function = jax.jit(partial(network_outputs, config))
        return np.asarray(function(params, FEATURES, TYPES))


def swish(x: np.ndarray) -> np.ndarray:
    return x * expit(x)


def dense(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    return x @ params["kernel"] + params.get("bias", 0)


def norm(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * params["scale"] + params["bias"]


def embedded(params: dict[str, Any]) -> np.ndarray:
    return np.hstack([FEATURES, params["embed"]["embedding"][TYPES]])


def member(params: dict[str, Any], index: int) -> dict[str, Any]:
    return jax.tree.map(lambda x: x[index], params["network"])


def core(params: dict[str, Any], x: np.ndarray, depth: int) -> np.ndarray:
    """arXiv:2106.16220: no normalisation in the first layer, an activation after the last."""
    body = params["body"]
    for k in range(depth):
        x = dense(body[f"Dense_{k}"], x)
        x = swish(norm(body[f"LayerNorm_{k}"], x) if k else x)
    return dense(body["denormalizer"], swish(dense(body[f"Dense_{depth}"], x)))


def block(params: dict[str, Any], x: np.ndarray, inner: int, outer: int) -> np.ndarray:
    """arXiv:2302.08805: two layers inside, one out, the input added, no normalisation of single numbers."""

    def normed(k: int, value: np.ndarray) -> np.ndarray:
        return value if value.shape[-1] == 1 else norm(params[f"LayerNorm_{k}"], value)

    h = swish(normed(0, dense(params["Dense_0"], x)))
    h = swish(normed(1, dense(params["Dense_1"], h)))
    h = normed(2, dense(params["Dense_2"], h))
    same = x.shape[-1] == inner == outer
    return swish(h + (x if same else normed(3, dense(params["Dense_3"], x))))


def chain(params: dict[str, Any], x: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    for k in range(len(widths) - 1):
        x = block(params[f"block_{k}"], x, widths[k], widths[k + 1])
    return x


def test_core_is_dense_layers_with_normalisation() -> None:
    config = ModelConfig(DESCRIPTOR, NetworkConfig("core", (6, 5, 4)), n_members=2)
    params = parameters(config)
    found = outputs(config, params)
    assert found.shape == (2, 5, 1)
    for k in range(2):
        p = member(params, k)
        np.testing.assert_allclose(found[k], core(p, embedded(p), 3), rtol=1e-11)


def test_resnet_is_a_chain_of_residual_blocks() -> None:
    """Widths (6, 6, 4): the second block's input passes through unchanged where widths agree."""
    config = ModelConfig(DESCRIPTOR, NetworkConfig("resnet", (6, 6, 6, 4)), n_members=2)
    params = parameters(config)
    found = outputs(config, params)
    for k in range(2):
        p = member(params, k)
        h = chain(p["body"]["blocks"], embedded(p), (6, 6, 6, 4, 1))
        np.testing.assert_allclose(found[k], dense(p["body"]["denormalizer"], h), rtol=1e-10)
    assert "Dense_3" not in params["network"]["body"]["blocks"]["block_1"]


def with_variances(
    kind: NetworkKind, widths: tuple[int, ...]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Parameters and outputs, shape (5, 3), of each of two members."""
    config = ModelConfig(DESCRIPTOR, NetworkConfig(kind, widths, head_widths=(4, 3)), n_members=2)
    params = parameters(config)
    found = outputs(config, params)
    assert found.shape == (2, 5, 3)
    for k in range(2):
        yield member(params, k), found[k]


def test_heteroscedastic_network_has_three_heads() -> None:
    for p, found in with_variances("heteroscedastic", (6, 4)):
        body = p["body"]
        trunk = chain(body["trunk"], embedded(p), (6, 4))
        heads = [
            dense(body[f"{name}_denormalizer"], chain(body[f"{name}_head"], trunk, (4, 3, 1)))
            for name in ("energy", "sigma2e", "sigma2f")
        ]
        expected = np.hstack([heads[0], np.logaddexp(0, heads[1]), np.logaddexp(0, heads[2])])
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        assert (found[:, 1:] >= 0).all()


@pytest.mark.parametrize("widths", [(6,), (6, 4)])
def test_the_variances_of_a_core_network_come_from_its_first_layer(widths: tuple[int, ...]) -> None:
    for p, found in with_variances("core", widths):
        body = p["body"]
        h = swish(dense(body["Dense_0"], embedded(p)))
        for layer in range(2):
            h = dense(body[f"sigma2_Dense_{layer}"], h)
            h = swish(norm(body[f"sigma2_LayerNorm_{layer}"], h))
        logits = [dense(body[f"{name}_denormalizer"], h) for name in ("sigma2e", "sigma2f")]
        expected = np.hstack([core(p, embedded(p), len(widths)), *np.logaddexp(0, logits)])
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_without_an_embedding_elements_differ_by_their_descriptors_alone() -> None:
    config = ModelConfig(DESCRIPTOR, NetworkConfig("core", (4,), embed_d=0))
    params = parameters(config)
    assert "embed" not in params["network"]
    np.testing.assert_allclose(
        outputs(config, params)[0], core(member(params, 0), FEATURES, 1), rtol=1e-12
    )


@pytest.mark.parametrize("count", [1, 2])
def test_shared_layers_carry_no_member_axis(count: int) -> None:
    """A last-layer ensemble equals one of independent members whose first layers agree."""
    shared = ModelConfig(
        DESCRIPTOR, NetworkConfig("core", (6, 5), shared_layers=count), n_members=3
    )
    params = parameters(shared)
    axes = flatten(member_axes(shared))
    single = {name for name, axis in axes.items() if axis is None}
    expected = {f"body/Dense_{k}/{p}" for k in range(count) for p in ("kernel", "bias")}
    expected |= {f"body/LayerNorm_{k}/{p}" for k in range(1, count) for p in ("scale", "bias")}
    assert single == {"embed/embedding"} | expected

    independent = ModelConfig(DESCRIPTOR, NetworkConfig("core", (6, 5)), n_members=3)
    copies = jax.tree.map(
        lambda x, axis: x if axis == 0 else np.stack([x] * 3),
        params["network"],
        member_axes(shared),
        is_leaf=lambda x: x is None,
    )
    found = outputs(shared, params)
    np.testing.assert_allclose(found, outputs(independent, {"network": copies}), rtol=1e-12)
    assert np.ptp(found, axis=0).min() > 0, "members differ"


def test_activation_is_looked_up_by_its_usual_name() -> None:
    x = np.linspace(-2, 2, 9)
    with precision("float64"):
        np.testing.assert_allclose(activation("tanh")(x), np.tanh(x), rtol=1e-14)
        np.testing.assert_allclose(activation("silu")(x), swish(x), rtol=1e-14)


def test_activation_of_the_description_is_used() -> None:
    config = ModelConfig(DESCRIPTOR, NetworkConfig("core", (4,), activation="tanh"))
    params = parameters(config)
    p = member(params, 0)
    body = p["body"]
    h = np.tanh(dense(body["Dense_1"], np.tanh(dense(body["Dense_0"], embedded(p)))))
    np.testing.assert_allclose(
        outputs(config, params)[0], dense(body["denormalizer"], h), rtol=1e-12
    )


def test_module_is_equal_for_equal_descriptions() -> None:
    """Compiled functions are cached on it."""
    config = NetworkConfig("core", (4,))
    assert build_network(config, 2) == build_network(NetworkConfig("core", (4,)), 2)
