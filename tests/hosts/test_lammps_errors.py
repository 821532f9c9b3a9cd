"""What cannot be right ends the run with a word on what to do, and with an exit code that is not 0."""

import copy
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points, version
from pathlib import Path

import numpy as np
import pytest
from ensembles import random_potential
from lammps_runs import in_box, lmp, needs_lammps, output, saved, setup_text, thermo
from systems import ensemble, structure

from neuralil_ase.hosts import lammps as host
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig

pytestmark = needs_lammps
SPREAD = "fix u all pair 1 neuralil forces_std 1\nrun 0\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [(("C H N O", "C H N Fe"), "knows the elements C H N O, and not Fe"),
     (("C H N O", "C H N"), "an element or NULL for each of the 4 atom types"),
     (("C H N O", "NULL NULL NULL NULL"), "all atom types are NULL"),
     (("model.safetensors", "nowhere.safetensors"), "cannot be opened"),
     (("model.safetensors", "start.data"), "[Uu]sually (it was|the file)"),
     (("units metal", "units lj"), "units metal or real, and not lj"),
     (("units metal", "units metal\nnewton off"), "needs newton on"),
     (("precision double", "precision half"), "with single or double"),
     (("precision double", "precision"), "needs: pair_style neuralil MODEL"),
     (("run 0", "change_box all boundary f f f\nvelocity all set 100 0 0\nfix m all nve\nthermo 1\nrun 50"),
      "Lost atoms"),
     (("forces_std 1", "speed 1"), "speed")],
    ids=lambda value: value[1].strip()[:30] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_cannot_be_right_ends_the_run(
    change: tuple[str, str], message: str, tmp_path: Path, environment
) -> None:
    atoms, model = in_box(structure("triclinic")), saved(ensemble(), tmp_path)
    text = setup_text(atoms, model) + SPREAD
    assert change[0] in text
    assert re.search(message, failure(text.replace(*change), tmp_path, environment))


def failure(text: str, folder: Path, environment: dict[str, str], ranks: int = 1) -> str:
    """What a run prints that must fail."""
    done = lmp(text, folder, environment, ranks)
    assert done.returncode != 0, done.stdout[-1500:]
    return done.stdout + done.stderr


def test_all_ranks_end_together(tmp_path: Path, environment) -> None:
    model = saved(ensemble(), tmp_path)
    text = setup_text(in_box(structure("triclinic")), model).replace("safetensors", "gone")
    assert "cannot be opened" in failure(text, tmp_path, environment, 2)


def test_a_model_cut_short(tmp_path: Path, environment) -> None:
    model = saved(ensemble(), tmp_path)
    text = setup_text(in_box(structure("triclinic")), model) + SPREAD
    model.write_bytes(model.read_bytes()[:-100])
    assert "Usually the file was cut short" in failure(text, tmp_path, environment)


def test_a_model_with_one_changed_bit(tmp_path: Path, environment) -> None:
    model = saved(ensemble(), tmp_path)
    text = setup_text(in_box(structure("triclinic")), model) + SPREAD
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    assert "other numbers than were written" in failure(text, tmp_path, environment)


def test_models_that_the_core_has_no_code_for(tmp_path: Path, environment) -> None:
    for n_max, activation, message in (
        (9, "swish", "has code for n_max 1 to 8, and the model has n_max 9"),
        (2, "gelu", "activations swish, silu and tanh, and the model has gelu"),
    ):
        config = ModelConfig(
            DescriptorConfig(("C", "H", "N", "O"), n_max=n_max, r_cut=3.0),
            NetworkConfig("core", widths=(8, 4), activation=activation),
            n_members=2,
        )
        model = saved(ensemble(config), tmp_path)
        text = setup_text(in_box(structure("triclinic")), model)
        assert message in failure(text, tmp_path, environment)


