"""An observer looks: with and without it, all dynamics end in the same bits."""

import numpy as np
import pytest
from ase import units
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.optimize.sciopt import SciPyFminCG
from lj_ensemble import LJEnsemble, argon, lennard_jones

from neuralil_ase.monitor import ExtrapolationMonitor, MaxForceSpread, ShortestDistance, read_log


def test_the_stand_in_is_ases_lennard_jones():
    atoms = argon()
    for member in atoms.calc.lj_members:
        ours = lennard_jones(atoms, **member)
        atoms_ase = atoms.copy()
        atoms_ase.calc = LennardJones(**member)
        for name in ("energy", "energies", "forces", "stress"):
            expected = atoms_ase.calc.get_property(name, atoms_ase)
            np.testing.assert_allclose(ours[name], expected, rtol=1e-10, atol=1e-13)


def verlet(atoms):
    return VelocityVerlet(atoms, 4 * units.fs)


def langevin(atoms):
    return Langevin(
        atoms,
        4 * units.fs,
        temperature_K=80,
        friction=0.02,
        fixcm=False,
        rng=np.random.default_rng(3),
    )


def bfgs(atoms):
    return BFGS(atoms, logfile=None)


def cell_fire(atoms):
    return FIRE(FrechetCellFilter(atoms), logfile=None)


def scipy_cg(atoms):
    return SciPyFminCG(atoms, logfile=None)


def run(dynamics, steps=12):
    if isinstance(dynamics, MolecularDynamics):
        dynamics.run(steps)
    else:
        dynamics.run(fmax=1e-6, steps=steps)


def state(atoms):
    return atoms.positions.tobytes(), atoms.get_momenta().tobytes(), atoms.cell.array.tobytes()


@pytest.mark.parametrize("make", [verlet, langevin, bfgs, cell_fire, scipy_cg])
def test_run_with_and_without_monitor_is_bit_identical(make, in_folder):
    ends = []
    for watched in (False, True):
        atoms = argon()
        dynamics = make(atoms)
        if watched:
            monitor = ExtrapolationMonitor(
                dynamics,
                criteria=[MaxForceSpread(1e-9), ShortestDistance(usual={"Ar-Ar": 3.5})],
                log="log.txt",
                save="frames.extxyz",
                before=2,
                warn=False,
                function=lambda event: event.frame.positions.fill(0),
            )
            dynamics.attach(monitor, interval=2)
        run(dynamics)
        ends.append(state(atoms))
    assert monitor.n_saved > 0
    assert ends[0] == ends[1]


def neb_images(shared):
    first, last = argon(), argon()
    for atoms in (first, last):
        atoms.arrays.pop("momenta")
    del first[0], last[1]
    last.positions = last.positions[np.argsort(last.positions @ [1, 100, 1e4])]
    first.positions = first.positions[np.argsort(first.positions @ [1, 100, 1e4])]
    images = [first, *(first.copy() for _ in range(3)), last]
    calculator = LJEnsemble()
    for image in images:
        image.calc = calculator if shared else LJEnsemble()
    neb = NEB(images, allow_shared_calculator=shared, method="improvedtangent")
    neb.interpolate(mic=True)
    return neb


@pytest.mark.parametrize("shared", [True, False])
def test_neb_is_followed_image_by_image_and_not_changed(shared, in_folder):
    ends = []
    for watched in (False, True):
        neb = neb_images(shared)
        optimiser = BFGS(neb, logfile=None)
        if watched:
            monitor = ExtrapolationMonitor(optimiser, 1e-9, log="log.txt", warn=False)
            optimiser.attach(monitor)
        optimiser.run(fmax=1e-6, steps=4)
        ends.append(neb.get_positions().tobytes())
    assert ends[0] == ends[1]
    log = read_log("log.txt")
    assert log["image"].tolist() == [1, 2, 3] * 5
    assert log["step"].tolist() == [step for step in range(5) for _ in range(3)]
    # Each row holds the spread of its own image, checked against a fresh evaluation.
    for image, spread in zip(neb.images[1:-1], log["max_force_std"][-3:], strict=True):
        fresh = LJEnsemble().prediction(image, "forces").forces_std.max()
        assert spread == pytest.approx(fresh, rel=1e-6)


