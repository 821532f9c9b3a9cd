"""Scripts that a learner is not mostly used for: scans by hand, other charges, changed folders, odd teachers."""

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from pupils import SMALL, Teacher, crystal, truth

from neuralil_ase import LearningCalculator
from neuralil_ase.errors import ConfigError, StructureError, TeacherError
from neuralil_ase.learning.teacher import check_units, disturbed


def learning(folder: Path, teacher: Any = None, **options: Any) -> LearningCalculator:
    return LearningCalculator(teacher or Teacher(), folder, settings=SMALL, **options)


def test_a_scan_of_fixed_atoms_is_asked_about(folder: Path) -> None:
    slab = fcc111("Cu", (1, 1, 3), vacuum=5)
    add_adsorbate(slab, "O", 1.0, "fcc")
    slab.pbc = True
    slab.set_constraint(FixAtoms(range(4)))
    slab.calc = learning(folder)
    for height in (1.0, 1.4, 2.0):
        slab.positions[3, 2] = slab.positions[2, 2] + height
        error = slab.get_potential_energy() - truth(slab).get_potential_energy()
        assert abs(error) < 0.1
    assert len(slab.calc.records) > 2


def test_a_fixed_atom_that_the_script_moves_counts(folder: Path) -> None:
    atoms = crystal()
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = learning(folder)
    atoms.get_forces()
    asked = len(atoms.calc.records)
    atoms.positions[0] += 0.6
    atoms.get_forces()
    assert len(atoms.calc.records) > asked


