"""Several runs that share one learner. Runs that need labels wait for each other, and their frames are labelled
together."""

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from threading import Condition
from typing import Any

from ase import Atoms

from neuralil_ase.errors import ConfigError, QueryLimitError, TeacherError
from neuralil_ase.farm import digest
from neuralil_ase.learning.calculator import LearningCalculator
from neuralil_ase.learning.learner import Learner
from neuralil_ase.learning.records import Record
from neuralil_ase.learning.request import Request, bare
from neuralil_ase.model.potential import Potential
from neuralil_ase.monitor.novelty import NoveltyFilter, sorted_distances

Number = tuple[int, ...]
"""Of a calculator, by which its requests are known: (2,) is the second, and (2, 1) the first deep copy of it."""
Answer = Atoms | BaseException | None
"""The label; the error if there is none; None if another frame was labelled instead."""


class Walkers:
    """Runs of any kind (MD, optimisers) in parallel threads that share one learner.

    A run that needs a label waits until every other run also needs one, or has ended. The frames that differ most from
    each other are then labelled together, by the workers of the learner's ``executor`` if it has one. The model is
    trained once, and all runs continue. A run whose frame was not labelled asks again if it is still uncertain. If the
    teacher fails for a frame, only the run of this frame ends. The results do not depend on the speed of the threads.

    Make the walkers with ``walkers = Walkers(Learner(EMT, "learned"))``. Give each structure a calculator with
    ``atoms.calc = walkers.calculator()``. Then start all runs with
    ``walkers.run([partial(VelocityVerlet(atoms, dt).run, 1000) for atoms in structures])``.

    Parameters
    ----------
    learner
        The learner that all runs share.
    most
        Largest number of frames that are labelled together. Fewer are labelled if the query limits allow fewer calls.
    min_distance
        Smallest difference between frames that are labelled together, as for the monitor's
        :class:`~neuralil_ase.NoveltyFilter`; environments are compared by sorted distances.
    """

    def __init__(self, learner: Learner, most: int = 4, min_distance: float = 0.05) -> None:
        if most < 1:
            raise ConfigError(
                f"most = {most}: give the number of frames labelled together, 1 or more"
            )
        NoveltyFilter(min_distance)  # checks the number
        self.learner, self.most, self.min_distance = learner, most, min_distance
        self._gate = Condition()
        self._active, self._is_stopped = 0, False
        self._waiting: dict[Number, Request] = {}
        self._answers: dict[Number, Answer] = {}
        self._count = 0

    def calculator(self, **options: Any) -> LearningCalculator:
        """A calculator for one run; options as for :class:`LearningCalculator`."""
        self._count += 1
        return LearningCalculator(learner=_Seat(self, (self._count,)), **options)

    def run(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run all jobs and return their results in order. Each job needs a calculator of its own, from this object. A
        deep copy is another calculator.

        Raises
        ------
        Exception
            The exception of the first failed job, after all jobs have ended.
        KeyboardInterrupt
            After Ctrl-C; every job ends at its next evaluation, or after the label that it waits for.
        """
        self._active, self._is_stopped = len(jobs), False
        with ThreadPoolExecutor(max(len(jobs), 1), "walker") as threads:
            futures = [threads.submit(self._one, job) for job in jobs]
            try:
                wait(futures)
            except BaseException:  # Ctrl-C interrupts only the thread that waits
                self._stop()
                raise
        return [future.result() for future in futures]

    def ask(self, number: Number, request: Request) -> Atoms | None:
        """Wait for all runs and return the label; None if another frame was labelled instead.

        Raises
        ------
        ConfigError
            If another run waits with the same calculator.
        """
        with self._gate:
            if number in self._waiting or number in self._answers:
                raise ConfigError(
                    "two runs use one calculator, which keeps the results of one structure: give each run its own "
                    "(walkers.calculator())"
                )
            self._waiting[number] = request
            self._answer_if_all_wait()
            self._gate.wait_for(lambda: number in self._answers)
            answer = self._answers.pop(number)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _one(self, job: Callable[[], Any]) -> Any:
        try:
            return job()
        finally:
            with self._gate:
                self._active -= 1
                self._answer_if_all_wait()

    def _answer_if_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) < self._active:
            return
        waiting, self._waiting = dict(sorted(self._waiting.items())), {}
        try:
            chosen = self._choose(waiting)
            found: dict[Number, Answer] = dict.fromkeys(waiting)
            if self.learner.potential is None:
                found[chosen[0]] = self.learner.begin(waiting[chosen[0]])
            else:
                found |= self._labelled({number: waiting[number] for number in chosen})
            self.learner.settle()
        except BaseException as problem:  # whatever it is, the others must not wait for ever
            found = dict.fromkeys(waiting, problem)
        self._answers |= found
        self._gate.notify_all()

    def _labelled(self, requests: dict[Number, Request]) -> dict[Number, Answer]:
        """The labels of the requests; for those without a label, the error of the teacher."""
        try:
            return dict(zip(requests, self.learner.ask([*requests.values()]), strict=True))
        except (TeacherError, QueryLimitError) as problem:
            file = self.learner.folder.file
            kept = {n: r for n, r in requests.items() if file(digest(bare(r.atoms))).exists()}
            # The learner finds these labels on disk, and learns them now.
            labels = self.learner.ask([*kept.values()]) if kept else []
            return dict.fromkeys(requests, problem) | dict(zip(kept, labels, strict=True))

    def check_runs(self) -> None:
        """Raise an error in a run that was interrupted."""
        if self._is_stopped:
            raise CancelledError("the walkers were interrupted")

    def _stop(self) -> None:
        """End all runs at their next evaluation."""
        self._is_stopped = True
        with self._gate:
            stopped = CancelledError("the walkers were interrupted")
            self._answers |= dict.fromkeys(self._waiting, stopped)
            self._waiting = {}
            self._gate.notify_all()

    def _choose(self, waiting: dict[Number, Request]) -> list[Number]:
        """Choose the frames to label: largest error bars first, without similar frames.

        One is chosen even if no call is left, so that the learner says so.
        """
        most = max(min(self.most, self.learner.calls_left), 1)
        novelty = NoveltyFilter(self.min_distance, sorted_distances)
        order = sorted(waiting, key=lambda number: -waiting[number].bar)
        chosen: list[Number] = []
        for number in order:
            atoms = waiting[number].atoms
            if len(chosen) < most and (not chosen or novelty.is_new(atoms)):
                novelty.remember(atoms)
                chosen.append(number)
        return chosen


class _Seat:
    """The interface of the learner for one calculator."""

    def __init__(self, walkers: Walkers, number: Number) -> None:
        self._walkers, self._number, self._copies = walkers, number, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Seat":
        """The seat of a copy. Its number depends only on its own run, and not on the speed of the threads."""
        self._copies += 1
        return _Seat(self._walkers, (*self._number, self._copies))

    @property
    def potential(self) -> Potential | None:
        return self._walkers.learner.potential

    @property
    def tolerance(self) -> float:
        return self._walkers.learner.tolerance

    @property
    def is_training(self) -> bool:
        return False  # a run that asks also waits for the training

    @property
    def records(self) -> list[Record]:
        return self._walkers.learner.records

    def moved(self, atoms: Atoms) -> float:
        return self._walkers.learner.moved(atoms)

    @property
    def knows_stress(self) -> bool:
        return self._walkers.learner.knows_stress

    def too_far(self, atoms: Atoms, is_descending: bool) -> str | None:
        return self._walkers.learner.too_far(atoms, is_descending)

    def check_surface(self, atoms: Atoms) -> None:
        self._walkers.learner.check_surface(atoms)

    def is_strained(self, atoms: Atoms) -> bool:
        return self._walkers.learner.is_strained(atoms)

    def catch_up(self) -> None:
        self._walkers.check_runs()
        self._walkers.learner.catch_up()

    def settle(self) -> None:
        self._walkers.learner.settle()

    def begin(self, request: Request) -> Atoms | None:
        return self._walkers.ask(self._number, request)

    def ask(self, requests: Sequence[Request]) -> list[Atoms | None]:
        return [self._walkers.ask(self._number, request) for request in requests]
