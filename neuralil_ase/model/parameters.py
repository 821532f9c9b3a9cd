"""The parameters of a potential: names, shapes, and what they act on.

They belong to the flax modules in ``network`` and are listed here layer by layer. This needs no JAX, so that model
files can be read, checked and described without it.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from neuralil_ase.model.config import ModelConfig

ALEATORIC = ("sigma2e", "sigma2f")
"""Beginnings of the names of the aleatoric layers, of energy and of force, in the order of the outputs."""


LINEAR_WEIGHTS, LINEAR_BIAS = "network/linear/kernel", "network/linear/bias"
"""Names of the parameters of the linear part: shapes (members, features, elements) and (members, elements)."""


class Parameter(NamedTuple):
    """One array of parameters.

    Attributes
    ----------
    shape
        Shape, with the member axis first unless all members share the parameter.
    is_shared
        Whether all members share the parameter.
    is_aleatoric
        Whether the parameter belongs to an aleatoric layer: it acts only on the variances that members predict for
        their own errors.
    """

    shape: tuple[int, ...]
    is_shared: bool = False
    is_aleatoric: bool = False


@lru_cache(maxsize=64)
def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """All parameters by their slash-separated names, as in model files."""
    n_elements, network = len(config.descriptor.elements), config.network
    listing = _Listing(config.n_members, is_shared=network.shared_layers > 0)
    if network.linear:
        shape = (config.n_members, config.descriptor.n_features, n_elements)
        listing.found[LINEAR_WEIGHTS] = Parameter(shape)
        listing.found[LINEAR_BIAS] = Parameter((config.n_members, n_elements))
    if network.embed_d:
        listing.add("network/embed/embedding", n_elements, network.embed_d)
    width = config.descriptor.n_features + network.embed_d
    body = {"core": _core, "resnet": _resnet, "heteroscedastic": _heteroscedastic}
    body[network.kind](listing, config, width)
    if config.pair_term in ("morse", "repulsive-morse"):
        listing.is_aleatoric = False
        listing.add("pair/embedding", n_elements, 3)
        listing.add("pair/switch", 1, 1)
    return listing.found


@dataclass
class _Listing:
    """The parameters listed so far, and the properties of the next ones."""

    n_members: int
    is_shared: bool
    is_aleatoric: bool = False
    found: dict[str, Parameter] = field(default_factory=dict)

    def add(self, name: str, *shape: int) -> None:
        members = () if self.is_shared else (self.n_members,)
        self.found[name] = Parameter((*members, *shape), self.is_shared, self.is_aleatoric)

    def dense(self, name: str, n_in: int, n_out: int, use_bias: bool = True) -> int:
        """List the parameters of a ``flax.linen.Dense``; returns its output width."""
        self.add(f"network/body/{name}/kernel", n_in, n_out)
        if use_bias:
            self.add(f"network/body/{name}/bias", n_out)
        return n_out

    def norm(self, name: str, width: int) -> None:
        """``flax.linen.LayerNorm``."""
        for leaf in ("scale", "bias"):
            self.add(f"network/body/{name}/{leaf}", width)


def _core(listing: _Listing, config: ModelConfig, width: int) -> None:
    """As ``network.Core``."""
    network = config.network
    for k, n_out in enumerate(network.widths):
        width = listing.dense(f"Dense_{k}", width, n_out)
        if k:
            listing.norm(f"LayerNorm_{k}", width)
        listing.is_shared = k + 1 < network.shared_layers
    listing.dense(f"Dense_{len(network.widths)}", width, 1)
    listing.dense("denormalizer", 1, 1)
    listing.is_aleatoric, width = True, network.widths[0]
    for k, n_out in enumerate(network.head_widths):
        width = listing.dense(f"sigma2_Dense_{k}", width, n_out)
        listing.norm(f"sigma2_LayerNorm_{k}", width)
    for name in ALEATORIC if network.head_widths else ():
        listing.dense(f"{name}_denormalizer", width, 1)


def _resnet(listing: _Listing, config: ModelConfig, width: int) -> None:
    """As ``network.ResNetCore``."""
    _blocks(listing, "blocks", width, (*config.network.widths, 1))
    listing.dense("denormalizer", 1, 1)


def _heteroscedastic(listing: _Listing, config: ModelConfig, width: int) -> None:
    """As ``network.Heteroscedastic``."""
    network = config.network
    width = _blocks(listing, "trunk", width, network.widths)
    for name in ("energy", *ALEATORIC):
        listing.is_aleatoric = name in ALEATORIC
        _blocks(listing, f"{name}_head", width, (*network.head_widths, 1))
        listing.dense(f"{name}_denormalizer", 1, 1, use_bias=not listing.is_aleatoric)


def _blocks(listing: _Listing, name: str, width: int, widths: tuple[int, ...]) -> int:
    """As ``network.ResNet``."""
    for k, (inner, outer) in enumerate(pairwise(widths)):
        width = _residual_block(listing, f"{name}/block_{k}", width, inner, outer)
    return width


def _residual_block(listing: _Listing, name: str, width: int, inner: int, outer: int) -> int:
    """As ``network.ResidualBlock``."""
    layers = [(width, inner), (inner, inner), (inner, outer)]
    if not width == inner == outer:
        layers.append((width, outer))
    for k, (n_in, n_out) in enumerate(layers):
        listing.dense(f"{name}/Dense_{k}", n_in, n_out)
        if n_out != 1:
            listing.norm(f"{name}/LayerNorm_{k}", n_out)
    return outer
