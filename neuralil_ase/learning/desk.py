"""Calls the teacher: checks the query limits, repeats failed calculations, and records each query."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from ase import Atoms

from neuralil_ase.array_record import count
from neuralil_ase.errors import ConfigError, QueryLimitError, TeacherError
from neuralil_ase.farm import digest
from neuralil_ase.learning.records import Folder, Record
from neuralil_ase.learning.request import SURPRISE, Request, bare
from neuralil_ase.learning.teacher import check_offers, is_disturbed, parameters_of
from neuralil_ase.prediction import Prediction

logger = logging.getLogger(__name__)
HOUR = 3600.0
FIRST_LABELS = 10
"""Among so many labels a run without a model looks for two that tell the units of the teacher."""
ROLL_BACK = (
    ", or continue from an earlier one: calc.roll_back(atoms) restores the last trusted structure"
)
FrameCheck = Callable[[Sequence[Atoms]], None]


class Desk:
    """Turns requests into labelled frames.

    Parameters
    ----------
    teacher
        An ASE calculator, or a function that makes one.
    folder
        The folder for labels and records.
    executor
        Its workers call the teacher. None: this process does.
    retries
        How often a failed calculation is repeated.
    max_queries, queries_per_hour
        The query limits; None for no limit.

    Attributes
    ----------
    teacher_name
        Class of the calculator.
    teacher_parameters
        Its parameters as text.
    offers_stress
        Whether it claims to compute stresses.

    Raises
    ------
    TeacherError
        If the teacher is not a calculator, or lacks energies or forces.
    ConfigError
        If the workers of an executor would share one calculator.
    """

    def __init__(
        self,
        teacher: Any,
        folder: Folder,
        executor: Executor | None,
        retries: int,
        max_queries: int | None,
        queries_per_hour: int | None,
    ) -> None:
        self._factory: Callable[[], Any] = teacher if callable(teacher) else lambda: teacher
        offered = self._factory()
        check_offers(offered)
        if executor is not None and not callable(teacher):
            raise ConfigError(
                "the workers of an executor calculate at the same time, which one calculator cannot: give a function "
                "that makes a calculator as the teacher, for instance functools.partial(EMT) instead of EMT()"
            )
        self.teacher_name, self.teacher_parameters = type(offered).__name__, parameters_of(offered)
        self.offers_stress = "stress" in offered.implemented_properties
        self._folder, self._executor, self._retries = folder, executor, retries
        self._most, self._per_hour = max_queries, queries_per_hour
        self._is_stress_checked = False

    @property
    def calls_left(self) -> float:
        """Number of calls of the teacher that the query limits allow now; infinite without limits."""
        limits = (self._most, self._folder.calls), (self._per_hour, self._calls_of_last_hour)
        return min(np.inf if most is None else max(most - calls, 0) for most, calls in limits)

    def label(
        self, requests: Sequence[Request], tolerance: float | None, check: FrameCheck | None = None
    ) -> list[Atoms]:
        """Label frames and record the queries; return the labelled frames as they are on disk.

        Parameters
        ----------
        requests
            The frames to label.
        tolerance
            The present tolerance in eV/Å, for the records; None without a model.
        check
            Called with the labelled frames before they are recorded. If it raises a TeacherError, the labels are moved
            to another folder.

        Raises
        ------
        TeacherError
            If the teacher fails for one of the frames in every attempt. The other labels are kept.
        QueryLimitError
            If the query limits are not sufficient.
        """
        frames = [bare(request.atoms) for request in requests]
        names = [digest(frame) for frame in frames]
        self._check_budget(sum(not self._folder.file(name).exists() for name in names))
        self._folder.teacher = self.teacher_name, self.teacher_parameters
        seconds, failure = self._ask(frames, names, requests, tolerance)
        if check is not None and failure is None:
            self.check(names, check)
        for request, name in zip(requests, names, strict=True):
            if self._folder.file(name).exists() and not self._folder.knows(name):
                record = _record(request, name, tolerance, seconds)
                record = _tested(record, request.prediction, self._folder.read(name))
                is_passed = max(record.errors, default=np.inf) <= SURPRISE * request.allowed
                is_test = request.kind == "check" and request.may_hold_out
                self._folder.append(replace(record, held_out=bool(is_test and is_passed)))
                logger.info("query %d: %s", len(self._folder.records), record.describe())
        if failure is not None:
            raise failure
        labelled = [self._folder.read(name) for name in names]
        self._check_stress(labelled[0])
        return labelled

    def _ask(
        self,
        frames: Sequence[Atoms],
        names: Sequence[str],
        requests: Sequence[Request],
        tolerance: float | None,
    ) -> tuple[float, TeacherError | QueryLimitError | None]:
        """Call the teacher until it has labelled all frames or failed too often; seconds per label, and the error."""
        seconds = 0.0
        for attempt in range(self._retries + 1):
            there = [self._folder.file(name).exists() for name in names]
            missing = [k for k, is_there in enumerate(there) if not is_there]
            if attempt:
                known = {record.digest for record in self._folder.answered}
                unrecorded = {name for name, is_there in zip(names, there, strict=True) if is_there}
                try:  # labels of the first attempt have no record yet, but were calls, too
                    self._check_budget(len(missing), len(unrecorded - known))
                except (
                    QueryLimitError
                ) as limit:  # the labels of the first attempt need their records
                    return seconds, limit
            began = time.perf_counter()
            found = self._folder.label([frames[k] for k in missing], self._factory, self._executor)
            seconds = (time.perf_counter() - began) / max(len(missing), 1)
            for place, reason in found.failures.items():
                request, name = requests[missing[place]], names[missing[place]]
                record = _record(request, name, tolerance, seconds)
                self._folder.append(replace(record, failure=reason))
            if not found.failures:
                return seconds, None
        place, reason = next(iter(found.failures.items()))
        return seconds, TeacherError(
            f"the teacher failed {self._retries + 1} times for a frame ({requests[missing[place]].reason}): {reason}. "
            + (
                ""
                if tolerance is None
                else f"All labels and the model are in {self._folder.path}. "
            )
            + "Read the output of the calculator for this frame"
            + ("" if tolerance is None else ROLL_BACK)
        )

    def _check_stress(self, label: Atoms) -> None:
        """Warn once if the stress of the teacher is missing: the model's stress is returned instead."""
        if self._is_stress_checked or label.cell.rank < 3 or label.calc is None:
            return
        self._is_stress_checked = True
        if "stress" not in label.calc.results:
            logger.warning(
                "the teacher %s gives no stress, so that the model learns none. Cells cannot be relaxed, unless the "
                "model was given and has learnt stresses before",
                self.teacher_name,
            )

    def check(self, names: Sequence[str], check: FrameCheck) -> None:
        """Check labels. Those that cannot be right are moved to another folder: no run may learn them, but they are not
        deleted.

        Raises
        ------
        TeacherError
            The error of ``check``.
        """
        try:
            check([self._folder.read(name) for name in names])
        except TeacherError as error:
            aside = self._folder.refuse(names)
            error.add_note(
                f"The labels are kept in {aside}; if they are right after all, move them back to labels, and start "
                "again with check_teacher=False"
            )
            raise

    def check_found(self, check: FrameCheck) -> bool:
        """Check the teacher by labels of a run that ended before it had a model; False if they do not tell.

        Raises
        ------
        TeacherError
            The error of ``check``, which is called with two disturbed copies of one structure.
        """
        names = [record.digest for record in self._folder.answered]
        frames = {name: self._folder.read(name) for name in names[:FIRST_LABELS]}
        for pair in combinations(frames, 2):
            if is_disturbed(*(frames[name] for name in pair)):
                self.check(pair, check)
                return True
        return len(names) > FIRST_LABELS

    def _check_budget(self, wanted: int, unrecorded: int = 0) -> None:
        calls, path = self._folder.calls + unrecorded, self._folder.path
        if self._most is not None and wanted and calls + wanted > self._most:
            raise QueryLimitError(
                f"{count(wanted, 'more label')} would make {calls + wanted} calls of the teacher, but max_queries is "
                f"{self._most}. All labels and the model are in {path}: raise max_queries to continue, or use the "
                "model as it is with NeuralILCalculator"
            )
        recent = self._calls_of_last_hour + unrecorded
        if self._per_hour is not None and wanted and recent + wanted > self._per_hour:
            raise QueryLimitError(
                f"the teacher was called {recent} times within the last hour, but queries_per_hour is "
                f"{self._per_hour}. All labels and the model are in {path}: run the same script again later"
            )

    @property
    def _calls_of_last_hour(self) -> int:
        now = time.time()  # the clock may have been ahead when a record was written
        return sum(now - HOUR < r.time <= now for r in self._folder.records)


def _record(request: Request, name: str, tolerance: float | None, seconds: float) -> Record:
    return Record(
        name,
        request.kind,
        request.reason,
        request.evaluation,
        time=time.time(),
        seconds=round(seconds, 3),
        tolerance=tolerance,
        temperature=request.temperature,
    )


def _tested(record: Record, prediction: Prediction | None, label: Atoms) -> Record:
    """Add errors and error bars to a record, if the frame was predicted before it was labelled."""
    if prediction is None:
        return record
    errors = np.linalg.norm(prediction.forces - label.get_forces(), axis=1)
    return replace(
        record,
        symbols=prediction.symbols.tolist(),
        errors=np.round(errors, 5).tolist(),
        spreads=np.round(prediction.forces_std, 6).tolist(),
        bars=np.round(prediction.forces_error_bar, 5).tolist(),
        energy_error=prediction.energy - label.get_potential_energy(),
        energy_spread=prediction.energy_std,
    )
