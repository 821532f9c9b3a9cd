"""The observer that ASE calls: criterion, then band and patience, then action."""

from collections import deque
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from neuralil_ase.errors import ConfigError
from neuralil_ase.monitor.actions import Attempts, Event, RollBack, call, warn
from neuralil_ase.monitor.calibration import resolved
from neuralil_ase.monitor.checks import Check, Streaks, check, one_member
from neuralil_ase.monitor.criteria import Criterion
from neuralil_ase.monitor.export import annotate
from neuralil_ase.monitor.files import checked_path
from neuralil_ase.monitor.options import check_counts, criteria_from
from neuralil_ase.monitor.output import MonitorFiles
from neuralil_ase.monitor.readings import Level
from neuralil_ase.monitor.report import plot_table, summary_text
from neuralil_ase.monitor.selection import Fingerprint
from neuralil_ase.monitor.targets import check_stoppable, predicting, target_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PathLike = str | PathLike[str]


class ExtrapolationMonitor:
    """Follows the spread of an ensemble during a run and acts where the model does not know.

    Attach it to any ASE dynamics; it only looks, unless told to stop or to roll back: the same run
    with and without it is identical.

    Parameters
    ----------
    system : ASE dynamics, Atoms, filter or NEB
        What to follow: MD, an optimiser (of atoms, of a cell filter, of a NEB), or the bare atoms.
    threshold : float or (float, float), optional
        For the largest force spread over the atoms, eV/Å (standard deviation over members, ddof 1,
        norm of the vector of component deviations). One number: frames at or above it are
        candidates, and `stop` ends the run there. Two, (low, high): frames between are candidates,
        `stop` ends the run at high, and frames at or above high are not saved. Default: the bands
        of the model's calibration.
    criteria : sequence of Criterion, optional
        In place of `threshold`; see `neuralil_ase.monitor`. A frame is as bad as its worst one.
    patience : int
        Act after this many checks in a row at a level, so that a single spike does nothing.
    every : int
        Ask for member forces at every n-th call only. In between, the criteria that need no more
        than member energies go on (if there are any); when one of them objects, all are evaluated.
    log : path, optional
        Table of all checks, for ``numpy.loadtxt`` or `read_log`.
    save : path, optional
        extxyz file for the candidates, with spreads in ``arrays`` and reasons in ``info``. The
        energies and forces in it are the model's: label the frames before training on them.
    before : int
        Also save up to this many checked frames from before each flag.
    min_distance : float
        Leave out frames whose flagged environments are this near to saved ones (see
        `NoveltyFilter`); 0 saves all. In liquid ethylammonium nitrate at 300 K a hydrogen atom is
        0.1 from itself after about 4 fs, and about 0.3 from the most similar one in an unrelated
        frame (nitrogen: 25 fs and 0.12).
    max_saved : int
        At most this many frames in the file.
    fingerprint : callable, optional
        Atoms → (N, D) or (D,), for `min_distance`. Default: the calculator's ``descriptors(atoms)``
        where it has them, else sorted distances to neighbours.
    warn : bool or callable
        Warn when a flagged episode begins: with ``warnings.warn``, or by calling this with the
        message, e.g. ``logging.getLogger("md").warning``.
    stop : bool
        End the run cleanly when the last band is reached.
    rollback : bool
        As `stop`, and put the last trusted positions, cell and momenta back.
    function : callable, optional
        Called with the `Event` of every flagged check (after patience), after all other actions;
        ``event.saved`` tells whether it is a frame worth labelling.
    calculator : optional
        The ensemble, where it is not ``atoms.calc`` itself (a sum with a dispersion term, say).
    dyn : optional
        The dynamics, where `system` is not one.
    append : bool
        Go on with existing `log` and `save` files of an earlier part of this run. Otherwise
        existing files are renamed to ``name.1``, ``name.2`` and so on; none is overwritten.
    first_step : int, optional
        Steps done in earlier parts of the run; with `append` the last one in the log. Later rows of
        the log are dropped, since they are about to be computed again.

    Attributes
    ----------
    stopped : bool
        Whether the monitor ended the run.
    last_event : Event or None
        The last flagged check.

    Raises
    ------
    MonitorError
        If the model has a single member or no calibration where one is needed, if the run cannot be
        stopped from inside, or if a file cannot be written. Frames and rows that a full disk
        refused are kept in memory; call `flush` when there is room again.
    ConfigError
        If an option makes no sense.

    Examples
    --------
    >>> monitor = ExtrapolationMonitor(dyn, threshold=(0.5, 1.5), log="md.log",
    ...                                save="candidates.extxyz", stop=True)  # doctest: +SKIP
    >>> dyn.attach(monitor, interval=10)  # doctest: +SKIP
    >>> dyn.run(10_000)  # doctest: +SKIP
    >>> print(monitor.summary())  # doctest: +SKIP
    """

    def __init__(
        self,
        system: Any,
        threshold: float | tuple[float, float] | None = None,
        *,
        criteria: Sequence[Criterion] | None = None,
        patience: int = 1,
        every: int = 1,
        log: _PathLike | None = None,
        save: _PathLike | None = None,
        before: int = 0,
        min_distance: float = 0.1,
        max_saved: int = 100,
        fingerprint: Fingerprint | None = None,
        warn: bool | Callable[[str], Any] = True,
        stop: bool = False,
        rollback: bool = False,
        function: Callable[[Event], Any] | None = None,
        calculator: Any = None,
        dyn: Any = None,
        append: bool = False,
        first_step: int | None = None,
    ) -> None:
        self.criteria = criteria_from(threshold, criteria)
        check_counts(patience=patience, every=every, max_saved=max_saved)
        check_counts(least=0, before=before, first_step=first_step or 0)
        if before and save is None:
            raise ConfigError("before= keeps frames to save them, but save= names no file.")
        self._target = target_of(system, dyn)
        if stop or rollback:
            check_stoppable(self._target)
        self._calculator = calculator
        self._every = every
        self._warn = warn
        self._stop = stop or rollback
        self._function = function
        self._files = MonitorFiles(
            log=None if log is None else checked_path(log, "log"),
            save=None if save is None else checked_path(save, "save"),
            append=append,
            first_step=first_step,
            max_saved=max_saved,
            min_distance=min_distance,
            fingerprint=fingerprint,
        )
        self._rollback = RollBack(self._target.images) if rollback else None
        self._streaks = [Streaks(patience) for _ in self._target.images]
        self._before = [deque[Atoms](maxlen=before) for _ in self._target.images]
        self._ready = False
        self._calls = 0
        self._last_seen: tuple[int, list[bytes]] | None = None
        self.stopped = False
        self.last_event: Event | None = None
        if self._model(self._target.images[0]) is not None:
            self._prepare()

    def __call__(self) -> None:
        """Check the present frame; ASE calls this."""
        self._prepare()
        step = self._step()
        if self._seen_before(step):
            return
        with_forces = self._calls % self._every == 0
        self._calls += 1
        found = [
            check(self.criteria, self._model(atoms), atoms, with_forces)
            for atoms in self._target.images
        ]
        checks = [result for result in found if result is not None]
        if not checks:
            return
        if self._rollback is not None and all(result.trusted for result in checks):
            self._rollback.remember(step)
        attempts = Attempts()
        events = [self._record(i, step, result, attempts) for i, result in enumerate(checks)]
        self._act([event for event in events if event is not None], attempts)

    @property
    def records(self) -> dict[str, np.ndarray]:
        """All rows of the log so far, by column name (the file need not exist)."""
        return {} if self._files.table is None else self._files.table.as_dict()

    @property
    def n_saved(self) -> int:
        """Frames in the `save` file, earlier parts of a resumed run included."""
        return self._files.n_saved

    def flush(self) -> None:
        """Write the frames and rows that an earlier failure left in memory."""
        self._files.flush()

    def summary(self) -> str:
        """The run in a few lines: per criterion the mean, the worst value, where and when."""
        saved = self._files.describe_saved()
        atoms = self._target.images[0]
        return summary_text(self.criteria, self.records, atoms, saved, self.stopped)

    def plot(self, path: _PathLike | None = None) -> "Figure":
        """Spread, energy and temperature over the run; written to `path` if given.

        Returns the matplotlib figure. Raises MonitorError before the first check.
        """
        return plot_table(self.criteria, self.records, path)

    def _prepare(self) -> None:
        """Resolve thresholds and open files, once a calculator is there."""
        if self._ready:
            return
        model = predicting(self._model(self._target.images[0]))
        if self._calculator is None and self._target.shared_calculator:
            # Images that share a calculator take turns with its pair list; asking it in between
            # would change the order of summation, and so the last bits of the run.
            self._calculator = deepcopy(model)
        n_members = getattr(getattr(model, "potential", None), "n_members", None)
        if n_members is not None and n_members < 2:
            raise one_member()
        self.criteria = tuple(resolved(criterion, model) for criterion in self.criteria)
        self._files.open(self.criteria, model, self._target.steps_done)
        self._ready = True

    def _model(self, atoms: Atoms) -> Any:
        return atoms.calc if self._calculator is None else self._calculator

    def _step(self) -> int:
        done = self._calls if self._target.dynamics is None else self._target.steps_done
        return self._files.first_step + done

    def _seen_before(self, step: int) -> bool:
        """Whether this is the frame of the last call: ASE calls twice when run() begins at step 0
        again, as after an exception or a run of no steps."""
        if self._target.dynamics is None:
            return False
        seen = (step, [atoms.positions.tobytes() for atoms in self._target.images])
        self._last_seen, earlier = seen, self._last_seen
        return seen == earlier

    def _record(self, i: int, step: int, found: Check, attempts: Attempts) -> Event | None:
        """Save and log one image."""
        event = self._event(i, step, found)
        if event is not None:
            self._before[i].clear()
            event = replace(event, saved=attempts.run(self._files.save, event) or 0)
            self.last_event = event
        elif self._before[i].maxlen and found.level < Level.HIGH:
            self._before[i].append(self._frame(i, step, found))
        attempts.run(self._files.add_row, self._row(i, step, found, event))
        return event

    def _event(self, i: int, step: int, found: Check) -> Event | None:
        streaks = self._streaks[i]
        lasting = streaks.update(found.readings)
        level, earlier = streaks.level(lasting), streaks.acted
        streaks.acted = level
        if level == Level.TRUSTED:
            return None
        return Event(
            step=step,
            image=self._target.numbers[i],
            level=level,
            rising=level > earlier,
            stop=streaks.stop(lasting),
            readings=lasting,
            frame=self._frame(i, step, found),
            before=tuple(self._before[i]),
        )

    def _frame(self, i: int, step: int, found: Check) -> Atoms:
        frame = annotate(self._target.images[i], found.prediction)
        for key in [key for key in frame.info if key.startswith("monitor_")]:
            del frame.info[key]  # left by an earlier run, if this one began from a saved frame
        frame.info["monitor_step"] = step
        return frame

    def _row(self, i: int, step: int, found: Check, event: Event | None) -> dict[str, float]:
        atoms, number = self._target.images[i], self._target.numbers[i]
        row = {
            "step": step,
            "image": -1 if number is None else number,
            "time_fs": step * self._target.timestep_fs,
            "temperature_K": atoms.get_temperature() if atoms.has("momenta") else np.nan,
            "energy_eV": found.prediction.energy,
            "energy_std_eV": found.prediction.energy_std,
            "level": found.level,
            "saved": 0 if event is None else event.saved,
        }
        for reading in found.readings:
            row[reading.criterion] = reading.value
            row[f"{reading.criterion}_atom"] = -1 if reading.atom is None else reading.atom
        return row

    def _act(self, events: Sequence[Event], attempts: Attempts) -> None:
        """What follows saving: roll back, warn, the user's function, stop. All are attempted."""
        ending = [event for event in events if event.stop] if self._stop else []
        if ending:
            self.stopped = True
            if self._rollback is not None:
                attempts.run(self._rollback, ending[0])
        for event in events:
            if self._warn:
                attempts.run(warn, event, self._warn if callable(self._warn) else None)
            if self._function is not None:
                attempts.run(call, self._function, event)
        attempts.raise_first()
        if ending:
            self._target.stop()
