"""What the provenance of the model keeps of the learner, so that a model and its state are one file."""

from collections.abc import Sequence
from typing import Any

from neuralil_ase import __version__
from neuralil_ase.calibration import Calibration
from neuralil_ase.learning.pupil import Pupil
from neuralil_ase.model.potential import Potential
from neuralil_ase.samples.linear import LINEAR_FRAMES, OWN_LINEAR, learns_own

TEACHER, PARAMETERS = "taught_by", "taught_with"
"""Class and parameters of the teacher."""
LEARNT = "learnt_from"
"""Digests of the labels that the model has learnt."""
PRIOR = "error_bars_of_given_model"
"""The calibration of the model that was given at first; without this key the model began from nothing."""


def teacher_of(potential: Potential | None) -> tuple[str, dict[str, str]] | None:
    """Class and parameters of the teacher of a model; None if it names none."""
    known = {} if potential is None else potential.provenance
    return (known[TEACHER], known.get(PARAMETERS, {})) if TEACHER in known else None


def prior_of(potential: Potential) -> Calibration | None:
    """Error bars of the model that was given when this model began; None if it began from nothing."""
    record = potential.provenance.get(PRIOR)
    return None if record is None else Calibration.from_dict(record)


def provenance_of(
    pupil: Pupil,
    labels: Sequence[str],
    calls: int,
    teacher: tuple[str, dict[str, str]],
    prior: Calibration | None,
) -> dict[str, Any]:
    """The provenance of the present potential of a pupil.

    Parameters
    ----------
    pupil
        The pupil.
    labels
        Digests of the labels in the folder; the pupil may have learnt other frames, too.
    calls
        Number of calls of the teacher.
    teacher
        Class and parameters of the teacher.
    prior
        The calibration of a given model.
    """
    learnt = set(pupil.learnt)
    assert pupil.potential is not None
    found = {
        "program": f"neuralil-ase {__version__}",
        TEACHER: teacher[0],
        PARAMETERS: teacher[1],
        "teacher_calls": calls,
        "training_frames": len(learnt),
        "held_out_frames": len(pupil.held_out),
        LINEAR_FRAMES: pupil.linear_frames,
        OWN_LINEAR: pupil.linear_frames is not None or learns_own(pupil.potential),
        LEARNT: [name for name in labels if name in learnt],
    }
    return found if prior is None else found | {PRIOR: prior.to_dict()}
