"""Training that goes on from a potential: it begins with its predictions and is otherwise like any run."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ensembles import random_params
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import TINY, alloy, frames, losses

from neuralil_ase import NeuralILCalculator, Potential, load_potential, save_potential
from neuralil_ase.errors import ConfigError, DataError, ModelFileError, TrainingError
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.potential import flatten
from neuralil_ase.samples.linear import linear_members, without_linear
from neuralil_ase.samples.normalisation import Scaling, fold, unfold
from neuralil_ase.training import TrainingResult, TrainingSettings, train
from neuralil_ase.training.data import load_data
from neuralil_ase.training.loop import Trainer
from neuralil_ase.training.prepare import prepare
from neuralil_ase.training.settings import read_settings
from neuralil_ase.training.warm_start import Start, settings_from, start_of

KINDS = (
    NetworkConfig("core", (8, 4)),
    NetworkConfig("core", (8, 4), embed_d=0),
    NetworkConfig("core", (8, 4), (6,)),
    NetworkConfig("core", (8, 4), (6,), shared_layers=1),
    NetworkConfig("resnet", (8, 4)),
    NetworkConfig("heteroscedastic", (8, 4), (4,)),
)
FREE = {"epochs": 2, "validation_fraction": 0.25, "batch_size": 4, "learning_rate": 0.02}


def quick(data: list[Atoms], output: Path | None = None, **options: Any) -> TrainingResult:
    """A short run whose options say nothing about the architecture."""
    return train(data, output, report=False, **(FREE | {"checkpoint_every": 1} | options))


@lru_cache
def old() -> Potential:
    """Trained on one set of alloys."""
    return train(list(alloy()), settings=TINY, report=False).potential


@lru_cache
def new_data() -> list[Atoms]:
    """Other alloys, some of them compressed, so that all scales and references would be others."""
    others = [atoms.copy() for atoms in alloy(8, seed=5)]
    for k, atoms in enumerate(others):
        atoms.set_cell(atoms.cell * (1 - 0.01 * k), scale_atoms=True)
    return [relabelled(atoms) for atoms in others]


def relabelled(atoms: Atoms, zeros: Mapping[str, float] | None = None) -> Atoms:
    """EMT's labels, with the energy of every atom of an element counted from another zero."""
    atoms.calc = EMT()
    offset = sum((zeros or {}).get(symbol, 0.0) for symbol in atoms.symbols)
    results = {"energy": atoms.get_potential_energy() + offset, "forces": atoms.get_forces()}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def warm_trainer(potential: Potential, data: list[Atoms], **options: Any) -> Trainer:
    chosen = settings_from(Start(potential, "old"), TrainingSettings().updated(options), options)
    return Trainer(prepare(chosen, *load_data(data, chosen), Start(potential, "old")))


# --- folding -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network", KINDS, ids=lambda n: f"{n.kind}-{len(n.head_widths)}-{n.embed_d}-{n.shared_layers}"
)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_unfolding_is_the_inverse_of_folding(network: NetworkConfig, seed: int) -> None:
    config = ModelConfig(DescriptorConfig(("Au", "Cu"), 2), network, 3)
    rng = np.random.default_rng(seed)
    n = config.descriptor.n_features
    scaling = Scaling(
        rng.normal(size=n).astype(np.float32),
        np.exp(rng.uniform(-3, 3, n)).astype(np.float32),
        np.exp(rng.uniform(-3, 3, rng.choice([1, 3]))).astype(np.float32),
    )
    params = random_params(config, seed)
    there = fold(config, scaling, unfold(config, scaling, params))
    and_back = unfold(config, scaling, jax.tree.map(np.asarray, fold(config, scaling, params)))
    for result in (there, and_back):
        found = flatten(result)
        for name, value in flatten(params).items():
            assert np.asarray(found[name]).dtype == np.float32
            # a bias is the small difference of sums over all features
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-3, err_msg=name)
    for name in flatten(params):
        if "denormalizer" not in name and "Dense_0" not in name and "Dense_3" not in name:
            np.testing.assert_array_equal(flatten(there)[name], flatten(params)[name])


