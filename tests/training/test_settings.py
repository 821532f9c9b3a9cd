"""Settings: one table, from TOML or the command line, refused when wrong."""

import argparse
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from neuralil_ase.errors import ConfigError
from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms
from neuralil_ase.options import add_options, given_options, help_texts
from neuralil_ase.samples.cutoff import (
    SHORT_BOND,
    WIDEST,
    Sight,
    Surroundings,
    sight_for,
    surroundings,
)
from neuralil_ase.training.settings import (
    DECAY_OF_ONE_FRAME,
    DEFAULT_STEPS,
    EPOCHS_OF_MOLECULES,
    FEWEST_EPOCHS,
    MOST_RADIAL,
    TrainingSettings,
    read_settings,
)


def test_toml_is_read_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("widths = [32, 16]\nepochs = 7\nr_cut = 4\n[isolated_atoms]\nH = -13.6\n")
    settings = TrainingSettings().updated(read_settings(path))
    assert settings.widths == (32, 16)
    assert settings.isolated_atoms == {"H": -13.6}
    assert isinstance(settings.r_cut, float)
    path.write_text("epoch = 7\n")
    with pytest.raises(
        ConfigError, match=r"unknown training options \['epoch'\]; known are .*epochs"
    ):
        read_settings(path)
    path.write_text("epochs = \n")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_settings(path)
    with pytest.raises(ConfigError, match="cannot read the settings file"):
        read_settings(tmp_path / "none.toml")


