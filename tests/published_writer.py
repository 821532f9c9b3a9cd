"""Writes parameter files as the original wrote them: pickles with its classes and old arrays of JAX."""

import io
import pickle
import types
from typing import Any

import numpy as np


def reconstruct_device_array(*_: Any) -> None:
    """In the place of JAX's function of this name, which is gone."""


class NeuralILModelInfo:
    """In the place of the original's class."""


class DeviceArray:
    """Pickles as the device arrays of old JAX versions did."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        state = self.value.__reduce__()
        return reconstruct_device_array, (*state, {"weak_type": False, "named_shape": {}})


class OldPickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes globals under the modules they had when the files were published, present or not."""

    MODULES = {  # noqa: RUF012
        "reconstruct_device_array": "jax._src.device_array",
        "NeuralILModelInfo": "neuralil.model",
    }

    def save_global(self, obj: Any, name: str | None = None) -> None:
        name = name or obj.__qualname__
        module = self.MODULES.get(name, obj.__module__).replace("numpy._core", "numpy.core")
        self.save(module)
        self.save(name)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch | {types.FunctionType: save_global}  # type: ignore[attr-defined]


def dump(content: Any) -> bytes:
    """Fields as the original writes them; anything else as it is."""

    def convert(tree: Any) -> Any:
        if isinstance(tree, dict) and "forged" not in tree:
            return {key: convert(value) for key, value in tree.items()}
        return DeviceArray(tree) if isinstance(tree, np.ndarray) else tree

    record = content
    if isinstance(content, dict):
        record = NeuralILModelInfo()
        record.__dict__.update(convert(content))
    buffer = io.BytesIO()
    OldPickler(buffer, 5).dump(record)
    return buffer.getvalue()
