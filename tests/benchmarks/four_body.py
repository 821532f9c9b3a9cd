"""Four-body invariants of mixed density channels, in pure JAX, to see what they add to the power spectrum.

For every l ≤ 3 the (element, n) channels are mixed to a few, u_klm = Σ_p W_kp c_plm, by the leading eigenvectors of
their covariance over the training atoms: no trained parameters, the same for all members (tensor-reduced densities,
Darby et al., PRL 131, 028001, 2023). The invariants are

    B_{k1 k2 k3, l1 l2 l3} = Σ_{m1 m2 m3} G_{m1 m2 m3} u_{k1 l1 m1} u_{k2 l2 m2} u_{k3 l3 m3}

with the Gaunt coefficients G of real harmonics, for 1 ≤ l1 ≤ l2 ≤ l3 ≤ 3 and even l1 + l2 + l3. Those with an l of 0
are products of invariants that the power spectrum has.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from neuralil_ase.model.config import DescriptorConfig
from neuralil_ase.model.solid_harmonics import solid_harmonics
from neuralil_ase.model.spectrum import _split_orders, power_spectrum, pull_back_spectrum

L_MAX = 3
TRIPLES = [
    (a, b, c)
    for a, b, c in product(range(1, L_MAX + 1), repeat=3)
    if a <= b <= c <= a + b and (a + b + c) % 2 == 0
]


@dataclass(frozen=True)
class WithFourBody(DescriptorConfig):
    """The descriptor, followed by the four-body invariants of ``mixed`` channels; 0 for none.

    With ``blind`` it is that of one density of all neighbours, whatever their elements.
    """

    mixed: int = 0
    blind: bool = False

    def __post_init__(self) -> None:
        """As for the descriptor."""
        super().__post_init__()
        if self.blind and self.mixed:
            raise ValueError("four-body invariants need the densities of the elements")

    @property
    def spectrum(self) -> DescriptorConfig:
        """The power spectrum alone."""
        elements = self.elements[:1] if self.blind else self.elements
        return DescriptorConfig(elements, self.n_max, self.r_cut, self.cross_terms)

    @property
    def n_features(self) -> int:
        """Length of both parts."""
        invariants = sum(len(self.combinations(triple)) for triple in self.triples)
        return self.spectrum.n_features + invariants

    @property
    def triples(self) -> list[tuple[int, int, int]]:
        """(l1, l2, l3) that the descriptor has radial functions for."""
        return [t for t in TRIPLES if self.mixed and t[2] <= self.n_max]

    def channels_of(self, order: int) -> int:
        """Mixed channels of this l; no more than there are channels."""
        return min(self.mixed, len(self.elements) * self.n_radial[order])

    def combinations(self, triple: tuple[int, int, int]) -> np.ndarray:
        """Different (k1, k2, k3) of a triple: where two l are equal, the order of their k does not matter."""
        first, second, third = triple
        found = [
            (i, j, k)
            for i, j, k in product(*(range(self.channels_of(order)) for order in triple))
            if (first != second or i <= j) and (second != third or j <= k)
        ]
        return np.array(found)


class Mixing(NamedTuple):
    """Matrices (channels, mixed channels) for l = 0 … 3."""

    matrices: tuple[np.ndarray, ...]


def mixing_of(config: WithFourBody, density: np.ndarray) -> Mixing:
    """Leading eigenvectors of the covariance of channels, each with unit variance, from coefficients of many atoms."""
    matrices = []
    for order, rows in enumerate(_split_orders(config, jnp.asarray(density))[: L_MAX + 1]):
        values = np.asarray(rows, np.float64)
        variances, vectors = np.linalg.eigh(np.einsum("npm,nqm->pq", values, values) / len(values))
        count = config.channels_of(order)
        leading = vectors[:, ::-1][:, :count] / np.sqrt(np.maximum(variances[::-1][:count], 1e-12))
        matrices.append(leading.astype(np.float32))
    return Mixing(tuple(matrices))


def features(config: WithFourBody, mixing: Mixing, density: Array) -> Array:
    """Power spectrum and four-body invariants, (N, n_features)."""
    parts = [power_spectrum(config.spectrum, seen(config, density))]
    return jnp.concatenate(
        [*parts, *([four_body(config, mixing, density)] if config.triples else [])], axis=-1
    )


def seen(config: WithFourBody, density: Array) -> Array:
    """The densities that the power spectrum is of, (N, 1 or elements, channels)."""
    return density.sum(axis=1, keepdims=True) if config.blind else density


def four_body(config: WithFourBody, mixing: Mixing, density: Array) -> Array:
    """The invariants of all triples, (N, invariants)."""
    orders = _split_orders(config, density)[: L_MAX + 1]
    mixed = [
        jnp.einsum("npm,pk->nkm", rows, m) for rows, m in zip(orders, mixing.matrices, strict=True)
    ]
    found = []
    for triple in config.triples:
        parts = [mixed[order] for order in triple]
        full = jnp.einsum("nia,njb,nkc,abc->nijk", *parts, gaunt(*triple), optimize="optimal")
        shape = [part.shape[1] for part in parts]
        picked = np.ravel_multi_index(tuple(config.combinations(triple).T), shape)
        found.append(full.reshape(len(density), -1)[:, picked])
    return jnp.concatenate(found, axis=-1)


def pull_back(config: WithFourBody, mixing: Mixing, density: Array, cotangents: Array) -> Array:
    """dE/dc of M energies from dE/d(features), as ``spectrum.pull_back_spectrum``."""
    known = config.spectrum.n_features
    gradient = pull_back_spectrum(config.spectrum, seen(config, density), cotangents[..., :known])
    if config.blind:
        return jnp.broadcast_to(gradient, (len(cotangents), *density.shape))
    if not config.triples:
        return gradient
    _, transpose = jax.vjp(lambda c: four_body(config, mixing, c), density)
    return gradient + jax.vmap(lambda one: transpose(one)[0])(cotangents[..., known:])


@cache
def gaunt(*orders: int) -> np.ndarray:
    """∫ Y_{l1 m1} Y_{l2 m2} Y_{l3 m3} dΩ of real harmonics, by a quadrature that is exact for them."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    angles = 2 * np.pi * np.arange(24) / 24
    cosine, angle = np.repeat(nodes, 24), np.tile(angles, 12)
    sine = np.sqrt(1 - cosine**2)
    points = np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine], axis=1)
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        harmonics = np.asarray(solid_harmonics(jnp.asarray(points), L_MAX))
    parts = [harmonics[order**2 : (order + 1) ** 2] for order in orders]
    weight = np.repeat(weights, 24) * 2 * np.pi / 24
    return np.einsum("aq,bq,cq,q->abc", *parts, weight).astype(np.float32)
