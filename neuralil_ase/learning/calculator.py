"""The learning calculator: it returns the results of the model if their error bars allow it, or asks the teacher."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.errors import (
    ConfigError,
    QueryLimitError,
    StructureError,
    TeacherError,
    UncertaintyError,
)
from neuralil_ase.farm import electrons_of
from neuralil_ase.learning.decision import Decision, Descent, judge
from neuralil_ase.learning.history import Step, remember, step_of, temperature_of
from neuralil_ase.learning.learner import Learner
from neuralil_ase.learning.options import check_count
from neuralil_ase.learning.records import Kind, Record
from neuralil_ase.learning.report import draw, progress_text, summary_text
from neuralil_ase.learning.request import Request, Teaching
from neuralil_ase.learning.results import (
    check_properties,
    restore,
    results_of_model,
    results_of_teacher,
)
from neuralil_ase.learning.spot_checks import SpotChecks
from neuralil_ase.learning.surface import changed_electrons
from neuralil_ase.model.potential import Potential
from neuralil_ase.monitor.criteria import Criterion
from neuralil_ase.prediction import Prediction, Uncertainty
from neuralil_ase.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)
FIT = 0.02
"""Force error that training must reach on the latest frames, as a fraction of fmax or of the allowed error bar. With
0.1, training is twice as fast, and errors at the next minima are a tenth larger."""
OnQuery = Literal["teacher", "model"]


class LearningCalculator(Calculator):
    """Learns from any ASE calculator during a run, and needs it less and less.

    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> from neuralil_ase import LearningCalculator
    >>> atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    >>> atoms.calc = LearningCalculator(EMT(), folder="learned")  # doctest: +SKIP

    It works with MD, optimisers, cell filters and NEB; :class:`Confirmed` lets the teacher confirm a minimum. An
    ensemble predicts each structure. If the error bar of the force on every atom is within the tolerance, the
    calculator returns the results of the model. If not, it asks the teacher: the label is written to the folder, the
    model is trained further for some seconds, and the run continues. A second run of the same script with the same
    folder starts with everything that was learnt.

    Energies are those whose slopes the forces are: the teacher's free energy, if it has one. The tolerance is meant for
    runs and optimisations. Differences of forces 0.01 Å apart (``Vibrations``, phonons) are smaller: use the teacher
    for them, or the exact Hessian of the model. Error bars of forces do not limit the energies of different minima: for
    basin hopping, let the teacher confirm each (``optimizer=lambda a, **o: Confirmed(a).optimizer(BFGS, **o)``).

    Parameters
    ----------
    teacher, folder
        As for :class:`Learner`, which also takes all further ``options``: ``model``, ``data``, ``tolerance``,
        ``rattled``, ``max_queries``, ``queries_per_hour``, ``retries``, ``background``, ``executor``,
        ``check_teacher``, ``settings``, ``seed``.
    learner
        A learner that is shared with other calculators. It replaces teacher, folder and options.
    on_query
        What is returned when the teacher was asked: "teacher", its own results, or "model", the results of the model
        after learning them. Energies and forces jump there by the error that the record of the query states.
    criteria
        Further criteria of the monitor. The teacher is asked if any of them is above its threshold. Without them, error
        bars of forces count, those of the stress in a cell that no learnt frame has, and for a model that began from
        nothing whether any learnt atom had a similar number of neighbours.
    check_every
        Spot checks: a trusted frame is labelled after this many trusted evaluations in a row, then after twice as many
        more, and so on. The frame is held out from training and tests updates and error bars. If its error is more than
        twice the tolerance, the frame is learnt, a warning is logged, and the intervals begin again. While a quarter of
        the frames is held out, checks need 20 times as many evaluations. On the way to a minimum, a frame is labelled
        and learnt after 100 trusted evaluations in a row, or 400 near a learnt one. If the query limits allow no label,
        the run continues without the check. 0 means never.
    progress
        Show evaluations, queries, the present error bar and the last error on the standard error.

    Attributes
    ----------
    learner
        The learner; ``learner.records`` are the queries.
    evaluations
        Number of evaluations so far, including those by the teacher.
    history
        For each evaluation: its number, largest error bar, tolerated error bar, temperature, and whether the teacher
        was asked. Beyond 100,000 evaluations, only every second one is kept, beyond 200,000 every fourth, and so on.
        Those with the teacher, and the last one, are always kept.
    is_confirmed
        Whether the present results are the teacher's own.

    Raises
    ------
    TeacherError
        If the teacher is not suitable, or fails.
    StructureError
        If the same atoms have another charge, spin or magnetic moments than before.
    QueryLimitError
        If a label is needed and the query limit is reached.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - ASE's convention
    name = "neuralil-learning"

    def __init__(
        self,
        teacher: Any = None,
        folder: str | Path = "learned",
        *,
        learner: Teaching | None = None,
        on_query: OnQuery = "teacher",
        criteria: Sequence[Criterion] = (),
        check_every: int = 100,
        progress: bool = False,
        **options: Any,
    ) -> None:
        check_count("check_every", check_every)
        if on_query not in get_args(OnQuery):
            raise ConfigError(f"on_query = {on_query!r}: give {' or '.join(get_args(OnQuery))}")
        if learner is not None and (teacher is not None or options):
            raise ConfigError(
                f"the given learner has its own {'teacher' if teacher is not None else ', '.join(options)}: give "
                "either, not both"
            )
        super().__init__()
        self.learner: Teaching = Learner(teacher, folder, **options) if learner is None else learner
        self.on_query, self.criteria = on_query, tuple(criteria)
        self.check_every = check_every
        self.evaluations = 0
        self._checks = SpotChecks(check_every)
        self.history: list[Step] = []
        self._progress = Progress(None, "evaluation", "learning", True) if progress else None
        self._model: NeuralILCalculator | None = None
        self._last_trusted: Atoms | None = None
        self._descent: Descent | None = None
        self._decision = Decision(None)
        self._labelled: Atoms | None = None  # the present structure, if the teacher was asked
        self.is_confirmed = False

    @property
    def potential(self) -> Potential | None:
        """The present model; None before the first evaluation."""
        return self.learner.potential

    def prediction(
        self, atoms: Atoms | None = None, uncertainty: Uncertainty | None = None
    ) -> Prediction:
        """Prediction of the present model for a structure, for a monitor; see :class:`NeuralILCalculator`.

        Raises
        ------
        UncertaintyError
            If there is no model yet.
        """
        model = self._present()
        if model is None:
            raise UncertaintyError(
                "there is no model yet: evaluate the atoms once (atoms.get_forces()), so that the teacher gives the "
                "first labels"
            )
        return model.prediction(self.atoms if atoms is None else atoms, uncertainty)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last evaluation, for ASE; also what only the teacher sees. The comparison is exact
        for any ``tol``."""
        changes = NeuralILCalculator.check_state(self, atoms, tol)  # type: ignore[arg-type]  # it needs self.atoms only
        if self.atoms is not None:
            changes += changed_electrons(electrons_of(self.atoms), electrons_of(atoms))
        return changes

    def __deepcopy__(self, memo: dict[int, Any]) -> "LearningCalculator":
        """A calculator for a copy of the atoms, with the same past. It shares the learner, as only one may use a
        folder, but has a seat of its own among walkers."""
        shared = isinstance(self.learner, Learner)
        twin = LearningCalculator(
            learner=self.learner if shared else deepcopy(self.learner, memo),
            on_query=self.on_query,
            criteria=self.criteria,
            check_every=self.check_every,
            progress=self._progress is not None,
        )
        twin.atoms, twin.results = deepcopy(self.atoms, memo), deepcopy(self.results, memo)
        twin.evaluations, twin.history = self.evaluations, copy(self.history)
        twin.is_confirmed, twin._labelled = self.is_confirmed, self._labelled
        twin._decision, twin._last_trusted = self._decision, self._last_trusted
        twin._checks = copy(self._checks)
        return twin

    def __reduce__(self) -> Any:
        raise TypeError(
            "a LearningCalculator cannot be pickled: its learner holds the lock of a folder. Pickle atoms without it "
            "(atoms.copy()), and let processes use the model (NeuralILCalculator) or call the teacher (executor)"
        )

    def reset(self) -> None:
        """Forget the results."""
        super().reset()
        self._labelled, self.is_confirmed = None, False

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Decide who evaluates the structure, and evaluate it; called by ASE."""
        present = self.atoms if atoms is None else atoms
        if present is None:
            raise StructureError("no structure has been given yet: pass atoms")
        self.reset()  # if this fails, no results of another structure may remain
        self.atoms = atoms = present.copy()
        if not len(atoms):
            raise StructureError("the structure has no atoms, so there is nothing to learn")
        check_properties(atoms, properties, self.learner.knows_stress)
        self.evaluations += 1
        self.learner.catch_up()
        self.learner.check_surface(atoms)
        results = self._answer(atoms)
        while results is None:  # another frame was labelled instead of this one
            results = self._answer(atoms)
        self.results, self._last_trusted = results, atoms
        check_properties(atoms, properties, self.learner.knows_stress)
        remember(self.history, step_of(self.evaluations, self._decision, atoms))
        if self._progress is not None:
            self._progress.update(self.evaluations, progress_text(self.history, self.records))

    @property
    def records(self) -> list[Record]:
        """All queries so far, including those of earlier runs with this folder."""
        return self.learner.records

    def summary(self) -> str:
        """Text with the queries by reason, and the errors compared with their error bars."""
        return summary_text(self.records, self.evaluations, self.learner.tolerance)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Plot queries and error bars along this run, errors against error bars, and the temperature.

        Raises
        ------
        MonitorError
            If nothing has been evaluated yet.
        """
        return draw(self.history, self.records, path)

    def roll_back(self, atoms: Atoms) -> None:
        """Restore positions, cell and momenta of the last structure that was trusted or labelled, for use after a
        ``TeacherError``. Integrators evaluate forces in the middle of a step, so that momenta are half a step behind.

        Raises
        ------
        TeacherError
            If there is no such structure of these atoms.
        """
        trusted = self._last_trusted
        if trusted is None or not np.array_equal(trusted.numbers, atoms.numbers):
            raise TeacherError("there is nothing to roll back to: no structure was evaluated yet")
        restore(atoms, trusted)

    @contextmanager
    def descending(self, descent: Descent) -> Iterator[None]:
        """Context in which larger error bars are allowed, on the way to a minimum (:class:`Confirmed`)."""
        self._descent = descent
        try:
            yield
        finally:
            self._descent = None

    @property
    def error(self) -> float:
        """Largest expected force error on a movable atom in eV/Å; see :class:`Decision`."""
        return self._decision.error

    def confirm(self, fmax: float, reason: str) -> bool:
        """Set the results to the teacher's, for :class:`Confirmed`; return whether the teacher was asked now. It is
        asked once for each structure."""
        assert self.atoms is not None
        is_new = self._labelled is None
        if is_new:
            decision = self._decision._replace(kind="confirm", reason=reason)
            label = self._label(self.atoms, "confirm", decision, FIT * fmax)
            self.history[-1] = self.history[-1]._replace(asked=label is not None)
        if self._labelled is not None:
            self.results = self._of_teacher(self._labelled)
        else:  # another frame was labelled instead, and the model may have changed
            self.results = self.learnt()
        return is_new and self._labelled is not None

    def go_on(self) -> None:
        """Continue after the teacher did not confirm a minimum, with the results that ``on_query`` selects."""
        assert self.atoms is not None
        if self.on_query == "model":
            self.results, self.is_confirmed = self.learnt(), False

    def _answer(self, atoms: Atoms) -> dict[str, Any] | None:
        """Results of the model or the teacher; None if another frame was labelled instead."""
        self._decision = self._decide(atoms)
        if self._decision.kind is not None and self.learner.is_training:
            self.learner.settle()  # after training in the background, the model may be certain
            self._decision = self._decide(atoms)
        if self._decision.kind is not None:
            try:
                return self._asked(atoms, self._decision.kind, self._decision)
            except QueryLimitError as limit:
                if self._decision.kind != "check":
                    raise
                logger.info("no spot check of a trusted frame: %s", limit)
                self._decision = self._decision._replace(kind=None)
        assert self._decision.prediction is not None
        self._checks.trusted()
        return results_of_model(self._decision.prediction, self.learner.knows_stress)

    def _decide(self, atoms: Atoms) -> Decision:
        found = judge(
            self.learner, self._present(), atoms, self._descent, self.criteria, self._last_trusted
        )
        if found.kind is None and self._checks.is_due(self.records, self._descent, found.is_near):
            return found._replace(kind="check", reason="a spot check of a trusted frame")
        return found

    def _asked(self, atoms: Atoms, kind: Kind, decision: Decision) -> dict[str, Any] | None:
        """Ask the teacher, and choose what to return; None if another frame was labelled instead."""
        prediction, target = decision.prediction, self.learner.tolerance / 2
        if self._descent is not None:
            target = FIT * (self._descent.fmax if prediction is None else decision.allowed)
        label = self._label(atoms, kind, decision, target)
        if label is None:
            return None
        if prediction is not None and kind == "check" and self._descent is None:
            surprise = self._checks.surprise(decision, label)
            if surprise is None:
                return results_of_model(prediction, self.learner.knows_stress)
            logger.warning("a spot check at evaluation %d %s", self.evaluations, surprise)
        return self._of_teacher(label) if self.on_query == "teacher" else self.learnt()

    def _label(self, atoms: Atoms, kind: Kind, decision: Decision, target: float) -> Atoms | None:
        """Ask the teacher; None if another frame was labelled instead."""
        self._checks.asked(kind)
        request = Request(
            atoms,
            kind,
            decision.reason,
            decision.prediction,
            self.evaluations,
            temperature_of(atoms),
            target,
            decision.bar,
            decision.allowed,
            may_hold_out=self._descent is None,
        )
        label = self.learner.begin(request) if kind == "first" else self.learner.ask([request])[0]
        if label is not None:
            self._checks.labelled()
        self._labelled = label
        return label

    def _of_teacher(self, label: Atoms) -> dict[str, Any]:
        """The results of the teacher."""
        model = self._present()
        assert model is not None
        self.is_confirmed = True
        return results_of_teacher(label, model, self.learner.knows_stress)

    def learnt(self) -> dict[str, Any]:
        """Results of the model for the present structure, after learning."""
        assert self.atoms is not None
        self.learner.settle()
        model = self._present()
        assert model is not None
        return results_of_model(model.prediction(self.atoms, "forces"), self.learner.knows_stress)

    def _present(self) -> NeuralILCalculator | None:
        """The calculator of the present model."""
        potential = self.learner.potential
        if potential is None:
            return None
        if self._model is None or self._model.potential is not potential:
            self._model = NeuralILCalculator(potential, uncertainty="forces")
        return self._model
