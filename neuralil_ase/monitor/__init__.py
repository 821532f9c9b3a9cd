"""Watching the spread of an ensemble during MD, optimisation and NEB.

`ExtrapolationMonitor` combines criteria (a value and its thresholds) with actions (log, warn, save, roll
back, stop, call). Your own criteria derive from `Criterion`. The monitor works with any calculator that has
``prediction(atoms, uncertainty=...)``, see `PredictingCalculator`.
"""

from neuralil_ase.monitor.actions import Event, ExtrapolationWarning
from neuralil_ase.monitor.criteria import (
    Criterion,
    EnergySpreadPerAtom,
    MaxEnergySpread,
    MaxForceErrorBar,
    MaxForceSpread,
    MeanForceSpread,
)
from neuralil_ase.monitor.frames import annotate
from neuralil_ase.monitor.log import read_log
from neuralil_ase.monitor.novelty import NoveltyFilter, sorted_distances
from neuralil_ase.monitor.observer import ExtrapolationMonitor
from neuralil_ase.monitor.readings import Band, Check, Reading
from neuralil_ase.monitor.relative import (
    RelativeCriterion,
    RelativeForceSpread,
    ShortestDistance,
    shortest_distances,
)
from neuralil_ase.monitor.targets import PredictingCalculator, PredictionLike

__all__ = [
    "Band",
    "Check",
    "Criterion",
    "EnergySpreadPerAtom",
    "Event",
    "ExtrapolationMonitor",
    "ExtrapolationWarning",
    "MaxEnergySpread",
    "MaxForceErrorBar",
    "MaxForceSpread",
    "MeanForceSpread",
    "NoveltyFilter",
    "PredictingCalculator",
    "PredictionLike",
    "Reading",
    "RelativeCriterion",
    "RelativeForceSpread",
    "ShortestDistance",
    "annotate",
    "read_log",
    "shortest_distances",
    "sorted_distances",
]