# --- the first state of a run ------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [pytest.param(KINDS[2], marks=pytest.mark.slow), KINDS[3],
     pytest.param(KINDS[4], marks=pytest.mark.slow), KINDS[5]],
    ids=lambda n: n.kind,
)  # fmt: skip
def test_a_run_begins_with_the_predictions_of_the_potential(network: NetworkConfig) -> None:
    before = random_potential(network)
    check_first_state(before, warm_trainer(before, new_data(), validation_fraction=0.25))


@pytest.mark.slow
def test_a_published_deep_ensemble_is_trained_on() -> None:
    """All of its layers learn, those of the variances too."""
    before = random_potential(KINDS[-1])
    trainer = warm_trainer(before, new_data(), **FREE)
    first = trainer.start()
    second = flatten(trainer.epoch(first).state.params)
    for name, values in flatten(first.state.params).items():
        assert np.isfinite(second[name]).all()
        assert np.abs(second[name] - values).max() > 0, name


def random_potential(network: NetworkConfig) -> Potential:
    config = replace(old().config, network=network)
    return Potential(config, random_params(config, 1), old().energy_reference)


def test_the_data_change_neither_architecture_nor_radii_nor_reference() -> None:
    radii = tuple(0.95 * radius for radius in old().config.zbl_radii)
    before = replace(old(), config=replace(old().config, zbl_radii=radii))
    cold = prepare(TINY, frames_from_atoms(new_data()), [])
    assert cold.config.zbl_radii != radii
    assert np.abs(cold.reference - before.energy_reference).max() > 1e-3
    trainer = warm_trainer(before, new_data(), validation_fraction=0.25)
    assert trainer.task.config == without_linear(before.config)
    np.testing.assert_array_equal(trainer.task.reference, before.energy_reference)
    check_first_state(before, trainer)


def test_another_zero_of_energy_moves_the_reference_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    zeros = {"Au": -900.0, "Cu": 50.0}
    shifted = [relabelled(atoms.copy(), zeros) for atoms in alloy()]
    with caplog.at_level(logging.WARNING):
        trainer = warm_trainer(old(), shifted, validation_fraction=0.25)
    assert (
        "eV/atom from those of old, by the same amount in all frames of a composition"
        in caplog.text
    )
    moved = trainer.task.reference - old().energy_reference
    np.testing.assert_allclose(moved, [-900.0, 50.0], atol=1.0)
    assert trainer.task.config == without_linear(old().config)
    after, atoms = trainer.potential(trainer.start().best), alloy(14, seed=3)[-1].copy()
    forces = [NeuralILCalculator(p).get_forces(atoms) for p in (old(), after)]
    np.testing.assert_allclose(forces[1], forces[0], atol=1e-4)
    warm = quick(shifted, start_from=old()).history
    assert warm[0]["energy_mae"] < 1.0  # of 247
    caplog.clear()
    warm_trainer(old(), list(alloy()), validation_fraction=0.25)
    assert not caplog.records


def test_another_zero_is_seen_where_it_cancels_on_the_average() -> None:
    """Cu +3 eV and Au -3 eV, as many frames rich in the one as in the other: the median shift is 0."""
    zeros, data = {"Au": -3.0, "Cu": 3.0}, []
    for k, atoms in enumerate(alloy(9)):
        copy = atoms.copy()
        copy.symbols[:] = "Cu"
        copy.symbols[: 4 + k] = "Au"
        data.append(relabelled(copy, zeros))
    trainer = warm_trainer(old(), data, validation_fraction=0.0)
    moved = trainer.task.reference - old().energy_reference
    np.testing.assert_allclose(moved, [-3.0, 3.0], atol=1.0)


