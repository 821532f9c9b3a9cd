"""The state of a run on disk: safetensors for the arrays, JSON for the rest; never a pickle."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from neuralil_ase.errors import ModelFileError, TrainingError
from neuralil_ase.evaluation.dataset import Frame
from neuralil_ase.files.atomic import write_atomically

FORMAT = "neuralil-ase-checkpoint"
FREE_SETTINGS = ("time_limit", "checkpoint_every", "memory_budget")
"""Settings that may change when a run is resumed. The losses do not depend on them."""
_RECORD: dict[str, tuple[type, ...]] = {
    "settings": (dict,),
    "data": (dict,),
    "start": (dict, type(None)),
    "epoch": (int,),
    "best_loss": (int, float, type(None)),
    "history": (list,),
    "cpu_seconds": (int, float),
    "model_written": (bool,),
}


@dataclass(frozen=True)
class Checkpoint:
    """A run at the end of an epoch.

    Attributes
    ----------
    path
        The file; used in messages.
    leaves
        The arrays of a pytree.
    record
        JSON data: epoch, history, settings, fingerprints of the data and of the potential that the run began with.
    """

    path: str
    leaves: list[np.ndarray]
    record: dict[str, Any]

    @classmethod
    def of(cls, arrays: Any, record: dict[str, Any]) -> "Checkpoint":
        """Make a checkpoint from any pytree of arrays."""
        return cls("", [np.asarray(leaf) for leaf in jax.tree.leaves(arrays)], record)

    def like(self, template: Any) -> Any:
        """The arrays as a pytree with the structure of ``template``.

        Raises
        ------
        ModelFileError
            If the checkpoint belongs to another architecture.
        """
        expected, tree = jax.tree.flatten(template)
        if [leaf.shape for leaf in self.leaves] != [np.shape(leaf) for leaf in expected]:
            raise ModelFileError(
                f"{self.path} belongs to another architecture; remove it to start a new run"
            )
        pairs = zip(self.leaves, expected, strict=True)
        return jax.tree.unflatten(tree, [np.asarray(a, np.asarray(b).dtype) for a, b in pairs])


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write atomically.

    Raises
    ------
    OutputError
        If the file cannot be written. An existing file is then untouched.
    """
    leaves = {f"{k:05d}": leaf for k, leaf in enumerate(checkpoint.leaves)}
    metadata = {FORMAT: json.dumps(checkpoint.record)}
    write_atomically(path, safetensors.numpy.save(leaves, metadata))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    ModelFileError
        If there is no such file, or it is not a checkpoint.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            record = json.loads((file.metadata() or {})[FORMAT])
            leaves = [file.get_tensor(name) for name in sorted(file.keys())]
        _check_record(record)
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no checkpoint {path} to resume from") from error
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path} is not a checkpoint of neuralil-ase ({error}); remove it to start a new run"
        ) from error
    return Checkpoint(str(path), leaves, record)


def _check_record(record: Any) -> None:
    if not isinstance(record, dict):
        raise ValueError("its record is not a table")
    for key, kinds in _RECORD.items():
        if key not in record or type(record[key]) not in kinds:
            raise ValueError(f"its entry {key!r} is missing or damaged")
    if record["epoch"] < 1 or record["epoch"] != len(record["history"]):
        raise ValueError("its epoch and history do not agree")
    if not all(isinstance(entry, dict) for entry in record["history"]):
        raise ValueError("its history is damaged")


def check_same_run(
    path: str | Path,
    record: Mapping[str, Any],
    settings: Mapping[str, Any],
    data: Mapping[str, str],
    start: Mapping[str, str] | None = None,
    *,
    free: Sequence[str] = FREE_SETTINGS,
    otherwise: str = "start a new run without resuming",
) -> None:
    """Check that resuming will reproduce the uninterrupted run: same start, same data, same settings.

    Parameters
    ----------
    path
        The file of the run to resume; used in messages.
    record
        Settings, data and start of that run.
    settings, data, start
        Settings, data and start of the present run; the data are given by their fingerprints.
    free
        Names of settings that may differ.
    otherwise
        What else the user can do; used in messages.

    Raises
    ------
    TrainingError
        If settings, data or start differ. The message says which.
    """
    _check_same_start(path, record.get("start"), start, otherwise)
    before = record["settings"]
    keys = (before.keys() | settings.keys()) - set(free)
    changed = sorted(key for key in keys if before.get(key) != settings.get(key))
    if changed:
        named = ", ".join(
            f"{key} (was {before.get(key)}, now {settings.get(key)})" for key in changed
        )
        raise TrainingError(
            f"cannot resume from {path}: other settings than before: {named}. Resume with the old settings, or "
            f"{otherwise}"
        )
    before_data = record["data"]
    others = sorted(key for key in data if key != "all" and before_data.get(key) != data[key])
    if others:
        raise TrainingError(
            f"cannot resume from {path}: the training data have changed ({', '.join(others)}). Resume with the old "
            f"data, or {otherwise}"
        )


def _check_same_start(
    path: str | Path,
    before: Mapping[str, str] | None,
    now: Mapping[str, str] | None,
    otherwise: str,
) -> None:
    """Compare the start by its content. The file may have been renamed."""
    if (before or {}).get("sha256") == (now or {}).get("sha256"):
        return
    names = [
        "random parameters"
        if start is None
        else f"{start['file']} (SHA-256 {start['sha256'][:8]}…)"
        for start in (before, now)
    ]
    raise TrainingError(
        f"cannot resume from {path}: that run began with {names[0]}, but this run starts from {names[1]}. Start from "
        f"the same model again, or {otherwise}"
    )


def fingerprint(train: Sequence[Frame], validation: Sequence[Frame]) -> dict[str, str]:
    """Hashes of the data that a run learns from: one for each part, and one for everything ("all")."""
    parts: dict[str, Any] = {name: hashlib.sha256() for name in _PARTS}
    for side, frames in (("training", train), ("validation", validation)):
        for frame in frames:
            for name, values in _PARTS.items():
                arrays = [np.asarray(side.encode() if name == "split" else b""), *values(frame)]
                for array in arrays:
                    parts[name].update(f"{array.dtype} {array.shape};".encode())
                    parts[name].update(np.ascontiguousarray(array).tobytes())
    found = {name: digest.hexdigest() for name, digest in parts.items()}
    everything = hashlib.sha256("".join(found.values()).encode()).hexdigest()
    return found | {"all": everything}


_PARTS: dict[str, Callable[[Frame], list[np.ndarray]]] = {
    "structures": lambda f: [np.char.encode(f.symbols, "ascii"), f.positions, f.cell, f.pbc],
    "energies": lambda f: [_or_nothing(f.energy)],
    "forces": lambda f: [_or_nothing(f.forces)],
    "stresses": lambda f: [_or_nothing(f.stress)],
    "weights": lambda f: [np.asarray(f.weight)],
    "split": lambda f: [np.asarray(len(f.symbols))],
}


def _or_nothing(value: Any) -> np.ndarray:
    return np.zeros(0) if value is None else np.asarray(value, float)
