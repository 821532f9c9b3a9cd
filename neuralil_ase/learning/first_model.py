"""The model with which a run begins from nothing: its architecture is chosen from the first frames."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from neuralil_ase.evaluation.dataset import Frame, elements_of, pairs_of, types_of
from neuralil_ase.model.potential import Potential
from neuralil_ase.samples.cutoff import rounded, surroundings
from neuralil_ase.samples.normalisation import first_params
from neuralil_ase.samples.reference import energy_reference
from neuralil_ase.training.prepare import model_config
from neuralil_ase.training.settings import RADIAL_SPACING, TrainingSettings

CORE = 0.7
"""Range of the ZBL repulsion, as a fraction of the sum of the covalent radii."""
REACH = 1.76
"""Cutoff divided by the distance between nearest neighbours: 4.5 Å in copper. A few frames contain little information
about atoms farther away. With 5.5 Å the next frames of a relaxation are not predicted better, at twice the cost."""
CUTOFF_OF_ATOMS = 3.9
"""Cutoff in Å if no atom has a neighbour. It is chosen for nothing else: the first frame with neighbours begins a new
model, whose cutoff belongs to the distances there."""


def first_potential(frames: Sequence[Frame], settings: TrainingSettings) -> Potential:
    """A potential with random parameters and an architecture chosen from the frames."""
    elements = elements_of(frames)
    found = surroundings(frames, elements)
    usual = rounded(REACH * found.nearest, found.longest)
    r_cut = settings.r_cut or (usual if has_neighbours(frames) else CUTOFF_OF_ATOMS)
    # A finer descriptor would need more than a few frames.
    n_max = settings.n_max or round(r_cut / RADIAL_SPACING)
    settings = replace(settings, r_cut=r_cut, n_max=n_max).with_frames(len(frames))
    types = [types_of(frame, elements) for frame in frames]
    pairs = [pairs_of(f, t, settings.r_cut) for f, t in zip(frames, types, strict=True)]
    config = model_config(settings, elements, pairs, types)
    if config.pair_term == "zbl":
        # A few frames do not contain the shortest distances. The repulsion therefore begins below bond lengths.
        radii = covalent_radii[[atomic_numbers[symbol] for symbol in elements]]
        core = CORE * (radii[:, None] + radii[None, :])[np.triu_indices(len(elements))]
        config = replace(config, zbl_radii=tuple(core.round(4).tolist()))
    parameters = first_params(config, settings.seed)
    return Potential(config, parameters, energy_reference(frames, elements))


def has_neighbours(frames: Sequence[Frame]) -> bool:
    """Whether any atom of these frames has a neighbour."""
    return surroundings(frames, elements_of(frames)).neighbours > 0
