"""The contract with ASE: results, caching, dynamics, optimisers, files, processes, and clear errors."""

import copy
import multiprocessing
import pickle
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_properties,
)
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.vibrations import VibrationsData
from systems import STRUCTURES, TINY, calculator, ensemble, structure

from neuralil_ase import NeuralILCalculator, predict_many, save_potential
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.errors import ConfigError, ModelFileError, StructureError, UncertaintyError


class Counted(NeuralILCalculator):
    """Counts how often ASE asked for a calculation."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.calls = 0
        super().__init__(*args, **keywords)

    def calculate(self, *args: Any, **keywords: Any) -> None:
        self.calls += 1
        super().calculate(*args, **keywords)


def fresh(**keywords: Any) -> Counted:
    """A calculator that has met one dense structure, so that all small ones share its padding."""
    calc = copy.deepcopy(_warm(**({"dtype": "float64"} | keywords)))
    calc.calls = 0
    return calc


@lru_cache
def _warm(**keywords: Any) -> Counted:
    calc, atoms = Counted(ensemble(), **keywords), structure("triclinic")
    atoms.positions[0, 0] += 1e-3
    calc.prediction(atoms)
    return calc


def counted(name: str, **keywords: Any) -> Atoms:
    atoms = structure(name)
    atoms.calc = fresh(**keywords)
    return atoms


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The level of every evaluation that really took place."""
    for level in ("off", "energy"):
        fresh(uncertainty=level)
    fresh()
    seen: list[str] = []
    original = Predictor.predict

    def spy(self: Predictor, systems: Any, level: Any) -> Any:
        seen.append(level)
        return original(self, systems, level)

    monkeypatch.setattr(Predictor, "predict", spy)
    return seen


# Results


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_evaluation_fills_all_of_ase_s_properties_and_no_others(name: str) -> None:
    atoms = counted(name)
    atoms.get_forces()
    results = atoms.calc.results
    has_volume = name != "molecule"
    expected = {"energy", "free_energy", "energies", "forces"}
    assert set(results) == expected | ({"stress", "stresses"} if has_volume else set())
    assert set(results) <= set(all_properties)
    n = len(atoms)
    assert type(results["energy"]) is float
    assert results["free_energy"] == results["energy"]
    for key, shape in {
        "energies": (n,),
        "forces": (n, 3),
        "stress": (6,),
        "stresses": (n, 6),
    }.items():
        if key in results:
            assert results[key].shape == shape
            assert results[key].dtype == np.float64
            assert results[key].flags.writeable, "ASE's constraints change what they are given"


def test_changing_what_ase_returned_does_not_change_the_record() -> None:
    atoms = counted("triclinic")
    forces = atoms.get_forces()
    atoms.calc.results["forces"][:] = 0
    np.testing.assert_array_equal(atoms.calc.prediction(atoms).forces, forces)


def test_all_properties_take_one_evaluation() -> None:
    """In the orders in which MD, filters and users ask."""
    atoms = counted("triclinic")
    atoms.get_stress()
    atoms.get_forces()
    atoms.get_potential_energy(force_consistent=True)
    atoms.get_potential_energies()
    atoms.get_stresses()
    assert atoms.calc.calls == 1


def test_get_properties_as_drivers_call_it() -> None:
    atoms = counted("triclinic")
    properties = atoms.get_properties(["energy", "forces", "stress"])
    assert set(properties) >= {"energy", "forces", "stress"}
    assert set(atoms.calc.export_properties()) == set(atoms.calc.results) | {"natoms"}
    single = SinglePointCalculator(atoms, **atoms.calc.results)
    assert single.get_potential_energy() == atoms.get_potential_energy()


def test_calculate_copes_with_every_default() -> None:
    atoms = structure("triclinic")
    calc = fresh()
    calc.calculate(atoms, ["energy"], [])
    expected = calc.results["energy"]
    calc.calculate()
    calc.calculate(properties=["forces"], system_changes=[])
    assert calc.results["energy"] == expected
    assert calc.get_potential_energy(atoms) == expected


def test_calculate_without_any_structure_says_so() -> None:
    with pytest.raises(StructureError, match="no structure has been evaluated yet"):
        fresh().prediction()
    with pytest.raises(StructureError, match="no structure has been evaluated yet"):
        fresh().hessian()
    with pytest.raises(StructureError, match="no structure has been evaluated yet"):
        fresh().calculate()


