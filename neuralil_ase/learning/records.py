"""The folder of a learner: labels, one record of each query, the present model. No file is ever half written.

``labels/DIGEST.extxyz`` is a labelled frame, written by :func:`neuralil_ase.label` before anything uses it.
``queries.jsonl`` holds a line of JSON for each query, in their order, and ``teacher.json`` the calculator that made the
labels. The provenance in ``model.safetensors`` lists the labels that the model has learnt, so that a model and its
state are one file.
"""

import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ase import Atoms
from ase.io import read

from neuralil_ase.errors import DataError, ModelFileError, OutputError
from neuralil_ase.farm import Labelled, label
from neuralil_ase.files.atomic import append_record, cut_tail, make_folder, write_atomically
from neuralil_ase.files.lock import OutputLock
from neuralil_ase.files.model_file import load_potential, save_potential
from neuralil_ase.model.potential import Potential

logger = logging.getLogger(__name__)
Kind = Literal["first", "rattled", "unsure", "confirm", "check", "found"]
"""Why a frame was labelled: no model yet; a rattled copy of the first frame; an error bar or criterion above its limit;
the end of an optimisation; a spot check of a trusted frame; a label on disk without a record."""


@dataclass(frozen=True)
class Record:
    """One query.

    Attributes
    ----------
    digest
        Digest of geometry, charge, spin and moments; also the name of the label file.
    kind, reason
        Why the teacher was asked, and the same in words.
    evaluation
        Number of evaluations that the calculator had done by then.
    time
        Seconds since 1970.
    seconds
        Time of the calculation; for frames labelled together, their share.
    held_out
        Whether the frame is held out from training, to test updates.
    failure
        Error message of the teacher if it failed; else None.
    tolerance
        Largest error bar in eV/Å that was trusted at that moment; None without a model.
    temperature
        In K; None for atoms at rest.
    symbols, errors, spreads, bars
        For each atom, before the frame was learnt: symbol, and norm of the force error, spread and error bar in eV/Å.
        Empty without a model.
    energy_error, energy_spread
        In eV; None without a model.
    """

    digest: str
    kind: Kind
    reason: str = ""
    evaluation: int = 0
    time: float = 0.0
    seconds: float = 0.0
    held_out: bool = False
    failure: str | None = None
    tolerance: float | None = None
    temperature: float | None = None
    symbols: list[str] = field(default_factory=list, repr=False)
    errors: list[float] = field(default_factory=list, repr=False)
    spreads: list[float] = field(default_factory=list, repr=False)
    bars: list[float] = field(default_factory=list, repr=False)
    energy_error: float | None = None
    energy_spread: float | None = None

    def describe(self) -> str:
        """Why the teacher was asked, and the errors of the model compared with its error bars."""
        found = f"evaluation {self.evaluation}, {self.reason}"
        if not self.errors:
            return found
        worst = max(range(len(self.errors)), key=self.errors.__getitem__)
        return (
            f"{found}; the largest force error of the model was {self.errors[worst]:.3f} eV/Å (atom {worst}, error bar "
            f"{self.bars[worst]:.3f}), its energy error {self.energy_error:.3f} eV"
        )


