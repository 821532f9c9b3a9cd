"""An interruption at a random line of an evaluation leaves a calculator that answers right."""

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import interrupted_at
from systems import TRICLINIC, ensemble, random_atoms

from neuralil_ase import NeuralILCalculator, Replicas

LINES = 3000
"""More than a call runs, so that some of the calls end before they are interrupted."""
moments = st.one_of(st.integers(1, 120), st.integers(1, LINES))


@pytest.fixture(scope="module")
def structures() -> list[Atoms]:
    """A liquid, the same squeezed so that it has several times as many pairs, and a molecule in vacuum."""
    liquid = random_atoms(3, "CHNOCH", 1.6 * TRICLINIC, (True, True, True))
    dense, free = liquid.copy(), liquid.copy()
    dense.set_cell(0.6 * liquid.cell, scale_atoms=True)
    free.pbc = False
    return [liquid, dense, free]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(moments, st.integers(0, 2), st.sampled_from([KeyboardInterrupt, MemoryError]))
def test_a_calculator(
    structures: list[Atoms], line: int, which: int, kind: type[BaseException]
) -> None:
    calculator = NeuralILCalculator(ensemble(), uncertainty="forces")
    right = NeuralILCalculator(ensemble(), uncertainty="forces")
    calculator.get_forces(structures[(which + 1) % 3])
    with interrupted_at(line, kind):
        calculator.get_forces(structures[which])
    for atoms in (structures[which], *structures):
        np.testing.assert_array_equal(calculator.get_forces(atoms), right.get_forces(atoms))
        assert calculator.get_potential_energy(atoms) == right.get_potential_energy(atoms)
        spread = calculator.prediction(atoms).forces_std
        np.testing.assert_array_equal(spread, right.prediction(atoms).forces_std)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(moments)
def test_replicas(structures: list[Atoms], line: int) -> None:
    liquid, dense, _ = structures
    replicas = Replicas(liquid, ensemble())
    copies = [np.stack([atoms.positions] * 2) for atoms in (liquid, dense)]
    expected = [Replicas(liquid, ensemble()).predict(positions).forces for positions in copies]
    replicas.predict(copies[0])
    with interrupted_at(line):
        replicas.predict(copies[1])
    for k in (1, 0, 1):
        np.testing.assert_array_equal(replicas.predict(copies[k]).forces, expected[k])
