"""Watching the spread of an ensemble during MD, optimisation and NEB.

`ExtrapolationMonitor` joins criteria (what is read, where its bands begin) to actions (log, warn,
save, roll back, stop, call). Criteria of one's own derive from `Criterion`. Any calculator with
``prediction(atoms, uncertainty=...)`` will do, see `PredictingCalculator`.
"""

from neuralil_ase.monitor.actions import Event, ExtrapolationWarning
from neuralil_ase.monitor.criteria import (
    Criterion,
    EnergySpreadPerAtom,
    MaxEnergySpread,
    MaxForceSpread,
    MeanForceSpread,
    RelativeForceSpread,
    ShortestDistance,
)
from neuralil_ase.monitor.export import annotate
from neuralil_ase.monitor.observer import ExtrapolationMonitor
from neuralil_ase.monitor.pairs import shortest_distances
from neuralil_ase.monitor.protocols import PredictingCalculator, PredictionLike
from neuralil_ase.monitor.readings import Level, Reading
from neuralil_ase.monitor.selection import NoveltyFilter, sorted_distances
from neuralil_ase.monitor.table import read_log

__all__ = [
    "Criterion",
    "EnergySpreadPerAtom",
    "Event",
    "ExtrapolationMonitor",
    "ExtrapolationWarning",
    "Level",
    "MaxEnergySpread",
    "MaxForceSpread",
    "MeanForceSpread",
    "NoveltyFilter",
    "PredictingCalculator",
    "PredictionLike",
    "Reading",
    "RelativeForceSpread",
    "ShortestDistance",
    "annotate",
    "read_log",
    "shortest_distances",
    "sorted_distances",
]