def test_stress_needs_a_volume() -> None:
    """Asked for explicitly, an error of the kind ASE's filters and writers expect; forces work all the same."""
    flat = structure("slab")
    flat.set_cell([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 0]])
    for atoms in (structure("molecule"), flat):
        atoms.calc = fresh()
        assert np.isfinite(atoms.get_forces()).all()
        for ask in (atoms.get_stress, atoms.get_stresses):
            with pytest.raises(PropertyNotImplementedError, match=r"volume|stress"):
                ask()
        assert "stress" not in atoms.calc.results
        with pytest.raises(UncertaintyError, match="three lattice vectors"):
            _ = atoms.calc.prediction(atoms).stress


def test_a_slab_without_a_third_vector_is_one_with_a_long_vector() -> None:
    atoms = structure("slab")
    without = atoms.copy()
    without.cell[2] = 0
    found, expected = calculator().prediction(without), calculator().prediction(atoms)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-12)
    assert found.energy == pytest.approx(expected.energy, abs=1e-11)


def test_properties_of_the_class_are_its_own() -> None:
    assert NeuralILCalculator.implemented_properties is not Calculator.implemented_properties
    assert "magmom" not in NeuralILCalculator.implemented_properties
    with pytest.raises(PropertyNotImplementedError):
        counted("molecule").get_dipole_moment()


def test_input_atoms_are_not_changed() -> None:
    atoms = structure("triclinic")
    atoms.positions += 17.0
    atoms.info["note"], atoms.arrays["mine"] = "kept", np.arange(6)
    before = atoms.copy()
    calculator("forces").prediction(atoms)
    atoms.calc = fresh()
    atoms.get_stress()
    assert atoms == before
    assert set(atoms.arrays) == set(before.arrays)
    assert atoms.info == before.info


# Caching


def test_unchanged_atoms_cost_nothing(evaluations: list[str]) -> None:
    atoms = counted("triclinic")
    for _ in range(3):
        atoms.get_forces()
        atoms.calc.prediction(atoms)
        atoms.calc.prediction()
    assert evaluations == ["energy"]


@pytest.mark.parametrize("change", ["positions", "cell", "pbc", "numbers"])
def test_every_change_of_the_geometry_is_noticed(change: str) -> None:
    atoms = counted("triclinic")
    before = atoms.get_potential_energy()
    record = atoms.calc.prediction(atoms)
    if change == "positions":
        atoms.positions[0, 0] += 1e-6
    elif change == "cell":
        atoms.cell[0, 0] += 0.01
    elif change == "pbc":
        atoms.pbc = False
    else:
        atoms.numbers[:2] = atoms.numbers[1::-1]
    assert atoms.calc.prediction(atoms) is not record
    assert atoms.get_potential_energy() != before
    assert atoms.get_potential_energy() == pytest.approx(
        fresh().prediction(atoms).energy, abs=1e-11
    )


def test_charges_magnetic_moments_and_velocities_play_no_part(evaluations: list[str]) -> None:
    atoms = counted("triclinic")
    atoms.get_forces()
    atoms.set_initial_charges(np.ones(6))
    atoms.set_initial_magnetic_moments(np.ones(6))
    atoms.set_velocities(np.ones((6, 3)))
    atoms.get_forces()
    assert len(evaluations) == 1


def test_a_higher_level_is_computed_once_and_serves_the_lower_ones(evaluations: list[str]) -> None:
    atoms = counted("triclinic", uncertainty="off")
    atoms.get_forces()
    with pytest.raises(UncertaintyError, match='uncertainty="energy"'):
        _ = atoms.calc.prediction(atoms).energy_std
    spread = atoms.calc.prediction(atoms, uncertainty="forces").forces_std
    assert spread.shape == (6,)
    assert atoms.calc.prediction(atoms, "energy").energy_std > 0
    atoms.get_forces()
    assert evaluations == ["off", "forces"]


def test_a_record_outlives_the_next_evaluation() -> None:
    atoms = counted("triclinic")
    record = atoms.calc.prediction(atoms)
    energy, forces = record.energy, record.forces.copy()
    atoms.rattle(0.1)
    atoms.get_forces()
    assert record.energy == energy
    np.testing.assert_array_equal(record.forces, forces)


