"""The compiled functions of a run: gradient of a microbatch, update, prediction."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from neuralil_ase.model.potential import Params
from neuralil_ase.training.folding import fold
from neuralil_ase.training.loss import Norms, Sums, loss_sums, total
from neuralil_ase.training.objective import Batch, Predicted, predict
from neuralil_ase.training.optimizer import clip_members, evaluated
from neuralil_ase.training.task import Task


class State(NamedTuple):
    """What changes during a run, on the device.

    Attributes
    ----------
    params
        Of the normalised networks.
    average
        Their moving average.
    optimizer
        State of the optimiser.
    step
        Steps done.
    """

    params: Params
    average: Params
    optimizer: Any
    step: Array


class Functions:
    """Compiled once per run."""

    def __init__(self, task: Task, optimizer: optax.GradientTransformation) -> None:
        self.gradient = jax.jit(partial(_gradient, task))
        self.add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
        self.update = jax.jit(partial(_update, task, optimizer))
        self.predict = jax.jit(partial(_predict, task))


def _gradient(
    task: Task, params: Params, batch: Batch, norms: Norms
) -> tuple[Params, tuple[Array, Sums]]:
    """Gradient of the summed loss of all members, the loss of every member, and its parts."""

    def objective(p: Params) -> tuple[Array, tuple[Array, Sums]]:
        predicted = _outputs(task, p, batch)
        sums = loss_sums(task.settings, predicted, batch)
        losses = total(task.settings, sums, norms)
        # The variances learn by their likelihood alone, and nothing else depends on them: it needs no weight.
        likelihood = sums.likelihood / (norms.forces + norms.energy)
        return (losses + likelihood).sum(), (losses, sums)

    return jax.grad(objective, has_aux=True)(params)


def _update(
    task: Task, optimizer: optax.GradientTransformation, state: State, gradient: Params
) -> State:
    clipped = clip_members(task.config.network, gradient, task.settings.clip_norm)
    updates, optimizer_state = optimizer.update(clipped, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    average = evaluated(task.settings, state.average, params, optimizer_state, state.step)
    return State(params, average, optimizer_state, state.step + 1)


def _predict(task: Task, params: Params, batch: Batch) -> Predicted:
    return _outputs(task, params, batch, with_stress=True)


def _outputs(
    task: Task, params: Params, batch: Batch, with_stress: bool | None = None
) -> Predicted:
    folded = fold(task.config, task.scaling, params)
    stress = task.has_stress if with_stress is None else with_stress
    return predict(task.config, task.packer.slots, folded, batch, stress)
