"""Where error bars say too little: atoms with fewer neighbours, other minima; and scripts as users write them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import StrainFilter
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.optimize.basin import BasinHopping
from pupils import SMALL, Teacher, crystal, truth

from neuralil_ase import Confirmed, Learner, LearningCalculator
from neuralil_ase.errors import QueryLimitError
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.learning.environments import Environments, coordinations
from neuralil_ase.learning.reach import ALIKE, GROWN


def surface(height: float = 1.8) -> Atoms:
    """A small slab with an atom above it."""
    atoms = fcc111("Cu", (2, 2, 2), vacuum=8)
    atoms.pbc = True
    add_adsorbate(atoms, "Cu", height, "fcc")
    return atoms


def grown(folder: Path, tolerance: float = 50.0) -> LearningCalculator:
    """A calculator that is no longer young, and trusts all error bars."""
    data = []
    for seed in range(GROWN):
        atoms = surface()
        atoms.positions += np.random.default_rng(seed).normal(0, 0.05, atoms.positions.shape)
        data.append(truth(atoms))
        data[-1].get_forces()
    return LearningCalculator(
        Teacher(), folder, data=data, settings=SMALL, tolerance=tolerance, check_every=0
    )


def test_coordinations_are_sums_over_neighbours() -> None:
    atoms = Atoms("Cu3", [(0, 0, 0), (2, 0, 0), (9, 0, 0)])
    weight = (1 - (2 / 4) ** 2) ** 2
    np.testing.assert_allclose(coordinations(atoms, 4.0), [weight, weight, 0])


def test_the_strangest_atom_is_compared_with_its_own_element() -> None:
    pair, alone = Atoms("CuAu", [(0, 0, 0), (2, 0, 0)]), Atoms("Cu")
    for atoms in (pair, alone):
        atoms.calc = EMT()
        atoms.get_forces()
    environments = Environments()
    frames = frames_from_atoms([pair])
    environments.learn({0: frames[0]}, 4.0)
    assert environments.strangest(pair).distance == 0
    found = environments.strangest(Atoms("AuCu", [(0, 0, 0), (3, 0, 0)]))
    weight = (1 - (3 / 4) ** 2) ** 2
    assert found.coordination == pytest.approx(weight)
    assert found.nearest == pytest.approx((1 - (2 / 4) ** 2) ** 2)
    assert found.distance > ALIKE
    assert environments.strangest(alone).coordination == 0
    environments.learn({0: frames[0], 1: frames_from_atoms([alone])[0]}, 4.0)
    assert environments.strangest(alone).distance == 0
    assert environments.strangest(Atoms("Ag")).distance == np.inf


@pytest.mark.parametrize("height", [2.6, 3.4])
def test_an_atom_that_leaves_a_surface_is_asked_about(folder: Path, height: float) -> None:
    """All members agree there, and are wrong; the tolerance of 50 eV/Å trusts every error bar."""
    calculator = grown(folder)
    calculator.get_forces(surface())
    assert calculator.records == []
    found = calculator.get_forces(surface(height))
    assert "the coordination of atom 8 (Cu) is" in calculator.records[-1].reason
    np.testing.assert_allclose(found, truth(surface(height)).get_forces(), atol=1e-6)
    calls = len(calculator.records)
    calculator.get_forces(surface(height + 0.01))
    assert len(calculator.records) == calls


def test_on_the_way_to_a_confirmed_minimum_the_teacher_is_asked_at_its_end(folder: Path) -> None:
    calculator = grown(folder)
    calculator.get_forces(surface())
    assert calculator.learner.too_far(surface(2.6), True) is None
    assert calculator.learner.too_far(surface(2.6), False) is not None


@pytest.mark.slow
def test_one_violent_frame_of_few_does_not_set_the_tolerance(folder: Path) -> None:
    """An inserted atom, too close, and its rattled copy: the default tolerance was 14 eV/Å."""
    learner = Learner(Teacher(), folder, settings=SMALL)
    LearningCalculator(learner=learner).get_forces(crystal())
    usual = learner.tolerance
    close = crystal() + Atoms("Ag", [crystal().positions[0] + (1.0, 0, 0)])
    LearningCalculator(learner=learner).get_forces(close)
    assert len(learner.records) == 4
    assert learner.tolerance < 2 * usual


def bands(folder: Path) -> tuple[NEB, Learner]:
    """A fresh band of an atom that moves over a surface."""
    first, last = surface(), surface()
    last.positions[-1, :2] += (1.3, 0.7)
    learner = Learner(Teacher(), folder, settings=SMALL, tolerance=1.0)
    images = [first, *(first.copy() for _ in range(3)), last]
    for image in images:
        image.set_constraint(FixAtoms(range(8)))
        image.calc = LearningCalculator(learner=learner)
    band = NEB(images, method="improvedtangent")
    band.interpolate()
    return band, learner


@pytest.mark.parametrize("kind", [FIRE, pytest.param(BFGS, marks=pytest.mark.slow)])
def test_a_fresh_band_has_a_confirmed_optimizer(folder: Path, kind: Any) -> None:
    """As the help says, without an evaluation before."""
    band, _ = bands(folder)
    before = [image.positions.copy() for image in band.images]
    assert Confirmed(band).optimizer(kind, logfile=None).run(fmax=0.2, steps=200)
    moved = [np.abs(a.positions - b).max() for a, b in zip(band.images, before, strict=True)]
    assert max(moved[1:-1]) > 0
    for image in band.images[1:-1]:
        assert image.calc.is_confirmed


@pytest.mark.parametrize("on_query", ["teacher", pytest.param("model", marks=pytest.mark.slow)])
def test_a_cell_alone_is_relaxed_although_updates_leave_an_error_of_its_stress(
    folder: Path, on_query: Any
) -> None:
    """A strain filter compares the whole stress times the volume with fmax. Updates left more for ever."""
    atoms = crystal()
    strain = np.random.default_rng(1).normal(0, 0.02, (3, 3))
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL, on_query=on_query)
    assert Confirmed(StrainFilter(atoms)).optimizer(BFGS, logfile=None).run(fmax=0.02, steps=60)
    volume_stress = truth(atoms).get_stress(voigt=False) * atoms.get_volume()
    assert np.linalg.norm(volume_stress, axis=1).max() < 0.021
    assert len(atoms.calc.records) < 20


class OnlyForces:
    """A constraint of a user, with what optimisers and integrators need."""

    def adjust_positions(self, atoms: Atoms, new: np.ndarray) -> None:
        new[0] = atoms.positions[0]

    def adjust_forces(self, _: Atoms, forces: np.ndarray) -> None:
        forces[0] = 0


@pytest.mark.parametrize("constraint", [OnlyForces(), FixAtoms(range(16))])
def test_a_temperature_that_nothing_defines_ends_no_run(folder: Path, constraint: Any) -> None:
    """It is only for the record. ASE's own MD works with such atoms, too."""
    atoms = crystal()
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    atoms.set_constraint(constraint)
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    VelocityVerlet(atoms, units.fs).run(2)
    assert all(np.isnan(step.temperature) for step in atoms.calc.history)
    assert {record.temperature for record in atoms.calc.records} == {None}