class Folder:
    """The files of one learner, locked until the process ends.

    Parameters
    ----------
    path
        The folder; it is made if it does not exist.

    Attributes
    ----------
    records
        All queries so far, in their order, beginning with earlier runs.

    Raises
    ------
    OutputError
        If the folder cannot be written, or another process uses it.
    DataError
        If a record cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()  # the script may change its directory
        self.labels, self.model = self.path / "labels", self.path / "model.safetensors"
        self.log, self._teacher = self.path / "queries.jsonl", self.path / "teacher.json"
        make_folder(self.labels)
        self._lock = OutputLock(self.model, take_over=True)
        self.records = [*_read_records(self.log)]
        self._gone = self._without_label()
        self._adopt()

    @property
    def calls(self) -> int:
        """Number of calls of the teacher, including failures, and labels whose run was killed before the record."""
        return len(self.records)

    @property
    def teacher(self) -> tuple[str, dict[str, str]] | None:
        """Class and parameters of the calculator that made the labels; None if there is no label."""
        if not self._teacher.exists() or not any(self.labels.glob("*.extxyz")):
            return None
        try:
            known = json.loads(self._teacher.read_text(encoding="utf-8"))
            return str(known["name"]), dict(known["parameters"])
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise DataError(
                f"{self._teacher} cannot be read ({problem}). Usually it was edited by hand: restore it. If you remove "
                "it, nothing tells whether the labels are by the same teacher"
            ) from problem

    @teacher.setter
    def teacher(self, name_and_parameters: tuple[str, dict[str, str]]) -> None:
        if self.teacher != name_and_parameters:
            known = dict(zip(("name", "parameters"), name_and_parameters, strict=True))
            write_atomically(self._teacher, json.dumps(known).encode())

    @property
    def answered(self) -> list[Record]:
        """The queries that have a label, each frame once."""
        with_label = [r for r in self.records if r.failure is None and r.digest not in self._gone]
        return [*{record.digest: record for record in with_label}.values()]

    def refuse(self, names: Sequence[str]) -> Path:
        """Move labels to another folder, from which nothing is learnt; returns that folder.

        Raises
        ------
        OutputError
            If the files cannot be moved.
        """
        refused = make_folder(self.path / "refused")
        try:
            for name in names:
                self.file(name).replace(refused / self.file(name).name)
                self._gone.add(name)
        except OSError as problem:
            raise OutputError(
                f"cannot move labels to {refused}: {problem.strerror}. Delete those in {self.labels} by hand"
            ) from problem
        return refused

    def knows(self, name: str) -> bool:
        """Whether the label with this digest has a record."""
        return any(record.digest == name for record in self.answered)

    def file(self, name: str) -> Path:
        """The file of the label with this digest."""
        return self.labels / f"{name}.extxyz"

    def label(
        self, frames: Sequence[Atoms], factory: Callable[[], Any], executor: Executor | None
    ) -> Labelled:
        """Label frames. Labels that are already on disk are not computed again."""
        self._check_lock()
        return label(frames, factory, executor, self.labels)

    def read(self, name: str) -> Atoms:
        """The labelled frame with this digest, as it is on disk.

        Raises
        ------
        DataError
            If the label cannot be read.
        """
        try:
            found = read(self.file(name), format="extxyz")
        except Exception as problem:  # ASE's readers raise many kinds of errors
            raise DataError(
                f"the label {self.file(name)} cannot be read ({problem}); remove the file, and the frame is labelled "
                "again when it is needed"
            ) from problem
        assert isinstance(found, Atoms)
        return found

    def append(self, record: Record) -> None:
        """Write the record of a query.

        Raises
        ------
        OutputError
            If the record cannot be written. The label is kept.
        """
        self._check_lock()
        append_record(self.log, (json.dumps(asdict(record)) + "\n").encode(), sync=True)
        self.records.append(record)
        if record.failure is None:
            self._gone.discard(record.digest)

    def save(self, potential: Potential) -> None:
        """Replace the previous model in one step."""
        self._check_lock()
        save_potential(potential, self.model)

    def load(self) -> Potential | None:
        """The model of an earlier run; None if there is none.

        Raises
        ------
        ModelFileError
            If the model cannot be read.
        """
        if not self.model.exists():
            return None
        try:
            return load_potential(self.model)
        except ModelFileError as problem:
            raise ModelFileError(
                f"the model of an earlier run cannot be used: {problem}. Or move it away: the next run trains a model "
                f"with all labels in {self.labels}, without asking the teacher again"
            ) from problem

    def _check_lock(self) -> None:
        try:
            self._lock.check()
        except OutputError as problem:
            raise OutputError(
                f"{problem}. Calculators that use one folder at the same time share a learner: "
                "LearningCalculator(learner=first.learner)"
            ) from problem

    def _without_label(self) -> set[str]:
        """Digests of frames whose label was removed. The frame is labelled again when it is needed."""
        names = {record.digest for record in self.records if record.failure is None}
        gone = {name for name in names if not self.file(name).exists()}
        if gone:
            logger.warning("%s lists labels that are missing: %d", self.log, len(gone))
        return gone

    def _adopt(self) -> None:
        """Make records for labels without one (the run was killed in between), so that they are learnt."""
        known = {record.digest for record in self.records if record.failure is None}
        for file in sorted(self.labels.glob("*.extxyz")):
            if file.stem not in known:
                logger.warning("%s has no record; it is learnt like the others", file)
                when = file.stat().st_mtime
                self.append(Record(file.stem, "found", "on disk without a record", time=when))


def _read_records(path: Path) -> list[Record]:
    """The records of earlier runs. An incomplete last line, left by a killed run, is moved to another file."""
    if not path.exists():
        return []
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise DataError(
            f"{path} cannot be read: {problem.strerror}. Check that it is a file that you may read, or move it away. "
            "Without it, all labels in the folder are learnt again"
        ) from problem
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        aside = cut_tail(path, whole)
        logger.warning("%s ended with half a line, which is kept as %s", path, aside.name)
    lines = content[:whole].decode(errors="replace").splitlines()
    return [_record(path, number, line) for number, line in enumerate(lines, 1)]


def _record(path: Path, number: int, line: str) -> Record:
    try:
        return Record(**json.loads(line))
    except (TypeError, ValueError) as problem:
        raise DataError(
            f"line {number} of {path} is not a record of a query ({problem}). Usually the file was edited by hand: "
            "restore it, or move it away. Without it, all labels in the folder are learnt again"
        ) from problem
