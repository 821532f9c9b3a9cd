"""The observer that ASE calls: criterion, then band and patience, then action."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from numbers import Real
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from neuralil_ase.errors import ConfigError
from neuralil_ase.files.owned import OwnedFile
from neuralil_ase.monitor.actions import Attempts, Event, RollBack, Streaks, call, warn
from neuralil_ase.monitor.criteria import Criterion, MaxForceSpread, checked, one_member
from neuralil_ase.monitor.frames import FrameSaver, annotate
from neuralil_ase.monitor.log import Log, column_names
from neuralil_ase.monitor.novelty import Fingerprint, NoveltyFilter, fingerprint_of
from neuralil_ase.monitor.readings import Band, Check
from neuralil_ase.monitor.report import plot_table, summary_text
from neuralil_ase.monitor.targets import calibration_of, check_stoppable, predicting, target_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PathLike = str | PathLike[str]


class ExtrapolationMonitor:
    """Follows the spread of an ensemble during a run, and acts if it is too large.

    Attach it to any ASE dynamics. Without `stop` and `rollback` the monitor changes nothing: the run is the same, to
    the last bit, with and without it.

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
        Used instead of `threshold`; see `neuralil_ase.monitor`. The worst criterion decides the band of a frame.
    patience : int
        Act after this many checks in a row in a band, so that a single peak has no effect.
    every : int
        Evaluate member forces at every n-th call only. In between, only the criteria that need no more than member
        energies are evaluated; when one of these leaves the trusted band, all are evaluated.
    log : path, optional
        Table of all checks, for ``numpy.loadtxt`` or `read_log`.
    save : path, optional
        extxyz file for the candidates, with spreads in ``arrays`` and reasons in ``info``. The
        energies and forces in it are the model's: label the frames before training on them.
    before : int
        Also save up to this many checked frames from before each flag.
    min_distance : float
        Leave out frames whose flagged environments are this near to saved ones (see
        `NoveltyFilter`); 0 saves all. In liquid ethylammonium nitrate at 300 K, the environment
        of a hydrogen atom is at a distance of 0.1 from itself after about 4 fs, and of about 0.3 from the
        most similar one in an unrelated frame (nitrogen: 25 fs and 0.12).
    max_saved : int
        At most this many frames in the file.
    fingerprint : callable, optional
        Atoms → (N, D) or (D,), for `min_distance`. Default: the calculator's ``descriptors(atoms)``
        where it has them, else sorted distances to neighbours.
    warn : bool or callable
        Warn when a flagged episode begins: with ``warnings.warn``, or by calling this with the
        message, e.g. ``logging.getLogger("md").warning``.
    stop : bool
        End the run cleanly when the worst band is reached.
    rollback : bool
        Like `stop`, and also restore the last trusted positions, cell and momenta.
    function : callable, optional
        Called with the `Event` of every flagged check (after patience), after all other actions;
        ``event.saved`` tells whether the frame is worth labelling.
    calculator : optional
        The ensemble, where it is not ``atoms.calc`` itself (a sum with a dispersion term, say).
    dyn : optional
        The dynamics, where `system` is not one.
    append : bool
        Continue the `log` and `save` files of an earlier part of this run. Otherwise existing files are renamed to
        ``name.1``, ``name.2`` and so on; none is overwritten.
    first_step : int, optional
        Number of steps in earlier parts of the run, before the dynamics began to count. With `append`,
        the monitor finds this number by comparing energy and spreads of the first structure with the
        rows of the log. Give the number where this cannot work, as for a frame between two checks. Rows
        from this step on are dropped, since they are computed again; the old log is kept as ``name.1``.

    Attributes
    ----------
    last : Check or None
        The last check: step, band, readings, prediction; of several images, the worst.
        ``monitor.last.value("max_force_std")`` is what a criterion read.
    stopped : bool
        Whether the monitor ended the run.
    last_event : Event or None
        The last flagged check.

    Raises
    ------
    MonitorError
        If the model has a single member or no calibration where one is needed, if the run cannot be stopped from
        inside, if a log cannot be continued, or if a frame or row cannot be written during the run. The frame or
        row is then kept in memory; call `flush` when there is room again.
    OutputError
        If `log` or `save` cannot be written to, or another run writes it.
    ConfigError
        If an option makes no sense.

    Examples
    --------
    >>> from ase import units
    >>> from ase.build import molecule
    >>> from ase.md.verlet import VelocityVerlet
    >>> from neuralil_ase import ExtrapolationMonitor, NeuralILCalculator
    >>> atoms = molecule("CH3CH2NH2")
    >>> atoms.calc = NeuralILCalculator()
    >>> dyn = VelocityVerlet(atoms, 0.5 * units.fs)
    >>> monitor = ExtrapolationMonitor(
    ...     dyn, threshold=(50, 100), log="md.log", save="candidates.extxyz", stop=True
    ... )
    >>> dyn.attach(monitor, interval=10)
    >>> _ = dyn.run(20)
    >>> print(monitor.summary().splitlines()[0].split(":")[0])
    3 checks, steps 0 to 20
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
        self.criteria = _criteria(threshold, criteria)
        _check_counts(patience=patience, every=every, max_saved=max_saved)
        _check_counts(least=0, before=before, first_step=first_step or 0)
        _check_files(log, save, before)
        self._target = target_of(system, dyn)
        if stop or rollback:
            check_stoppable(self._target)
        self._calculator = calculator
        self._every = every
        self._warn = warn
        self._stop = stop or rollback
        self._function = function
        self._paths = {"log": log, "save": save}
        self._append = append
        self._first_step = first_step
        self._max_saved = max_saved
        self._novelty = NoveltyFilter(min_distance, fingerprint)
        self._log: Log | None = None
        self._saver: FrameSaver | None = None
        self._rollback = RollBack(self._target.images) if rollback else None
        self._streaks = [Streaks(patience) for _ in self._target.images]
        self._before = [deque[Atoms](maxlen=before) for _ in self._target.images]
        self._calls = 0
        self._steps_before: int | None = None
        self._last_seen: tuple[int, list[bytes]] | None = None
        self.stopped = False
        self.last: Check | None = None
        self.last_event: Event | None = None
        if self._model(self._target.images[0]) is not None:
            self._prepared_log()

    def __call__(self) -> None:
        """Check the present frame; ASE calls this."""
        log = self._prepared_log()
        present = self._done(), [atoms.positions.tobytes() for atoms in self._target.images]
        if present == self._last_seen and self._target.dynamics is not None:
            return  # ASE calls twice when run() begins at step 0 again, as after an exception or a run of no steps
        checks = self._look(with_forces=self._calls % self._every == 0)
        if checks and self._steps_before is None:
            checks = self._placed(log, checks)
        self._calls += 1
        self._last_seen = present
        if not checks:
            return
        self.last = max(checks, key=lambda found: found.band)
        if self._rollback is not None and all(found.trusted for found in checks):
            self._rollback.remember(checks[0].step)
        attempts = Attempts()
        events = [self._record(i, found, log, attempts) for i, found in enumerate(checks)]
        self._act([event for event in events if event is not None], attempts)

    @property
    def records(self) -> dict[str, np.ndarray]:
        """All rows of the log so far, by column name (the file need not exist). Makes a copy; see also `last`."""
        return {} if self._log is None else self._log.as_dict()

    @property
    def n_saved(self) -> int:
        """Frames in the `save` file, including those of earlier parts of a resumed run."""
        return 0 if self._saver is None else self._saver.n_saved

    def flush(self) -> None:
        """Write the frames and rows that an earlier failure left in memory."""
        attempts = Attempts()
        for file in (self._saver, self._log):
            if file is not None:
                attempts.run(file.flush)
        attempts.raise_first()

    def summary(self) -> str:
        """The run in a few lines: per criterion the mean, the worst value, where and when."""
        saved = "0 frames saved" if self._saver is None else self._saver.describe()
        atoms = self._target.images[0]
        return summary_text(self.criteria, self.records, atoms, saved, self.stopped)

    def plot(self, path: _PathLike | None = None) -> "Figure":
        """Spread, energy and temperature over the run; written to `path` if given.

        Returns the matplotlib figure. Raises MonitorError before the first check.
        """
        return plot_table(self.criteria, self.records, path)

    def _prepared_log(self) -> Log:
        """The log. The first call needs a calculator; it resolves the thresholds and opens the files."""
        if self._log is not None:
            return self._log
        model = predicting(self._model(self._target.images[0]))
        if self._calculator is None and self._target.shared_calculator:
            # Images that share a calculator also share its pair list. Calls in between would change
            # the order of summation, and so the last bits of the run.
            self._calculator = deepcopy(model)
        n_members = getattr(getattr(model, "potential", None), "n_members", None)
        if n_members is not None and n_members < 2:
            raise one_member()
        calibration = calibration_of(model)
        self.criteria = tuple(criterion.resolved(calibration) for criterion in self.criteria)
        return self._opened(model)

    def _opened(self, model: Any) -> Log:
        """Lock both files before either is touched, then open them."""
        log, save = (
            None if path is None else OwnedFile(path, purpose)
            for purpose, path in self._paths.items()
        )
        opened = Log(log, self.criteria, self._append)
        if save is not None:
            if self._novelty.fingerprint is None:
                self._novelty.fingerprint = fingerprint_of(model)
            self._saver = FrameSaver(save, self._novelty, self._max_saved, self._append)
        self._log = opened
        return opened

    def _model(self, atoms: Atoms) -> Any:
        return atoms.calc if self._calculator is None else self._calculator

    def _done(self) -> int:
        """Steps that the dynamics has counted, or the number of calls if there is none."""
        dynamics = self._target.dynamics
        return self._calls if dynamics is None else int(dynamics.nsteps)

    def _look(self, with_forces: bool) -> list[Check]:
        """Check every image; empty if nothing is due at this call."""
        step = self._done() + (self._steps_before or 0)
        found = [
            checked(self.criteria, self._model(atoms), atoms, with_forces)
            for atoms in self._target.images
        ]
        return [
            replace(one, step=step, image=number)
            for one, number in zip(found, self._target.numbers, strict=True)
            if one is not None
        ]

    def _placed(self, log: Log, checks: list[Check]) -> list[Check]:
        """The first checks of this part of the run, with the steps of earlier parts added."""
        rows = [self._row(i, found, log, 0) for i, found in enumerate(checks)]
        self._steps_before = log.resume(
            rows, self._done(), self._first_step, len(self._target.images[0])
        )
        return [replace(found, step=self._done() + self._steps_before) for found in checks]

    def _record(self, i: int, found: Check, log: Log, attempts: Attempts) -> Event | None:
        """Save and log one image."""
        event = self._event(i, found)
        if event is not None:
            self._before[i].clear()
            saved = None if self._saver is None else attempts.run(self._saver, event)
            event = self.last_event = replace(event, saved=saved or 0)
        elif self._before[i].maxlen and found.band < Band.HIGH:
            self._before[i].append(self._frame(i, found))
        attempts.run(log.add, self._row(i, found, log, 0 if event is None else event.saved))
        return event

    def _event(self, i: int, found: Check) -> Event | None:
        streaks = self._streaks[i]
        lasting = streaks.update(found.readings)
        band, earlier = streaks.band(lasting), streaks.acted
        streaks.acted = band
        if band == Band.TRUSTED:
            return None
        return Event(
            step=found.step,
            image=found.image,
            band=band,
            rising=band > earlier,
            stop=streaks.stop(lasting),
            readings=lasting,
            frame=self._frame(i, found),
            before=tuple(self._before[i]),
        )

    def _frame(self, i: int, found: Check) -> Atoms:
        frame = annotate(self._target.images[i], found.prediction)
        for key in [key for key in frame.info if str(key).startswith("monitor_")]:
            del frame.info[key]  # left by an earlier run, if this one began from a saved frame
        frame.info["monitor_step"] = found.step
        return frame

    def _row(self, i: int, found: Check, log: Log, saved: int) -> dict[str, float]:
        atoms = self._target.images[i]
        row = {
            "step": found.step,
            "image": -1 if found.image is None else found.image,
            "time_fs": log.clock[1] + (found.step - log.clock[0]) * self._target.timestep_fs,
            "temperature_K": atoms.get_temperature() if atoms.has("momenta") else np.nan,
            "energy_eV": found.prediction.energy,
            "energy_std_eV": found.prediction.energy_std,
            "band": found.band,
            "saved": saved,
        }
        for reading in found.readings:
            row[reading.criterion] = reading.value
            row[f"{reading.criterion}_atom"] = -1 if reading.atom is None else reading.atom
        return row

    def _act(self, events: Sequence[Event], attempts: Attempts) -> None:
        """After saving: roll back, warn, call the user's function, stop. All are attempted."""
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