def test_neb_stops_and_rolls_all_images_back(in_folder):
    neb = neb_images(shared=True)
    optimiser = BFGS(neb, logfile=None)
    seen = []
    optimiser.attach(lambda: seen.append(neb.get_positions().copy()))

    class Later(MaxForceSpread):
        def read(self, atoms, prediction):
            reading = super().read(atoms, prediction)
            return type(reading)(**{**vars(reading), "value": 9.0 if len(seen) == 4 else 0.1})

    monitor = ExtrapolationMonitor(optimiser, criteria=[Later(1.0)], rollback=True, warn=False)
    optimiser.attach(monitor)
    optimiser.run(fmax=1e-9, steps=20)
    assert monitor.stopped
    assert optimiser.nsteps == 3
    np.testing.assert_array_equal(neb.get_positions(), seen[2])


@pytest.mark.parametrize("make", [verlet, langevin, bfgs, cell_fire, scipy_cg])
def test_stop_is_clean_and_immediate(make):
    dynamics = make(argon())
    calls = []
    monitor = ExtrapolationMonitor(dynamics, 1e-12, stop=True, patience=3, warn=False)
    dynamics.attach(lambda: calls.append(dynamics.nsteps))
    dynamics.attach(monitor)
    run(dynamics, steps=30)
    assert monitor.stopped
    assert calls == [0, 1, 2]
    assert monitor.last_event.step == 2


def test_rollback_restores_positions_momenta_and_cell():
    atoms = argon(300.0)
    dynamics = verlet(atoms)
    states = []
    dynamics.attach(lambda: states.append(state(atoms)))
    monitor = ExtrapolationMonitor(dynamics, 0.012, rollback=True, warn=False)
    dynamics.attach(monitor)
    dynamics.run(200)
    assert monitor.stopped
    assert 1 < dynamics.nsteps < 200
    assert state(atoms) == states[-2]  # the frame before the one that went too far
    assert monitor.records["band"].tolist() == [0] * dynamics.nsteps + [1]


def test_rollback_returns_past_candidates_to_the_last_trusted_frame():
    atoms = argon(300.0)
    dynamics = verlet(atoms)
    states = []
    dynamics.attach(lambda: states.append(state(atoms)))
    monitor = ExtrapolationMonitor(dynamics, (0.012, 0.02), rollback=True, warn=False)
    dynamics.attach(monitor)
    dynamics.run(200)
    levels = monitor.records["band"].tolist()
    assert levels[-1] == 2
    assert levels.count(1) > 1
    assert state(atoms) == states[len(levels) - 1 - levels[::-1].index(0)]


def test_prediction_of_the_energy_level_leaves_forces_to_every_nth_call():
    from neuralil_ase.monitor import MaxEnergySpread

    atoms = argon()
    dynamics = verlet(atoms)
    criteria = [MaxForceSpread(10.0), MaxEnergySpread(10.0)]
    monitor = ExtrapolationMonitor(dynamics, criteria=criteria, every=4)
    dynamics.attach(monitor)
    dynamics.run(8)
    forces, energy = ["forces"], ["energy"]
    assert atoms.calc.asked == forces + energy * 3 + forces + energy * 3 + forces
    spread = monitor.records["max_force_std"]
    assert np.flatnonzero(np.isfinite(spread)).tolist() == [0, 4, 8]
    assert np.isfinite(monitor.records["max_energy_std"]).all()


def test_objection_of_a_cheap_criterion_has_the_forces_evaluated_at_once():
    from neuralil_ase.monitor import MaxEnergySpread

    atoms = argon()
    dynamics = verlet(atoms)
    criteria = [MaxForceSpread(10.0), MaxEnergySpread(1e-9)]
    monitor = ExtrapolationMonitor(dynamics, criteria=criteria, every=100, warn=False)
    dynamics.attach(monitor)
    dynamics.run(2)
    assert np.isfinite(monitor.records["max_force_std"]).all()
    assert "forces_std" in monitor.last_event.frame.arrays


def test_without_cheap_criteria_calls_in_between_cost_nothing():
    atoms = argon()
    dynamics = verlet(atoms)
    monitor = ExtrapolationMonitor(dynamics, 10.0, every=5)
    dynamics.attach(monitor)
    dynamics.run(10)
    assert atoms.calc.asked == ["forces"] * 3
    assert monitor.records["step"].tolist() == [0, 5, 10]


def test_sum_of_calculators_is_followed_through_calculator():

    atoms = argon()
    ensemble = atoms.calc
    atoms.calc = SumCalculator([LJEnsemble(), LennardJones(sigma=1.0, epsilon=1e-3)])
    dynamics = verlet(atoms)
    monitor = ExtrapolationMonitor(dynamics, 1e-9, calculator=ensemble, warn=False)
    dynamics.attach(monitor)
    dynamics.run(3)
    expected = LJEnsemble().prediction(atoms, "forces").forces_std.max()
    assert monitor.records["max_force_std"][-1] == expected
