"""An ensemble of Lennard-Jones potentials with perturbed members: a stand-in for a committee."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from vesin import NeighborList


def lennard_jones(atoms, sigma, epsilon, rc):
    """Shifted Lennard-Jones, as ase.calculators.lj has it, but without loops over atoms."""
    i, _, d, vectors = NeighborList(cutoff=rc, full_list=True).compute(
        atoms.positions, atoms.cell.array, atoms.pbc, quantities="ijdD"
    )
    c6 = (sigma / d) ** 6
    shift = 4 * epsilon * ((sigma / rc) ** 12 - (sigma / rc) ** 6)
    pair_energy = 4 * epsilon * (c6**2 - c6) - shift
    pull = (-24 * epsilon * (2 * c6**2 - c6) / d**2)[:, None] * vectors
    energies, forces = np.zeros(len(atoms)), np.zeros((len(atoms), 3))
    np.add.at(energies, i, pair_energy / 2)
    np.add.at(forces, i, pull)
    virial = 0.5 * vectors.T @ (-pull) if atoms.cell.rank == 3 else np.zeros((3, 3))
    stress = -virial.ravel()[[0, 4, 8, 5, 2, 1]] / (atoms.cell.volume or 1)
    return {"energy": energies.sum(), "energies": energies, "forces": forces, "stress": stress}


@dataclass(frozen=True)
class LJPrediction:
    """Means and spreads (ddof 1), computed here from the members one by one."""

    members: tuple[dict, ...]
    uncertainty: str

    def _stack(self, name):
        return np.array([member[name] for member in self.members])

    energy = cached_property(lambda self: float(self._stack("energy").mean()))
    energies = cached_property(lambda self: self._stack("energies").mean(axis=0))
    forces = cached_property(lambda self: self._stack("forces").mean(axis=0))
    stress = cached_property(lambda self: self._stack("stress").mean(axis=0))
    member_energies = cached_property(lambda self: self._stack("energy"))
    energy_std = cached_property(lambda self: float(self.member_energies.std(ddof=1)))
    energies_std = cached_property(lambda self: self._stack("energies").std(axis=0, ddof=1))

    @property
    def forces_std(self):
        if self.uncertainty != "forces":
            raise AttributeError("ask for uncertainty='forces'")
        return np.sqrt(self._stack("forces").var(axis=0, ddof=1).sum(axis=1))


class LJEnsemble(Calculator):
    """Mean of Lennard-Jones members whose sigma and epsilon differ by a few per cent."""

    implemented_properties = ("energy", "free_energy", "energies", "forces", "stress")

    def __init__(self, n_members=3, seed=0, calibration=None, **keywords):
        super().__init__(**keywords)
        rng = np.random.default_rng(seed)
        self.lj_members = [
            {
                "sigma": 3.4 * (1 + 0.01 * rng.normal()),
                "epsilon": 0.0104 * (1 + 0.02 * rng.normal()),
                "rc": 6.0,
            }
            for _ in range(n_members)
        ]
        self.asked = []
        self._kept = (b"", ())
        self.potential = Potential(n_members, calibration)

    def prediction(self, atoms=None, uncertainty="energy"):
        atoms = self.atoms if atoms is None else atoms
        self.asked.append(uncertainty)
        return LJPrediction(self._members(atoms), uncertainty)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        mean = LJPrediction(self._members(self.atoms), "energy")
        self.results = {
            "energy": mean.energy,
            "free_energy": mean.energy,
            "energies": mean.energies,
            "forces": mean.forces,
            "stress": mean.stress,
        }

    def _members(self, atoms):
        """Results of all members; those of the last geometry are kept."""
        geometry = atoms.positions.tobytes() + atoms.cell.array.tobytes()
        if self._kept[0] != geometry:
            results = tuple(lennard_jones(atoms, **member) for member in self.lj_members)
            self._kept = (geometry, results)
        return self._kept[1]


@dataclass
class Potential:
    n_members: int
    calibration: object = None


def argon(temperature=40.0, seed=1, repeat=2) -> Atoms:
    """A thermal, slightly disordered argon crystal, 32 atoms, with the ensemble attached."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * (repeat, repeat, repeat)
    atoms.rattle(0.05, seed=seed)
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(units.kB * temperature * atoms.get_masses())
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * sigma[:, None])
    atoms.calc = LJEnsemble()
    return atoms
