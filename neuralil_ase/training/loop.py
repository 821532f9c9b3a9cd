"""The training loop: steps, epochs, validation, the best state so far, and how a run ends."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from neuralil_ase.errors import TrainingError
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.potential import Params, Potential
from neuralil_ase.samples.batches import Sample
from neuralil_ase.samples.forward import Batch, Predicted, predict
from neuralil_ase.samples.linear import with_linear
from neuralil_ase.samples.normalisation import Scaling, first_params, fold, unfold
from neuralil_ase.training.loss import SHAPES, LossSums, Norms, loss_sums, total
from neuralil_ase.training.optimizer import averaged_params, build_optimizer, clip_members
from neuralil_ase.training.prepare import Task
from neuralil_ase.training.settings import TrainingSettings

logger = logging.getLogger(__name__)
History = list[dict[str, Any]]
_DIVERGED = (
    "Usually the learning rate is too high or a frame has absurd labels. The last good model was kept. Lower "
    "learning_rate, or check the frames with the largest forces"
)


class State(NamedTuple):
    """The state of a run on the device.

    Attributes
    ----------
    params
        Parameters of the normalised networks.
    average
        Moving average of the parameters.
    optimizer
        State of the optimiser.
    step
        Number of steps done.
    """

    params: Params
    average: Params
    optimizer: Any
    step: Array


@dataclass
class Run:
    """A run between two epochs.

    Attributes
    ----------
    state
        The state on the device.
    best
        The averaged parameters with the smallest validation loss so far. Without validation, the latest ones.
    best_loss
        The smallest validation loss; None before the first validation.
    epoch
        Number of epochs done.
    history
        One record per epoch.
    """

    state: State
    best: Params
    best_loss: float | None = None
    epoch: int = 0
    history: History = field(default_factory=list)


class Trainer:
    """Runs epochs of one task, or single steps.

    Parameters
    ----------
    task
        The training problem.
    n_steps
        Length of the learning-rate cycle in steps; by default all epochs.
    """

    def __init__(self, task: Task, n_steps: int | None = None) -> None:
        self.task = task
        self.steps_per_epoch = -(-len(task.train) // task.settings.batch_size)
        self._n_steps = n_steps or self.steps_per_epoch * task.settings.epochs
        self._objective = objective_of(task)

    def start(self) -> Run:
        """A new run, from the parameters of the task's ``start`` or from random ones."""
        task = self.task
        config = replace(task.config, n_members=task.settings.members)
        if task.start is None:
            initial = first_params(config, task.settings.seed)
        else:
            initial = unfold(config, task.scaling, task.start.params)
        if (k := task.member) is not None:
            initial = jax.tree.map(lambda leaf: leaf[k : k + 1], initial)
        params = jax.tree.map(jnp.asarray, initial)
        optimizer = build_optimizer(self._objective.settings, self._n_steps)
        state = State(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))
        return Run(state, params)

    def epoch(self, run: Run) -> Run:
        """One pass over the training samples, and validation when it is due.

        Raises
        ------
        TrainingError
            If the loss or the parameters are no longer finite. ``run`` is then unchanged.
        """
        began = time.perf_counter()
        state, losses, sums, norms = self._pass(run)
        epoch = run.epoch + 1
        loss = _finite_mean(losses, epoch)
        check_finite(state, f"epoch {epoch}")
        record: dict[str, Any] = {"epoch": epoch, "step": int(state.step), "loss": loss}
        if norms.energy:
            record["energy_mae"] = float(np.mean(sums.energy_error)) / norms.energy
        if norms.forces:
            record["force_mae"] = float(np.mean(sums.force_error)) / norms.forces
        # Before the first validation, the latest state counts as the best.
        best, best_loss = (state.average if run.best_loss is None else run.best), run.best_loss
        if self._is_validation_due(epoch):
            errors = self.validate(state.average)
            record |= {f"validation_{key}": value for key, value in errors.items()}
            if best_loss is None or errors["loss"] <= best_loss:
                best, best_loss = state.average, errors["loss"]
        record["seconds"] = time.perf_counter() - began
        return Run(state, best, best_loss, epoch, [*run.history, record])

    def validate(self, params: Params) -> dict[str, float]:
        """Loss of the ensemble mean on the validation samples, and its errors in eV/atom and eV/Å."""
        energy, forces, stress = self.residuals(params, self.task.validation)
        s = self.task.settings
        shape = SHAPES[s.loss]
        parts = (
            (s.energy_weight, energy / s.energy_scale),
            (s.force_weight, forces / s.force_scale),
            (s.stress_weight, stress / s.stress_scale),
        )
        losses = [w * float(np.mean(np.asarray(shape(jnp.asarray(x))))) for w, x in parts if x.size]
        errors = {"energy_mae": energy, "force_mae": forces}
        return {"loss": sum(losses)} | {
            name: float(np.abs(values).mean()) for name, values in errors.items() if values.size
        }

    def _is_validation_due(self, epoch: int) -> bool:
        settings = self.task.settings
        is_last = epoch == settings.epochs
        return bool(self.task.validation) and (epoch % settings.validate_every == 0 or is_last)

    def potential(self, params: Params, provenance: dict[str, Any] | None = None) -> Potential:
        """The potential, with the normalisation folded into its layers, and the linear part."""
        task = self.task
        folded = jax.tree.map(np.asarray, fold(task.config, task.scaling, params))
        learnt = Potential(task.config, folded, task.reference, provenance or {})
        return with_linear(learnt, task.linear)

    def _pass(self, run: Run) -> tuple[State, list[jax.Array], LossSums, Norms]:
        task, state = self.task, run.state
        batch_size = task.settings.batch_size
        order = np.random.default_rng((task.settings.seed, 2, run.epoch)).permutation(
            len(task.train)
        )
        losses: list[jax.Array] = []
        parts: list[LossSums] = []
        norms = []
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            state, loss, sums, norm = self.step(state, chosen)
            losses.append(loss)
            parts.extend(sums)
            norms.append(norm)
        totals = jax.tree.map(lambda *x: np.sum(np.asarray(x), axis=0), *parts)
        return state, losses, totals, Norms(*map(sum, zip(*norms, strict=True)))

    def step(
        self, state: State, chosen: np.ndarray
    ) -> tuple[State, jax.Array, list[LossSums], Norms]:
        """One step on the chosen training samples: new state, loss of every member, its parts, numbers of labels."""
        task, objective = self.task, self._objective
        samples = [task.train[k] for k in chosen]
        norms = norms_of(samples)
        results = [
            _gradient(objective, task.scaling, state.params, batch, _at_least_one(norms))
            for batch in task.packer.pack(samples, task.counts[:, chosen])
        ]
        gradient, loss = results[0][0], results[0][1][0]
        for other, (other_loss, _) in results[1:]:
            gradient, loss = _add((gradient, loss), (other, other_loss))
        state = _update(objective, self._n_steps, state, gradient)
        return state, loss, [sums for _, (_, sums) in results], norms

    def residuals(
        self, params: Params, samples: Sequence[Sample]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Residuals of the ensemble mean where there are labels, in eV/atom, eV/Å and eV/Å³."""
        weights = np.ones((self.task.config.n_members, len(samples)))
        parts = [
            _mean_residuals(
                _predicted(self._objective, self.task.scaling, params, batch, True), batch
            )
            for batch in self.task.packer.pack(samples, weights)
        ]
        energy, forces, stress = zip(*parts, strict=True)
        return np.concatenate(energy), np.concatenate(forces), np.concatenate(stress)


class Objective(NamedTuple):
    """Everything that the gradient depends on besides its arguments. Runs with equal objectives share compiled code.

    Attributes
    ----------
    config
        Architecture of the model.
    settings
        Settings of the loss and of the optimiser. All others have their default values.
    slots
        Number of slots for the neighbours of each element.
    has_stress
        Whether stresses are learnt.
    """

    config: ModelConfig
    settings: TrainingSettings
    slots: tuple[int, ...]
    has_stress: bool


def objective_of(task: Task) -> Objective:
    """The objective of a task."""
    settings = TrainingSettings(**{name: getattr(task.settings, name) for name in _COMPILED_IN})
    return Objective(task.config, settings, task.packer.slots, task.has_stress)


_COMPILED_IN = (
    "loss", "force_scale", "energy_scale", "stress_scale", "force_weight", "energy_weight", "stress_weight",
    "optimizer", "learning_rate", "weight_decay", "clip_norm", "warmup", "final_rate", "ema",
)  # fmt: skip


@partial(jax.jit, static_argnums=0)
def _gradient(
    objective: Objective, scaling: Scaling, params: Params, batch: Batch, norms: Norms
) -> tuple[Params, tuple[Array, LossSums]]:
    """Gradient of the summed loss of all members, the loss of every member, and its parts."""

    def summed(p: Params) -> tuple[Array, tuple[Array, LossSums]]:
        predicted = _predicted(objective, scaling, p, batch, objective.has_stress)
        sums = loss_sums(objective.settings, predicted, batch)
        losses = total(objective.settings, sums, norms)
        # Only the aleatoric layers learn from the likelihood, and they learn from nothing else. It needs no weight.
        likelihood = sums.likelihood / (norms.forces + norms.energy)
        return (losses + likelihood).sum(), (losses, sums)

    return jax.grad(summed, has_aux=True)(params)


@jax.jit
def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


@partial(jax.jit, static_argnums=(0, 1))
def _update(objective: Objective, n_steps: int, state: State, gradient: Params) -> State:
    """One step of the optimiser. Only this function depends on the length of the run (through the schedule)."""
    settings = objective.settings
    optimizer = build_optimizer(settings, n_steps)
    clipped = clip_members(objective.config, gradient, settings.clip_norm)
    updates, optimizer_state = optimizer.update(clipped, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    average = averaged_params(settings, state.average, params, optimizer_state, state.step)
    return State(params, average, optimizer_state, state.step + 1)


@partial(jax.jit, static_argnums=(0, 4))
def _predicted(
    objective: Objective, scaling: Scaling, params: Params, batch: Batch, with_stress: bool
) -> Predicted:
    folded = fold(objective.config, scaling, params)
    return predict(objective.config, objective.slots, folded, batch, with_stress)


def compilations() -> int:
    """Number of compiled versions of the functions of a step; constant while architecture and shapes stay the same."""
    # Counting traces, as engine/jax_backend does, would miss what JAX compiles again without a new trace.
    functions: tuple[Any, ...] = (_gradient, _update, _predicted)  # without the attribute, to mypy
    return sum(function._cache_size() for function in functions)


def fit(
    trainer: Trainer,
    run: Run,
    after_epoch: Callable[[Run, str | None], None],
) -> Run:
    """Train until the last epoch, the time limit, an interrupt or a failure.

    Parameters
    ----------
    trainer, run
        The trainer, and the state that training continues from.
    after_epoch
        Called after every epoch with the run, and once more at the end with the reason: "finished", "time limit",
        "interrupted" or "failed". It writes logs, checkpoints and models.

    Raises
    ------
    TrainingError
        If the loss is no longer finite. ``after_epoch`` has then saved the last good state.
    """
    settings = trainer.task.settings
    began = time.monotonic()
    try:
        reason = "finished"
        while run.epoch < settings.epochs:
            run = trainer.epoch(run)
            after_epoch(run, None)
            if 0 < settings.time_limit < time.monotonic() - began:
                reason = "time limit" if run.epoch < settings.epochs else reason
                break
        after_epoch(run, reason)
    except KeyboardInterrupt:
        kept = "keeping the best model so far" if run.epoch else "nothing has been learnt yet"
        logger.warning("interrupted after epoch %d; %s", run.epoch, kept)
        after_epoch(run, "interrupted")
    except TrainingError:
        after_epoch(run, "failed")
        raise
    return run


def norms_of(samples: Sequence[Sample]) -> Norms:
    """Numbers of labelled frames, force components and stress components."""
    targets = [sample.targets for sample in samples]
    return Norms(
        float(sum(np.isfinite(target.energy[0]) for target in targets)),
        float(sum(np.isfinite(target.forces[0]).sum() for target in targets)),
        float(sum(np.isfinite(target.stress[0]).sum() for target in targets)),
    )


def _at_least_one(norms: Norms) -> Norms:
    return Norms(*(max(value, 1.0) for value in norms))


def _mean_residuals(predicted: Any, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals of the ensemble mean where there are labels, in eV/atom, eV/Å and eV/Å³."""
    energy = np.mean(predicted.energy - batch.energy, axis=0) / batch.n_atoms
    forces = np.mean(predicted.forces - batch.forces, axis=0)
    stress = np.mean(predicted.stress - batch.stress, axis=0)
    return (
        energy[batch.energy_weight > 0],
        forces[batch.force_weight > 0],
        stress[batch.stress_weight > 0],
    )


def _finite_mean(losses: Sequence[jax.Array], epoch: int) -> float:
    array = np.asarray(losses)
    if not np.isfinite(array).all():
        step, member = np.argwhere(~np.isfinite(array))[0]
        raise TrainingError(
            f"the loss of member {member} became {array[step, member]} in epoch {epoch}, step {step + 1} of the epoch. "
            f"{_DIVERGED}"
        )
    return float(array.mean())


def check_finite(state: State, when: str) -> None:
    """Raise a TrainingError if the parameters are no longer finite."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.average))):
        raise TrainingError(f"the parameters are no longer finite after {when}. {_DIVERGED}")
