"""What is listed without JAX is what flax makes, and acts on what the list says."""

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ensembles import random_params
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralil_ase.errors import ConfigError
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.network import build_network, init_params, member_axes, network_outputs
from neuralil_ase.model.parameters import parameters
from neuralil_ase.model.potential import Potential, flatten

WIDTHS = st.lists(st.sampled_from([1, 2, 5, 9, 15]), min_size=1, max_size=4).map(tuple)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Every kind of network; 15 is also a number of inputs, which residual blocks may pass on."""
    kind = draw(st.sampled_from(["core", "resnet", "heteroscedastic"]))
    widths, heads = draw(WIDTHS), draw(WIDTHS)
    if kind == "resnet" or (kind == "core" and draw(st.booleans())):
        heads = ()
    network = NetworkConfig(
        kind,
        widths,
        head_widths=heads,
        embed_d=draw(st.sampled_from([0, 1, 6])),
        shared_layers=draw(st.integers(0, len(widths))) if kind == "core" else 0,
        linear=draw(st.booleans()),
    )
    elements = ("C", "H")[: draw(st.integers(1, 2))]
    descriptor = DescriptorConfig(elements, n_max=draw(st.integers(0, 2)))
    return ModelConfig(descriptor, network, draw(st.integers(1, 3)))


def flax_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of one member, as flax makes them."""
    network = build_network(config.network, len(config.descriptor.elements))
    features = jnp.zeros((1, config.descriptor.n_features))
    made = jax.eval_shape(network.init, jax.random.key(0), features, jnp.zeros(1, jnp.int32))
    return {f"network/{name}": leaf.shape for name, leaf in flatten(made["params"]).items()}


@settings(max_examples=15, deadline=None)
@given(configs())
def test_names_and_shapes_are_those_of_flax(config: ModelConfig) -> None:
    listed = parameters(config)
    for parameter in listed.values():
        assert parameter.is_shared or parameter.shape[0] == config.n_members
    bare = {name: p.shape if p.is_shared else p.shape[1:] for name, p in listed.items()}
    assert bare == flax_shapes(config)


NETWORKS = [
    NetworkConfig("core", (5, 4)),
    NetworkConfig("core", (5, 4), shared_layers=1),
    NetworkConfig("core", (5, 4), head_widths=(3,), shared_layers=2, linear=True),
    NetworkConfig("core", (5, 4), head_widths=(3, 2), embed_d=0),
    NetworkConfig("resnet", (5, 4)),
    NetworkConfig("heteroscedastic", (5, 4), head_widths=(3,)),
]


LARGEST = [  # of every kind; the others are parts of these
    pytest.param(network, marks=[pytest.mark.slow] * (k in (0, 1, 3)))
    for k, network in enumerate(NETWORKS)
]


@pytest.mark.parametrize("network", LARGEST, ids=str)
def test_parameters_act_on_what_the_list_says(network: NetworkConfig) -> None:
    """By the gradients of one energy: zero for what leads to variances alone, and for other members."""
    config = ModelConfig(DescriptorConfig(("C", "H"), n_max=1), network, n_members=2)
    params = random_params(config, 1)
    features = np.random.default_rng(0).normal(size=(6, config.descriptor.n_features))

    def output(params: dict, column: int) -> jax.Array:
        return network_outputs(config, params, jnp.asarray(features), np.arange(6) % 2)[
            0, :, column
        ].sum()

    gradients = flatten(jax.jit(jax.grad(output), static_argnums=1)(params, 0))
    listed = parameters(config)
    assert gradients.keys() == listed.keys()
    for name, gradient in gradients.items():
        assert (np.abs(gradient).max() == 0) == listed[name].is_aleatoric, name
        if not listed[name].is_shared:
            assert np.abs(gradient[1]).max() == 0, name
    assert any(p.is_aleatoric for p in listed.values()) == config.has_aleatoric
    if config.has_aleatoric:
        gradients = flatten(jax.jit(jax.grad(output), static_argnums=1)(params, 1))
        acting = {name for name, gradient in gradients.items() if np.abs(gradient).max() > 0}
        assert acting & {name for name, p in listed.items() if p.is_aleatoric}


@pytest.mark.parametrize("network", LARGEST, ids=str)
def test_fresh_parameters_are_those_listed(network: NetworkConfig) -> None:
    config = ModelConfig(DescriptorConfig(("C", "H"), n_max=1), network, n_members=2)
    params = init_params(config, 0)
    found = {name: leaf.shape for name, leaf in flatten(params).items()}
    assert found == {name: p.shape for name, p in parameters(config).items()}
    axes = flatten({"network": member_axes(config)})
    assert {name for name, axis in axes.items() if axis is None} == {
        name for name, p in parameters(config).items() if p.is_shared
    }


def test_trained_pair_terms_have_parameters() -> None:
    config = ModelConfig(DescriptorConfig(("C", "H"), n_max=1), NETWORKS[-1], n_members=2)
    added = parameters(replace(config, pair_term="morse")).items() - parameters(config).items()
    assert {name: p.shape for name, p in added} == {
        "pair/embedding": (2, 2, 3),
        "pair/switch": (2, 1, 1),
    }
    assert not any(p.is_aleatoric for _, p in added)


def test_thousands_of_layers_are_listed_at_once() -> None:
    """A forged file of 247 kB with 4000 widths took 67 s to be refused when flax was asked for shapes."""
    config = ModelConfig(DescriptorConfig(("H",)), NetworkConfig("core", (65536,) * 4000))
    began = time.process_time()
    with pytest.raises(ConfigError, match="do not belong to this architecture"):
        Potential(config, {"network": {}}, np.zeros(1))
    assert time.process_time() - began < 5
