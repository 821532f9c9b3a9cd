"""Threads and processes: objects for one thread at a time, the start of JAX, and JAX after a fork."""

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from neuralil_ase.errors import ProcessError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Owner = TypeVar("Owner", bound=Any)


class Lock:
    """A lock that one thread holds, possibly several times. Copies of the object and forked processes get new locks."""

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.RLock()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self.__init__()  # type: ignore[misc]  # its holder does not exist in this process
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["Lock"], tuple[()]]:
        return Lock, ()


def one_at_a_time(
    method: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Result]:
    """Decorator: an object runs only one of the decorated methods at a time. The object needs ``_lock``."""

    @wraps(method)
    def locked(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked


def jax_device() -> str:
    """Where JAX computes by default: "cpu", "gpu", "tpu". Loads and starts JAX.

    Raises
    ------
    ProcessError
        If JAX cannot start.
    """
    import jax

    try:
        return jax.default_backend()
    except (AssertionError, RuntimeError) as error:  # an assertion if it finds no platform at all
        found = str(error).partition("\n")[0].rstrip(".") or "it found no device to compute on"
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]  # JAX makes it at run time
        usually = (
            f"it is asked for {asked!r} (JAX_PLATFORMS), which this machine, its driver or this installation of JAX "
            "lacks. Unset JAX_PLATFORMS"
            if asked
            else "JAX has a plugin for an accelerator that this machine or its driver lacks. Remove the plugin"
        )
        raise ProcessError(
            f"JAX cannot start: {found}. Usually {usually}, set JAX_PLATFORMS=cpu, or install what is missing"
        ) from error


_jax_process: int | None = None


def claim_jax() -> None:
    """Record that this process is about to compute with JAX. Call this function before every such use.

    JAX computes in threads. A forked process does not have these threads and would wait for ever.

    Raises
    ------
    ProcessError
        If this process was forked from one in which JAX has computed, or if JAX cannot start.
    """
    global _jax_process
    process = os.getpid()
    if _jax_process is None:
        jax_device()
        _jax_process = process
    elif _jax_process != process:
        raise ProcessError(
            "this process was forked from one that had used JAX, and JAX does not work in it. Start processes with "
            'multiprocessing.get_context("spawn") or "forkserver", or fork before the first evaluation'
        )
