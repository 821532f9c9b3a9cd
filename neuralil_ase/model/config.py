"""Frozen, validated descriptions of a model. No arrays, no input or output.

A description is hashable, so that compiled functions can be cached on it, and maps one to one onto the JSON
header of a model file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from ase.data import chemical_symbols

from neuralil_ase.errors import ConfigError

NetworkKind = Literal["core", "resnet", "heteroscedastic"]
PairTerm = Literal["none", "zbl", "repulsive-morse", "morse"]
ACTIVATIONS = (
    "swish", "silu", "gelu", "tanh", "softplus", "relu", "elu", "celu", "selu", "sigmoid", "mish",
)  # fmt: skip
MAX_SCALING = 8
"""Largest power of the radial scaling."""


@dataclass(frozen=True)
class DescriptorConfig:
    """Spherical Bessel power spectrum of the element-resolved neighbour density.

    Attributes
    ----------
    elements
        Chemical symbols in alphabetical order; their order is the order of the features.
    n_max
        Largest radial index; order l = 0 … n_max has the radial functions n = 0 … n_max - l.
    r_cut
        Cutoff radius in Å.
    cross_terms
        False: the published power spectrum (products of equal n for each pair of elements). True: all products of
        (element, n) with (element', n') at equal l.
    radial_scaling
        The radial functions are multiplied by (1 - r²/r_cut²) to this power, so that near neighbours count more (radial
        scaling of Willatt et al., Phys. Chem. Chem. Phys. 20, 29661 (2018), doi:10.1039/C8CP05921G). 0: the published
        functions.
    """

    elements: tuple[str, ...]
    n_max: int = 4
    r_cut: float = 3.5
    cross_terms: bool = False
    radial_scaling: int = 0

    def __post_init__(self) -> None:
        _require(len(self.elements) > 0, "a model needs at least one element")
        _require(
            tuple(sorted(set(self.elements))) == tuple(self.elements),
            f"elements must be unique and in alphabetical order, got {list(self.elements)}",
        )
        unknown = sorted(set(self.elements) - set(chemical_symbols[1:]))
        _require(not unknown, f"unknown chemical symbols among the elements: {unknown}")
        _require(0 <= self.n_max <= 13, f"n_max must lie between 0 and 13, got {self.n_max}")
        _require(0.1 <= self.r_cut <= 50, f"r_cut must lie between 0.1 and 50 Å, got {self.r_cut}")
        _require(
            0 <= self.radial_scaling <= MAX_SCALING,
            f"radial_scaling must lie between 0 and {MAX_SCALING}, got {self.radial_scaling}",
        )

    @property
    def n_radial(self) -> tuple[int, ...]:
        """Number of radial functions of every order l."""
        return tuple(self.n_max + 1 - order for order in range(self.n_max + 1))

    @property
    def n_features(self) -> int:
        """Length of the descriptor of one atom."""
        n = len(self.elements)
        if self.cross_terms:
            return sum(n * k * (n * k + 1) // 2 for k in self.n_radial)
        return n * (n + 1) // 2 * sum(self.n_radial)


@dataclass(frozen=True)
class NetworkConfig:
    """The multilayer perceptron from descriptor and element to atomic energy.

    Attributes
    ----------
    kind
        "core": dense layers with layer normalisation, optionally with aleatoric layers.
        "resnet": residual blocks. "heteroscedastic": a residual trunk with a head for the energy and one for each
        aleatoric variance.
    widths
        Layer widths (for "heteroscedastic", of the trunk).
    head_widths
        For "heteroscedastic", the widths of the three heads. For "core", the widths of the aleatoric layers, which
        follow the first layer; () for none.
    activation
        Name of the activation function in jax.nn; the published models use "swish".
    embed_d
        Length of the trainable vector of each element.
    shared_layers
        For "core": number of first layers that all members share (a last-layer ensemble); 0 for independent members.
    linear
        Whether a linear function of the descriptor is added to the energy, with weights for each element of the
        central atom.
    """

    kind: NetworkKind = "core"
    widths: tuple[int, ...] = (64, 32, 16, 16, 16)
    head_widths: tuple[int, ...] = ()
    activation: str = "swish"
    embed_d: int = 2
    shared_layers: int = 0
    linear: bool = False

    def __post_init__(self) -> None:
        _require_choice("network kind", self.kind, get_args(NetworkKind))
        _require_choice("activation", self.activation, ACTIVATIONS)
        _require(len(self.widths) > 0, "a network needs at least one layer")
        _require(
            all(1 <= w <= 65536 for w in self.widths + self.head_widths),
            f"layer widths must lie between 1 and 65536, got {self.widths} and {self.head_widths}",
        )
        _require(
            self.kind == "core" or (self.kind == "heteroscedastic") == bool(self.head_widths),
            "the network kind 'heteroscedastic' needs head_widths, and 'resnet' has no heads",
        )
        _require(
            0 <= self.embed_d <= 1024, f"embed_d must lie between 0 and 1024, got {self.embed_d}"
        )
        limit = len(self.widths) if self.kind == "core" else 0
        _require(
            0 <= self.shared_layers <= limit,
            f"shared_layers must lie between 0 and {limit} for kind {self.kind!r}, got {self.shared_layers}",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Everything except the parameters that is needed to evaluate a potential.

    Attributes
    ----------
    descriptor, network
        Descriptor and network.
    n_members
        Number of members of the ensemble, at least 1.
    pair_term
        Added to the network's atomic energies: "zbl" (screened nuclear repulsion without parameters), "morse" or
        "repulsive-morse" (trained, as in the published files), or "none".
    zbl_radii
        For "zbl": the distance in Å below which each pair of elements is repelled, in the order of
        ``np.triu_indices(len(elements))``; no larger than r_cut.
    """

    descriptor: DescriptorConfig
    network: NetworkConfig = field(default_factory=NetworkConfig)
    n_members: int = 1
    pair_term: PairTerm = "none"
    zbl_radii: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _require_choice("pair term", self.pair_term, get_args(PairTerm))
        n = len(self.descriptor.elements)
        _require(
            len(self.zbl_radii) == (n * (n + 1) // 2 if self.pair_term == "zbl" else 0),
            f"pair term {self.pair_term!r} with {n} elements got {len(self.zbl_radii)} zbl_radii",
        )
        _require(
            all(0.05 <= radius <= self.descriptor.r_cut for radius in self.zbl_radii),
            f"zbl_radii must lie between 0.05 Å and r_cut, got {self.zbl_radii}",
        )
        _require(
            1 <= self.n_members <= 1024,
            f"n_members must lie between 1 and 1024, got {self.n_members}",
        )

    @property
    def has_aleatoric(self) -> bool:
        """Whether the network also predicts aleatoric variances: those of its own errors of energy and force."""
        return bool(self.network.head_widths)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        ConfigError
            If a key is unknown or missing, or a value is of the wrong type or out of range.
        """
        parts = dict(data)
        parts["descriptor"] = _build(DescriptorConfig, parts.get("descriptor"))
        parts["network"] = _build(NetworkConfig, parts.get("network"))
        return _build(cls, parts)


def _build(cls: type, data: Any) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{cls.__name__} must be a table of settings, got {type(data).__name__}")
    known = {entry.name: entry for entry in fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(
            f"unknown settings {unknown} in {cls.__name__}; known are {sorted(known)}"
        )
    try:
        return cls(**{key: coerced(known[key].type, key, value) for key, value in data.items()})
    except TypeError as error:
        raise ConfigError(f"{cls.__name__} is incomplete: {error}") from error


def coerced(kind: Any, key: str, value: Any) -> Any:
    """A value from JSON, TOML or Python for a field of this type: lists become tuples, and an int may be a float.

    Raises
    ------
    ConfigError
        If the value is of another type. The message names ``key``.
    """
    if type(None) in get_args(kind):
        if value is None:
            return None
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} must be a list, got {value!r}")
        return tuple(coerced(get_args(kind)[0], key, item) for item in value)
    if get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a table of numbers by name, got {value!r}")
        return {name: coerced(get_args(kind)[1], f"{key}.{name}", x) for name, x in value.items()}
    if get_origin(kind) is Literal:
        return value  # the class says which choices there are
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{key} must be of type {kind.__name__}, got {value!r}")
    return value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"unknown {what} {value!r}; choose one of {', '.join(choices)}")