def test_a_start_is_not_taught_its_own_predictions_unnoticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = []
    for atoms in alloy(5):
        copy = atoms.copy()
        copy.calc = NeuralILCalculator(old())
        results = {"energy": copy.get_potential_energy(), "forces": copy.get_forces()}
        copy.calc = SinglePointCalculator(copy, **results)
        data.append(copy)
    warm_trainer(old(), data, validation_fraction=0.0)
    assert "are the predictions of old itself" in caplog.text


def test_a_data_set_of_fewer_elements_will_do() -> None:
    copper = [relabelled(bulk("Cu", cubic=True, a=a) * (2, 1, 1)) for a in (3.5, 3.6, 3.7, 3.8)]
    check_first_state(old(), warm_trainer(old(), copper, validation_fraction=0.25))


def check_first_state(before: Potential, trainer: Trainer) -> None:
    """Energies, forces, stress and members on a frame that no run has seen."""
    after = trainer.potential(trainer.start().best)
    atoms = alloy(14, seed=3)[-1].copy()
    first, second = (
        NeuralILCalculator(potential, uncertainty="forces").prediction(atoms)
        for potential in (before, after)
    )
    assert second.energy == pytest.approx(first.energy, abs=1e-4)
    names = ["forces", "stress", "member_energies", "member_forces"]
    names += ["forces_aleatoric_std"] if before.config.has_aleatoric else []
    for name in names:
        expected = getattr(first, name)
        atol = 1e-4 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(getattr(second, name), expected, rtol=0, atol=atol)


# --- whole runs --------------------------------------------------------------------------------


def test_the_start_is_worth_its_training() -> None:
    """The first epoch of the continued run is already better than that of a fresh one."""
    warm = quick(list(alloy()), start_from=old()).history
    cold = train(list(alloy()), settings=TINY, report=False).history
    assert warm[0]["force_mae"] < 0.8 * cold[0]["force_mae"]


def test_the_model_names_its_start_and_takes_its_architecture(tmp_path: Path) -> None:
    save_potential(old(), tmp_path / "old.safetensors")
    path = tmp_path / "new.safetensors"
    result = quick(list(alloy()), path, start_from=tmp_path / "old.safetensors")
    saved = load_potential(path)
    assert saved.provenance["start_from"] == {
        "file": "old.safetensors",
        "sha256": Start(old(), "").sha256,
    }
    assert saved.provenance["settings"]["widths"] == [8, 4]
    assert saved.provenance["settings"]["members"] == 2
    assert saved.config == old().config
    assert len(result.history) == 2
    assert str(tmp_path) not in json.dumps(saved.provenance)
    in_memory = quick(list(alloy()), start_from=old()).potential.provenance["start_from"]
    assert in_memory == {**saved.provenance["start_from"], "file": "a potential in memory"}
    assert "start_from" not in old().provenance


def test_the_hash_knows_every_part_of_the_potential() -> None:
    params = jax.tree.map(np.copy, old().params)
    params["network"]["embed"]["embedding"][0, 0, 0] += 1e-3
    radii = (old().config.zbl_radii[0] + 0.01, *old().config.zbl_radii[1:])
    others = [
        replace(old(), params=params),
        replace(old(), energy_reference=old().energy_reference + 1e-3),
        replace(old(), config=replace(old().config, zbl_radii=radii)),
    ]
    assert len({Start(potential, "").sha256 for potential in [old(), *others]}) == 4
    same = replace(old(), provenance={}, calibration=None)
    assert Start(same, "other").sha256 == Start(old(), "").sha256


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = quick(list(alloy()), tmp_path / "whole", start_from=old(), epochs=4)
    part = tmp_path / "part"
    limit = {"start_from": old(), "epochs": 4, "time_limit": 1e-9}
    assert quick(list(alloy()), part, **limit).reason == "time limit"
    resumed = quick(list(alloy()), part, start_from=old(), epochs=4, resume=True)
    assert losses(resumed.history) == losses(whole.history)
    for a, b in zip(*(jax.tree.leaves(r.potential.params) for r in (whole, resumed)), strict=True):
        np.testing.assert_array_equal(a, b)