@pytest.mark.parametrize("labels", [1, 2])
def test_units_are_checked_after_a_run_that_ended_too_early(
    folder: Path, labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the first label and its rattled copy, or between both and their check."""
    desk = "neuralil_ase.learning.desk"
    teacher = InUnits(energy=23.06, forces=23.06)
    atoms = crystal(rattle=0.02)

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    if labels == 1:
        teacher.dies = 2
    else:
        monkeypatch.setattr(f"{desk}.Desk.check", killed)
    atoms.calc = learning(folder, teacher)
    with pytest.raises((Killed, KeyboardInterrupt)):
        atoms.get_forces()
    monkeypatch.undo()
    assert len(list((folder / "labels").glob("*"))) == labels
    teacher.dies = 0
    called = teacher.calls
    atoms.calc = learning(folder, teacher)
    with pytest.raises(TeacherError, match="stiffness"):
        atoms.get_forces()
    assert teacher.calls == called + 2 - labels
    assert not list((folder / "labels").glob("*"))


class InUnits(EMT):
    """EMT in other units."""

    def __init__(self, energy: float = 1.0, forces: float = 1.0, stress: float = 1.0) -> None:
        super().__init__()
        self.factors = {"energy": energy, "free_energy": energy, "forces": forces, "stress": stress}
        self.calls = self.dies = 0

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1
        if self.calls == self.dies:
            raise KeyboardInterrupt
        super().calculate(*args, **kwargs)
        for name, factor in self.factors.items():
            if name in self.results:
                self.results[name] = factor * self.results[name]


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1 / units.GPa, "in GPa"),
        (-10 / units.GPa, "in kB with the opposite sign"),
        (-1, "opposite"),
    ],
)
@pytest.mark.parametrize(
    ("metal", "strain"), [("Cu", 0.97), ("Cu", 1.03), ("Al", 1.0), ("Al", 1.03), ("Pt", 1.0)]
)
def test_a_stress_in_other_units_is_found(
    metal: str, strain: float, factor: float, said: str
) -> None:
    atoms = bulk(metal, cubic=True) * (2, 2, 1)
    atoms.set_cell(strain * atoms.cell, scale_atoms=True)
    first, second = pair_of(atoms, EMT())
    check_units(first, second)
    first, second = pair_of(atoms, InUnits(stress=factor))
    with pytest.raises(TeacherError, match=f"stress is not the slope .* {said}"):
        check_units(first, second)


def pair_of(atoms: Atoms, calc: Any, seed: int = 0) -> tuple[Atoms, Atoms]:

    found = []
    for structure in (atoms.copy(), disturbed(atoms, np.random.default_rng(seed), True)):
        structure.calc = calc
        results = {
            n: structure.calc.get_property(n, structure) for n in ("energy", "forces", "stress")
        }
        structure.calc = SinglePointCalculator(
            structure, **{n: np.copy(v) for n, v in results.items()}
        )
        found.append(structure)
    return found[0], found[1]


def test_a_stress_that_is_offered_but_not_given_hides_no_wrong_energy() -> None:
    for energy in (1.0, 1 / 27.2114, -1.0):
        labels = pair_of(bulk("Cu", cubic=True) * (2, 2, 1), InUnits(energy=energy))
        for label in labels:
            label.calc.results.pop("stress")
        if energy == 1:
            check_units(*labels)
            continue
        with pytest.raises(TeacherError, match="forces are not the slope"):
            check_units(*labels)


@pytest.mark.parametrize("seed", range(20))
def test_right_stresses_pass_in_strained_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True, a=rng.uniform(3.4, 3.9)) * (2, 1, 1)
    atoms.symbols[rng.permutation(8)[:3]] = "Au"
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
    atoms.rattle(0.1, rng=rng)
    check_units(*pair_of(atoms, EMT(), seed))


def test_a_stress_in_other_units_is_refused_before_the_first_step(folder: Path) -> None:
    atoms = crystal(rattle=0.02)
    atoms.calc = learning(folder, InUnits(stress=1 / units.GPa))
    with pytest.raises(TeacherError, match="as if it were in GPa"):
        atoms.get_forces()
    assert not list((folder / "labels").glob("*"))


def test_the_labels_name_their_teacher_before_there_is_a_model(folder: Path) -> None:
    atoms = crystal()
    atoms.calc = learning(folder, Teacher(failures=(2, 3)), retries=1)
    with pytest.raises(TeacherError):
        atoms.get_forces()
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="are by Teacher, and the teacher is now InUnits"):
        learning(folder, InUnits())
    (folder / "teacher.json").write_text("{")
    with pytest.raises(Exception, match=r"teacher\.json cannot be read .* restore it"):
        learning(folder)


def test_a_wrong_teacher_without_a_label_may_be_replaced(folder: Path) -> None:
    atoms = crystal()
    atoms.calc = learning(folder, Teacher(failures=(1, 2)), retries=0)
    with pytest.raises(TeacherError):
        atoms.get_forces()
    atoms.calc = learning(folder, InUnits())
    assert atoms.get_forces().shape == (16, 3)


class Charged(Teacher):
    """A teacher whose energy depends on the charge and the magnetic moments."""

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        super().calculate(atoms, *args, **kwargs)
        more = 10.0 * atoms.info.get("charge", 0) + atoms.get_initial_magnetic_moments().sum()
        self.results["energy"] += more
        self.results["free_energy"] += more


def set_charge(atoms: Atoms) -> None:
    atoms.info["charge"] = 1


def set_moments(atoms: Atoms) -> None:
    atoms.set_initial_magnetic_moments([1.0] * len(atoms))


def set_charges(atoms: Atoms) -> None:
    atoms.set_initial_charges([0.5] * len(atoms))


@pytest.mark.parametrize(
    ("change", "said"),
    [(set_charge, r"info\['charge'\]"), (set_moments, "moments"), (set_charges, "charges")],
)
def test_another_charge_or_spin_is_another_surface(folder: Path, change: Any, said: str) -> None:
    atoms = crystal()
    atoms.calc = learning(folder, Charged())
    atoms.get_potential_energy()
    other = atoms.copy()
    other.calc = LearningCalculator(learner=atoms.calc.learner)
    for same in (atoms, other):
        change(same)
        with pytest.raises(StructureError, match=f"{said}.* two energy surfaces as one"):
            same.get_potential_energy()


def test_moments_that_stay_are_no_reason_to_ask_again(folder: Path) -> None:
    atoms = crystal()
    set_moments(atoms)
    atoms.calc = learning(folder, Charged())
    atoms.get_potential_energy()
    atoms.get_forces()
    assert atoms.calc.evaluations == 1


class Smeared(Teacher):
    """A teacher whose energy, as VASP's, is not the one whose slopes the forces are."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        self.results["energy"] = 2 * self.results["free_energy"] + 100


def test_the_energy_belongs_to_the_forces(folder: Path) -> None:
    atoms = crystal()
    atoms.calc = learning(folder, Smeared())
    assert atoms.get_potential_energy() == pytest.approx(truth(atoms).get_potential_energy())


def test_the_teacher_sees_tags(folder: Path) -> None:
    seen = []

    class Tagged(Teacher):
        def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
            seen.append(atoms.get_tags().tolist())
            super().calculate(atoms, *args, **kwargs)

    atoms = crystal()
    atoms.set_tags(range(16))
    atoms.calc = learning(folder, Tagged())
    atoms.get_forces()
    assert seen == [[*range(16)]] * 2


class Malformed(Teacher):
    """A teacher whose results are no label."""

    def __init__(self, **wrong: Any) -> None:
        super().__init__()
        self.wrong = wrong

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        self.results.update(self.wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"forces": np.zeros((7, 3))}, r"forces of shape \(7, 3\), not \(16, 3\)"),
        ({"forces": np.zeros(48)}, r"forces of shape \(48,\)"),
        ({"free_energy": "none"}, "energy is no number: 'none'"),
        ({"stress": np.zeros((2, 2))}, "stress of another shape"),
        ({"forces": np.full((16, 3), np.nan)}, "not finite: forces"),
    ],
)
def test_results_that_are_no_label_are_failures(folder: Path, wrong: dict, said: str) -> None:
    atoms = crystal()
    atoms.calc = learning(folder, Malformed(**wrong), retries=0)
    with pytest.raises(TeacherError, match=said):
        atoms.get_forces()
    assert [record.failure is not None for record in atoms.calc.records] == [True, True]


