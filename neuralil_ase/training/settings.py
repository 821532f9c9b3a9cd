"""The settings of a training run, validated; also read from TOML files."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from neuralil_ase.errors import ConfigError
from neuralil_ase.evaluation.labels import Keys, StressUnit, check_units
from neuralil_ase.model.config import MAX_SCALING, DescriptorConfig, NetworkKind, coerced
from neuralil_ase.samples.cutoff import Sight

Loss = Literal["log-cosh", "huber", "mse"]
Optimizer = Literal["adamw", "adam", "muon", "schedule-free"]
DefaultPairTerm = Literal["zbl", "none"]
WithLinear = Literal["all", "half", "none"]

DEFAULT_STEPS = 5000
"""Number of steps if no epochs are given. Optimisation needs about as many steps for any size of the data set."""
FEWEST_EPOCHS = 100
"""Smallest number of epochs of such a run, for large data sets. With 114 epochs instead of 57, the force RMSE of copper
on held-out training frames falls from 63 to 45 meV/Å."""
EPOCHS_OF_MOLECULES = 200
"""The same for a small molecule, whose frames have few atoms. With 200 epochs instead of 100, validated forces of 337
frames of acetylacetone are 12 % better."""

DECAY_OF_ONE_FRAME = 400.0
DECAY_OF_ONE_MOLECULE = 40.0
LEAST_DECAY, MOST_DECAY = 0.1, 2.0
"""Default weight decay times the number of training frames, in general and for a small molecule, and the limits of the
decay. Weight decay acts as a prior, which should count less with more data. Best values: 2 for 36 cells of a liquid
(with 0.5, forces are 2 % worse), 0.5 to 2 for 72 cells of a perovskite, 0.1 for 360 frames of a molecule (with 2,
forces are a third worse). For 200 frames of a metal, a smaller decay makes most frames better and the largest errors
worse."""

WIDTHS = (64, 32, 16, 16, 16)
WIDTHS_OF_MOLECULES = (128, 64, 32, 16)
"""Default widths, in general and for a molecule whose atoms all see each other. The molecule has few environments and
many examples of each: wider layers make the forces of acetylacetone 11 % better. In copper they made energies worse."""

RADIAL_SPACING = 0.9
"""Cutoff in Å divided by the default largest radial index, if there are many elements."""
FINEST_SPACING = 0.6
"""The same quotient, as long as the descriptor stays short. With 120 features instead of 56, the errors of held-out
forces of copper fall from 16 to 12 meV/Å. For a liquid of four elements with 470 features, more features made errors
larger."""
STEEP = 4
"""From this radial scaling on, the matter consists of molecules: the cutoff is at least twice the range of the radial
functions. Members with a linear part and members without make different errors there, and their mean is better than
either kind (NOTEBOOK, "Half of the members"). Ionic crystals have less scaling; there, a linear
part extrapolates better to close contacts."""
MOST_RADIAL = 8
"""Largest radial index that is chosen; the compiled core has no code for larger ones."""
FEWEST_RADIAL = 4
"""The limit on the length of the descriptor does not reduce the largest radial index below this value."""
SHORT_DESCRIPTOR, LONG_DESCRIPTOR = 170, 700
"""Largest number of features of a short descriptor, and of any descriptor. The second limit does not hold for small
molecules."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run. The defaults train well for most data.

    Attributes
    ----------
    energy_key
        Name of the energy in the data, in eV. By default the labels that ASE recognises are used. If the name differs
        between frames, give several names separated by commas; the first one that a frame has is used.
    forces_key
        Name of the forces in the data, in eV/Å; used like ``energy_key``.
    stress_key
        Name of the stress in the data, in the unit ``stress_unit``; used like ``energy_key``.
    virial_key
        Name of the virial in the data, in eV; used like ``energy_key``. The default is "virial" if a frame has no
        stress.
    stress_unit
        Unit of the stresses: "eV/A^3", "GPa" or "kB".
    stress_sign
        1 if stresses are positive under tension, as in ASE, and virials under compression (virial = -V stress). -1 if
        the signs are reversed, as in the output of VASP.
    weight_key
        Key in ``atoms.info`` of the weight of each frame. Only the ratios of weights matter. Frames of weight 0 are
        left out. An isolated atom weighs as much as the mean frame.
    validation_files
        Data sets to validate on. Without them, ``validation_fraction`` of the data is held out.
    validation_fraction
        Fraction of the frames (with ``split_by``, of the groups) held out for validation; 0 trains on everything.
    split_by
        Key in ``atoms.info``. Frames with the same value stay together, in training or in validation. The values
        "train", "valid" and "test" define the split themselves.
    max_frames
        Train on a random subset of this many frames; 0 for all.
    isolated_atoms
        Energy in eV of an isolated atom of each element. Frames of single atoms in the data have the same effect. These
        energies are learnt like frames. They also determine the energies of the elements if the compositions of the
        other frames do not.
    max_force
        Frames with a force component above this, in eV/Å, are reported and left out.
    network
        Kind of network: "core" or "resnet". "heteroscedastic", the published deep ensemble, needs ``start_from``.
    widths
        Widths of the layers. () chooses them from the number of neighbours in the data.
    head_widths
        Widths of the aleatoric layers, which predict the variances of a member's own errors. In a "core" network they
        follow its first layer; in a "heteroscedastic" network they form its three heads. () gives a core network
        without them. A "resnet" has no aleatoric layers.
    activation
        Name of the activation function in jax.nn.
    embed_d
        Length of the trainable vector of each element.
    shared_layers
        Number of layers, counted from the first, that all members share. Only for the network "core".
    n_max
        Largest radial index of the descriptor. 0 chooses it from the cutoff and the number of elements.
    r_cut
        Cutoff radius in Å. 0 chooses it from the distances and the density of neighbours in the data.
    cross_terms
        Use the products of all pairs of radial functions in the descriptor, not only of equal ones.
    radial_scaling
        The radial functions are multiplied by (1 - r²/r_cut²) to this power, so that near neighbours count more. By
        default it is chosen from the distances in the data.
    members
        Number of members of the ensemble; spreads and error bars need two or more.
    pair_term
        Short-range repulsion: "zbl" below the distances in the data, or "none".
    linear
        Which members have a linear function of the descriptor in their energy: "all", "half" (every second member) or
        "none". It is fitted by least squares before the networks are trained on the rest. It is left out if it does not
        improve held-out frames. By default "half" for molecular liquids (radial scaling of 4 or more), "none" for small
        molecules, and "all" for other matter. Far from the data, as where ions of a liquid come closer than in any
        frame, "none" is safer, though its errors near the data are larger.
    loss
        Loss function of each residual.
    force_scale
        Force residual in eV/Å at which the losses "log-cosh" and "huber" turn from quadratic to linear.
    energy_scale
        Energy residual in eV/atom at which the losses "log-cosh" and "huber" turn from quadratic to linear.
    stress_scale
        Stress residual in eV/Å³ at which the losses "log-cosh" and "huber" turn from quadratic to linear.
    force_weight
        Weight of the forces in the loss. Residuals are divided by their scale first.
    energy_weight
        Weight of the energies in the loss.
    stress_weight
        Weight of the stresses in the loss.
    bootstrap
        Each member trains on its own resampling of the frames.
    optimizer
        Name of the optimiser in optax.
    learning_rate
        Highest learning rate of the one-cycle schedule ("schedule-free" keeps it constant after the warm-up).
    weight_decay
        Decoupled decay of the weight matrices; not used by "adam". The default is 400 divided by the number of
        training frames (40 for a small molecule), but between 0.1 and 2.
    clip_norm
        Largest norm of the gradient of a member; larger gradients are scaled down.
    warmup
        Fraction of the run during which the learning rate rises.
    final_rate
        Last learning rate divided by the highest one.
    ema
        Decay per step of the moving average of the weights, which is validated and saved; 0 for no average.
    epochs
        Passes over the data. 0 chooses about 5000 steps, but at least 100 epochs (200 for a small molecule).
    batch_size
        Frames per step.
    time_limit
        Stop after this many seconds and save the best model; 0 for no limit. The learning-rate schedule does not adapt.
    validate_every
        Epochs between validations. The state with the lowest validation loss is kept.
    checkpoint_every
        Epochs between checkpoints. One more is written after the first epoch.
    seed
        Seed of the split, the initial parameters and the order of the frames.
    memory_budget
        Memory in bytes for precomputed derivatives of pairs. The rest is computed again at every step.
    """

    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    virial_key: str | None = None
    stress_unit: StressUnit = "eV/A^3"
    stress_sign: int = 1
    weight_key: str | None = None
    validation_files: tuple[str, ...] = ()
    validation_fraction: float = 0.1
    split_by: str | None = None
    max_frames: int = 0
    isolated_atoms: Mapping[str, float] | None = None
    max_force: float = 200.0
    network: NetworkKind = "core"
    widths: tuple[int, ...] = ()
    head_widths: tuple[int, ...] = (16,)
    activation: str = "swish"
    embed_d: int = 2
    shared_layers: int = 0
    n_max: int = 0
    r_cut: float = 0.0
    cross_terms: bool = True
    radial_scaling: int | None = None
    members: int = 8
    pair_term: DefaultPairTerm = "zbl"
    linear: WithLinear | None = None
    loss: Loss = "log-cosh"
    force_scale: float = 0.2
    energy_scale: float = 0.002
    stress_scale: float = 0.01
    force_weight: float = 8.0
    energy_weight: float = 0.04
    stress_weight: float = 0.1
    bootstrap: bool = False
    optimizer: Optimizer = "muon"
    learning_rate: float = 2e-3
    weight_decay: float | None = None
    clip_norm: float = 10.0
    warmup: float = 0.1
    final_rate: float = 1e-3
    ema: float = 0.99
    epochs: int = 0
    batch_size: int = 2
    time_limit: float = 0.0
    validate_every: int = 5
    checkpoint_every: int = 20
    seed: int = 0
    memory_budget: int = 4 * 2**30

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(filter(None, choices))}"
                )
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} must lie between {low:g} and {high:g}, got {value}")
        check_units(self.stress_unit, self.stress_sign)

    @property
    def keys(self) -> Keys:
        """Names of the labels in the data. Labels with weight 0 may be missing."""
        weights = {"energy": self.energy_weight, "forces": self.force_weight}
        return Keys(
            self.energy_key,
            self.forces_key,
            self.stress_key,
            self.virial_key,
            self.weight_key,
            self.stress_unit,
            self.stress_sign,
            tuple(label for label, weight in weights.items() if weight == 0),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON and TOML (unset options left out)."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrainingSettings":
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        ConfigError
            If a key is unknown or a value is of the wrong type or out of range.
        """
        return cls(**_checked(data))

    def with_frames(self, n_frames: int, is_molecule: bool = False) -> "TrainingSettings":
        """A copy with epochs, weight decay, widths and ``linear`` filled in, for this number of training frames."""
        steps_per_epoch = -(-n_frames // self.batch_size)
        fewest = EPOCHS_OF_MOLECULES if is_molecule else FEWEST_EPOCHS
        epochs = self.epochs or max(fewest, -(-DEFAULT_STEPS // steps_per_epoch))
        decay = self.weight_decay
        if decay is None:
            of_one = DECAY_OF_ONE_MOLECULE if is_molecule else DECAY_OF_ONE_FRAME
            decay = min(max(of_one / n_frames, LEAST_DECAY), MOST_DECAY)
        widths = self.widths or (WIDTHS_OF_MOLECULES if is_molecule else WIDTHS)
        linear = self.linear or self._usual_linear(is_molecule)
        return replace(self, epochs=epochs, weight_decay=decay, widths=widths, linear=linear)

    def _usual_linear(self, is_molecule: bool) -> WithLinear:
        if is_molecule:  # held-out forces have errors of 13 meV/Å without and 18 with a linear part
            return "none"
        return "half" if (self.radial_scaling or 0) >= STEEP else "all"

    def with_descriptor(self, sight: Sight, elements: tuple[str, ...]) -> "TrainingSettings":
        """A copy with cutoff, radial scaling and largest radial index filled in."""
        r_cut, scaling = self.r_cut or sight.r_cut, self.radial_scaling
        if scaling is None:
            scaling = sight.scaling(r_cut)
        n_max = self.n_max or self._usual_n_max(r_cut, elements, sight.is_molecule)
        return replace(self, r_cut=r_cut, n_max=n_max, radial_scaling=scaling)

    def _usual_n_max(self, r_cut: float, elements: tuple[str, ...], is_molecule: bool) -> int:
        """Largest radial index for a resolution in Å, within limits on the length of the descriptor."""

        def length(n_max: int) -> int:
            return DescriptorConfig(elements, n_max, r_cut, self.cross_terms).n_features

        n_max = min(round(r_cut / RADIAL_SPACING), MOST_RADIAL)
        finest = min(int(r_cut / FINEST_SPACING + 1e-9), MOST_RADIAL)
        while n_max < finest and length(n_max + 1) <= SHORT_DESCRIPTOR:
            n_max += 1
        while n_max > FEWEST_RADIAL and length(n_max) > LONG_DESCRIPTOR and not is_molecule:
            n_max -= 1
        return n_max

    def updated(self, options: Mapping[str, Any]) -> "TrainingSettings":
        """A copy with some options changed, validated."""
        return replace(self, **_checked(options))


def read_settings(path: str | Path) -> dict[str, Any]:
    """Options from a TOML file, checked.

    Raises
    ------
    ConfigError
        If the file cannot be read or parsed, or holds an unknown or wrong option.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {path} is not valid TOML: {error}") from error
    return _checked(data)


def _checked(data: Mapping[str, Any]) -> dict[str, Any]:
    known = {field.name: field.type for field in fields(TrainingSettings)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(f"unknown training options {unknown}; known are {', '.join(known)}")
    return {key: coerced(known[key], key, value) for key, value in data.items()}


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "loss": get_args(Loss),
    "optimizer": get_args(Optimizer),
    "pair_term": get_args(DefaultPairTerm),
    "network": get_args(NetworkKind),
    "linear": (*get_args(WithLinear), None),
}
_RANGES: dict[str, tuple[float, float]] = {
    "validation_fraction": (0, 0.9),
    "max_frames": (0, 10**9),
    "max_force": (1e-3, 1e9),
    "n_max": (0, 100),
    "r_cut": (0, 100),
    "radial_scaling": (0, MAX_SCALING),
    "members": (1, 1024),
    "force_scale": (1e-6, 1e6),
    "energy_scale": (1e-9, 1e6),
    "stress_scale": (1e-9, 1e6),
    "force_weight": (0, 1e9),
    "energy_weight": (0, 1e9),
    "stress_weight": (0, 1e9),
    "learning_rate": (1e-12, 10),
    "weight_decay": (0, 10),
    "clip_norm": (1e-9, 1e12),
    "warmup": (0, 1),
    "final_rate": (0, 1),
    "ema": (0, 0.999999),
    "epochs": (0, 10**7),
    "batch_size": (1, 10**6),
    "time_limit": (0, 1e9),
    "validate_every": (1, 10**7),
    "checkpoint_every": (1, 10**7),
    "memory_budget": (0, 2**50),
}
