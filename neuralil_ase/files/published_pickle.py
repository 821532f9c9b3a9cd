"""Reads published NeuralIL files, which are pickles, without running any code in them.

It knows only the operations and globals that occur in published files, and replaces all globals by stand-ins. No object
of another library is built before its content has been checked, and a file cannot change a stand-in. Python's own
unpickler is not used: one byte can make it allocate gigabytes, and nested references can make it hash or compare
without end.
"""

import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import numpy as np

MAX_OPERATIONS = 100_000
"""Largest number of operations; published files have 587 to 3024."""


def read_fields(content: bytes) -> Mapping[str, Any]:
    """The fields of the model information in a pickle; arrays in it are :class:`PickledArray`.

    Raises
    ------
    pickle.UnpicklingError
        If the pickle asks for another global, holds arrays of anything but numbers, or is no model
        information.
    Exception
        A damaged pickle can raise any other exception.
    """
    record = _Machine().run(content)
    if not isinstance(record, _Record) or not hasattr(record, "fields"):
        raise pickle.UnpicklingError("it holds no NeuralIL model information")
    return record.fields


class _Record:
    """Stand-in for the model-information classes of the original; keeps the fields."""

    fields: Mapping[str, Any]

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict:
            raise pickle.UnpicklingError("the model information is not a table of fields")
        self.fields = state


class _Global:
    """Stand-in for a global that a pickle may call. The pickle cannot change it."""

    __slots__ = ("_build", "_name")

    def __init__(self, name: str, build: Callable[..., Any]) -> None:
        self._name, self._build = name, build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"the file tries to change {self._name}")


class _Dtype:
    """Stand-in for ``numpy.dtype``; only little-endian floats are allowed."""

    __slots__ = ("code",)

    def __init__(self, code: Any, *_: Any) -> None:
        if type(code) is not str or code not in ("f2", "f4", "f8"):
            raise pickle.UnpicklingError(f"an array has dtype {_brief(code)}, not a float")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or [s for s in state[1:2] if type(s) is str] != ["<"]:
            raise pickle.UnpicklingError("an array is not little-endian")


class PickledArray:
    """Stand-in for ``numpy.ndarray``. It becomes an array when shape and bytes have been compared."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values = np.zeros(0, np.float32)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        """View ``data`` in this shape. It is not copied: a small pickle could ask for many copies."""
        if not (isinstance(dtype, _Dtype) and isinstance(data, bytes | bytearray)):
            raise pickle.UnpicklingError("an array is not made of plain numbers")
        shape = shape if isinstance(shape, tuple) else (shape,)
        if len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
            raise pickle.UnpicklingError(f"an array has shape {_brief(shape)}")
        if math.prod(shape) * int(dtype.code[1]) != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape} has {len(data)} bytes")
        flat = np.frombuffer(data, f"<{dtype.code}")
        self.values = flat.reshape(shape, order="F" if order == "F" else "C")


def _brief(value: Any) -> str:
    """Text of a value for a message; long or nested values are not shown."""
    if isinstance(value, tuple) and len(value) <= 8:
        return f"({', '.join(map(_brief_item, value))})"
    return _brief_item(value)


def _brief_item(value: Any) -> str:
    return (
        f"{value!r:.40}" if type(value) in (int, float, str, bytes) else f"a {type(value).__name__}"
    )


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    array = PickledArray()
    array.fill(data, dtype, shape, order)
    return array


def _from_device(function: Any, _args: Any, state: Any, _aval: Any) -> PickledArray:
    if function is not _NEW_ARRAY:
        raise pickle.UnpicklingError("a device array is not built from a NumPy array")
    array = PickledArray()
    array.__setstate__(state)
    return array


_NEW_ARRAY = _Global("numpy.core.multiarray._reconstruct", lambda *_: PickledArray())
GLOBALS: dict[tuple[str, str], Any] = {
    ("neuralil.model", "NeuralILModelInfo"): _Record,
    ("neuralil.deep_ensembles.model", "HeteroscedasticNeuralILModelInfo"): _Record,
    ("datetime", "datetime"): _Global("datetime.datetime", datetime),
    ("numpy", "ndarray"): _Global("numpy.ndarray", lambda *_: PickledArray()),
    ("numpy", "dtype"): _Global("numpy.dtype", _Dtype),
    ("numpy.core.multiarray", "_reconstruct"): _NEW_ARRAY,
    ("numpy.core.numeric", "_frombuffer"): _Global("numpy.core.numeric._frombuffer", _from_buffer),
    ("jax._src.device_array", "reconstruct_device_array"): _Global(
        "jax._src.device_array.reconstruct_device_array", _from_device
    ),
}
"""All that a published file may name, and what is made of it."""


class _Machine:
    """The stack machine that runs a pickle, with only the operations that published files use.

    It never hashes, compares or prints objects made by the pickle, except names, so that nesting cannot cost time.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > MAX_OPERATIONS:
                raise pickle.UnpicklingError("it is longer than any published file")
            operation = _OPERATIONS.get(opcode.name)
            if operation is not None:
                operation(self, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise pickle.UnpicklingError(f"it uses {opcode.name}, which no published file does")
        return self.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self._outer.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self._outer.pop()
        return items

    def take(self, count: int) -> list[Any]:
        items = self.stack[len(self.stack) - count :]
        if len(items) < count:
            raise pickle.UnpicklingError("it takes more from the stack than is there")
        del self.stack[len(self.stack) - count :]
        return items

    def memoize(self, number: int | None) -> None:
        self._memo[len(self._memo) if number is None else number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.push(self._memo[number])

    def tuple_of_marked(self, _: Any) -> None:
        items = self.marked()
        self.push(tuple(items))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise pickle.UnpicklingError("it appends to something that is not a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target, keys = self.stack[-1], items[::2]
        if type(target) is not dict or not all(type(key) is str for key in keys):
            raise pickle.UnpicklingError("it sets entries that are not names in a table")
        target.update(zip(keys, items[1::2], strict=True))

    def find_global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise pickle.UnpicklingError("it asks for a global without a name")
        if (module, name) not in GLOBALS:
            raise pickle.UnpicklingError(
                f"it asks for {module[:80]}.{name[:80]}, which no published file uses, and which may be an attempt to "
                "run code"
            )
        self.push(GLOBALS[module, name])

    def make(self, _: Any) -> None:
        kind, arguments = self.take(2)
        if kind is not _Record or arguments != ():
            raise pickle.UnpicklingError("it makes an object that no published file has")
        self.push(_Record())

    def call(self, _: Any) -> None:
        function, arguments = self.take(2)
        if type(function) is not _Global or type(arguments) is not tuple:
            raise pickle.UnpicklingError("it calls something that is not a function")
        self.push(function(*arguments))

    def build(self, _: Any) -> None:
        target, state = self.stack[-2], self.stack.pop()
        if type(target) not in (_Record, _Global, _Dtype, PickledArray):
            raise pickle.UnpicklingError("it sets the state of an object that has none")
        target.__setstate__(state)


_VALUES = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_VALUES, _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_of_marked,
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "MEMOIZE": _Machine.memoize,
    "BINPUT": _Machine.memoize,
    "LONG_BINPUT": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda machine, names: machine.find_global(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.find_global(*machine.take(2)),
    "NEWOBJ": _Machine.make,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
