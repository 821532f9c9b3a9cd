"""An executor whose workers die where they are told to, and which survives it, as Dask's and Parsl's do."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Any


class Mortal(Executor):
    """Computes at once, in this process; the worker that gets one of the numbered messages dies of it.

    Attributes
    ----------
    messages
        Arguments of every message it got, those that were sent again too.
    """

    def __init__(self, deadly: Iterable[int] = ()) -> None:
        self.messages: list[tuple[Any, ...]] = []
        self._deadly = set(deadly)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        number = len(self.messages)
        self.messages.append(args)
        try:
            if number in self._deadly:
                raise ConnectionError("the worker is gone")
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future