def test_after_a_reset_nothing_is_confirmed(folder: Path) -> None:
    atoms = crystal()
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    atoms.get_forces()
    assert atoms.calc.is_confirmed
    atoms.calc.reset()
    assert not atoms.calc.is_confirmed
    assert atoms.calc.results == {}


@pytest.mark.slow
def test_basin_hopping_compares_confirmed_minima(folder: Path) -> None:
    """The form that the help gives."""
    atoms = Atoms("Cu4", [(0, 0, 0), (2.3, 0, 0), (1.1, 2.1, 0), (1.2, 0.7, 1.9)])
    atoms.calc = LearningCalculator(Teacher(), folder, settings=SMALL)
    hopping = BasinHopping(
        atoms,
        fmax=0.1,
        dr=0.3,
        logfile=None,
        trajectory=None,
        optimizer_logfile=None,
        local_minima_trajectory=str(folder.with_name("minima.traj")),
        optimizer=lambda a, **options: Confirmed(a).optimizer(BFGS, **options),
    )
    hopping.run(2)
    energy, best = hopping.get_minimum()
    assert energy == pytest.approx(truth(best).get_potential_energy(), abs=1e-6)
    assert np.linalg.norm(truth(best).get_forces(), axis=1).max() < 0.1


def test_a_retry_counts_the_labels_of_its_first_attempt(folder: Path) -> None:
    """One of three frames fails; a fourth call for it would be one more than the limit."""
    teacher = Teacher(failures=(2,))
    learner = Learner(teacher, folder, settings=SMALL, max_queries=3, rattled=2)
    with pytest.raises(QueryLimitError, match="1 more label would make 4 calls"):
        LearningCalculator(learner=learner).get_forces(crystal())
    assert len(teacher.asked) == 3