def test_prediction_takes_structures_that_are_not_attached(evaluations: list[str]) -> None:
    """The state that ASE sees stays that of the attached atoms."""
    atoms = counted("triclinic")
    energy = atoms.get_potential_energy()
    other = structure("molecule")
    assert atoms.calc.prediction(other).energies.shape == (6,)
    assert atoms.get_potential_energy() == energy
    assert atoms.calc.results["energy"] == energy
    assert len(evaluations) == 2


# Dynamics and optimisers


def test_molecular_dynamics_evaluates_once_a_step_and_compiles_once() -> None:
    atoms = counted("triclinic")
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    dyn = VelocityVerlet(atoms, 0.5 * units.fs)
    dyn.attach(lambda: atoms.calc.prediction(atoms).energy_std)
    dyn.run(2)
    compilations, calls = atoms.calc.compilations, atoms.calc.calls
    assert calls == 3
    dyn.run(50)
    assert atoms.calc.compilations == compilations
    assert atoms.calc.calls == calls + 50
    assert 1 <= atoms.calc.neighbor_list_builds < 40
    smaller = atoms[:5]
    smaller.calc = atoms.calc
    smaller.get_forces()
    assert atoms.calc.compilations == compilations, "a structure of similar size reuses the bucket"


def test_energy_is_conserved_to_second_order_in_the_time_step() -> None:
    """Velocity Verlet over the same 20 fs: half the step, a quarter of the error."""

    def error(steps: int) -> float:
        atoms = counted("triclinic")
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
        energies: list[float] = [atoms.get_total_energy()]
        dyn = VelocityVerlet(atoms, 20 * units.fs / steps)
        dyn.attach(lambda: energies.append(atoms.get_total_energy()))
        dyn.run(steps)
        assert np.ptp(energies) < 0.02 * atoms.get_kinetic_energy()
        return np.abs(np.array(energies) - energies[0]).max()

    assert 3 < error(80) / error(160) < 5


def test_langevin() -> None:
    atoms = counted("molecule")
    rng = np.random.default_rng(0)
    Langevin(
        atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False, rng=rng
    ).run(10)
    assert atoms.calc.calls == 11
    assert np.isfinite(atoms.positions).all()


def test_constant_pressure_moves_the_cell_consistently() -> None:
    """The list is kept through strains; what it yields is what a new list yields."""
    atoms = counted("triclinic")
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    volume = atoms.get_volume()
    dyn = IsotropicMTKNPT(
        atoms, 0.5 * units.fs, temperature_K=300, pressure_au=2 * units.GPa, tdamp=50 * units.fs, pdamp=200 * units.fs,
    )  # fmt: skip
    compilations = []
    for _ in range(5):
        dyn.run(5)
        compilations.append(atoms.calc.compilations)
        expected = calculator().prediction(atoms.copy())
        np.testing.assert_allclose(atoms.get_stress(), expected.stress, rtol=0, atol=1e-12)
    assert atoms.get_volume() != volume
    assert compilations[0] == compilations[-1]


@pytest.mark.parametrize("optimizer", [BFGS, FIRE])
def test_relaxation_of_atoms_and_cell(optimizer: type) -> None:
    atoms = counted("tiny")
    start = atoms.get_potential_energy()
    opt = optimizer(FrechetCellFilter(atoms), logfile=None)
    opt.run(fmax=1e-3, steps=15)
    assert atoms.get_potential_energy() < start
    assert atoms.calc.calls <= 20


def test_relaxation_goes_to_a_minimum() -> None:
    atoms = counted("molecule")
    atoms.rattle(0.02, seed=1)
    start = atoms.get_potential_energy()
    BFGS(atoms, logfile=None, maxstep=0.05).run(fmax=0.01, steps=40)
    assert atoms.get_potential_energy() < start - 1e-3


