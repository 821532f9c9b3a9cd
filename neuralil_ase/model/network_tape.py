"""Networks as tapes of simple operations, for the compiled kernel.

What ``network`` defines as flax modules, ``core/src/network.h`` runs as a list of operations on columns, one number
per atom each. This module writes that list from the description of a network; no parameter is touched.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.network import VARIANCES

ACTIVATIONS = ("swish", "silu", "tanh")
"""Activations that the kernel knows."""


class Kind(IntEnum):
    """Operations; the order is that of ``core/src/network.h``."""

    EMBED = 0
    DENSE = 1
    NORM = 2
    SWISH = 3
    TANH = 4
    SOFTPLUS = 5
    ADD = 6


class Columns(NamedTuple):
    """Where a value stands: first column and number of columns."""

    start: int
    width: int


class Operation(NamedTuple):
    """One step; ``weights`` and ``bias`` number the parameters (-1: none), or the second source of ADD."""

    kind: Kind
    source: int
    target: int
    n_in: int
    n_out: int
    weights: int = -1
    bias: int = -1


@dataclass
class Tape:
    """A network as the kernel runs it.

    Attributes
    ----------
    n_columns
        Number of columns in use; the features stand in the first ones.
    operations
        In the order of the forward pass.
    parameters
        Slash-separated names of the parameters, in the order of their numbers.
    outputs
        The column of every output, the energy first.
    n_shared, n_shared_columns
        How many of the first operations, and of the columns, are the same for all members.
    n_backward
        Operations behind these do not act on the energy.
    """

    n_columns: int
    operations: list[Operation] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    n_shared: int = 0
    n_shared_columns: int = 0
    n_backward: int = 0

    def share(self) -> None:
        """All members share what has been written up to here."""
        self.n_shared, self.n_shared_columns = len(self.operations), self.n_columns

    def embed(self, name: str, target: Columns) -> None:
        """The trainable vector of every atom's element."""
        number = self._parameter(f"{name}/embedding")
        self.operations.append(
            Operation(Kind.EMBED, 0, target.start, 0, target.width, weights=number)
        )

    def dense(self, name: str, x: Columns, width: int, use_bias: bool = True) -> Columns:
        """``flax.linen.Dense``."""
        weights = self._parameter(f"{name}/kernel")
        bias = self._parameter(f"{name}/bias") if use_bias else -1
        return self._write(Kind.DENSE, x, width, weights=weights, bias=bias)

    def norm(self, name: str, x: Columns) -> Columns:
        """``flax.linen.LayerNorm``; overwrites ``x``, which nothing else may read."""
        scale, bias = self._parameter(f"{name}/scale"), self._parameter(f"{name}/bias")
        value = self._write(Kind.NORM, x, x.width, weights=scale, bias=bias)
        self._take(1)  # 1 / standard deviation, kept for the way back
        return value

    def function(self, name: str, x: Columns) -> Columns:
        """An elementwise function; overwrites ``x``, which nothing else may read, with its slope."""
        kind = Kind.SWISH if name == "silu" else Kind[name.upper()]
        return self._write(kind, x, x.width)

    def add(self, x: Columns, y: Columns) -> Columns:
        """Sum of two values, which no later operation may read."""
        return self._write(Kind.ADD, x, x.width, weights=y.start)

    def _write(
        self, kind: Kind, x: Columns, width: int, weights: int = -1, bias: int = -1
    ) -> Columns:
        target = self._take(width)
        operation = Operation(kind, x.start, target.start, x.width, width, weights, bias)
        self.operations.append(operation)
        return target

    def _take(self, width: int) -> Columns:
        self.n_columns += width
        return Columns(self.n_columns - width, width)

    def _parameter(self, name: str) -> int:
        self.parameters.append(name)
        return len(self.parameters) - 1


def network_tape(config: ModelConfig) -> Tape:
    """The tape of a network; its activation must be one of ``ACTIVATIONS``."""
    n_features, network = config.descriptor.n_features, config.network
    tape = Tape(n_features + network.embed_d)
    x = Columns(0, tape.n_columns)
    tape.share()
    if network.embed_d:
        tape.embed("embed", Columns(n_features, network.embed_d))
    body = {"core": _core, "resnet": _resnet, "heteroscedastic": _heteroscedastic}
    body[network.kind](tape, config, x)
    return tape


def _core(tape: Tape, config: ModelConfig, x: Columns) -> None:
    """As ``network.Core``."""
    network, layers = config.network, [x]
    for k, width in enumerate(network.widths):
        x = tape.dense(f"body/Dense_{k}", x, width)
        x = tape.norm(f"body/LayerNorm_{k}", x) if k else x
        layers.append(x := tape.function(network.activation, x))
        if k + 1 == network.shared_layers:
            tape.share()
    x = tape.function(network.activation, tape.dense(f"body/Dense_{len(network.widths)}", x, 1))
    _finish(tape, tape.dense("body/denormalizer", x, 1))
    h = layers[1]
    for k, width in enumerate(network.head_widths):
        h = tape.norm(f"body/sigma2_LayerNorm_{k}", tape.dense(f"body/sigma2_Dense_{k}", h, width))
        h = tape.function(network.activation, h)
    for name in VARIANCES if network.head_widths else ():
        variance = tape.dense(f"body/{name}_denormalizer", h, 1)
        tape.outputs.append(tape.function("softplus", variance).start)


def _resnet(tape: Tape, config: ModelConfig, x: Columns) -> None:
    """As ``network.ResNetCore``."""
    x = _blocks(tape, "body/blocks", x, (*config.network.widths, 1), config.network.activation)
    _finish(tape, tape.dense("body/denormalizer", x, 1))


def _heteroscedastic(tape: Tape, config: ModelConfig, x: Columns) -> None:
    """As ``network.Heteroscedastic``."""
    network = config.network
    x = _blocks(tape, "body/trunk", x, network.widths, network.activation)

    def head(name: str, use_bias: bool) -> Columns:
        widths = (*network.head_widths, 1)
        h = _blocks(tape, f"body/{name}_head", x, widths, network.activation)
        return tape.dense(f"body/{name}_denormalizer", h, 1, use_bias)

    _finish(tape, head("energy", use_bias=True))
    for name in VARIANCES:
        tape.outputs.append(tape.function("softplus", head(name, use_bias=False)).start)


def _finish(tape: Tape, energy: Columns) -> None:
    tape.outputs.append(energy.start)
    tape.n_backward = len(tape.operations)


def _blocks(tape: Tape, name: str, x: Columns, widths: tuple[int, ...], activation: str) -> Columns:
    """As ``network.ResNet``."""
    for k, (inner, outer) in enumerate(pairwise(widths)):
        x = _residual_block(tape, f"{name}/block_{k}", x, inner, outer, activation)
    return x


def _residual_block(
    tape: Tape, name: str, x: Columns, inner: int, outer: int, activation: str
) -> Columns:
    """As ``network.ResidualBlock``."""

    def dense(k: int, value: Columns, width: int) -> Columns:
        value = tape.dense(f"{name}/Dense_{k}", value, width)
        return value if width == 1 else tape.norm(f"{name}/LayerNorm_{k}", value)

    h = tape.function(activation, dense(0, x, inner))
    h = tape.function(activation, dense(1, h, inner))
    h = dense(2, h, outer)
    is_identity = x.width == inner == outer
    return tape.function(activation, tape.add(h, x if is_identity else dense(3, x, outer)))
