"""Descriptions of models: what is refused, what is counted, and the way through JSON."""

import json
from itertools import combinations_with_replacement
from typing import Any

import pytest

from neuralil_ase.errors import ConfigError, NeuralILError
from neuralil_ase.model.config import (
    ACTIVATIONS,
    DescriptorConfig,
    ModelConfig,
    NetworkConfig,
)

EAN = DescriptorConfig(("C", "H", "N", "O"))
FULL = ModelConfig(
    DescriptorConfig(("H", "O"), n_max=3, r_cut=4.5, cross_terms=True, radial_scaling=2),
    NetworkConfig("core", (16, 8), activation="tanh", embed_d=3, shared_layers=1, linear=True),
    n_members=5,
    pair_term="zbl",
    zbl_radii=(0.7, 0.9, 1.1),
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"elements": ()}, "at least one element"),
        ({"elements": ("H", "C")}, r"alphabetical order, got \['H', 'C'\]"),
        ({"elements": ("C", "C")}, "unique"),
        ({"elements": ("C", "Qq")}, "unknown chemical symbols.*Qq"),
        ({"elements": ("X",)}, "unknown chemical symbols.*X"),
        ({"n_max": -1}, "n_max must lie between 0 and 13, got -1"),
        ({"n_max": 14}, "n_max must lie between 0 and 13, got 14"),
        ({"r_cut": 0.0}, "r_cut must lie between 0.1 and 50 Å, got 0.0"),
        ({"radial_scaling": -1}, "radial_scaling must lie between 0 and 8, got -1"),
        ({"radial_scaling": 9}, "radial_scaling must lie between 0 and 8, got 9"),
        ({"r_cut": float("nan")}, "r_cut must lie .* got nan"),
        ({"r_cut": float("inf")}, "r_cut must lie .* got inf"),
    ],
)
def test_descriptor_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DescriptorConfig(**({"elements": ("C", "H")} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "transformer"}, "unknown network kind 'transformer'; choose one of core, resnet"),
        ({"activation": "sine"}, "unknown activation 'sine'; choose one of swish"),
        ({"widths": ()}, "at least one layer"),
        ({"widths": (8, 0)}, r"layer widths must lie between 1 and 65536, got \(8, 0\)"),
        ({"embed_d": -1}, "embed_d must lie between 0 and 1024, got -1"),
        ({"kind": "resnet", "head_widths": (4,)}, "'resnet' has no heads"),
        ({"kind": "heteroscedastic"}, "the network kind 'heteroscedastic' needs head_widths"),
        ({"widths": (8,), "shared_layers": 2}, "shared_layers must lie between 0 and 1"),
        ({"kind": "resnet", "shared_layers": 1}, "between 0 and 0 for kind 'resnet', got 1"),
    ],
)
def test_network_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pair_term": "coulomb"}, "unknown pair term 'coulomb'; choose one of none, zbl"),
        ({"pair_term": "zbl"}, "'zbl' with 4 elements got 0 zbl_radii"),
        ({"zbl_radii": (1.0,) * 10}, "'none' with 4 elements got 10 zbl_radii"),
        ({"pair_term": "zbl", "zbl_radii": (1.0,) * 9 + (4.0,)}, "between 0.05 Å and r_cut"),
        ({"n_members": 0}, "n_members must lie between 1 and 1024, got 0"),
    ],
)
def test_model_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(EAN, **settings)


def test_errors_are_caught_as_the_package_s_own_and_as_value_errors() -> None:
    with pytest.raises(NeuralILError):
        DescriptorConfig(())
    with pytest.raises(ValueError, match="at least one"):
        DescriptorConfig(())


@pytest.mark.parametrize("n_max", [0, 1, 4])
def test_features_are_counted_as_pairs_of_elements_times_orders(n_max: int) -> None:
    elements = ("C", "H", "N", "O")
    channels = [(n, order) for order in range(n_max + 1) for n in range(n_max + 1 - order)]
    plain = [(*pair, *c) for pair in combinations_with_replacement(elements, 2) for c in channels]
    assert DescriptorConfig(elements, n_max).n_features == len(plain)
    cross = [
        pair
        for order in range(n_max + 1)
        for pair in combinations_with_replacement(
            [(e, n) for e in elements for n, at in channels if at == order], 2
        )
    ]
    assert DescriptorConfig(elements, n_max, cross_terms=True).n_features == len(cross)


def test_published_model_has_150_features() -> None:
    """Four elements and n_max = 4: 10 pairs of elements, 15 channels; arXiv:2106.16220."""
    assert EAN.n_features == 150


@pytest.mark.parametrize("config", [FULL, ModelConfig(EAN)])
def test_description_survives_json(config: ModelConfig) -> None:
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


def test_whole_numbers_serve_as_lengths() -> None:
    """A JSON writer of another language turns 4.0 into 4."""
    data = FULL.to_dict()
    data["descriptor"]["r_cut"] = 4
    r_cut = ModelConfig.from_dict(data).descriptor.r_cut
    assert r_cut == 4
    assert type(r_cut) is float


def _changed(**changes: Any) -> dict[str, Any]:
    """FULL as a table, with ``part__key`` replaced."""
    data = FULL.to_dict()
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (data[part] if part else data)[key] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_changed(colour="red"), r"unknown settings \['colour'\] in ModelConfig; known are"),
        (_changed(network__depth=3), r"unknown settings \['depth'\] in NetworkConfig"),
        (_changed(descriptor=None), "DescriptorConfig must be a table of settings, got NoneType"),
        (_changed(network=[1]), "NetworkConfig must be a table of settings, got list"),
        (_changed(descriptor={}), "DescriptorConfig is incomplete.*elements"),
        (_changed(descriptor__elements="HO"), "elements must be a list, got 'HO'"),
        (_changed(descriptor__elements=["H", 8]), "elements must be of type str, got 8"),
        (_changed(descriptor__n_max=3.0), "n_max must be of type int, got 3.0"),
        (_changed(descriptor__n_max=True), "n_max must be of type int, got True"),
        (_changed(descriptor__r_cut="4.5"), "r_cut must be of type float, got '4.5'"),
        (_changed(descriptor__cross_terms=1), "cross_terms must be of type bool, got 1"),
        (_changed(network__widths=[16.0]), "widths must be of type int, got 16.0"),
        (_changed(network__kind=["core"]), "unknown network kind"),
        (_changed(n_members=10**30), "n_members must lie between"),
        (_changed(zbl_radii=[0.7, 0.9, None]), "zbl_radii must be of type float, got None"),
    ],
)
def test_forged_descriptions_are_refused_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(data)


def test_every_activation_exists() -> None:
    from neuralil_ase.model.network import activation

    assert all(callable(activation(name)) for name in ACTIVATIONS)
