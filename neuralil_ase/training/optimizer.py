"""The optimiser: one-cycle schedule, gradient clipping for each member, moving average of the weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.parameters import parameters
from neuralil_ase.model.potential import Params, flatten, unflatten
from neuralil_ase.training.settings import TrainingSettings

MUON_RMS = 0.5
"""Root mean square of a Muon update in units of the learning rate, for any shape of the matrix; about 1 for Adam."""


def build_optimizer(settings: TrainingSettings, n_steps: int) -> optax.GradientTransformation:
    """The optax transformation of the settings, for a run of ``n_steps`` steps."""
    rate, decay = schedule(settings, n_steps), settings.weight_decay
    if settings.optimizer == "adam":
        return optax.adam(rate)
    assert decay is not None  # with_frames has set it
    if settings.optimizer == "muon":
        return optax.contrib.muon(
            rate,
            weight_decay=decay,
            muon_weight_dimension_numbers=_matrix_axes,
            consistent_rms=MUON_RMS,
        )
    if settings.optimizer == "schedule-free":
        warmup = max(1, round(settings.warmup * n_steps))
        return optax.contrib.schedule_free_adamw(
            settings.learning_rate, warmup_steps=warmup, weight_decay=decay
        )
    return optax.adamw(rate, weight_decay=decay, mask=_is_kernel)


def schedule(settings: TrainingSettings, n_steps: int) -> optax.Schedule:
    """One cycle: a linear rise to the peak, then half a cosine down to ``final_rate`` times the peak."""
    warmup = max(1, round(settings.warmup * n_steps))
    return optax.warmup_cosine_decay_schedule(
        settings.learning_rate / 25,
        settings.learning_rate,
        warmup,
        max(n_steps, warmup + 1),
        settings.learning_rate * settings.final_rate,
    )


def clip_members(config: ModelConfig, gradient: Params, limit: float) -> Params:
    """Scale the gradient of every member to a norm of at most ``limit``.

    Shared layers are clipped as if they were one more member. Aleatoric layers have a loss of their own
    and are clipped separately.
    """
    listed, leaves = parameters(config), flatten(gradient)
    groups: dict[tuple[bool, bool], list[str]] = {}
    for name in leaves:
        groups.setdefault((listed[name].is_shared, listed[name].is_aleatoric), []).append(name)
    clipped = {}
    for (is_shared, _), names in groups.items():
        factor = _factor([_squares(leaves[name], 0 if is_shared else 1) for name in names], limit)
        for name in names:
            clipped[name] = leaves[name] * factor.reshape(
                factor.shape + (1,) * (leaves[name].ndim - factor.ndim)
            )
    return unflatten(clipped)


def averaged_params(
    settings: TrainingSettings, average: Params, params: Params, optimizer_state: Any, step: Array
) -> Params:
    """The parameters to validate and save: the moving average, or the evaluation point of schedule-free training."""
    if settings.optimizer == "schedule-free":
        return optax.contrib.schedule_free_eval_params(optimizer_state, params)
    return averaged(average, params, settings.ema, step)


def averaged(average: Params, params: Params, decay: float, step: Array) -> Params:
    """Exponential moving average. Its memory grows with the step, so that it forgets the initial parameters."""
    effective = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: effective * a + (1 - effective) * p, average, params)


def _squares(leaf: Array, first: int) -> Array:
    return jnp.sum(leaf * leaf, axis=tuple(range(first, leaf.ndim)))


def _factor(squares: list[Array], limit: float) -> Array:
    norm = jnp.sqrt(sum(squares, start=jnp.zeros(())))
    return jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30))


def _matrix_axes(params: Params) -> Any:
    """For Muon: the two axes of every weight matrix, after the member axis; None for parameters that Adam updates."""
    return jax.tree.map(
        lambda leaf, chosen: (
            optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if chosen else None
        ),
        params,
        _is_kernel(params),
    )


def _is_kernel(params: Params) -> Any:
    """Which parameters decay and are updated by Muon: all weight matrices except the last one.

    Decay of biases, of the scales of a layer normalisation and of the last layer only prevents the network from
    reaching rare frames of high energy.
    """

    def chosen(path: tuple[Any, ...], leaf: Array) -> bool:
        return getattr(path[-1], "key", None) == "kernel" and min(leaf.shape[-2:]) > 1

    return jax.tree_util.tree_map_with_path(chosen, params)
