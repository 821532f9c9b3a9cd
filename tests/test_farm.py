"""Many structures by workers: the same predictions, and labels that are kept, in order, computed once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from executors import Mortal
from systems import ensemble, structure

from neuralil_ase import label, predict_many
from neuralil_ase.errors import ConfigError, OutputError, ProcessError, StructureError
from neuralil_ase.workers import answers_of

STRUCTURES = [structure("triclinic"), molecule("CH3OH"), structure("slab"), molecule("H2O")]


def clusters(count: int = 5) -> list[Atoms]:
    rng = np.random.default_rng(2)
    return [
        Atoms("Cu4", positions=rng.normal(scale=1.5, size=(4, 3)), info={"number": k})
        for k in range(count)
    ]


class Counting(EMT):
    """EMT that notes its process for every frame, in a folder, and fails or dies where it is told to."""

    def __init__(self, folder: str, bad: float | None = None, dies: bool = False) -> None:
        super().__init__()
        self.folder, self.bad, self.dies = Path(folder), bad, dies

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        super().calculate(atoms, *args, **kwargs)
        if self.bad is not None and abs(atoms.positions[0, 0] - self.bad) < 1e-12:
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("no convergence")
        (self.folder / f"{os.getpid()}-{len(list(self.folder.iterdir()))}-{id(self)}").touch()


class NotFinite(Calculator):
    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - ASE's convention

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        super().calculate(atoms, *args, **kwargs)
        self.results = {"energy": np.nan, "forces": np.zeros((len(atoms), 3))}


def pool(kind: str) -> Executor | None:
    made: dict[str, Callable[[], Executor | None]] = {
        "none": lambda: None,
        "threads": lambda: ThreadPoolExecutor(2),
        "processes": lambda: ProcessPoolExecutor(2, mp_context=get_context("spawn")),
    }
    return made[kind]()


@pytest.mark.parametrize("kind", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_workers_predict_the_same_in_the_same_order(kind: str) -> None:
    expected = predict_many(ensemble(), STRUCTURES, uncertainty="forces")
    executor = pool(kind)
    assert executor is not None
    with executor:
        found = predict_many(
            ensemble(), STRUCTURES, uncertainty="forces", batch_atoms=7, executor=executor
        )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.symbols, other.symbols)
        np.testing.assert_allclose(one.forces, other.forces, atol=2e-5)
        np.testing.assert_allclose(one.member_energies, other.member_energies, rtol=1e-6)


@pytest.mark.parametrize(
    "kind", ["none", "threads", pytest.param("processes", marks=pytest.mark.slow)]
)  # processes label in the next tests
def test_labels_keep_order_and_info_and_nothing_is_labelled_twice(
    kind: str, tmp_path: Path
) -> None:
    calls, folder = tmp_path / "calls", tmp_path / "labels"
    calls.mkdir()
    frames = [*clusters(), clusters()[1]]  # the last is the second again
    executor = pool(kind)
    found, failures = label(frames, partial(Counting, str(calls)), executor, folder)
    again, _ = label([*clusters(6), frames[0]], partial(Counting, str(calls)), executor, folder)
    if executor is not None:
        executor.shutdown()
    assert not failures
    assert len(list(calls.iterdir())) == 6
    assert [atoms.info["number"] for atoms in found] == [0, 1, 2, 3, 4, 1]
    for atoms, frame in zip([*found, *again], [*frames, *clusters(6), frames[0]], strict=True):
        expected = frame.copy()
        expected.calc = EMT()
        np.testing.assert_allclose(atoms.get_forces(), expected.get_forces(), atol=1e-7)
        np.testing.assert_allclose(atoms.get_potential_energy(), expected.get_potential_energy())
        np.testing.assert_array_equal(atoms.positions, frame.positions)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "file/labels", "a\0b"):
        with pytest.raises(OutputError, match="cannot make the folder"):
            label(clusters(1), EMT, None, tmp_path / name)


def test_atoms_that_are_held_fixed_are_labelled_with_their_forces(tmp_path: Path) -> None:
    """Atoms.get_forces would give zeros, from which a potential learns that no force acts there."""
    free, fixed = clusters(1)[0], clusters(1)[0]
    fixed.set_constraint(FixAtoms([0, 1]))
    free.calc = EMT()
    (found,), failures = label([fixed], EMT, None, tmp_path)
    assert not failures
    np.testing.assert_allclose(found.calc.results["forces"], free.get_forces(), atol=1e-7)
    assert fixed.constraints


@pytest.mark.parametrize("kind", ["none", "threads"])
def test_one_bad_frame_costs_no_other_and_is_tried_again(kind: str, tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    frames = clusters()
    broken = partial(Counting, str(tmp_path / "calls"), bad=frames[2].positions[0, 0])
    found, failures = label(frames, broken, pool(kind), tmp_path / "labels")
    assert failures == {2: "RuntimeError: no convergence"}
    assert [atoms is None for atoms in found] == [False, False, True, False, False]
    healed = partial(Counting, str(tmp_path / "calls"))
    found, failures = label(frames, healed, pool(kind), tmp_path / "labels")
    assert not failures
    assert len(list((tmp_path / "calls").iterdir())) == 5


def test_labels_that_are_no_numbers_are_failures(tmp_path: Path) -> None:
    found, failures = label(clusters(1), NotFinite, None, tmp_path)
    assert found == [None]
    assert failures == {0: "not finite: energy"}


def test_a_worker_that_dies_loses_no_label(tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    frames = clusters()
    deadly = partial(Counting, str(tmp_path / "calls"), bad=frames[4].positions[0, 0], dies=True)
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor,
        pytest.raises(ProcessError, match="a worker died before it answered"),
    ):
        label(frames, deadly, executor, tmp_path / "labels")
    assert len(list((tmp_path / "labels").iterdir())) == 4
    healed = partial(Counting, str(tmp_path / "calls"))
    found, failures = label(frames, healed, None, tmp_path / "labels")
    assert not failures
    assert all(found)
    assert len(list((tmp_path / "calls").iterdir())) == 5


def test_what_a_worker_died_of_is_sent_once_more(tmp_path: Path) -> None:
    """To an executor that survives it; the second death is an error, or the failure of one frame."""
    expected = predict_many(ensemble(), STRUCTURES)
    found = predict_many(ensemble(), STRUCTURES, batch_atoms=1, executor=Mortal({1, 2}))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.forces, other.forces, atol=2e-5)
    twice = Mortal({1, len(STRUCTURES)})
    with pytest.raises(ProcessError, match=r"died before it answered \(ConnectionError: the"):
        predict_many(ensemble(), STRUCTURES, batch_atoms=1, executor=twice)

    frames = clusters(4)
    labelled, failures = label(frames, EMT, Mortal({2}), tmp_path / "once")
    assert all(labelled)
    assert not failures
    labelled, failures = label(frames, EMT, Mortal({2, 4}), tmp_path / "twice")
    assert failures == {2: "ConnectionError: the worker is gone"}
    assert [atoms is None for atoms in labelled] == [False, False, True, False]


def test_a_wrong_structure_is_said_as_without_workers() -> None:
    with pytest.raises(StructureError, match="Xe"):
        predict_many(ensemble(), [*STRUCTURES, Atoms("Xe")], batch_atoms=1, executor=Mortal())


def test_a_damaged_label_is_said(tmp_path: Path) -> None:
    label(clusters(1), EMT, None, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text("")
    with pytest.raises(StructureError, match=r"cannot be read .* remove the file"):
        label(clusters(1), EMT, None, tmp_path)


def _mistaken(number: int) -> int:
    return [1, 2][number]


def test_a_mistake_in_a_worker_is_no_death() -> None:
    """It is raised as it is, with the place where it happened, and not sent again."""
    executor = Mortal()
    with pytest.raises(IndexError, match="list index out of range") as caught:
        dict(answers_of(executor, _mistaken, {7: (2,)}))
    assert any("_mistaken" in note for note in caught.value.__notes__)
    assert executor.messages == [(2,)]
    assert dict(answers_of(executor, _mistaken, {7: (1,)})) == {7: 2}


class TwoArguments(Exception):
    """Cannot be unpickled: its pickle holds one argument."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def _odd() -> None:
    raise TwoArguments("much is wrong", "here")


