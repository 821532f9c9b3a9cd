"""An unpickler for published NeuralIL files that runs nothing of what they hold.

It admits exactly the globals that occur in the published files and puts stand-ins in the place of
all: no object of another library is built before its content has been checked, and a file can set
nothing on a stand-in.
"""

import io
import math
import pickle
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import numpy as np


def read_fields(content: bytes) -> Mapping[str, Any]:
    """The fields of the model information in a pickle; arrays in it are :class:`PickledArray`.

    Raises
    ------
    pickle.UnpicklingError
        If the pickle asks for another global, holds arrays of anything but numbers, or is no model
        information.
    Exception
        Any other, from a damaged pickle.
    """
    record = _Unpickler(io.BytesIO(content)).load()
    if not isinstance(record, _Record) or not hasattr(record, "fields"):
        raise pickle.UnpicklingError("it holds no NeuralIL model information")
    return record.fields


class _Record:
    """Stand-in for the original's model-information classes: keeps the fields."""

    fields: Mapping[str, Any]

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("the model information is not a table of fields")
        self.fields = state


class _Global:
    """Stand-in for a global that a pickle may call; nothing can be set on it."""

    __slots__ = ("_build", "_name")

    def __init__(self, name: str, build: Callable[..., Any]) -> None:
        self._name, self._build = name, build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"the file tries to change {self._name}")


class _Dtype:
    """Stand-in for ``numpy.dtype``, for little-endian floats alone."""

    __slots__ = ("code",)

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("f2", "f4", "f8"):
            raise pickle.UnpicklingError(f"an array has dtype {code!r}, not a float")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or state[1:2] != ("<",):
            raise pickle.UnpicklingError("an array is not little-endian")


class PickledArray:
    """Stand-in for ``numpy.ndarray``: an array once its shape and its bytes are known to agree."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values = np.zeros(0, np.float32)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        """View ``data`` in this shape; no copy, which a small pickle could ask for many times."""
        if not (isinstance(dtype, _Dtype) and isinstance(data, bytes | bytearray)):
            raise pickle.UnpicklingError("an array is not made of plain numbers")
        shape = shape if isinstance(shape, tuple) else (shape,)
        if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 8:
            raise pickle.UnpicklingError(f"an array has shape {shape}")
        if math.prod(shape) * int(dtype.code[1]) != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape} has {len(data)} bytes")
        flat = np.frombuffer(data, f"<{dtype.code}")
        self.values = flat.reshape(shape, order="F" if order == "F" else "C")


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
_GLOBALS: dict[tuple[str, str], Any] = {
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


class _Unpickler(pickle.Unpickler):
    """Admits the globals of published files, by exact module and name, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no published file uses, and which may be an "
                "attempt to run code"
            )
        return _GLOBALS[module, name]