def test_nudged_elastic_band_with_one_calculator_for_three_images() -> None:
    first = structure("molecule")
    last = first.copy()
    last.positions[2, 2] += 0.6
    images = [first, *(first.copy() for _ in range(3)), last]
    band = NEB(images, method="improvedtangent", allow_shared_calculator=True)
    band.interpolate()
    shared = fresh()
    for image in images:
        image.calc = shared
    FIRE(band, logfile=None).run(fmax=0.01, steps=3)
    energies = [shared.prediction(image).energy for image in images]
    assert np.isfinite(band.get_forces()).all()
    assert len(set(energies)) == 5
    assert shared.compilations <= 2


# Files, sums, copies, processes


@pytest.mark.parametrize("name", ["frames.extxyz", "frames.traj"])
def test_results_survive_ase_s_files(tmp_path: Path, name: str) -> None:
    frames = [counted("triclinic"), counted("tiny")]
    for atoms in frames:
        atoms.get_stress()
    write(tmp_path / name, frames)
    for again, atoms in zip(read(tmp_path / name, ":"), frames, strict=True):
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), atol=1e-7)
        np.testing.assert_allclose(again.get_stress(), atoms.get_stress(), atol=1e-7)


def test_a_dispersion_partner_adds_its_forces_and_stress() -> None:
    atoms, partner = structure("triclinic"), LennardJones(sigma=0.8, epsilon=0.01, rc=3.0)
    alone = structure("triclinic")
    alone.calc = LennardJones(sigma=0.8, epsilon=0.01, rc=3.0)
    atoms.calc = SumCalculator([fresh(), partner])
    expected = calculator().prediction(atoms)
    assert atoms.get_potential_energy() == pytest.approx(
        expected.energy + alone.get_potential_energy(), abs=1e-11
    )
    np.testing.assert_allclose(atoms.get_forces(), expected.forces + alone.get_forces(), atol=1e-11)
    np.testing.assert_allclose(atoms.get_stress(), expected.stress + alone.get_stress(), atol=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
@pytest.mark.parametrize("is_used", [False, True])
def test_copies_are_independent(way: Any, is_used: bool) -> None:
    atoms = counted("triclinic", uncertainty="off", skin=0.3)
    if is_used:
        atoms.get_forces()
    twin = atoms.copy()
    twin.calc = way(atoms.calc)
    assert twin.calc.uncertainty == "off"
    twin.rattle(0.05)
    moved = twin.get_potential_energy()
    assert atoms.get_potential_energy() == pytest.approx(
        calculator().prediction(atoms).energy, abs=1e-11
    )
    assert moved == pytest.approx(calculator().prediction(twin).energy, abs=1e-11)
    assert moved != atoms.get_potential_energy()


def energy_in_worker(job: tuple[NeuralILCalculator, Atoms]) -> float:
    calc, atoms = job
    return calc.prediction(atoms).energy


@pytest.mark.slow  # potentials do in test_farm
def test_calculators_travel_into_a_pool_of_processes() -> None:
    atoms = [structure("molecule"), structure("tiny")]
    calc = fresh()
    expected = [calc.prediction(a).energy for a in atoms]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(energy_in_worker, [(calc, a) for a in atoms])
    assert found == pytest.approx(expected, abs=1e-11)


def test_ase_lists_the_plugin() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ase", "info", "--plugins"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "neuralil" in done.stdout


# Construction


def test_model_by_path_or_loaded(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_potential(ensemble(), path)
    atoms = structure("molecule")
    energies = [
        NeuralILCalculator(model, dtype="float64").prediction(atoms).energy
        for model in (path, str(path), ensemble())
    ]
    assert energies[0] == energies[1] == energies[2]
    assert fresh().potential.n_members == 3


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dtype": "half"}, "unknown dtype 'half'; choose one of float32, float64"),
        ({"skin": -0.1}, "skin must be a length in Å, zero or more, got -0.1"),
        ({"skin": float("nan")}, "skin must be .* got nan"),
        ({"uncertainty": "all"}, "unknown uncertainty 'all'; choose one of off, energy, forces"),
        ({"uncertainty": None}, "unknown uncertainty None"),
    ],
)
def test_options_are_checked_at_construction(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NeuralILCalculator(ensemble(), **keywords)


def test_options_are_checked_at_every_call() -> None:
    with pytest.raises(ConfigError, match="unknown uncertainty 'Forces'"):
        fresh().prediction(structure("tiny"), uncertainty="Forces")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="precision"):
        fresh(precision="float64")


