"""The optimiser: what decays, how large a step is, and clipping member by member."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ensembles import random_params

from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.potential import Params, flatten
from neuralil_ase.training.optimizer import MUON_RMS, build_optimizer, clip_members
from neuralil_ase.training.settings import TrainingSettings

CONFIG = ModelConfig(DescriptorConfig(("H", "O"), n_max=2), NetworkConfig(widths=(8, 4)), 3)


@pytest.fixture
def params() -> Params:
    return jax.tree.map(jnp.asarray, random_params(CONFIG, 0))


def _updates(
    optimizer: str, gradient: Params, params: Params, decay: float
) -> dict[str, np.ndarray]:
    settings = TrainingSettings(
        optimizer=optimizer, weight_decay=decay, learning_rate=1.0, warmup=0
    )
    transformation = build_optimizer(settings, 100)
    state, update = transformation.init(params), jax.jit(transformation.update)
    for _ in range(2):  # past the first, small step of the one-cycle schedule
        updates, state = update(gradient, state, params)
    return {name: np.asarray(value) for name, value in flatten(updates).items()}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_only_matrices_before_the_outlet_decay(optimizer: str, params: Params) -> None:
    updates = _updates(optimizer, jax.tree.map(jnp.zeros_like, params), params, 0.1)
    values = flatten(params)
    decaying = {name for name, update in updates.items() if np.abs(update).max() > 0}
    assert decaying == {f"network/body/Dense_{k}/kernel" for k in (0, 1)}
    for name in decaying:
        np.testing.assert_allclose(updates[name], -0.1 * np.asarray(values[name]), rtol=1e-5)


def test_muon_steps_have_the_same_size_whatever_the_shape(params: Params) -> None:
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
    updates = _updates("muon", gradient, params, 0.0)
    for k in (0, 1):
        size = np.sqrt(np.mean(updates[f"network/body/Dense_{k}/kernel"] ** 2, axis=(1, 2)))
        np.testing.assert_allclose(size, MUON_RMS, rtol=0.35)


def test_every_member_is_clipped_by_itself(params: Params) -> None:
    large = np.array([1.0, 100.0, 1e4], np.float32)
    gradient = jax.tree.map(
        lambda x: large.reshape(-1, *[1] * (x.ndim - 1)) * np.ones(x.shape, np.float32), params
    )
    clipped = jax.jit(lambda gradient: clip_members(CONFIG, gradient, 50.0))(gradient)
    norms = [
        optax.tree.norm(jax.tree.map(lambda x, m=m: np.asarray(x)[m], clipped)) for m in range(3)
    ]
    n_values = sum(leaf[0].size for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(norms, [min(np.sqrt(n_values), 50.0), 50, 50], rtol=1e-5)