# --- refusals ----------------------------------------------------------------------------------


def test_resuming_with_another_start_is_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "model", list(alloy())
    other = replace(old(), energy_reference=old().energy_reference + 0.1)
    quick(data, path, start_from=old())
    with pytest.raises(TrainingError, match=r"began with a potential in memory \(SHA-256 \w+…\)"):
        quick(data, path, start_from=other, resume=True)
    with pytest.raises(TrainingError, match="this run starts from random parameters"):
        quick(data, path, settings=TINY, resume=True)
    cold = tmp_path / "cold"
    train(data, cold, settings=TINY, report=False)
    with pytest.raises(TrainingError, match="began with random parameters"):
        quick(data, cold, start_from=old(), resume=True)


def test_unknown_elements_are_named() -> None:
    silver = alloy()[0].copy()
    silver.symbols[3] = "Ag"
    data = [*alloy(), relabelled(silver)]
    with pytest.raises(DataError, match=r"structure 12 holds Ag, but .* only Au, Cu. Leave"):
        quick(data, start_from=old())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("members", 8), ("widths", (64, 32, 16, 16, 16)), ("n_max", 4), ("r_cut", 3.5), ("embed_d", 3),
        ("network", "resnet"), ("activation", "tanh"), ("cross_terms", False), ("pair_term", "none"),
        ("shared_layers", 1), ("isolated_atoms", {"Au": 0.0, "Cu": 0.0}),
    ],
)  # fmt: skip
def test_another_architecture_is_refused(option: str, value: Any) -> None:
    """Also where what was requested is the default (members, widths, n_max)."""
    with pytest.raises(ConfigError, match=rf"contradict them: {option} \(model: .*\)\. Leave"):
        quick(list(alloy()), start_from=old(), **{option: value})


def test_settings_that_differ_from_the_defaults_count_as_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"n_max \(model: 2, requested: 3\); members"):
        quick([], start_from=old(), settings=TrainingSettings(members=3, n_max=3))
    (tmp_path / "s.toml").write_text("members = 8\n")
    options = read_settings(tmp_path / "s.toml")
    with pytest.raises(ConfigError, match="members"):
        quick([], start_from=old(), **options)


def test_the_same_architecture_may_be_repeated() -> None:
    reference = dict(zip(("Au", "Cu"), old().energy_reference.tolist(), strict=True))
    fixed = {
        "linear": linear_members(old()),
        "radial_scaling": old().config.descriptor.radial_scaling,
    }
    chosen = TINY.updated({"isolated_atoms": reference, **fixed})
    kept = settings_from(Start(old(), "old"), chosen, {"members": 2})
    assert kept == chosen


def test_a_trained_pair_term_is_refused() -> None:
    config = ModelConfig(
        DescriptorConfig(("Cu",), 2), NetworkConfig(widths=(4,)), 1, "repulsive-morse"
    )
    params = random_params(replace(config, pair_term="none"), 0)
    params["pair"] = {
        "embedding": np.zeros((1, 1, 3), np.float32),
        "switch": np.zeros((1, 1, 1), np.float32),
    }
    with pytest.raises(ConfigError, match=r"pair term 'repulsive-morse' came with a published"):
        start_of(Potential(config, params, np.zeros(1)))


def test_the_old_model_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_potential(old(), path)
    with pytest.raises(ConfigError, match="must not overwrite it"):
        quick(list(alloy()), path, start_from=tmp_path / "." / "model.safetensors")


def test_a_start_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.safetensors does not exist"):
        quick(list(alloy()), start_from=tmp_path / "none.safetensors")


def test_float64_potentials_are_trained_in_float32() -> None:
    double = replace(old(), params=jax.tree.map(np.float64, old().params))
    trainer = warm_trainer(double, list(alloy()), validation_fraction=0.25)
    assert {leaf.dtype for leaf in jax.tree.leaves(trainer.start().best)} == {np.dtype(np.float32)}
    assert len(frames()) == len(trainer.task.train) + len(trainer.task.validation)
