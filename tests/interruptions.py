"""An interruption at any line: Ctrl-C, or no memory, at moments that no one would think of."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import neuralil_ase

PACKAGE = Path(neuralil_ase.__file__).parent


class Interrupted:
    """How a block with an interruption went: whether it was reached, and the number of lines that were run."""

    def __init__(self) -> None:
        self.lines = 0
        self.reached = False


@contextmanager
def interrupted_at(
    line: int,
    kind: type[BaseException] = KeyboardInterrupt,
    within: ModuleType | Path = PACKAGE,
) -> Iterator[Interrupted]:
    """Raise when so many lines of the package, or of one of its rooms, were run in this block.

    What is raised ends with the block, if nothing inside it has dealt with it.
    """
    room = within if isinstance(within, Path) else Path(str(within.__file__)).parent
    found = Interrupted()
    inside = _is_inside(room)

    def trace(frame: Any, event: str, _: object) -> Any:
        if not inside(frame.f_code.co_filename):
            return None
        if event == "line":
            found.lines += 1
            if found.lines == line:
                found.reached = True
                raise kind
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield found
    except kind:
        if not found.reached:
            raise
    finally:
        sys.settrace(before)


def _is_inside(room: Path) -> Callable[[str], bool]:
    known: dict[str, bool] = {}

    def inside(name: str) -> bool:
        if name not in known:
            known[name] = room in Path(name).parents
        return known[name]

    return inside
