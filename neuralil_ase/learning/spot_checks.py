"""When a trusted frame is labelled nevertheless."""

from collections.abc import Sequence

from neuralil_ase.learning.decision import SHARE
from neuralil_ase.learning.records import Kind, Record

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
        self._row = 0

    def trusted(self) -> None:
        """Count an evaluation by the model."""
        self._row += 1

    def asked(self, kind: Kind) -> None:
        """Begin again after a query. Each check doubles the wait for the next one; any other query resets it."""
        self._row = 0
        self.wait = 2 * self.wait if kind == "check" else self._every

    def is_due(self, records: Sequence[Record]) -> bool:
        """Whether this trusted frame of a run is labelled as well."""
        row = self._row + 1
        if not self._every or row < self.wait:
            return False
        held_out = sum(record.held_out for record in records)
        return held_out <= HELD_OUT * len(records) or row >= RARELY * self._every

    def is_due_on_the_way(self, is_near: bool) -> bool:
        """The same on the way to a minimum; rarer near a learnt frame."""
        return self._every > 0 and self._row + 1 >= CHECK_OF_OPTIMISER / (SHARE if is_near else 1)
