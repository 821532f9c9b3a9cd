"""Parameters: made, checked, named, copied."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from systems import CONFIG, REFERENCE, ensemble

from neuralil_ase.engine.jax_backend import precision
from neuralil_ase.errors import ConfigError
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.network import init_params, network_outputs
from neuralil_ase.model.pair_terms import pair_energies
from neuralil_ase.model.potential import Potential, cast_params, flatten, unflatten

SMALLEST = ModelConfig(
    DescriptorConfig(("H",), n_max=0), NetworkConfig("core", (4,), embed_d=0), n_members=3
)


def test_members_start_from_different_parameters_and_a_seed_repeats_them() -> None:
    first, again, other = (init_params(SMALLEST, seed) for seed in (5, 5, 6))
    kernel = first["network"]["body"]["Dense_0"]["kernel"]
    assert kernel.shape == (3, 1, 4)
    assert kernel.dtype == np.float32
    assert isinstance(kernel, np.ndarray)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.abs(kernel - other["network"]["body"]["Dense_0"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("term", ["morse", "repulsive-morse"])
def test_published_pair_terms_are_not_trained_here(term: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'{term}' comes with published files; train with 'zbl'"
    ):
        init_params(replace(CONFIG, pair_term=term), 0)


def test_names_and_nested_dictionaries_are_inverse() -> None:
    params = ensemble().params
    flat = flatten(params)
    assert flat["network/body/Dense_0/kernel"] is params["network"]["body"]["Dense_0"]["kernel"]
    assert jax.tree.structure(unflatten(flat)) == jax.tree.structure(params)


def changed(config: ModelConfig = CONFIG, **leaves: np.ndarray | None) -> Potential:
    """The ensemble with leaves of its first layer replaced, or removed where None."""
    flat = flatten(ensemble().params)
    for name, value in leaves.items():
        flat[f"network/body/Dense_0/{name}"] = value
    kept = {name: value for name, value in flat.items() if value is not None}
    return Potential(config, unflatten(kept), REFERENCE)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"bias": None}, r"do not belong.*missing \['network/body/Dense_0/bias'\]"),
        ({"extra": np.zeros(3)}, r"unexpected \['network/body/Dense_0/extra'\]"),
        ({"bias": np.zeros((3, 9))}, r"Dense_0/bias has shape \(3, 9\), expected \(3, 8\)"),
        ({"bias": np.full((3, 8), np.nan)}, "Dense_0/bias holds values that are not finite"),
        ({"bias": np.full((3, 8), np.inf)}, "Dense_0/bias holds values that are not finite"),
    ],
)
def test_parameters_that_do_not_fit_are_named(leaves: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(**leaves)


def test_parameters_of_another_number_of_members_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"has shape .*expected"):
        changed(replace(CONFIG, n_members=2))


def test_one_reference_energy_for_each_element() -> None:
    with pytest.raises(
        ConfigError, match=r"one energy for each of the 4 elements, got shape \(3,\)"
    ):
        Potential(CONFIG, ensemble().params, np.zeros(3))


def test_members_keep_their_derivatives_apart_with_features_of_their_own() -> None:
    potential, rng = ensemble(), np.random.default_rng(0)
    features, types = rng.normal(size=(8, CONFIG.descriptor.n_features)), np.arange(8) % 4
    with precision("float64"):
        params = cast_params(potential.params, "float64")
        function = jax.jit(partial(network_outputs, CONFIG))
        shared = function(params, features, types)
        own = function(params, np.stack([features] * 3), types)
    np.testing.assert_allclose(own, shared, rtol=1e-12)
    assert shared.shape == (3, 8, 1)


def test_there_are_no_pair_energies_without_a_pair_term() -> None:
    assert pair_energies(CONFIG, ensemble().params, None) is None  # type: ignore[arg-type]


def test_cast_is_a_copy_in_another_precision() -> None:
    params = ensemble().params
    cast = cast_params(params, "float64")
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {np.dtype("float64")}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, cast_params(cast, "float32"), params)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_potentials_copy_and_pickle(way) -> None:
    potential = ensemble()
    again = way(potential)
    assert again.config == potential.config
    assert again.provenance == {"origin": "random"}
    jax.tree.map(np.testing.assert_array_equal, again.params, potential.params)
    assert (again.elements, again.r_cut, again.n_members) == (("C", "H", "N", "O"), 3.0, 3)
