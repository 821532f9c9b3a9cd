"""The loss: what training minimises."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from neuralil_ase.samples.forward import Batch, Predicted
from neuralil_ase.training.settings import TrainingSettings


class LossSums(NamedTuple):
    """Sums over a microbatch for every member, shape (M,). Divided by ``Norms``, they are the parts of the loss.

    Attributes
    ----------
    energy, forces, stress
        Sums of the loss function over the scaled residuals, dimensionless.
    likelihood
        Negative log-likelihood of energies and forces if the network has aleatoric layers, else 0.
    energy_error, force_error
        Sums of absolute residuals in eV/atom and eV/Å, for the progress bar.
    """

    energy: Array
    forces: Array
    stress: Array
    likelihood: Array
    energy_error: Array
    force_error: Array


class Norms(NamedTuple):
    """Numbers of labelled frames, force components and stress components in the whole batch."""

    energy: float
    forces: float
    stress: float


def log_cosh(x: Array) -> Array:
    """log cosh x = |x| + log(1 + exp(-2|x|)) - log 2: x²/2 near 0, |x| - log 2 far out."""
    size = jnp.abs(x)
    return size + jnp.log1p(jnp.exp(-2 * size)) - jnp.log(2.0)


def huber(x: Array) -> Array:
    """x²/2 for |x| < 1, |x| - 1/2 beyond."""
    size = jnp.minimum(jnp.abs(x), 1)
    return size * (jnp.abs(x) - size / 2)


def half_square(x: Array) -> Array:
    """x²/2."""
    return x * x / 2


SHAPES: dict[str, Callable[[Array], Array]] = {
    "log-cosh": log_cosh,
    "huber": huber,
    "mse": half_square,
}


def loss_sums(settings: TrainingSettings, predicted: Predicted, batch: Batch) -> LossSums:
    """Weighted sums over a microbatch, for every member. The energy residual is per atom."""
    shape = SHAPES[settings.loss]
    of_frame, of_atom = batch.member_weight, batch.member_weight[:, batch.frame]
    energy_residual = predicted.energy - batch.energy
    force_residual = predicted.forces - batch.forces
    energy = shape(energy_residual / batch.n_atoms / settings.energy_scale) * batch.energy_weight
    forces = shape(force_residual / settings.force_scale) * batch.force_weight[:, None]
    stress = (
        shape((predicted.stress - batch.stress) / settings.stress_scale)
        * batch.stress_weight[:, None]
    )
    return LossSums(
        (energy * of_frame).sum(axis=1),
        (forces * of_atom[..., None]).sum(axis=(1, 2)),
        (stress * of_frame[..., None]).sum(axis=(1, 2)),
        _likelihood(predicted, batch, energy_residual, force_residual),
        (jnp.abs(energy_residual) / batch.n_atoms * batch.energy_weight).sum(axis=1),
        (jnp.abs(force_residual) * batch.force_weight[:, None]).sum(axis=(1, 2)),
    )


def _likelihood(
    predicted: Predicted, batch: Batch, energy_residual: Array, force_residual: Array
) -> Array:
    """Gaussian negative log-likelihood ½(log σ² + residual²/σ²) of forces and energies, at fixed residuals."""
    if predicted.energy_aleatoric_variance is None or predicted.forces_aleatoric_variance is None:
        return jnp.zeros(len(batch.member_weight))
    energy_residual, force_residual = jax.lax.stop_gradient((energy_residual, force_residual))
    variance_e = predicted.energy_aleatoric_variance + 1e-6
    variance_f = predicted.forces_aleatoric_variance[..., None] + 1e-6
    of_energy = 0.5 * (jnp.log(variance_e) + energy_residual**2 / variance_e) * batch.energy_weight
    of_forces = 0.5 * (jnp.log(variance_f) + force_residual**2 / variance_f)
    of_forces = of_forces * batch.force_weight[:, None]
    weight = batch.member_weight
    return (of_energy * weight).sum(1) + (of_forces * weight[:, batch.frame, None]).sum((1, 2))


def total(settings: TrainingSettings, sums: LossSums, norms: Norms) -> Array:
    """The loss of every member, shape (M,), without the likelihood."""
    return (
        settings.force_weight * sums.forces / norms.forces
        + settings.energy_weight * sums.energy / norms.energy
        + settings.stress_weight * sums.stress / norms.stress
    )
