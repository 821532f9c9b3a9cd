"""Many structures: predicted in batches, or labelled by another calculator, here or by workers.

Workers are those of a ``concurrent.futures.Executor``. The standard library's pools are tested. Dask 2026.8
(``client.get_executor()``) and Parsl 2026.10 (``ParslPoolExecutor`` with two workers) were tried by hand on one
machine, while a worker was killed: predictions, labels and trained members were complete. With mpi4py 4.1, give a
script an ``MPIPoolExecutor()`` and start it by ``mpiexec -n 3 python -m mpi4py.futures script.py``: one process sends,
the others work. If one of the others dies, MPI ends all processes; labels and members that were saved remain. Only the
calling process reads and writes files.
"""

import hashlib
import logging
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import suppress
from functools import partial
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from neuralil_ase.array_record import count
from neuralil_ase.calculator import to_system
from neuralil_ase.engine.arrays import Dtype
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.errors import ConfigError, NeuralILError, ProcessError, StructureError
from neuralil_ase.files.atomic import make_folder, write_atomically
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Prediction, Uncertainty, check_uncertainty

_log = logging.getLogger(__name__)


def predict_many(
    potential: Potential | str | Path,
    structures: Iterable[Atoms],
    *,
    dtype: Dtype = "float32",
    uncertainty: Uncertainty = "energy",
    batch_atoms: int = 4096,
    executor: Executor | None = None,
) -> list[Prediction]:
    """Predictions for many structures in batches, each batch as one disconnected graph.

    Parameters
    ----------
    potential
        A loaded potential or the path of its model file.
    structures
        Structures of any sizes and cells.
    dtype, uncertainty
        As for :class:`NeuralILCalculator`.
    batch_atoms
        A batch is closed when it holds this many atoms.
    executor
        Its workers predict, one message for each batch. Without an executor, this process predicts. Give each worker
        about one processor core, because the compiled core uses all processor cores that its process may use.

    Returns
    -------
    list of Prediction
        One for each structure, in their order.

    Raises
    ------
    ProcessError
        If a worker dies and the executor does not survive, or if the second worker that is given the batch dies, too.
    """
    check_uncertainty(uncertainty)
    loaded = as_potential(potential)
    batches = _batches(structures, batch_atoms)
    if executor is None:
        predictor = Predictor(loaded, dtype)
        parts: Iterable[list[Prediction]] = (_predicted(predictor, b, uncertainty) for b in batches)
    else:
        messages = {k: (loaded, batch, dtype, uncertainty) for k, batch in enumerate(batches)}
        answers = dict(answers_of(executor, _predict, messages))
        parts = (_unless_lost(answers[k]) for k in messages)
    return [prediction for part in parts for prediction in part]


class Labelled(NamedTuple):
    """What :func:`label` found for L frames.

    Attributes
    ----------
    frames
        The L frames in their order, with energy, forces and, where the calculator has it, stress; None for frames that
        failed.
    failures
        The error message for each frame that failed, by number of the frame.
    """

    frames: list[Atoms | None]
    failures: dict[int, str]

    def __repr__(self) -> str:
        return f"Labelled: {count(len(self.frames), 'frame')}, {len(self.failures)} of them failed"


def label(
    frames: Iterable[Atoms],
    calculator_factory: Callable[[], Any],
    executor: Executor | None,
    folder: str | Path,
) -> Labelled:
    """Energies and forces of frames by any ASE calculator. Labels are saved and never computed again.

    Every label is written as soon as it is computed, to a file of its own in ``folder``, named by a digest of the
    geometry. Call again with the same folder after an interruption, or with more frames: only missing labels are
    computed. Identical frames are labelled once. Use one folder for each setting of the calculator.

    Parameters
    ----------
    frames
        Structures. Elements, positions, cell, periodicity, initial charges and initial magnetic moments identify them.
    calculator_factory
        Makes an ASE calculator; called by the worker for every frame. Process pools need a factory that can be pickled:
        a function of a module, or ``functools.partial``.
    executor
        Its workers compute. With None, this process computes.
    folder
        The folder for the labels; created if it does not exist.

    Raises
    ------
    ConfigError
        If the calculator factory cannot be sent to a worker.
    OutputError
        If the folder or a label cannot be written.
    ProcessError
        If the executor stopped because a worker died; all finished labels are kept. If the executor survives, the frame
        is given to another worker; if that worker dies, too, only this frame fails.
    """
    folder, given = make_folder(folder), list(frames)
    files = [folder / f"{digest(atoms)}.extxyz" for atoms in given]
    missing = {file: atoms for file, atoms in zip(files, given, strict=True) if not file.exists()}
    reasons: dict[Path, str] = {}
    for file, outcome in _outcomes(missing, calculator_factory, executor):
        if isinstance(outcome, str):
            reasons[file] = outcome
            _log.warning("frame %d could not be labelled: %s", files.index(file), outcome)
        else:
            _keep(file, missing[file], outcome)
    failures = {k: reasons[file] for k, file in enumerate(files) if file in reasons}
    found = [
        None if file in reasons else _with_label(atoms, file)
        for file, atoms in zip(files, given, strict=True)
    ]
    return Labelled(found, failures)