def test_a_missing_model_file_is_named() -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.safetensors does not exist"):
        NeuralILCalculator("nowhere.safetensors")


def test_skin_changes_no_result() -> None:
    atoms = structure("triclinic")
    for skin in (0.0, 2.0):
        found = fresh(skin=skin).prediction(atoms)
        np.testing.assert_allclose(found.forces, calculator().prediction(atoms).forces, atol=1e-12)


def test_default_precision_is_float32() -> None:
    atoms = structure("triclinic")
    rough, exact = fresh(dtype="float32").prediction(atoms), calculator().prediction(atoms)
    assert NeuralILCalculator(ensemble()).prediction(atoms).energy == rough.energy
    assert 0 < np.abs(rough.forces - exact.forces).max() < 1e-3 * np.abs(exact.forces).max()


# Structures at the edge


def test_no_atoms() -> None:
    for atoms in (Atoms(), Atoms(cell=TINY, pbc=True)):
        atoms.calc = fresh(uncertainty="forces")
        assert atoms.get_potential_energy() == 0.0
        assert atoms.get_forces().shape == (0, 3)
        record = atoms.calc.prediction(atoms)
        assert record.energy_std == 0
        assert record.forces_std.shape == (0,)
        assert atoms.calc.descriptors(atoms).shape[0] == 0


def test_an_isolated_atom_has_an_energy_and_no_force() -> None:
    atoms = Atoms("O")
    atoms.calc = fresh(uncertainty="forces")
    assert np.isfinite(atoms.get_potential_energy())
    np.testing.assert_array_equal(atoms.get_forces(), np.zeros((1, 3)))
    in_box = Atoms("O", cell=[30, 30, 30], pbc=True)
    assert calculator().prediction(in_box).energy == pytest.approx(
        atoms.get_potential_energy(), abs=1e-12
    )
    np.testing.assert_array_equal(calculator().prediction(in_box).stress, np.zeros(6))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_coincident_atoms_are_finite(dtype: str) -> None:
    atoms = structure("molecule")
    atoms.positions[1] = atoms.positions[0]
    record = fresh(dtype=dtype, uncertainty="forces").prediction(atoms)
    assert np.isfinite(record.energy)
    assert np.isfinite(record.forces).all()
    assert np.isfinite(record.forces_std).all()


def damaged(**changes: Any) -> Atoms:
    atoms = structure("triclinic")
    for name, value in changes.items():
        if name == "position":
            atoms.positions[3, 1] = value
        elif name == "cell":
            atoms.set_cell(value)
        elif name == "symbols":
            atoms.symbols[[2, 4]] = value
        elif name == "numbers":
            atoms.numbers[4] = value
    return atoms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": np.nan}, "position of atom 3 is not finite"),
        ({"position": np.inf}, "position of atom 3 is not finite"),
        ({"cell": np.zeros((3, 3))}, "no extent along a periodic direction"),
        ({"cell": [[4, 0, 0], [0, 4, 0], [4, 4, 0]]}, "no extent along a periodic direction"),
        ({"cell": np.diag([1e-6, 4, 4])}, "no extent along a periodic direction"),
        ({"cell": np.diag([2e-3] * 3)}, "no real material is that dense"),
        ({"cell": np.diag([np.nan, 4, 4])}, "the cell is not finite"),
        (
            {"symbols": ["S", "Na"]},
            r"does not know Na \(atom 4\), S \(atom 2\); .*trained on C, H, N, O",
        ),
        ({"symbols": ["X", "X"]}, r"does not know Z = 0 \(atom 2\)"),
        ({"numbers": -111}, r"does not know Z = -111 \(atom 4\)"),
    ],
)
def test_structures_without_an_energy_are_refused(changes: dict[str, Any], message: str) -> None:
    """Alone, in a batch, and after a good structure, whose pair list must not serve."""
    atoms = damaged(**changes)
    used = fresh()
    used.prediction(structure("triclinic"))
    for call in (
        lambda: fresh().get_potential_energy(atoms),
        lambda: used.get_potential_energy(atoms),
        lambda: predict_many(ensemble(), [atoms], dtype="float64"),
    ):
        with pytest.raises(StructureError, match=message):
            call()


