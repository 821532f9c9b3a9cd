"""Small structures and one small ensemble that the core tests share.

Compilation takes longer than anything else here: all structures have at most eight atoms and a few tens of
pairs, so that one compiled function serves most tests.
"""

from functools import lru_cache

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.geometry import get_distances
from ensembles import random_params

from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.engine.arrays import Dtype
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Uncertainty

R_CUT = 3.0
CONFIG = ModelConfig(
    DescriptorConfig(("C", "H", "N", "O"), n_max=2, r_cut=R_CUT),
    NetworkConfig("core", widths=(8, 4)),
    n_members=3,
)
REFERENCE = np.array([-10.0, -1.0, -20.0, -30.0])
TRICLINIC = np.array([[3.9, 0.0, 0.0], [1.1, 3.6, 0.0], [-0.7, 0.9, 4.1]])
TINY = np.array([[2.6, 0.0, 0.0], [0.8, 2.4, 0.0], [-0.5, 0.7, 2.7]])


@lru_cache
def ensemble(config: ModelConfig = CONFIG) -> Potential:
    """Three members with random parameters; energies that vary by eV, forces of some eV/Å."""
    params = random_params(config, seed=7)
    body = params["network"]["body"]
    body["Dense_0"]["kernel"] *= 30
    body["denormalizer"]["kernel"] *= 6
    n_elements = len(config.descriptor.elements)
    return Potential(config, params, np.resize(REFERENCE, n_elements), {"origin": "random"})


@lru_cache
def calculator(uncertainty: Uncertainty = "energy", dtype: Dtype = "float64") -> NeuralILCalculator:
    """One calculator for all who ask, with the pair capacities it has met."""
    return NeuralILCalculator(ensemble(), dtype=dtype, uncertainty=uncertainty)


def random_atoms(
    seed: int, symbols: str, cell: np.ndarray, pbc: tuple[bool, bool, bool], spacing: float = 0.9
) -> Atoms:
    """Atoms at random places of a cell, no two (nor images) closer than a spacing in Å."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(symbols, cell=cell, pbc=pbc)
    placed: list[np.ndarray] = []
    while len(placed) < len(atoms):
        candidate = rng.random(3) @ cell
        distances = get_distances(candidate, placed, cell=cell, pbc=pbc)[1] if placed else [np.inf]
        if np.min(distances) > spacing:
            placed.append(candidate)
    atoms.positions = placed
    return atoms


def structure(name: str) -> Atoms:
    """One of ``STRUCTURES``."""
    if name == "molecule":
        return molecule("CH3OH")
    cell, pbc, symbols = {
        "triclinic": (TRICLINIC, (True, True, True), "CHHNOH"),
        "mixed": (TRICLINIC, (True, False, True), "CHHNOH"),
        "slab": (TRICLINIC, (True, True, False), "CHHNOH"),
        "wire": (TRICLINIC, (False, False, True), "CHHNOH"),
        "tiny": (TINY, (True, True, True), "NO"),
        "one atom": (TINY, (True, True, True), "N"),
    }[name]
    return random_atoms(11, symbols, cell, pbc)


STRUCTURES = ("molecule", "triclinic", "mixed", "slab", "wire", "tiny", "one atom")


def with_calculator(name: str) -> Atoms:
    """A structure with the shared calculator."""
    atoms = structure(name)
    atoms.calc = calculator()
    return atoms
