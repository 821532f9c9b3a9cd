"""The state of a run on disk: safetensors for the arrays, JSON for the rest; never a pickle."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from neuralil_ase.errors import ModelFileError, TrainingError
from neuralil_ase.files.atomic import write_atomically
from neuralil_ase.training.batches import Sample

FORMAT = "neuralil-ase-checkpoint"
FREE_SETTINGS = ("time_limit", "checkpoint_every", "memory_budget")
"""Settings that may change when a run is resumed, because the losses do not depend on them."""


@dataclass(frozen=True)
class Checkpoint:
    """A run at the end of an epoch.

    Attributes
    ----------
    arrays
        Any pytree of arrays.
    record
        JSON data: epoch, history, settings, fingerprints of the data and of the potential it began with.
    """

    arrays: Any
    record: dict[str, Any]


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write atomically.

    Raises
    ------
    OutputError
        If the file cannot be written; a file that was there before is then untouched.
    """
    leaves = {
        f"{k:05d}": np.asarray(leaf) for k, leaf in enumerate(jax.tree.leaves(checkpoint.arrays))
    }
    metadata = {FORMAT: json.dumps(checkpoint.record)}
    write_atomically(path, safetensors.numpy.save(leaves, metadata))


def load_checkpoint(path: str | Path, template: Any) -> Checkpoint:
    """Read a checkpoint whose arrays have the structure of ``template``.

    Raises
    ------
    ModelFileError
        If there is no such file, or it is not a checkpoint, or of another architecture.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            record = json.loads((file.metadata() or {})[FORMAT])
            leaves = [file.get_tensor(name) for name in sorted(file.keys())]
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no checkpoint {path} to resume from") from error
    except (safetensors.SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ModelFileError(
            f"{path} is not a checkpoint of neuralil-ase ({error}); remove it to start afresh"
        ) from error
    expected, tree = jax.tree.flatten(template)
    if [np.shape(leaf) for leaf in leaves] != [np.shape(leaf) for leaf in expected]:
        raise ModelFileError(f"{path} belongs to another architecture; remove it to start afresh")
    typed = [np.asarray(a, np.asarray(b).dtype) for a, b in zip(leaves, expected, strict=True)]
    return Checkpoint(jax.tree.unflatten(tree, typed), record)


def check_same_run(
    path: str | Path,
    record: Mapping[str, Any],
    settings: Mapping[str, Any],
    data: str,
    start: Mapping[str, str] | None = None,
) -> None:
    """Resuming must reproduce the uninterrupted run: same start, same data, same settings.

    Raises
    ------
    TrainingError
        Naming what differs.
    """
    _check_same_start(path, record.get("start"), start)
    before = record["settings"]
    keys = (before.keys() | settings.keys()) - set(FREE_SETTINGS)
    changed = sorted(key for key in keys if before.get(key) != settings.get(key))
    if changed:
        named = ", ".join(
            f"{key} (was {before.get(key)}, now {settings.get(key)})" for key in changed
        )
        raise TrainingError(
            f"cannot resume from {path}: other settings than before: {named}. Resume with the old ones, or start "
            "afresh without resuming"
        )
    if record["data"] != data:
        raise TrainingError(
            f"cannot resume from {path}: the training data have changed. Start afresh without resuming"
        )


def _check_same_start(
    path: str | Path, before: Mapping[str, str] | None, now: Mapping[str, str] | None
) -> None:
    """A file may be called otherwise now; its content counts."""
    if (before or {}).get("sha256") == (now or {}).get("sha256"):
        return
    names = [
        "random parameters"
        if start is None
        else f"{start['file']} (SHA-256 {start['sha256'][:8]}…)"
        for start in (before, now)
    ]
    raise TrainingError(
        f"cannot resume from {path}: that run began with {names[0]}, this one is to begin with {names[1]}. Give the "
        "model that it was started from, or start afresh without resuming"
    )


def fingerprint(samples: Sequence[Sample]) -> str:
    """Hash of structures and labels."""
    digest = hashlib.sha256()
    for sample in samples:
        for array in (
            sample.types,
            sample.pairs.vectors,
            sample.labels.forces,
            sample.labels.energy,
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