def test_a_structure_that_failed_does_not_spoil_the_next() -> None:
    atoms = counted("triclinic")
    energy = atoms.get_potential_energy()
    good = atoms.positions.copy()
    atoms.positions[0] = np.nan
    with pytest.raises(StructureError):
        atoms.get_forces()
    assert "forces" not in atoms.calc.results
    atoms.positions = good
    assert atoms.get_potential_energy() == energy


# Many structures


@pytest.mark.parametrize("batch_atoms", [10, 4096])
def test_many_structures_equal_single_ones_in_their_order(batch_atoms: int) -> None:
    names = ["tiny", "molecule", "one atom", "triclinic", "slab", "molecule"]
    atoms = [structure(name) for name in names]
    atoms[-1].positions[0] += 0.1
    found = predict_many(
        ensemble(), iter(atoms), dtype="float64", uncertainty="energy", batch_atoms=batch_atoms
    )
    assert len(found) == len(atoms)
    for record, one in zip(found, atoms, strict=True):
        expected = calculator().prediction(one)
        assert record.energy == pytest.approx(expected.energy, abs=1e-11)
        np.testing.assert_allclose(record.forces, expected.forces, rtol=0, atol=1e-12)
        np.testing.assert_allclose(record.energies_std, expected.energies_std, rtol=1e-9)
        assert record.holds("stress") == expected.holds("stress")
        if record.holds("stress"):
            np.testing.assert_allclose(record.stress, expected.stress, rtol=0, atol=1e-13)


def test_many_structures_may_be_none_empty_or_from_a_file(tmp_path: Path) -> None:
    assert predict_many(ensemble(), []) == []
    path = tmp_path / "small.safetensors"
    save_potential(ensemble(), path)
    records = predict_many(str(path), [Atoms(), structure("molecule")], dtype="float64")
    assert records[0].energy == 0.0
    assert records[1].energy == pytest.approx(calculator().prediction(structure("molecule")).energy)
    with pytest.raises(ConfigError, match="unknown uncertainty"):
        predict_many(ensemble(), [], uncertainty="full")  # type: ignore[arg-type]


@pytest.mark.parametrize("spoil", ["nan", "element"])
def test_nothing_of_the_last_structure_is_left_after_a_failure(spoil: str) -> None:
    """``calculate`` called by hand, as some optimisers do; the energy of the good structure was returned once."""
    calc, good = NeuralILCalculator(ensemble(), dtype="float64"), structure("molecule")
    calc.calculate(good)
    bad = good.copy()
    if spoil == "nan":
        bad.positions[0] = np.nan
    else:
        bad.numbers[0] = 79
    with pytest.raises(StructureError):
        calc.calculate(bad)
    assert calc.results == {}
    with pytest.raises(StructureError):
        calc.get_potential_energy()
    calc.calculate(good)
    assert calc.get_potential_energy() == calc.prediction(good).energy


@pytest.mark.parametrize("number", [-111, -1, 0, 119, 2**31])
def test_numbers_that_are_no_elements_are_named(number: int) -> None:
    atoms = structure("molecule")
    atoms.numbers[2] = number if number < 2**31 else 2**31 - 1
    with pytest.raises(StructureError, match=rf"does not know Z = {atoms.numbers[2]} \(atom 2\)"):
        calculator().prediction(atoms)


def test_positions_in_float32_are_taken() -> None:
    atoms, same = structure("triclinic"), structure("triclinic")
    atoms.arrays["positions"] = atoms.positions.astype(np.float32)
    same.positions = atoms.positions
    calc = NeuralILCalculator(ensemble(), dtype="float64")
    atoms.calc = calc
    np.testing.assert_array_equal(atoms.get_forces(), calculator().prediction(same).forces)


def test_the_hessian_is_of_all_atoms_whatever_their_constraints() -> None:
    atoms = structure("molecule")
    calc = NeuralILCalculator(ensemble(), dtype="float64")
    free = [1, 2, 4]
    whole = calc.hessian(atoms)
    atoms.set_constraint(FixAtoms([0, 3, 5]))
    np.testing.assert_array_equal(calc.hessian(atoms), whole)
    data = VibrationsData(atoms, whole[free][:, :, free], indices=free)
    assert len(data.get_energies()) == 9
