"""Energies, forces and stresses of all members on a microbatch, from precomputed densities and slopes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.network import network_outputs
from neuralil_ase.model.parameters import parameters
from neuralil_ase.model.potential import Params, flatten, unflatten
from neuralil_ase.model.spectrum import power_spectrum, pull_back_spectrum
from neuralil_ase.prediction import VOIGT


class Batch(NamedTuple):
    """Frames side by side, padded; N atoms, S slots, B frames, M members, T targets (1 for all members, or M).

    Missing labels, padding atoms and padding frames have weight zero (and a finite label).

    Attributes
    ----------
    density, types, slopes, vectors, reverse
        As in ``batches.FrameArrays``.
    frame
        Frame of every atom, shape (N,).
    energy, energy_weight
        In eV, shape (T, B), and (B,).
    forces, force_weight
        In eV/Å, shape (T, N, 3), and (N,).
    stress, stress_weight
        In eV/Å³, shape (T, B, 6), and (B,).
    n_atoms, volume
        Number of atoms and volume in Å³ of every frame, shape (B,); 1 for padding.
    member_weight
        Weight of each frame for every member, shape (M, B).
    """

    density: np.ndarray
    types: np.ndarray
    slopes: np.ndarray
    vectors: np.ndarray
    reverse: np.ndarray
    frame: np.ndarray
    energy: np.ndarray
    energy_weight: np.ndarray
    forces: np.ndarray
    force_weight: np.ndarray
    stress: np.ndarray
    stress_weight: np.ndarray
    n_atoms: np.ndarray
    volume: np.ndarray
    member_weight: np.ndarray

    @property
    def n_filled(self) -> int:
        """Number of frames without padding, which come first. Only for arrays on the host."""
        padding = len(self.n_atoms) - 1
        return int(self.frame[self.frame < padding].max(initial=-1)) + 1


class Predicted(NamedTuple):
    """Outputs of all members.

    Attributes
    ----------
    energy
        In eV, shape (M, B).
    forces
        In eV/Å, shape (M, N, 3).
    stress
        In eV/Å³, shape (M, B, 6).
    energy_aleatoric_variance, forces_aleatoric_variance
        σ² of the energy in eV², shape (M, B), and of a force component in eV²/Å², shape (M, N). None if the network
        does not predict them.
    """

    energy: Array
    forces: Array
    stress: Array
    energy_aleatoric_variance: Array | None
    forces_aleatoric_variance: Array | None


def predict(
    config: ModelConfig, slots: tuple[int, ...], params: Params, batch: Batch, with_stress: bool
) -> Predicted:
    """Energies, forces and stresses of the networks (pair term and energy reference not included)."""
    outputs, gradient = _outputs_and_gradient(config, params, batch)
    pair_gradient = pair_gradient_of(slots, gradient, batch)
    n_frames = len(batch.n_atoms)

    def per_frame(values: Array) -> Array:
        return jax.ops.segment_sum(values, batch.frame, n_frames, indices_are_sorted=True)

    stress = jnp.zeros((config.n_members, n_frames, 6), outputs.dtype)
    if with_stress:
        virials = per_frame(virials_of(pair_gradient, jnp.asarray(batch.vectors)))
        stress = virials.transpose(2, 0, 1) / batch.volume[:, None]
    variances = _aleatoric_variances(config, params, batch) if config.has_aleatoric else None
    return Predicted(
        jax.vmap(per_frame)(outputs[..., 0]),
        forces_of(pair_gradient, jnp.asarray(batch.reverse)),
        stress,
        None if variances is None else jax.vmap(per_frame)(variances[..., 0]),
        None if variances is None else variances[..., 1],
    )


def _aleatoric_variances(config: ModelConfig, params: Params, batch: Batch) -> Array:
    """σ²_E and σ²_F of every atom, (M, N, 2). Gradients reach only the aleatoric layers.

    The layers that lead to the energy do not learn from this likelihood: forces would become worse ("faithful"
    regression, Stirn et al., arXiv:2212.09184).
    """
    listed = parameters(config)
    own = {
        name: leaf if listed[name].is_aleatoric else jax.lax.stop_gradient(leaf)
        for name, leaf in flatten(params).items()
    }
    features = power_spectrum(config.descriptor, jnp.asarray(batch.density))
    return network_outputs(config, unflatten(own), features, batch.types)[..., 1:]


def _outputs_and_gradient(config: ModelConfig, params: Params, batch: Batch) -> tuple[Array, Array]:
    """Network outputs (M, N, outputs) and the derivative of energies by the density, (M, N, elements, C)."""

    def summed(features: Array) -> tuple[Array, Array]:
        outputs = network_outputs(config, params, features, batch.types)
        return outputs[..., 0].sum(), outputs

    density = jnp.asarray(batch.density)
    features = power_spectrum(config.descriptor, density)
    shape = (config.n_members, *features.shape)
    gradient, outputs = jax.grad(summed, has_aux=True)(jnp.broadcast_to(features, shape))
    return outputs, pull_back_spectrum(config.descriptor, density, gradient)


def pair_gradient_of(slots: tuple[int, ...], gradient: Array, batch: Batch) -> Array:
    """dE_i/dr_ij for every slot, shape (N, S, 3, M)."""
    n_atoms, n_slots, _, n_channels = batch.slopes.shape
    by_atom = gradient.swapaxes(0, 1)
    starts = np.cumsum((0, *slots))
    parts = []
    for element, count in enumerate(slots):
        slopes = batch.slopes[:, starts[element] : starts[element] + count]
        flat = slopes.reshape(n_atoms, 3 * count, n_channels)
        parts.append(jnp.einsum("nsc,nmc->nsm", flat, by_atom[:, :, element]))
    return jnp.concatenate(parts, axis=1).reshape(n_atoms, n_slots, 3, -1)


def forces_of(pair_gradient: Array, reverse: Array) -> Array:
    """F_i = Σ_j g_ij - g_ji, shape (M, N, 3)."""
    n_atoms, n_slots, _, n_members = pair_gradient.shape
    rows = pair_gradient.reshape(n_atoms * n_slots, 3 * n_members)
    antisymmetric = rows - permute(rows, reverse.reshape(-1))
    return antisymmetric.reshape(n_atoms, n_slots, 3, n_members).sum(axis=1).transpose(2, 0, 1)


@jax.custom_vjp
def permute(rows: Array, involution: Array) -> Array:
    """rows[involution]. An involution is its own inverse, so that the backward pass is a gather and not a scatter."""
    return rows[involution]


def _permute_forward(rows: Array, involution: Array) -> tuple[Array, Array]:
    return rows[involution], involution


def _permute_backward(involution: Array, cotangent: Array) -> tuple[Array, None]:
    return cotangent[involution], None


permute.defvjp(_permute_forward, _permute_backward)


def virials_of(pair_gradient: Array, vectors: Array) -> Array:
    """Σ_j r_ij ⊗ g_ij, symmetrised, in Voigt order: shape (N, 6, M)."""
    tensor = jnp.einsum("nsx,nsym->nxym", vectors, pair_gradient)
    symmetric = (tensor + tensor.swapaxes(1, 2)) / 2
    return symmetric[:, *VOIGT]
