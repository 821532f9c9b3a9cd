"""When a trusted frame is labelled nevertheless."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from neuralil_ase.array_record import count
from neuralil_ase.learning.decision import SHARE, Decision, Descent
from neuralil_ase.learning.records import Kind, Record
from neuralil_ase.learning.request import SURPRISE

HELD_OUT, RARELY = 0.25, 20
"""If more than this fraction of the frames is held out, spot checks are this many times rarer. Otherwise 42 of 107
queries in 20,000 steps of liquid EAN would be spot checks."""
CHECK_OF_OPTIMISER = 100
"""On the way to a minimum, a label is due after this many trusted evaluations in a row. Most relaxations end earlier. A
relaxation of a soft structure may take hundreds of steps in a region where all error bars are too small."""


class SpotChecks:
    """Counts trusted evaluations.

    Parameters
    ----------
    every
        Number of trusted evaluations before the first check; 0 for no checks.

    Attributes
    ----------
    wait
        Number of trusted evaluations in a row before the next check.
    """

    def __init__(self, every: int) -> None:
        self._every = self.wait = every
        self._row = self._unproved = self._before = 0

    def trusted(self) -> None:
        """Count an evaluation by the model."""
        self._row += 1
        self._unproved += 1

    def asked(self, kind: Kind) -> None:
        """Begin again at a query, even if it brings no label. Each check doubles the wait for the next one; any other
        query resets it."""
        self._row = 0
        self.wait = 2 * self.wait if kind == "check" else self._every

    def labelled(self) -> None:
        """Note that the query brought a label."""
        self._before, self._unproved = self._unproved, 0

    def surprise(self, decision: Decision, label: Atoms) -> str | None:
        """Compare a spot check with its label. If an error is far above the tolerance, reset the wait, and return what
        the user must know."""
        assert decision.prediction is not None
        error = np.linalg.norm(decision.prediction.forces - label.get_forces(), axis=1).max()
        if error <= SURPRISE * decision.allowed:
            return None
        self.wait = self._every
        before = count(self._before, "trusted evaluation")
        return (
            f"found an error of {error:.3f} eV/Å, with an error bar of {decision.bar:.3f} and a tolerance of "
            f"{decision.allowed:.3f}"
            + (f": {before} before it may be wrong" if self._before else "")
        )

    def is_due(self, records: Sequence[Record], descent: Descent | None, is_near: bool) -> bool:
        """Whether this trusted frame is labelled as well; on the way to a minimum rarer near a learnt frame."""
        row = self._row + 1
        if not self._every:
            return False
        if descent is not None:
            return row >= CHECK_OF_OPTIMISER / (SHARE if is_near else 1)
        if row < self.wait:
            return False
        held_out = sum(record.held_out for record in records)
        return held_out <= HELD_OUT * len(records) or row >= RARELY * self._every
