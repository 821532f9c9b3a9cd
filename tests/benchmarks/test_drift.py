"""Every host moves the same atoms alike: masses, velocities, time step and energies have the right units in each."""

import drift
import numpy as np
import pytest
from ase import Atoms
from systems import ensemble, random_atoms

CELL = np.diag([8.1, 8.2, 8.3])
STEPS = 12
SLOW = ("i-PI", "jax-md, float64")  # tests/hosts runs NVE in both
PROGRAMS = ["LAMMPS", "i-PI", "OpenMM", "jax-md, float64"]


def start() -> Atoms:
    """Hot, so that the energy changes by more than the last digit that i-PI prints."""
    atoms = random_atoms(3, "CHHNOHCHOH", CELL, (True, True, True), spacing=1.1)
    return drift.begin(atoms, kelvin=20_000)


def energies(name: str) -> np.ndarray:
    return drift.HOSTS[name].run(start(), ensemble(), STEPS)


@pytest.fixture(scope="module")
def in_ase() -> np.ndarray:
    return energies("ASE")


def test_ase_gives_one_energy_for_each_interval(in_ase: np.ndarray) -> None:
    assert len(in_ase) == STEPS // drift.EVERY + 1
    assert 0 < np.ptp(in_ase) < 1


@pytest.mark.parametrize(
    "name",
    [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in PROGRAMS],
)
@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")
@pytest.mark.filterwarnings("ignore:jax.:DeprecationWarning")  # by jax-md with the oldest JAX
def test_total_energies_change_as_in_ase(name: str, in_ase: np.ndarray) -> None:
    if not drift.HOSTS[name].is_there:
        pytest.skip(f"{name} is not installed: pip install neuralil-ase[{drift.HOSTS[name].extra}]")
    found = energies(name)
    assert len(found) == len(in_ase)
    change, expected = found - found[0], in_ase - in_ase[0]
    np.testing.assert_allclose(change, expected, atol=1e-2 * np.ptp(in_ase))


def test_the_table_finds_a_drift_that_is_there() -> None:
    rng, n_atoms = np.random.default_rng(0), 10
    ps = np.arange(2001) * drift.EVERY * drift.STEP / drift.units.fs / 1000
    energies = -50 + 1e-3 * n_atoms * ps + 1e-6 * n_atoms * rng.normal(size=len(ps))
    name, slope, fluctuation, apart = drift.row("x", energies, energies - 3, n_atoms)[2:-2].split(
        " | "
    )
    assert name == "x"
    assert float(slope.split(" ± ")[0]) == pytest.approx(1000, abs=1)
    assert float(fluctuation) == pytest.approx(1, rel=0.1)
    assert float(apart) == 0