def processes(count: int) -> ProcessPoolExecutor:
    """A pool of spawned processes. Forked processes would hang if JAX has computed in the parent process.

    Raises
    ------
    ConfigError
        If ``count`` is less than 1.
    """
    if count < 1:
        raise ConfigError(f"workers: at least 1 is needed, not {count}")
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def _batches(structures: Iterable[Atoms], batch_atoms: int) -> Iterator[list[Atoms]]:
    batch: list[Atoms] = []
    for atoms in structures:
        batch.append(atoms)
        if sum(map(len, batch)) >= batch_atoms:
            yield batch
            batch = []
    if batch:
        yield batch


def _predicted(
    predictor: Predictor, batch: list[Atoms], uncertainty: Uncertainty
) -> list[Prediction]:
    potential = predictor.potential
    systems = [to_system(a, potential, NeighborList(potential.r_cut, skin=0)) for a in batch]
    return predictor.predict(systems, uncertainty)


def _predict(
    potential: Potential, batch: list[Atoms], dtype: Dtype, uncertainty: Uncertainty
) -> list[Prediction]:
    """What a worker does for one message."""
    return _predicted(Predictor(potential, dtype), batch, uncertainty)


class Lost(NamedTuple):
    """A message that no worker answered.

    Attributes
    ----------
    reason
        Error message of the executor.
    executor_broke
        Whether the executor takes no more messages.
    """

    reason: str
    executor_broke: bool


def answers_of(
    executor: Executor, function: Callable[..., Any], messages: Mapping[int, tuple[Any, ...]]
) -> Iterator[tuple[int, Any | Lost]]:
    """Answers of workers to numbered messages, in the order in which they arrive.

    A message holds the arguments of the function. If a worker dies and the executor survives, the message is sent once
    more. An error that the function raises is raised here at once, and messages that have not begun are cancelled.
    """
    guarded = partial(_guarded, function)
    pending: dict[Future[Any], int] = {}
    unsent, sent_again, broke = [*messages], set[int](), ""
    try:
        while unsent or pending:
            try:
                while unsent and not broke:
                    pending[executor.submit(guarded, *messages[unsent[0]])] = unsent[0]
                    del unsent[0]
            except BrokenExecutor as error:
                broke = f"{type(error).__name__}: {error}"
            if broke:
                yield from ((k, Lost(broke, True)) for k in unsent)
                unsent = []
            done = wait(pending, return_when=FIRST_COMPLETED).done if pending else set()
            for future in sorted(done, key=pending.__getitem__):
                k = pending.pop(future)
                answer = _answer(future)
                if isinstance(answer, Lost) and not answer.executor_broke and k not in sent_again:
                    _log.warning("sent again, because a worker died: %s", answer.reason)
                    sent_again.add(k)
                    unsent.append(k)
                else:
                    yield k, answer
    finally:
        for future in pending:
            future.cancel()


class _Raised(NamedTuple):
    """An error raised by the function. Any error of the executor itself then means that a worker died."""

    error: Exception


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a worker runs."""
    try:
        return function(*arguments)
    except Exception as error:
        if not isinstance(error, NeuralILError):
            error.add_note(
                "".join(traceback.format_exception(error))
            )  # else the traceback stays with the worker
        return _Raised(_portable(error))


def _portable(error: Exception) -> Exception:
    """The error, or a ProcessError with the same text if pickling the error would break the pool."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        said = ProcessError(f"a worker raised {type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            said.add_note(note)
        return said
    return error


def _answer(future: "Future[Any]") -> Any | Lost:
    try:
        answer = future.result()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the work could not be sent to a worker ({error}). Process pools can send only what can be pickled: "
            "functions and classes of a module, or functools.partial, but no lambda and nothing defined in a function"
        ) from error
    except Exception as error:  # the executor's error for a worker that died
        broke = isinstance(error, BrokenExecutor | CancelledError)
        return Lost(f"{type(error).__name__}: {error}", broke)
    if isinstance(answer, _Raised):
        raise answer.error
    return answer


