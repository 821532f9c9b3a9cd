"""The part of the energy that is linear in the descriptor, with one set of weights for each element of the centre.

The linear part is fitted before the networks are trained (``least_squares``). The networks learn the rest of the
labels.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from neuralil_ase.model.config import DescriptorConfig, ModelConfig
from neuralil_ase.model.parameters import LINEAR_BIAS, LINEAR_WEIGHTS
from neuralil_ase.model.potential import Potential, flatten, unflatten
from neuralil_ase.model.spectrum import power_spectrum, pull_back_spectrum
from neuralil_ase.samples.batches import Packer, Sample, Targets
from neuralil_ase.samples.forward import Batch, forces_of, pair_gradient_of, virials_of

LINEAR_FRAMES = "linear_frames"
"""Key in the provenance of a learner's model: number of frames that scaled the unknowns of its linear part."""
OWN_LINEAR = "own_linear"
"""Key in the provenance of a learner's model: whether its members learnt what their own linear parts leave."""


class Linear(NamedTuple):
    """E_i = bias[m, element of i] + Σ_f p_f weights[m, f, element of i], in eV, for member m.

    Attributes
    ----------
    weights
        In eV Å^3, shape (M, features, elements), float64.
    bias
        In eV, shape (M, elements), float64.
    """

    weights: np.ndarray
    bias: np.ndarray

    def of_member(self, member: int) -> "Linear":
        """The linear part of one member, with a member axis of length 1."""
        return Linear(self.weights[member : member + 1], self.bias[member : member + 1])

    @property
    def common(self) -> "Linear":
        """The linear part without the deviations of the members from their mean.

        Members whose weights and biases are all 0 have no linear part, and do not count in the mean. The member axis
        has length 1 if all members have one.
        """
        there = self.weights.any(axis=(1, 2)) | self.bias.any(axis=1)
        means = [x[there].sum(axis=0, keepdims=True) / max(there.sum(), 1) for x in self]
        if not there.all():
            means = [np.concatenate([0 * mean, mean])[there.astype(int)] for mean in means]
        return Linear(*means)


def linear_of(potential: Potential) -> Linear | None:
    """The linear part of a potential; None if it has none."""
    if not potential.config.network.linear:
        return None
    flat = flatten(potential.params)
    return Linear(*(np.asarray(flat[name], np.float64) for name in (LINEAR_WEIGHTS, LINEAR_BIAS)))


def linear_members(potential: Potential) -> Literal["all", "half", "none"]:
    """Which members of a potential have a linear part, as in the setting ``linear``."""
    linear = linear_of(potential)
    if linear is None:
        return "none"
    return "all" if len(linear.common.bias) == 1 else "half"


def learns_own(potential: Potential) -> bool:
    """Whether each member learns what its own linear part leaves, as during a run, and not what their mean leaves.

    The members of other models keep their deviations from the mean, so that their spread does not become too small.
    """
    known = potential.provenance
    is_own = known.get(OWN_LINEAR) or known.get(LINEAR_FRAMES) is not None
    return bool(is_own) or not potential.config.network.linear


def with_linear(potential: Potential, linear: Linear | None) -> Potential:
    """The potential with this linear part in place of its own; None removes the linear part."""
    flat = {
        k: v for k, v in flatten(potential.params).items() if k not in (LINEAR_WEIGHTS, LINEAR_BIAS)
    }
    if linear is not None:
        dtype = next(iter(flat.values())).dtype
        flat |= {
            LINEAR_WEIGHTS: linear.weights.astype(dtype),
            LINEAR_BIAS: linear.bias.astype(dtype),
        }
    network = replace(potential.config.network, linear=linear is not None)
    config = replace(potential.config, network=network)
    return replace(potential, config=config, params=unflatten(flat))


def without_linear(config: ModelConfig) -> ModelConfig:
    """The architecture without the linear part."""
    return replace(config, network=replace(config.network, linear=False))


def what_is_left(packer: Packer, linear: Linear, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with targets from which linear parts are subtracted.

    The member axis of the new targets is that of ``linear``, which has the length of the packer's targets.
    """
    weights, bias = linear
    remaining, left = iter(samples), []
    for batch in packer.for_sums().pack(samples, np.ones((1, len(samples)))):
        outputs = _evaluated(
            packer.config.descriptor, packer.slots, weights.astype(np.float32), batch
        )
        features, forces, stress = map(np.asarray, outputs)
        # One element after another: rows of weights for each atom would need much memory.
        atomic = bias[:, batch.types]
        for element in range(weights.shape[-1]):
            of_element = batch.types == element
            atomic[:, of_element] += weights[..., element] @ features[of_element].T.astype(float)
        start = 0
        for k in range(batch.n_filled):
            sample = next(remaining)
            rows = slice(start, start + len(sample.types))
            targets = Targets(
                sample.targets.energy - atomic[:, rows].sum(axis=1),
                sample.targets.forces - forces[:, rows],
                sample.targets.stress - stress[:, k],
            )
            left.append(replace(sample, targets=targets))
            start = rows.stop
    return left


@partial(jax.jit, static_argnums=(0, 1))
def _evaluated(
    descriptor: DescriptorConfig, slots: tuple[int, ...], weights: Array, batch: Batch
) -> tuple[Array, Array, Array]:
    """Features (N, F), forces of all atoms (T, N, 3) and stresses of all frames (T, B, 6), for T linear parts."""
    density = jnp.asarray(batch.density)
    cotangents = jnp.swapaxes(weights, 1, 2)[:, batch.types]
    gradient = pull_back_spectrum(descriptor, density, cotangents, only_forward=True)
    pairs = pair_gradient_of(slots, gradient, batch)
    virials = virials_of(pairs, jnp.asarray(batch.vectors))
    sums = jax.ops.segment_sum(virials, batch.frame, len(batch.n_atoms))
    return (
        power_spectrum(descriptor, density, only_forward=True),
        forces_of(pairs, jnp.asarray(batch.reverse)),
        sums.transpose(2, 0, 1) / batch.volume[:, None],
    )
