"""One calculator in several threads, and calculators in processes of all kinds."""

import copy
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from systems import ensemble

from neuralil_ase import NeuralILCalculator, Replicas
from neuralil_ase.engine import native


def structures(count: int) -> list[Atoms]:
    """Different numbers of atoms, different cells, with and without images."""
    rng = np.random.default_rng(1)
    found = []
    for k in range(count):
        atoms = molecule(("CH3OH", "H2O", "CH3CH2NH2", "NH3")[k % 4])
        atoms.center(vacuum=1.5)
        atoms.pbc = k % 3 == 0
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        found.append(atoms)
    return found


def test_threads_that_share_a_calculator_get_what_belongs_to_their_atoms() -> None:
    """600 evaluations in two threads had two wrong answers, or killed the interpreter."""
    atoms = structures(40)
    alone = [NeuralILCalculator(ensemble(), dtype="float64").prediction(a) for a in atoms]
    shared = NeuralILCalculator(ensemble(), dtype="float64")
    gate = threading.Barrier(4)

    def work(thread: int) -> None:
        gate.wait()
        for k in np.random.default_rng(thread).permutation(100) % len(atoms):
            mine = atoms[k].copy()
            mine.calc = shared
            assert abs(mine.get_potential_energy() - alone[k].energy) < 1e-9
            np.testing.assert_allclose(mine.get_forces(), alone[k].forces, atol=1e-9)
            assert shared.prediction(mine).energy == pytest.approx(alone[k].energy, abs=1e-9)
            assert len(shared.descriptors(mine)) == len(mine)
            assert len(mine.get_properties(["energies"])["energies"]) == len(mine)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(switch)


def test_threads_that_share_replicas() -> None:
    atoms = molecule("CH3OH")
    shared = Replicas(atoms, ensemble(), dtype="float64")
    rng = np.random.default_rng(2)
    batches = [
        atoms.positions + rng.normal(scale=0.3, size=(n, len(atoms), 3)) for n in (1, 5, 2, 9)
    ]
    expected = [
        Replicas(atoms, ensemble(), dtype="float64").predict(batch).energy for batch in batches
    ]

    def work(k: int) -> None:
        for _ in range(50):
            np.testing.assert_allclose(shared.predict(batches[k]).energy, expected[k], atol=1e-9)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


def test_copies_and_pickles_have_a_lock_of_their_own() -> None:
    calculator = NeuralILCalculator(ensemble(), dtype="float64")
    (atoms,) = structures(1)
    energy = calculator.get_potential_energy(atoms)
    moved = atoms.copy()
    moved.rattle(0.01)
    held, is_held, may_go = atoms.copy(), threading.Event(), threading.Event()
    held.rattle(0.02)

    def slow_copy() -> Atoms:
        """The calculator makes one of what it evaluates."""
        is_held.set()
        assert may_go.wait(timeout=120)
        return moved

    held.copy = slow_copy
    with ThreadPoolExecutor(3) as threads:
        try:
            threads.submit(calculator.get_potential_energy, held)
            assert is_held.wait(timeout=60)
            waiting = threads.submit(calculator.get_potential_energy, atoms)
            for other in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
                found = threads.submit(other.get_potential_energy, moved).result(timeout=60)
                assert found != energy
                assert other.get_potential_energy(atoms) == energy
            assert not waiting.done()
        finally:
            may_go.set()
    assert waiting.result() == energy


FORK = """
import multiprocessing, os, sys
sys.path.insert(0, TESTS)
from ase.build import molecule
from systems import ensemble
from neuralil_ase import NeuralILCalculator
from neuralil_ase.engine import native
from neuralil_ase.errors import ProcessError

if BACKEND == "jax":
    native.missing_reason = lambda config=None: "it was left out of this test"
calculator = NeuralILCalculator(ensemble(), dtype="float64")
assert calculator.backend.lower().startswith(BACKEND)

def energy(name):
    try:
        return calculator.get_potential_energy(molecule(name))
    except ProcessError as error:
        return str(error)

if __name__ == "__main__":
    names = ["CH3OH", "H2O", "CH3CH2NH2", "NH3"] if BACKEND == "compiled" else ["CH3OH", "H2O"]
    before = [energy(name) for name in names] if WHEN == "after" else None
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(energy, names).get(timeout=120)
    if isinstance(found[0], str):
        print(found[0])
    else:
        expected = before or [energy(name) for name in names]
        print("equal" if found == expected else (found, expected))
"""


def forked(backend: str, when: str) -> str:
    """What a program prints that forks before or after its first evaluation."""
    tests = str(Path(__file__).parent)
    return printed(f"TESTS, BACKEND, WHEN = {tests!r}, {backend!r}, {when!r}\n{FORK}")


def printed(code: str) -> str:
    """What a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.skipif(isinstance(native.compiled_library(), str), reason="the library was not built")
@pytest.mark.parametrize("when", ["before", "after"])
def test_processes_forked_at_any_time_compute_with_the_compiled_core(when: str) -> None:
    assert forked("compiled", when) == "equal"


@pytest.mark.slow
def test_a_process_forked_before_jax_is_used_computes_with_it() -> None:
    assert forked("jax", "before") == "equal"


def test_a_process_forked_after_jax_was_used_says_so_at_once() -> None:
    """It waited for ever, for threads that a forked process does not have."""
    said = forked("jax", "after")
    assert "forked from one that had used JAX" in said
    assert "spawn" in said


FORK_TO_TRAIN = """
import multiprocessing
from neuralil_ase import train
from neuralil_ase.engine.concurrency import claim_jax
from neuralil_ase.errors import ProcessError

def refused(frames):
    try:
        train(frames)
    except ProcessError as error:
        return str(error)

if __name__ == "__main__":
    claim_jax()  # as everything does that is about to use it
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.apply_async(refused, [[]]).get(timeout=120))
"""


def test_training_in_a_process_forked_after_jax_was_used_says_so_at_once() -> None:
    assert "forked from one that had used JAX" in printed(FORK_TO_TRAIN)


POOL = """
import multiprocessing
import sys
sys.path.insert(0, TESTS)
from systems import ensemble, structure
from neuralil_ase import NeuralILCalculator

def energy(name):
    atoms = structure(name)
    atoms.calc = NeuralILCalculator(ensemble())
    return atoms.get_potential_energy()

if __name__ == "__main__":
    names = ["molecule", "tiny"]
    here = [energy(name) for name in names]
    with multiprocessing.get_context(METHOD).Pool(2) as pool:
        print(pool.map(energy, names) == here)
"""


@pytest.mark.slow  # spawned workers are in test_farm, too
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_pools_of_fresh_processes_compute(tmp_path: Path, method: str) -> None:
    script = tmp_path / "pool.py"
    tests = str(Path(__file__).parent)
    script.write_text(f"TESTS, METHOD = {tests!r}, {method!r}\n{POOL}")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "True", done.stderr[-2000:]