def _unless_lost(answer: Any | Lost) -> Any:
    if isinstance(answer, Lost):
        raise died(answer)
    return answer


def died(lost: Lost) -> ProcessError:
    """The error for a message whose worker died."""
    return ProcessError(
        f"a worker died before it answered ({lost.reason}); usually it ran out of memory or was killed. Start a new "
        "executor and call again: labels that were finished are kept"
    )


_Label = dict[str, Any]
"""energy in eV, forces in eV/Å, shape (N, 3), and perhaps stress in eV/Å³, shape (6,)."""


def _outcomes(
    missing: dict[Path, Atoms], factory: Callable[[], Any], executor: Executor | None
) -> Iterator[tuple[Path, _Label | str]]:
    """Labels, or reasons of failure, in the order in which they arrive."""
    if executor is None:
        yield from ((file, _label_one(atoms, factory)) for file, atoms in missing.items())
        return
    files, broken = [*missing], None
    messages = {k: (missing[file], factory) for k, file in enumerate(files)}
    for k, answer in answers_of(executor, _label_one, messages):
        if not isinstance(answer, Lost):
            yield files[k], answer
        elif answer.executor_broke:
            broken = answer  # others may have finished before
        else:
            yield files[k], answer.reason
    if broken is not None:
        raise died(broken)


def _label_one(atoms: Atoms, factory: Callable[[], Any]) -> _Label | str:
    """The work for one frame. Never raises an error, so that one bad frame does not stop the others."""
    try:
        atoms = atoms.copy()
        atoms.set_constraint()  # labels are forces on all atoms, also on fixed ones
        atoms.calc = factory()
        found = _computed(atoms)
    except Exception as error:  # calculators raise errors of any type
        return f"{type(error).__name__}: {error}"
    wrong = [name for name, value in found.items() if not np.isfinite(value).all()]
    return f"not finite: {', '.join(wrong)}" if wrong else found


def _computed(atoms: Atoms) -> _Label:
    """Energy, forces and, if there is one, stress. A calculator that was interrupted forgets the structure: otherwise
    its next call could continue halfway."""
    try:
        found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.cell.rank == 3:
            with suppress(NotImplementedError, PropertyNotImplementedError):
                found["stress"] = atoms.get_stress()
    except BaseException:
        with suppress(Exception):
            atoms.calc.reset()
        raise
    return found


def digest(atoms: Atoms) -> str:
    """A hash of the exact geometry, by which :func:`label` names the file of a structure."""
    found = hashlib.sha256()
    for array in (
        atoms.numbers.astype("<i8"), atoms.positions.astype("<f8"), atoms.cell.array.astype("<f8"),
        atoms.pbc.astype("u1"), atoms.get_initial_charges().astype("<f8"),
        atoms.get_initial_magnetic_moments().astype("<f8"),
    ):  # fmt: skip
        found.update(repr(array.shape).encode() + array.tobytes())
    return found.hexdigest()[:32]


def _keep(file: Path, atoms: Atoms, found: _Label) -> None:
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.calc = SinglePointCalculator(bare, **found)
    text = StringIO()
    write(text, bare, format="extxyz")
    write_atomically(file, text.getvalue().encode())


def _with_label(atoms: Atoms, file: Path) -> Atoms:
    """The given frame, with its info and arrays, and with the saved label."""
    try:
        kept = read(file, format="extxyz")
        assert isinstance(kept, Atoms)
        results = {
            n: kept.calc.results[n]
            for n in ("energy", "forces", "stress")
            if n in kept.calc.results
        }
        if len(kept) != len(atoms) or not {"energy", "forces"} <= results.keys():
            raise ValueError("it holds no label of this frame")
    except Exception as error:  # for damaged files, ASE's reader raises errors of any type
        raise StructureError(
            f"the label {file} cannot be read ({error}); remove the file, and call again to label that frame anew"
        ) from error
    labelled = atoms.copy()
    labelled.calc = SinglePointCalculator(labelled, **results)
    return labelled
