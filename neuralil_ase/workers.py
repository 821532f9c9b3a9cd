"""Sends work to the workers of an executor, and copes with workers that die.

Workers are those of a ``concurrent.futures.Executor``. The standard library's pools are tested. Dask 2026.8
(``client.get_executor()``) and Parsl 2026.10 (``ParslPoolExecutor`` with two workers) were tried by hand on one
machine, while a worker was killed: predictions, labels and trained members were complete. With mpi4py 4.1, give a
script an ``MPIPoolExecutor()`` and start it by ``mpiexec -n 3 python -m mpi4py.futures script.py``: one process sends,
the others work. If one of the others dies, MPI ends all processes; labels and members that were saved remain. Only the
calling process reads and writes files.
"""

import logging
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

from neuralil_ase.errors import ConfigError, NeuralILError, ProcessError

_log = logging.getLogger(__name__)


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


def unless_lost(answer: Any | Lost) -> Any:
    """The answer; an error if there is none."""
    if isinstance(answer, Lost):
        raise died(answer)
    return answer


def died(lost: Lost) -> ProcessError:
    """The error for a message whose worker died."""
    return ProcessError(
        f"a worker died before it answered ({lost.reason}); usually it ran out of memory or was killed. Start a new "
        "executor and call again: labels that were finished are kept"
    )
