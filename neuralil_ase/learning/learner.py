"""The learner: it asks the teacher, keeps the labels, trains the model and calibrates its error bars."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from ase import Atoms

from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.model_card import describe
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.learning.desk import Desk, FrameCheck
from neuralil_ase.learning.options import check_count, check_options, labelled_frames
from neuralil_ase.learning.provenance import LEARNT, prior_of, provenance_of, teacher_of
from neuralil_ase.learning.pupil import LEARNING, Pupil
from neuralil_ase.learning.reach import too_far
from neuralil_ase.learning.records import Folder, Record
from neuralil_ase.learning.request import Request, bare
from neuralil_ase.learning.stream import (
    stream_calibration,
    usual_error_bar,
    with_error_bars,
    with_thresholds,
)
from neuralil_ase.learning.surface import Surface
from neuralil_ase.learning.teacher import (
    check_same_teacher,
    check_scale,
    check_units,
    disturbed,
)
from neuralil_ase.model.potential import Potential
from neuralil_ase.samples.linear import LINEAR_FRAMES
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.train import TrainingResult, train
from neuralil_ase.training.warm_start import start_of

logger = logging.getLogger(__name__)
RELATIVE_TOLERANCE, LEAST_TOLERANCE = 0.4, 0.05
"""Default tolerance: this fraction of the root mean square force, but at least this value in eV/Å."""


class Learner:
    """A model that learns from a teacher; several calculators may share one.

    Parameters
    ----------
    teacher
        An ASE calculator with energies and forces, or a function without arguments that returns one. An ``executor``
        needs such a function; for processes it must be picklable. If the calculator gives no stress, there is a
        stress only with a ``model`` that has learnt stresses before.
    folder
        Folder for labels, records and the model. A second run with the same folder continues with them.
    model
        A model file or potential to begin with, if the folder has no model. None begins from nothing.
    data
        Labelled frames (with calculator results) that are learnt from the beginning together with the others.
    tolerance
        Largest error bar of the force on any atom that is trusted, in eV/Å. None: 0.4 times the root mean square force
        of the latest labelled frames, but at least 0.05 eV/Å (the typical error is then a few per cent of the typical
        force). For a calibrated ``model``, None means the error bar at its lower threshold.
    rattled
        Number of rattled copies of the first frame that are labelled with it; also strained, if it is periodic and the
        teacher offers a stress. The check of the teacher's units needs one.
    max_queries, queries_per_hour
        Largest number of calls of the teacher in all runs with this folder, and in any hour. A further call raises
        ``QueryLimitError``.
    retries
        How often a failed calculation is repeated. A program that may hang needs a time limit of its own, for instance
        ``timeout 3600`` before its command; the calculation then fails.
    background
        Train in another thread while the run continues with the old model. The run waits only when the old model is
        uncertain again. Such runs cannot be repeated exactly.
    executor
        A ``concurrent.futures.Executor`` whose workers call the teacher. None: this process does.
    check_teacher
        Check the signs and units of the teacher before the first result is returned: with two labels, or by the forces
        of the model if there is one already.
    settings
        Settings of the model and its training; by default four members without aleatoric layers. A model that is given,
        or in the folder already, keeps its members and sizes.
    seed
        Seed of the initial parameters and of the order in which frames are learnt.

    Raises
    ------
    TeacherError
        If the teacher lacks energies or forces, or is not a calculator.
    ConfigError
        If an option is not valid, or the folder holds labels of another teacher.
    DataError
        If structures in ``data`` lack energy or forces, or records in the folder cannot be read.
    OutputError
        If the folder cannot be written, or another process uses it.
    """

    def __init__(
        self,
        teacher: Any,
        folder: str | Path = "learned",
        *,
        model: str | Path | Potential | None = None,
        data: Sequence[Atoms] = (),
        tolerance: float | None = None,
        rattled: int = 1,
        max_queries: int | None = None,
        queries_per_hour: int | None = None,
        retries: int = 1,
        background: bool = False,
        executor: Executor | None = None,
        check_teacher: bool = True,
        settings: TrainingSettings = LEARNING,
        seed: int = 0,
    ) -> None:
        check_options(tolerance, settings, executor)
        for name, number in (("rattled", rattled), ("retries", retries)):
            check_count(name, number)
        for name, most in (("max_queries", max_queries), ("queries_per_hour", queries_per_hour)):
            if most is not None:
                check_count(name, most)
        structures, frames = labelled_frames(data)
        self.folder = Folder(folder)
        self._desk = Desk(teacher, self.folder, executor, retries, max_queries, queries_per_hour)
        self._rattled, self._seed, self._check_teacher = rattled, seed, check_teacher
        self._background = ThreadPoolExecutor(1, "learning") if background else None
        self._pending: Future[None] | None = None
        self._lock = RLock()
        given = None if model is None else with_error_bars(start_of(as_potential(model)).potential)
        self._prior = None if given is None else given.calibration
        loaded = self.folder.load()
        fitted = None if given is not None else 0
        if loaded is not None:  # the given model was only the beginning of this one
            self._prior, fitted = prior_of(loaded), loaded.provenance.get(LINEAR_FRAMES)
        self._tolerance = None if tolerance is None else float(tolerance)
        self._potential = loaded or given
        known = self.folder.teacher or teacher_of(loaded)
        check_same_teacher(known, self._teacher, self.folder.path)
        self._pupil = Pupil(self._potential, replace(settings, seed=seed), fitted)
        self._data = [replace(f, source=f"data[{k}]") for k, f in enumerate(frames)]
        self._learnt = set(() if loaded is None else loaded.provenance.get(LEARNT, ()))
        self._surface = Surface()
        for atoms in structures:
            self._surface.remember(atoms)
        self._caught_up = self._is_checked = False
        self._force_size = 0.0

    @property
    def potential(self) -> Potential | None:
        """The present model; None before the first labels."""
        return self._potential

    @property
    def tolerance(self) -> float:
        """Largest error bar of a force that is trusted at present, in eV/Å."""
        usual = self._tolerance or usual_error_bar(self._prior)
        return usual or max(RELATIVE_TOLERANCE * self._force_size, LEAST_TOLERANCE)

    @property
    def records(self) -> list[Record]:
        """All queries so far."""
        return self.folder.records

    @property
    def is_training(self) -> bool:
        """Whether a new model is being trained in the background."""
        return self._pending is not None

    @property
    def calls_left(self) -> float:
        """Number of calls of the teacher that the query limits allow now; infinite without limits."""
        return self._desk.calls_left

    def moved(self, atoms: Atoms) -> float:
        """Largest displacement in Å of an atom, or a lattice vector, from the nearest learnt frame of the same atoms;
        infinite if there is none."""
        return self._pupil.moved(atoms)

    @property
    def knows_stress(self) -> bool:
        """Whether the model could learn stresses: from labels, or before it was given."""
        return self._prior is not None or self._pupil.has_stress

    def is_strained(self, atoms: Atoms) -> bool:
        """Whether no learnt frame of the same atoms has this cell."""
        return self._pupil.is_strained(atoms)

    def check_surface(self, atoms: Atoms) -> None:
        """Check that the same atoms had the same charge, spin and magnetic moments before, in this run or in a label.

        Raises
        ------
        StructureError
            If not.
        """
        self._surface.check(atoms)

    def too_far(self, atoms: Atoms, is_descending: bool) -> str | None:
        """The reason why a model that began from nothing must not be trusted here, whatever its error bars; None if it
        may be trusted. ``is_descending``: on the way to a minimum that the teacher confirms."""
        return None if self._prior is not None else too_far(self._pupil, atoms, is_descending)

    def settle(self) -> None:
        """Wait for training in the background.

        Raises
        ------
        Exception
            The error of the training if it failed, for instance an OutputError if the model could not be written. The
            model before it stays in use.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def catch_up(self) -> None:
        """Learn labels on disk or in ``data`` that the model has not learnt, once, as after a kill."""
        is_made = self._potential is not None or not len(self._pupil)
        if self._caught_up and is_made:  # without the lock, which training in the background holds
            return
        with self._lock:
            is_unchecked = self._is_checking and self._potential is None and not self._data
            if not is_unchecked or self._desk.check_found(_check_first_two):
                self._take()
                if self._pupil.waiting or (len(self._pupil) and self._potential is None):
                    self._learn()
            self._caught_up = True

    def begin(self, request: Request) -> Atoms:
        """Label the first frame and its rattled copies, check the teacher, and make the first model.

        Returns
        -------
        Atoms
            The frame with energy and forces.

        Raises
        ------
        TeacherError
            If the teacher fails, or its numbers cannot be energies in eV and forces in eV/Å.
        QueryLimitError
            If the query limits are not sufficient.
        """
        rng = np.random.default_rng(self._seed)
        requests = [request]
        for _ in range(self._rattled):
            copy = disturbed(bare(request.atoms), rng, self._desk.offers_stress)
            requests.append(Request(copy, "rattled", "a rattled copy of the first"))
        return self.ask(requests, _check_first_two if self._is_checking else None)[0]

    def ask(
        self,
        requests: Sequence[Request],
        check: FrameCheck | None = None,
    ) -> list[Atoms]:
        """Label frames and learn them.

        Parameters
        ----------
        requests
            The frames and the reasons.
        check
            Called with the labelled frames before they are learnt. If it raises, they are not learnt.

        Returns
        -------
        list of Atoms
            The frames with energy and forces, as they are on disk.

        Raises
        ------
        TeacherError
            If the teacher fails for one of the frames in every attempt.
        QueryLimitError
            If the query limits are not sufficient.
        """
        with self._lock:
            tolerance = None if self._potential is None else self.tolerance
            if check is None and self._check_teacher and not self._is_checked:
                check = partial(check_scale, [request.prediction for request in requests])
            labelled = self._desk.label(requests, tolerance, check)
            self._is_checked = True
            self._take()
        # A run with elements that the model does not know cannot continue with it.
        at_once = any(request.kind == "first" for request in requests)
        self._learn_soon(min(request.target for request in requests), at_once)
        return labelled

    def retrain(self, output: str | Path, **options: Any) -> TrainingResult:
        """Train a new model of any size on all labels with ``neuralil_ase.train``; the options are the same.

        The command ``neuralil-ase train FOLDER/labels/*.extxyz -o OUTPUT`` does the same.
        """
        names = sorted(record.digest for record in self.folder.answered)
        return train([str(self.folder.file(name)) for name in names], output, **options)

    def card(self) -> str:
        """Description of the present model in words."""
        return "no model yet" if self._potential is None else describe(self._potential)

    @property
    def _is_checking(self) -> bool:
        """Whether two labels tell the units and signs of the teacher."""
        return self._check_teacher and self._rattled > 0

    def _take(self) -> None:
        """Give new frames to the pupil, the frames of the user first."""
        taken = set(self._pupil.names)
        for frame in self._data:
            if frame.source not in taken:
                self._pupil.add(frame, held_out=False)
        for record in self.folder.answered:
            if (name := record.digest) not in taken:
                atoms = self.folder.read(name)
                self._surface.remember(atoms)
                frame = replace(frames_from_atoms([atoms])[0], source=name)
                is_learnt = name in self._learnt
                self._pupil.add(frame, record.held_out and not is_learnt, is_learnt)
        self._force_size = self._pupil.force_size

    def _learn_soon(self, target: float, at_once: bool) -> None:
        """Learn now, or in the background if there is a model to continue with."""
        self.settle()
        if self._background is None or self._potential is None or at_once:
            self._learn(target)
        else:
            self._pending = self._background.submit(self._learn, target)
            self._pending.add_done_callback(log_failure)

    def _learn(self, target: float = np.inf) -> None:
        """Train if there are new frames; make error bars; write the model to disk."""
        with self._lock:
            if self._pupil.waiting or self._potential is None:
                lesson = self._pupil.lesson(min(target, self.tolerance / 2))
                level = logging.INFO if lesson.kept else logging.WARNING
                logger.log(level, "%d frames, %s", len(self._pupil), lesson)
            if self._pupil.linear_frames is not None:  # the given model was replaced by a new one
                self._prior = None
            records = self.folder.answered
            floors = self._pupil.floors() or _floors_of(self._potential)
            calibration = stream_calibration(records, *floors, self._prior)
            labels = [record.digest for record in records]
            potential = self._pupil.calibrate(
                with_thresholds(calibration, self.tolerance),
                provenance_of(self._pupil, labels, self.folder.calls, self._teacher, self._prior),
            )
            self.folder.save(potential)
            self._potential = potential

    @property
    def _teacher(self) -> tuple[str, dict[str, str]]:
        """Class and parameters of the teacher."""
        return self._desk.teacher_name, self._desk.teacher_parameters


def _floors_of(potential: Potential | None) -> tuple[Mapping[str, float], float]:
    """The floors of the present error bars, for a given model whose only labels are held out."""
    assert potential is not None
    assert potential.calibration is not None
    return potential.calibration.force_floor, potential.calibration.energy_floor or 0.0


def _check_first_two(frames: Sequence[Atoms]) -> None:
    check_units(frames[0], frames[1])


def log_failure(training: "Future[None]") -> None:
    """Log an error of training in the background at once: the run may end before it waits for the training."""
    problem = training.exception()
    if problem is not None:
        logger.error("training in the background failed, the model is as before: %s", problem)
