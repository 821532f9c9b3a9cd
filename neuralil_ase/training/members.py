"""Trains the members of an ensemble separately, each by a worker of an executor, and joins them.

A member has the same first parameters, resampled frames (bootstrap) and order of frames as in a common training. The
best epoch of a member is chosen by its own validation loss. In a common training, the best epoch is chosen by the
validation loss of the ensemble mean. The result depends neither on the number of workers nor on the order in which they
finish.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

import numpy as np

from neuralil_ase.engine.concurrency import claim_jax
from neuralil_ase.errors import ConfigError, ProcessError, TrainingError
from neuralil_ase.evaluation.dataset import Frame
from neuralil_ase.files.atomic import free_name, make_folder, write_atomically
from neuralil_ase.files.model_file import load_potential, save_potential
from neuralil_ase.model.potential import Potential, flatten, unflatten
from neuralil_ase.progress import Progress
from neuralil_ase.training.checkpoint import check_same_run, fingerprint
from neuralil_ase.training.loop import History, Trainer, fit
from neuralil_ase.training.output import Output, Recorder, log_line, plain
from neuralil_ase.training.prepare import Task, prepare
from neuralil_ase.training.settings import TrainingSettings
from neuralil_ase.training.warm_start import Start
from neuralil_ase.workers import Lost, answers_of

logger = logging.getLogger(__name__)
RESUME = "Members that were finished are kept beside the output: start a new executor and train again with resume=True"


@dataclass(frozen=True)
class Job:
    """The message to every worker, without the index of its member.

    Jobs are equal if their tokens are equal. A worker thus recognises the job of its previous message.
    """

    settings: TrainingSettings = field(compare=False)
    train: Sequence[Frame] = field(compare=False)
    validation: Sequence[Frame] = field(compare=False)
    start: Start | None = field(compare=False)
    token: str = field(default_factory=lambda: uuid4().hex)

    def record(self) -> dict[str, Any]:
        """The data by which a finished member is recognised as part of the same run."""
        return {
            "settings": plain(self.settings.to_dict()),
            "data": fingerprint(self.train, self.validation),
            "start": None if self.start is None else self.start.provenance,
        }


def train_members(
    job: Job, executor: Executor, files: Output | None, resume: bool, progress: bool
) -> tuple[Potential, History, str]:
    """Train all members; returns the ensemble, the mean of the members' histories, and why the run ended.

    Every finished member is written to ``<output>.members`` immediately. ``resume`` trains only the missing ones.

    Raises
    ------
    ConfigError
        If members share layers.
    ProcessError
        If workers died. A member whose worker died is first given once to another worker, if the executor still works.
        The message names the missing members.
    NeuralILError
        An error in a worker: data, settings or a diverged loss.
    """
    if job.settings.shared_layers:
        raise ConfigError(
            f"members that share layers are trained together: leave out the executor, or shared_layers="
            f"{job.settings.shared_layers}"
        )
    kept = None if files is None else _Kept(files.members, job.record(), resume)
    found = {} if kept is None else kept.found(job.settings.members)
    missing = [k for k in range(job.settings.members) if k not in found]
    try:
        with Progress(job.settings.members, "member", "training", progress) as bar:
            bar.update(len(found))
            messages = {k: (job, k) for k in missing}
            for member, potential in all_answers(
                executor, train_member, messages, "members", RESUME
            ):
                found[member] = potential if kept is None else kept.keep(member, potential)
                bar.update(len(found))
    finally:
        _prepared.cache_clear()  # workers that are threads have filled it in this process
    members = [found[k] for k in sorted(found)]
    history = mean_history([potential.provenance["history"] for potential in members])
    joined = join(members, history)
    if files is not None:
        lines = "".join(log_line(entry) + "\n" for entry in history).encode()
        files.write(files.log, lambda path: write_atomically(path, lines))
        files.write(files.model, lambda path: save_potential(joined, path))
    return joined, history, joined.provenance["ended"]


def train_member(job: Job, member: int) -> Potential:
    """The work for one message: train a potential of one member; its history is in the provenance."""
    claim_jax()
    with _PREPARING:
        task = _prepared(job)
    trainer = Trainer(task.of_member(member))
    with Recorder(trainer, None, progress=False) as recorder:
        try:
            run = fit(trainer, recorder.started(), recorder)
        except TrainingError as error:
            raise TrainingError(
                f"member {member}, trained separately from the others: {error}"
            ) from error
    if recorder.reason == "interrupted":
        raise KeyboardInterrupt  # a partly trained member is not used
    potential = recorder.potential(run)
    return replace(potential, provenance={**potential.provenance, "history": run.history})


_PREPARING = Lock()
"""Lets one of several threads prepare the job, while the others wait."""


@lru_cache(maxsize=1)
def _prepared(job: Job) -> Task:
    """Prepare a job once per process, for all members that it trains. A worker keeps the arrays of the last job."""
    return prepare(job.settings, job.train, job.validation, job.start)


def join(members: Sequence[Potential], history: History) -> Potential:
    """Join potentials of one member each to an ensemble.

    Raises
    ------
    ProcessError
        If the members differ in their architecture.
    """
    first = members[0]
    if any(potential.config != first.config for potential in members):
        raise ProcessError(
            "the workers made members of different architectures: do all of them run the same neuralil-ase on the same "
            "data?"
        )
    flat = [flatten(potential.params) for potential in members]
    params = unflatten({name: np.concatenate([x[name] for x in flat]) for name in flat[0]})
    records = [potential.provenance for potential in members]
    best = [record["best_validation_loss"] for record in records]
    provenance = {
        **{key: value for key, value in records[0].items() if key not in ("history", "run")},
        "epochs": max(record["epochs"] for record in records),
        "ended": next((r["ended"] for r in records if r["ended"] != "finished"), "finished"),
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 1),
        "last_epoch": history[-1] if history else {},
        "best_validation_loss": None if None in best else float(np.mean(best)),
        "members_trained": "apart",
    }
    config = replace(first.config, n_members=len(members))
    return Potential(config, params, first.energy_reference, provenance)


def mean_history(histories: Sequence[History]) -> History:
    """One record for each epoch: the mean over the members that reached it."""
    longest = max(histories, key=len)
    return [_mean([h[k] for h in histories if len(h) > k]) for k in range(len(longest))]


def _mean(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shared = [key for key in records[0] if all(key in record for record in records)]
    values = {key: [record[key] for record in records] for key in shared}
    return {
        key: int(v[0]) if key in ("epoch", "step") else float(np.mean(v))
        for key, v in values.items()
    }


class _Kept:
    """The folder with the finished members."""

    def __init__(self, folder: Path, record: dict[str, Any], resume: bool) -> None:
        self._folder, self._record, self._resume = folder, record, resume

    def found(self, count: int) -> dict[int, Potential]:
        """The members of this run that an earlier call has finished."""
        if not self._resume:
            return {}
        paths = {k: self._path(k) for k in range(count)}
        return {k: self._load(path) for k, path in paths.items() if path.exists()}

    def keep(self, member: int, potential: Potential) -> Potential:
        """Write a member. The folder of another run is renamed first."""
        if not self._resume and self._folder.exists():
            aside = self._folder.rename(free_name(self._folder))
            logger.info("%s of an earlier run is kept as %s", self._folder, aside.name)
        self._resume = True  # from now on, the members in the folder belong to this run
        make_folder(self._folder)
        record = {**potential.provenance, "run": self._record}
        save_potential(replace(potential, provenance=record), self._path(member))
        return potential

    def _load(self, path: Path) -> Potential:
        potential = load_potential(path)
        before = potential.provenance.get("run", {"settings": {}, "data": {}})
        check_same_run(path, before, *(self._record[key] for key in ("settings", "data", "start")))
        return potential

    def _path(self, member: int) -> Path:
        return self._folder / f"{member}.safetensors"


def all_answers(
    executor: Executor,
    function: Callable[..., Any],
    messages: Mapping[int, tuple[Any, ...]],
    name: str,
    advice: str,
) -> Iterator[tuple[int, Any]]:
    """Yield the number and the answer of every message, in the order in which the answers arrive.

    Raises
    ------
    ProcessError
        In the end, if workers died. The message names the missing numbers (``name`` says what is numbered) and gives
        the advice.
    """
    lost: dict[int, str] = {}
    for number, answer in answers_of(executor, function, messages):
        if isinstance(answer, Lost):
            lost[number] = answer.reason
        else:
            yield number, answer
    if lost:
        raise ProcessError(
            f"workers died before they had trained the {name} {sorted(lost)} ({next(iter(lost.values()))}); usually "
            f"they ran out of memory or were killed. {advice}"
        )