def _criteria(threshold: Any, criteria: Sequence[Criterion] | None) -> tuple[Criterion, ...]:
    """The criteria; `threshold` is short for one on the largest force spread."""
    if criteria is None:
        bounds = threshold if isinstance(threshold, tuple | list) else (threshold, None)
        if len(bounds) != 2 or not all(b is None or isinstance(b, Real) for b in bounds):
            raise ConfigError(
                f"threshold = {threshold!r}: give one number in eV/Å, or two as (low, high)"
            )
        criteria = [MaxForceSpread(*bounds)]
    elif threshold is not None:
        raise ConfigError(
            "threshold= belongs to the default criterion; with criteria= put it into these, e.g. "
            "criteria=[MaxForceSpread(0.5)]"
        )
    column_names(chosen := tuple(criteria))  # refuses criteria that a log could not hold
    return chosen


def _check_counts(least: int = 1, **counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
            raise ConfigError(f"{name} = {count!r}: give a whole number, {least} or above")


def _check_files(log: _PathLike | None, save: _PathLike | None, before: int) -> None:
    if before and save is None:
        raise ConfigError("before= keeps frames to save them, but save= names no file")
    if log is not None and save is not None and os.path.realpath(log) == os.path.realpath(save):
        raise ConfigError(f"log and save are the same file, {log}; give them different names")