def test_settings_survive_the_round_trip() -> None:
    settings = TrainingSettings(widths=(3, 2), isolated_atoms={"H": 1.0}, energy_key="e")
    assert TrainingSettings.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs must lie between 0"),
        ({"learning_rate": -1.0}, "learning_rate must lie"),
        ({"loss": "cubic"}, "unknown loss 'cubic'; choose one of log-cosh"),
        ({"optimizer": "sgd"}, "unknown optimizer"),
        ({"network": "transformer"}, "unknown network"),
        ({"epochs": 1.5}, "epochs must be of type int"),
        ({"widths": 8}, "widths must be a list"),
        ({"widths": ["a"]}, "widths must be of type int"),
        ({"isolated_atoms": 3.0}, "isolated_atoms must be a table"),
        ({"isolated_atoms": {"H": "1"}}, "isolated_atoms.H must be of type float"),
        ({"r_cut": 10**400}, "r_cut must be of type float"),
        ({"loss": 3}, "unknown loss 3"),
        ({"bootstrap": 1}, "bootstrap must be of type bool"),
        ({"wdths": (8,)}, "unknown training options"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingSettings().updated(options)


@pytest.mark.parametrize("n_frames", [1, 3, 50, 400])
@pytest.mark.parametrize(
    ("is_molecule", "fewest"), [(False, FEWEST_EPOCHS), (True, EPOCHS_OF_MOLECULES)]
)
def test_without_epochs_the_number_of_steps_counts(
    n_frames: int, is_molecule: bool, fewest: int
) -> None:
    settings = TrainingSettings().with_frames(n_frames, is_molecule)
    steps_per_epoch = -(-n_frames // settings.batch_size)
    assert settings.epochs >= fewest
    assert settings.epochs * steps_per_epoch >= DEFAULT_STEPS
    assert settings.epochs == fewest or (settings.epochs - 1) * steps_per_epoch < DEFAULT_STEPS
    assert TrainingSettings(epochs=7).with_frames(n_frames, is_molecule).epochs == 7


@pytest.mark.parametrize(
    ("n_frames", "decay"), [(1, 2.0), (36, 2.0), (400, 1.0), (800, 0.5), (5000, 0.1)]
)
def test_without_a_decay_the_number_of_frames_counts(n_frames: int, decay: float) -> None:
    assert TrainingSettings().with_frames(n_frames).weight_decay == pytest.approx(decay)
    assert TrainingSettings(weight_decay=0.0).with_frames(n_frames).weight_decay == 0.0


def test_the_help_says_how_long_a_run_is() -> None:
    text = TrainingSettings.__doc__ or ""
    epochs = f"at least {FEWEST_EPOCHS} epochs ({EPOCHS_OF_MOLECULES} for a small molecule)"
    assert f"{DEFAULT_STEPS} steps, but {epochs}" in " ".join(text.split())
    assert f"{DECAY_OF_ONE_FRAME:g} divided by the number of training frames" in " ".join(
        text.split()
    )


@pytest.mark.parametrize(
    ("nearest", "shortest", "alike", "neighbours", "r_cut"),
    [
        (1.2, 1.0, 8.0, 14.0, 6.0),  # a small molecule: all of it
        (1.5, 1.1, 10.0, 19.4, 6.0),  # a molecule of 27 atoms
        (1.2, 1.0, 50.0, 94.0, 5.0),  # a molecular liquid
        (1.5, 1.5, 159.0, 159.0, 3.5),  # diamond
        (2.4, 2.4, 76.0, 76.0, 4.5),  # a dense metal
        (2.6, 2.6, 58.0, 58.0, 5.0),  # a bcc metal
        (2.3, 2.3, 42.0, 42.0, 5.0),  # silicon
        (2.5, 1.9, 41.0, 68.0, 6.0),  # a perovskite
        (2.6, 2.5, 57.0, 76.0, 5.0),  # an alloy
        (3.0, 3.0, 20.0, 20.0, 6.0),  # a thin gas
        (3.7, 3.7, 18.0, 18.0, 7.5),  # solid argon
        (4.5, 4.5, 10.0, 10.0, 9.0),  # caesium
        (3.9, 3.15, 10.0, 18.0, 6.5),  # a perovskite of iodine and caesium
    ],
)
def test_without_a_cutoff_distances_and_densities_choose_it(
    nearest: float, shortest: float, alike: float, neighbours: float, r_cut: float
) -> None:
    assert sight_for(Surroundings(nearest, shortest, alike, neighbours)).r_cut == r_cut


def test_only_matter_with_short_bonds_is_scaled() -> None:
    liquid, perovskite = Surroundings(1.2, 1.0, 50.0, 94.0), Surroundings(2.5, 1.9, 41.0, 68.0)
    metal, alloy = Surroundings(2.4, 2.4, 76.0, 76.0), Surroundings(2.6, 2.5, 57.0, 76.0)
    assert sight_for(liquid).scaling(5.0) > sight_for(perovskite).scaling(6.0) > 0
    assert sight_for(metal).scaling(4.5) == sight_for(alloy).scaling(5.0) == 0


@pytest.mark.parametrize(
    ("r_cut", "scaled_range", "scaling"),
    [
        (5.0, 2.25, 5),  # a molecular liquid: steep
        (3.5, 2.25, 2),  # the same with a shorter cutoff
        (6.0, 3.4, 3),  # a molecule
        (6.0, 4.5, 2),  # a perovskite
        (5.5, np.inf, 0),  # a metal
    ],
)
def test_radial_scaling_keeps_its_range(r_cut: float, scaled_range: float, scaling: int) -> None:
    chosen = TrainingSettings().with_descriptor(Sight(r_cut, scaled_range), ("C", "H"))
    assert chosen.radial_scaling == scaling
    given = TrainingSettings(r_cut=r_cut, radial_scaling=1)
    assert given.with_descriptor(Sight(9.9, scaled_range), ("C", "H")).radial_scaling == 1


@pytest.mark.parametrize(
    ("elements", "n_max"),
    [
        (("C", "H", "N", "O"), [4, 4, 4, 4]),  # 470 features
        (("O", "Sr", "Ti"), [4, 5, 6, 6]),  # up to 672
        (("Al", "Ni"), [4, 5, 6, 7]),
        (("Cu",), [5, 7, 8, 8]),  # finer, up to 165 features
        (("C", "Cl", "F", "H", "N", "O", "P", "S"), [4, 4, 4, 4]),
    ],
)
def test_radial_functions_follow_the_cutoff(elements: tuple[str, ...], n_max: list[int]) -> None:
    sights = [Sight(r_cut, r_cut) for r_cut in (3.5, 4.5, 5.5, 6.0)]
    chosen = [TrainingSettings().with_descriptor(sight, elements).n_max for sight in sights]
    assert chosen == n_max
    assert TrainingSettings(r_cut=9).with_descriptor(sights[0], elements).n_max <= MOST_RADIAL


def test_small_molecules_have_wider_layers_and_less_decay() -> None:
    assert Surroundings(1.1, 1.0, 6.0, 14.0).is_molecule
    assert Surroundings(1.5, 1.1, 10.0, 19.4).is_molecule  # with 27 atoms
    assert not Surroundings(2.5, 2.5, 19.4, 19.4).is_molecule  # a cluster of a metal
    assert not Surroundings(1.1, 1.0, 40.0, 90.0).is_molecule
    assert not Surroundings(4.4, 4.4, 11.0, 11.0).is_molecule  # potassium: none is near
    molecule, usual = (TrainingSettings().with_frames(300, kind) for kind in (True, False))
    assert molecule.widths[0] > usual.widths[0]
    assert molecule.weight_decay < usual.weight_decay
    given = TrainingSettings(widths=(8,), weight_decay=1.0).with_frames(300, True)
    assert (given.widths, given.weight_decay) == ((8,), 1.0)


@pytest.mark.parametrize(
    ("scaling", "is_molecule", "linear"),
    [
        (5, False, "half"),
        (2, False, "all"),
        (0, False, "all"),
        (3, True, "none"),
        (5, True, "none"),
    ],
)
def test_which_members_have_a_linear_part(scaling: int, is_molecule: bool, linear: str) -> None:
    settings = TrainingSettings(radial_scaling=scaling)
    assert settings.with_frames(36, is_molecule).linear == linear
    for chosen in ("all", "half", "none"):
        given = settings.updated({"linear": chosen}).with_frames(36, is_molecule)
        assert given.linear == chosen


@pytest.mark.parametrize("value", [True, "some", 1])
def test_a_choice_that_may_be_left_open_is_checked(value: object) -> None:
    with pytest.raises(
        ConfigError, match=f"unknown linear {value!r}; choose one of all, half, none"
    ):
        TrainingSettings().updated({"linear": value})


def test_cutoff_and_radial_functions_that_are_given_are_kept() -> None:
    sight = Sight(3.5, 4.6)
    assert TrainingSettings(r_cut=4.6).with_descriptor(sight, ("Cu", "Zn")).r_cut == 4.6
    assert TrainingSettings(r_cut=4.6).with_descriptor(sight, ("Cu", "O", "Zn")).n_max == 5
    assert TrainingSettings(n_max=3).with_descriptor(sight, ("Cu",)).n_max == 3


def labelled(*structures: Atoms) -> list[Frame]:
    for atoms in structures:
        atoms.calc = SinglePointCalculator(atoms, energy=0.0)
    return frames_from_atoms(list(structures))


def test_distance_between_neighbours_of_what_stands_apart_most() -> None:
    """Molecules, a salt, and an atom alone: the largest of the elements' medians, within half the widest cutoff."""
    water, argon = molecule("H2O"), Atoms("Ar")
    salt = bulk("NaCl", "rocksalt", a=5.64) * (2, 2, 2)
    salt.rattle(0.02, seed=0)
    for structures, elements, expected in (
        ([water, water, molecule("H2O2")], ("H", "O"), 0.969),
        ([salt], ("Cl", "Na"), 2.82),
        ([salt, water], ("Cl", "H", "Na", "O"), 2.82),
        ([salt, argon], ("Ar", "Cl", "Na"), SHORT_BOND),
        ([argon], ("Ar",), WIDEST / 2),
    ):
        found = surroundings(labelled(*structures), elements)
        assert found.nearest == pytest.approx(expected, abs=0.06)


def test_neighbours_are_counted_by_element() -> None:
    """Rocksalt within 6 Å: 6 and 8 of the other kind (2.82 and 4.88 Å), 12 and 6 of the same (3.99 and 5.64 Å)."""
    found = surroundings(labelled(bulk("NaCl", "rocksalt", a=5.64, cubic=True)), ("Cl", "Na"))
    assert (found.alike, found.neighbours) == (16, 32)
    found = surroundings(labelled(molecule("H2O")), ("H", "O"))
    assert (found.alike, found.neighbours) == (pytest.approx(4 / 3), 2)


def test_every_setting_is_an_option_with_help() -> None:
    texts = help_texts(TrainingSettings)
    assert [field.name for field in fields(TrainingSettings) if not texts.get(field.name)] == []
    assert [text for text in texts.values() if text[0].isupper() or text.endswith(".")] == []
    assert "needs --start-from" in texts["network"]
    assert '"none" chooses' in texts["widths"]
    parser = argparse.ArgumentParser()
    add_options(parser)
    words = "--widths 32,16 --isolated-atoms H=-13.6,C=2 --bootstrap --no-cross-terms --head-widths none"
    namespace = parser.parse_args(
        f"{words} --epochs 3 --r-cut 4 --loss huber --energy-key e".split()
    )
    assert given_options(namespace) == {
        "widths": (32, 16),
        "isolated_atoms": {"H": -13.6, "C": 2.0},
        "bootstrap": True,
        "cross_terms": False,
        "head_widths": (),
        "epochs": 3,
        "r_cut": 4.0,
        "loss": "huber",
        "energy_key": "e",
    }
    assert given_options(parser.parse_args([])) == {}
    assert "--learning-rate" in parser.format_help()


@pytest.mark.parametrize(
    "words", [["--widths", "a,b"], ["--widths", "8,"], ["--isolated-atoms", "H"], ["--loss", "x"]]
)
def test_unreadable_options_exit_with_a_message(words: list, capsys: pytest.CaptureFixture) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(words)
    assert end.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_without_optax_the_extra_is_named() -> None:
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'optax' else find(name, *a)\n"
        "import neuralil_ase.training"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'neuralil-ase[train]'" in done.stderr
