"""Reads and checks the data that a user gives, and divides the frames into training and validation frames."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from neuralil_ase.array_record import count
from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.absurd import without_absurd
from neuralil_ase.evaluation.dataset import (
    Data,
    Frame,
    as_frames,
    elements_of,
    is_isolated_atom,
    items_of,
    read_frames,
    split,
)
from neuralil_ase.model.potential import Potential
from neuralil_ase.samples.cutoff import LONGEST
from neuralil_ase.training.settings import TrainingSettings

logger = logging.getLogger(__name__)


def load_data(data: Data, settings: TrainingSettings) -> tuple[list[Frame], list[Frame]]:
    """Training and validation frames, checked."""
    return divide(*read_data(data, settings), settings)


def read_data(data: Data, settings: TrainingSettings) -> tuple[list[Frame], list[Frame]]:
    """All frames of the data except those with absurd labels or weight 0, and all frames of the validation files except
    those with absurd labels.

    Raises
    ------
    DataError
        If a file cannot be read, labels are wrong or missing, or too many labels are absurd.
    """
    keys = settings.keys
    frames = _with_weight(as_frames(data, keys, settings.split_by))
    files = settings.validation_files
    # A weight says how much a frame counts in training.
    validation = read_frames(files, replace(keys, weight=None)) if files else []
    kept = without_absurd(
        [*frames, *validation],
        settings.max_force,
        with_energies=settings.energy_weight > 0,
        with_contacts=settings.pair_term == "zbl",
    )
    held_out = {id(frame) for frame in validation}
    return [f for f in kept if id(f) not in held_out], [f for f in kept if id(f) in held_out]


def _with_weight(frames: Sequence[Frame]) -> list[Frame]:
    """Leave out frames of weight 0: nothing is to be learnt from them, neither cutoff nor energy reference."""
    kept = [frame for frame in frames if frame.weight > 0]
    if not kept:
        raise DataError("all frames have weight 0; give some of them another weight")
    if len(kept) < len(frames):
        logger.info("%s of weight 0 left out", count(len(frames) - len(kept), "frame"))
    return kept


def divide(
    frames: Sequence[Frame], validation: Sequence[Frame], settings: TrainingSettings
) -> tuple[list[Frame], list[Frame]]:
    """Training and validation frames; some frames are held out for validation if there are no ``validation`` frames.

    Raises
    ------
    DataError
        If nothing is left to train on, or nothing can be held out.
    """
    # Isolated atoms are never held out: they determine energies of elements, but do not test a model.
    several, atoms = without_isolated_atoms(frames, settings)
    if settings.validation_files:
        training, held_out = several, list(validation)
    else:
        training, held_out = split(several, settings.validation_fraction, settings.seed)
    if 0 < settings.max_frames < len(training):
        training = _some(training, settings)
    if not training:
        raise DataError("no frames of several atoms are left to train on")
    warn_of_copies(training, held_out, "validation")
    return [*training, *atoms], held_out


def _some(frames: Sequence[Frame], settings: TrainingSettings) -> list[Frame]:
    """A random subset of ``max_frames`` frames that holds every element, if so many frames can."""
    order = np.random.default_rng((settings.seed, 3)).permutation(len(frames)).tolist()
    met: set[str] = set()
    first = []
    for k in order:
        if not met.issuperset(frames[k].symbols.tolist()):
            first.append(k)
            met.update(frames[k].symbols.tolist())
    picked = list(dict.fromkeys([*first, *order]))[: settings.max_frames]
    chosen = [frames[k] for k in sorted(picked)]
    logger.info("training on %d of %d frames", len(chosen), len(frames))
    lost = sorted(met - set(elements_of(chosen)))
    if lost:
        logger.warning(
            "the model will not know %s, which none of these frames holds; raise max_frames",
            ", ".join(lost),
        )
    return chosen


def warn_of_copies(training: Sequence[Frame], held_out: Sequence[Frame], what: str) -> None:
    """Warn if held-out structures are also trained on; ``what`` says what they are held out for."""
    learnt = {_structure(frame) for frame in training} if held_out else set()
    copies = [frame for frame in held_out if _structure(frame) in learnt]
    if copies:
        logger.warning(
            "%d of %s %s also among the training frames (the first: %s). Errors on them are too small, and so may be "
            "error bars. Leave out duplicates, or keep them together (split_by)",
            len(copies), count(len(held_out), f"{what} frame"), "is" if len(copies) == 1 else "are", copies[0].source,
        )  # fmt: skip


def _structure(frame: Frame) -> tuple[bytes, ...]:
    """Equal for equal structures (positions within 1e-6 Å)."""
    lengths = np.concatenate([frame.positions, frame.cell]).round(6) + 0.0  # no -0
    return frame.symbols.astype("U2").tobytes(), frame.pbc.tobytes(), lengths.tobytes()


def without_isolated_atoms(
    frames: Sequence[Frame], settings: TrainingSettings
) -> tuple[list[Frame], list[Frame]]:
    """The frames of several atoms, and the frames of isolated atoms.

    Raises
    ------
    DataError
        If all frames are isolated atoms.
    """
    radius = max(LONGEST, settings.r_cut)
    alone = [is_isolated_atom(frame, radius) for frame in frames]
    if all(alone):
        raise DataError(
            "all frames are isolated atoms, and no interaction can be learnt from them. Give frames of several atoms"
        )
    pairs = [*zip(frames, alone, strict=True)]
    return [f for f, is_alone in pairs if not is_alone], [f for f, is_alone in pairs if is_alone]


def files_of(
    data: Data, settings: TrainingSettings, start_from: str | Path | Potential | None
) -> list[str | Path]:
    """The files that a run reads."""
    named = [*items_of(data), *settings.validation_files, start_from]
    return [item for item in named if isinstance(item, str | Path)]