def test_an_error_that_does_not_travel_is_told_by_one_that_does() -> None:
    """A pool of processes breaks of such an answer, and loses those of others."""
    with pytest.raises(ProcessError, match="raised TwoArguments: much is wrong") as caught:
        dict(answers_of(Mortal(), _odd, {0: ()}))
    assert any("_odd" in note for note in caught.value.__notes__)


def test_a_factory_that_does_not_pickle_is_said(tmp_path: Path) -> None:
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor,
        pytest.raises(ConfigError, match=r"could not be sent to a worker .* no lambda"),
    ):
        label(clusters(1), lambda: EMT(), executor, tmp_path)


BY_MPI = """
import sys
from pathlib import Path
import numpy as np
from ase.calculators.emt import EMT
from mpi4py.futures import MPIPoolExecutor
from neuralil_ase import label, predict_many
from systems import ensemble
from test_farm import STRUCTURES, clusters

if __name__ == "__main__":
    with MPIPoolExecutor() as pool:
        found = predict_many(ensemble(), STRUCTURES, batch_atoms=1, executor=pool)
        labelled, failures = label(clusters(), EMT, pool, sys.argv[1])
        workers = pool.num_workers
    expected = predict_many(ensemble(), STRUCTURES)
    apart = max(np.abs(a.forces - b.forces).max() for a, b in zip(found, expected, strict=True))
    print(workers, len(found), apart < 2e-5, sum(map(bool, labelled)), failures)
"""


@pytest.mark.slow
def test_the_processes_of_mpi_are_workers(tmp_path: Path) -> None:
    pytest.importorskip(
        "mpi4py", reason="mpi4py is not installed: pip install neuralil-ase[lammps]"
    )
    (tmp_path / "script.py").write_text(BY_MPI)
    mpiexec = [str(Path(sys.executable).parent / "mpiexec"), "-n", "3"]
    words = ["-m", "mpi4py.futures", "script.py", "labels"]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*mpiexec, sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": paths, "MPIR_CVAR_POLLS_BEFORE_YIELD": "1"},
    )  # fmt: skip
    assert done.stdout.split() == ["2", "4", "True", "5", "{}"], done.stderr