def test_the_script_may_change_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    atoms = crystal()
    atoms.calc = learning(Path("learned"))
    atoms.get_forces()
    monkeypatch.chdir("elsewhere")
    atoms.positions[:] = crystal(5, rattle=0.3).positions
    atoms.get_forces()
    assert not (tmp_path / "elsewhere" / "learned").exists()
    assert len(list((tmp_path / "learned" / "labels").glob("*"))) == len(atoms.calc.records) > 2


def test_a_deep_copy_of_the_atoms_shares_the_learner(folder: Path) -> None:
    atoms = crystal()
    teacher = Teacher()
    atoms.calc = learning(folder, teacher)
    forces = atoms.get_forces()
    other = copy.deepcopy(atoms)
    np.testing.assert_array_equal(other.get_forces(), forces)
    assert len(teacher.asked) == 2
    assert other.calc.learner is atoms.calc.learner
    other.positions[:] = crystal(3).positions
    other.get_forces()
    np.testing.assert_array_equal(atoms.get_forces(), forces)


def test_what_cannot_be_pickled_says_what_to_do(folder: Path) -> None:
    atoms = crystal()
    atoms.calc = learning(folder)
    with pytest.raises(TypeError, match=r"Pickle atoms without it \(atoms\.copy\(\)\)"):
        pickle.dumps(atoms)


@pytest.mark.slow
def test_an_isolated_atom_first_does_not_choose_the_model_of_the_crystal(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    atom = Atoms("Cu", [[0, 0, 0]])
    atom.calc = LearningCalculator(Teacher(), folder)
    assert atom.get_potential_energy() == pytest.approx(truth(atom).get_potential_energy())
    assert atom.calc.potential.r_cut == 3.9
    atoms = crystal()
    atoms.calc = LearningCalculator(learner=atom.calc.learner)
    with caplog.at_level(logging.WARNING):
        atoms.get_forces()
    assert "the first frame whose atoms have neighbours: the model begins again" in caplog.text
    assert atoms.calc.potential.r_cut == 4.0