def test_one_member_has_no_spread(tmp_path: Path, environment) -> None:
    model = saved(random_potential(n_members=1), tmp_path)
    text = setup_text(in_box(structure("triclinic")), model) + SPREAD
    assert "needs a model of two members" in failure(text, tmp_path, environment)


def test_a_model_without_calibration_has_no_error_bars(tmp_path: Path, environment) -> None:
    model = saved(ensemble(), tmp_path)
    text = setup_text(in_box(structure("triclinic")), model) + SPREAD
    text = text.replace("forces_std", "forces_error_bar")
    assert "calibrat" in failure(text, tmp_path, environment)


def test_ghosts_that_do_not_reach_the_cutoff(tmp_path: Path, environment) -> None:
    """LAMMPS widens a shell of 1 Å to the cutoff of the style; energies do not change."""
    atoms, model = in_box(structure("triclinic")), saved(ensemble(), tmp_path)
    text = setup_text(atoms, model) + "thermo_style custom step pe\nrun 0\n"
    short = text.replace("pair_style", "comm_modify cutoff 1.0\npair_style", 1)
    energies = [thermo(output(words, tmp_path, environment))[0, 1] for words in (text, short)]
    assert energies[0] == energies[1]


def test_energies_that_are_no_numbers(tmp_path: Path, environment) -> None:
    """The last layer is so large that single precision overflows."""
    potential = ensemble()
    params = copy.deepcopy(potential.params)
    last = params["network"]["body"]["denormalizer"]
    last["kernel"] = np.float32(3e38) * np.sign(last["kernel"])
    model = saved(replace(potential, params=params), tmp_path)
    text = setup_text(in_box(structure("triclinic")), model, extra="") + "run 0\n"
    assert "not finite" in failure(text, tmp_path, environment)


def test_a_plugin_for_another_version_is_refused(tmp_path: Path, environment, monkeypatch) -> None:
    monkeypatch.setattr(host, "lammps_date", lambda release: "1 Jan 2020")
    library = next(p for p in host.CORE.glob("libneuralil.*") if p.suffix in (".so", ".dylib"))
    host.compile_into(tmp_path, host.lammps_folder(), library)
    text = setup_text(in_box(structure("triclinic")), saved(ensemble(), tmp_path))
    done = lmp(text, tmp_path, environment | {"LAMMPS_PLUGIN_PATH": str(tmp_path)})
    assert "compiled for LAMMPS of 1 Jan 2020, and this is version 20250722" in done.stderr


def test_lmp_finds_the_plugin_by_itself(tmp_path: Path, environment) -> None:
    """Through the entry point of the installed package."""
    if not any(entry.name == "neuralil" for entry in entry_points(group="lammps.plugins")):
        pytest.skip("the package is not installed, so that nothing names its entry points")
    plain = {name: value for name, value in environment.items() if "PLUGIN_PATH" not in name}
    text = setup_text(in_box(structure("triclinic")), saved(ensemble(), tmp_path))
    output(text + "run 0\n", tmp_path, plain)


@pytest.mark.slow
def test_building_by_hand_says_where_the_plugin_is(environment) -> None:
    command = [sys.executable, "-m", "neuralil_ase.hosts.lammps"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / host.NAME).stat().st_size > 10_000
    no_compiler = environment | {"CXX": "no-such-compiler"}
    done = subprocess.run(command, capture_output=True, text=True, env=no_compiler)
    assert done.returncode == 1
    assert "there is no C++ compiler 'no-such-compiler'" in done.stderr


def test_the_version_of_lammps_in_its_own_words() -> None:
    assert host.lammps_date("2025.7.22.4.0") == "22 Jul 2025"
    assert version("lammps").startswith("2025.7.22")


def test_a_plugin_that_cannot_be_built_does_not_stop_lammps(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(host, "CORE", tmp_path)
    with pytest.warns(RuntimeWarning, match="no pair_style neuralil: the compiled core was not"):
        assert Path(host.plugin_folder()).is_dir()
