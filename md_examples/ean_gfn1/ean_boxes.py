"""Ethylammonium nitrate (EAN) from nothing: the two ions, packed cells, clusters.

The ions are built from textbook bond lengths and angles. A cell or a cluster is made in two steps:
whole ions are placed at random positions and orientations, and then relaxed shortly in a soft
potential. Springs keep the ions rigid, contacts below 80 % of the van der Waals distance are pushed
apart, and a shifted Coulomb term attracts ions of opposite charge. The result is not an equilibrated
liquid, but dynamics can start from it without exploding.

Atoms are ordered cations first (11 atoms each), then anions (4 atoms each); ions are always whole,
that is, not cut by the periodic boundary.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from ase import Atoms, units
from ase.data import atomic_masses, atomic_numbers, vdw_radii
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

FloatArray = NDArray[np.float64]

CATION = ["N", "H", "H", "H", "C", "H", "H", "C", "H", "H", "H"]
ANION = ["N", "O", "O", "O"]
CATION_BONDS = [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5), (4, 6), (4, 7), (7, 8), (7, 9), (7, 10)]
ANION_BONDS = [(0, 1), (0, 2), (0, 3)]
DENSITY = 1.21
"""Density of the liquid at room temperature, g/cm³."""

_CONTACT = 0.80  # of the sum of van der Waals radii: closer ions are pushed apart
_SPRING = 100.0  # eV/Å², keeps the ions rigid
_REPULSION = 50.0  # eV/Å²
_COULOMB = units.Hartree * units.Bohr  # e²/(4πε0) in eV Å
_CLUSTER_REACH = 15.0  # Å, reach of the Coulomb term where there is no cell


class PackingError(RuntimeError):
    """No structure without overlapping ions was found."""


@dataclass(frozen=True)
class Ion:
    """Positions (N, 3) in Å, centred on the centre of geometry, and the charge in e."""

    symbols: list[str]
    positions: FloatArray
    charge: int


def _attach(
    a: FloatArray, b: FloatArray, c: FloatArray, bond: float, angle: float, dihedral: float
) -> FloatArray:
    """Position d with |cd| = bond (Å), angle b-c-d and dihedral a-b-c-d (degrees)."""
    theta, phi = np.radians([angle, dihedral])
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    side = np.cross(normal, axis)
    direction = (
        -np.cos(theta) * axis
        + np.sin(theta) * np.cos(phi) * side
        + np.sin(theta) * np.sin(phi) * normal
    )
    return c + bond * direction


@cache
def ethylammonium() -> Ion:
    """CH3-CH2-NH3+ in its staggered conformation, in the order of `CATION`."""
    methylene = np.zeros(3)
    nitrogen = np.array([1.50, 0.0, 0.0])
    methyl = 1.51 * np.array([np.cos(np.radians(110.0)), np.sin(np.radians(110.0)), 0.0])
    ammonium_h = [
        _attach(methyl, methylene, nitrogen, 1.03, 110.0, phi) for phi in (60.0, 180.0, 300.0)
    ]
    methylene_h = [_attach(nitrogen, methyl, methylene, 1.09, 110.0, phi) for phi in (120.0, 240.0)]
    methyl_h = [
        _attach(nitrogen, methylene, methyl, 1.09, 110.0, phi) for phi in (60.0, 180.0, 300.0)
    ]
    positions = np.array([nitrogen, *ammonium_h, methylene, *methylene_h, methyl, *methyl_h])
    return Ion(CATION, positions - positions.mean(axis=0), +1)


@cache
def nitrate() -> Ion:
    """NO3-, planar, 1.25 Å, in the order of `ANION`."""
    angles = np.radians([0.0, 120.0, 240.0])
    oxygens = 1.25 * np.column_stack([np.cos(angles), np.sin(angles), np.zeros(3)])
    return Ion(ANION, np.vstack([np.zeros(3), oxygens]), -1)


def ion_atoms(ion: Ion) -> Atoms:
    """One isolated ion without a cell; its charge is in ``info["charge"]``."""
    return Atoms(ion.symbols, positions=ion.positions, info={"charge": ion.charge})


def pairs_in(atoms: Atoms) -> int:
    """Number of ion pairs in a structure of this module (15 atoms each)."""
    return len(atoms) // (len(CATION) + len(ANION))


def ion_slices(atoms: Atoms) -> list[slice]:
    """Atoms of every ion: cations, then anions. Also for a single isolated ion."""
    if len(atoms) in (len(CATION), len(ANION)):
        return [slice(0, len(atoms))]
    n_pairs = pairs_in(atoms)
    lengths = [len(CATION)] * n_pairs + [len(ANION)] * n_pairs
    ends = np.cumsum(lengths)
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def bonds(atoms: Atoms) -> NDArray[np.int64]:
    """Covalent bonds (B, 2) as atom indices."""
    pairs = []
    for ion in ion_slices(atoms):
        table = CATION_BONDS if ion.stop - ion.start == len(CATION) else ANION_BONDS
        pairs += [(ion.start + i, ion.start + j) for i, j in table]
    return np.array(pairs)


def cell_edge(n_pairs: int, density: float = DENSITY) -> float:
    """Edge in Å of the cubic cell that holds `n_pairs` at `density` (g/cm³)."""
    mass = n_pairs * sum(atomic_masses[atomic_numbers[s]] for s in CATION + ANION)
    gram_per_cm3 = 1e-3 * units.kg / 1e8**3  # in u/Å³, the units of ASE
    return float((mass / (density * gram_per_cm3)) ** (1 / 3))


def build_box(n_pairs: int, density: float = DENSITY, seed: int = 0) -> Atoms:
    """A cubic periodic cell of `n_pairs` at `density` (g/cm³), the same for the same `seed`.

    Raises
    ------
    PackingError
        When no packing without overlaps was found, as for densities far above that of the liquid.
    """
    if n_pairs < 1 or density <= 0.0:
        raise ValueError(f"need n_pairs >= 1 and density > 0, got {n_pairs} and {density}")
    return pack(n_pairs, cell_edge(n_pairs, density), periodic=True, seed=seed)


def build_cluster(n_pairs: int, seed: int = 0) -> Atoms:
    """A cluster of `n_pairs` in vacuum (no cell), ions in contact, reproducible from `seed`."""
    if n_pairs < 1:
        raise ValueError(f"need n_pairs >= 1, got {n_pairs}")
    return pack(n_pairs, cell_edge(n_pairs), periodic=False, seed=seed)


def pack(n_pairs: int, edge: float, *, periodic: bool, seed: int, attempts: int = 20) -> Atoms:
    rng = np.random.default_rng(seed)
    ions = [ethylammonium()] * n_pairs + [nitrate()] * n_pairs
    symbols = [symbol for ion in ions for symbol in ion.symbols]
    field = SoftField(ions, symbols, edge if periodic else None)
    steps = {"maxiter": 500 if periodic else 1000}  # ions of a cluster have to move farther
    for _ in range(attempts):
        start = np.vstack(
            [
                Rotation.random(None, rng).apply(ion.positions) + rng.uniform(0.0, edge, 3)
                for ion in ions
            ]
        )
        result = minimize(field, start.ravel(), jac=True, method="CG", options=steps)
        positions = result.x.reshape(-1, 3)
        if field.closest_contact(positions) > 0.85:
            cell = [edge] * 3 if periodic else None
            return Atoms(symbols, positions=positions, cell=cell, pbc=periodic)
    raise PackingError(
        f"no packing of {n_pairs} ion pairs in a cell of {edge:.2f} Å without overlaps after "
        f"{attempts} attempts: lower the density or use more pairs"
    )


class SoftField:
    """Energy (eV) and gradient of the auxiliary potential; `edge` is None without a cell."""

    def __init__(self, ions: list[Ion], symbols: list[str], edge: float | None) -> None:
        self.edge = edge
        owner = np.repeat(np.arange(len(ions)), [len(ion.symbols) for ion in ions])
        self.same = owner[:, None] == owner
        radii = np.array([vdw_radii[atomic_numbers[symbol]] for symbol in symbols])
        shape = np.vstack([ion.positions for ion in ions])
        inside = np.linalg.norm(shape[:, None] - shape, axis=-1)
        self.target = np.where(self.same, inside, _CONTACT * (radii[:, None] + radii))
        # the whole charge of an ion is on its nitrogen, the first atom of both ions
        first = np.r_[True, owner[1:] != owner[:-1]]
        charges = np.where(first, np.array([ion.charge for ion in ions])[owner], 0.0)
        self.coulomb = np.where(self.same, 0.0, _COULOMB * charges[:, None] * charges)

    def _vectors(self, positions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Vectors i -> j (N, N, 3), nearest images between ions, and their lengths (N, N)."""
        vectors = positions - positions[:, None]
        if self.edge is not None:
            shift = self.edge * np.round(vectors / self.edge)
            vectors -= np.where(self.same[:, :, None], 0.0, shift)
        return vectors, np.maximum(np.linalg.norm(vectors, axis=-1), 1e-6)

    def closest_contact(self, positions: FloatArray) -> float:
        """Smallest distance between two ions as a fraction of the wanted contact distance."""
        _, r = self._vectors(positions)
        return float(np.min(r[~self.same] / self.target[~self.same], initial=np.inf))

    def __call__(self, flat: FloatArray) -> tuple[float, FloatArray]:
        vectors, r = self._vectors(flat.reshape(-1, 3))
        stretch = r - self.target
        stretch = np.where(self.same, stretch, np.minimum(stretch, 0.0))
        np.fill_diagonal(stretch, 0.0)
        stiffness = np.where(self.same, _SPRING, _REPULSION)
        # force-shifted Coulomb: energy and force go to zero at its reach; linear below 1 Å
        reach = _CLUSTER_REACH if self.edge is None else 0.5 * self.edge
        strength = np.where(r < reach, self.coulomb, 0.0)
        s = np.maximum(r, 1.0)
        steepness = 1.0 / reach**2 - 1.0 / s**2
        potential = 1.0 / s - 1.0 / reach + (s - reach) / reach**2 + steepness * (r - s)
        energy = 0.5 * np.sum(0.5 * stiffness * stretch**2 + strength * potential)
        slope = stiffness * stretch + strength * steepness
        gradient = -np.sum((slope / r)[:, :, None] * vectors, axis=1)
        return float(energy), gradient.ravel()


def scale_volume(atoms: Atoms, factor: float) -> Atoms:
    """The cell's volume times `factor`; the ions move as rigid bodies, bonds keep their lengths."""
    scaled = atoms.copy()
    length = factor ** (1 / 3)
    for ion in ion_slices(atoms):
        centre = atoms.positions[ion].mean(axis=0)
        scaled.positions[ion] += (length - 1.0) * centre
    scaled.set_cell(length * atoms.cell.array)
    return scaled


def wrap_ions(atoms: Atoms) -> None:
    """Move whole ions, in place, so that the first atom of each lies inside the periodic cell."""
    if not atoms.pbc.any():
        return
    for ion in ion_slices(atoms):
        first = atoms.positions[ion.start]
        fractional = atoms.cell.scaled_positions(first[None])[0]
        atoms.positions[ion] -= np.floor(fractional) @ atoms.cell.array


def broken_bonds(atoms: Atoms, stretch: float = 1.5) -> NDArray[np.int64]:
    """Covalent bonds (B, 2) longer than `stretch` or shorter than 0.6 times their built length.

    A broken N-H bond can be a proton that moves to a nitrate (a reaction that GFN1-xTB shows). Any
    other broken bond means unphysical forces. Positions that are not finite count as broken.
    """
    pairs = bonds(atoms)
    template = np.vstack(
        [
            (ethylammonium() if ion.stop - ion.start == len(CATION) else nitrate()).positions
            for ion in ion_slices(atoms)
        ]
    )
    usual = np.linalg.norm(template[pairs[:, 0]] - template[pairs[:, 1]], axis=1)
    length = np.linalg.norm(atoms.positions[pairs[:, 0]] - atoms.positions[pairs[:, 1]], axis=1)
    whole = (length < stretch * usual) & (length > 0.6 * usual)
    return pairs[~whole]


def fused_hydrogens(atoms: Atoms) -> NDArray[np.int64]:
    """Hydrogen atoms at impossible places: within 1.35 Å of a carbon and another heavy atom at the
    same time, or bonded to the nitrogen of a nitrate.

    `broken_bonds` does not find them, because no covalent bond has to be stretched. A model trained
    on few frames can reach such structures, several eV above the liquid.
    """
    reach = {("H", "C"): 1.35, ("H", "N"): 1.35, ("H", "O"): 1.35, ("N", "O"): 1.6}
    i, j = neighbor_list("ij", atoms, reach)
    z, count = atoms.numbers, len(atoms)
    heavy = np.bincount(i[(z[i] == 1) & (z[j] > 1)], minlength=count)
    carbons = np.bincount(i[(z[i] == 1) & (z[j] == 6)], minlength=count)
    oxygens = np.bincount(i[(z[i] == 7) & (z[j] == 8)], minlength=count)
    fused = (carbons > 0) & (heavy > 1)
    fused[i[(z[i] == 1) & (z[j] == 7) & (oxygens[j] >= 2)]] = True
    return np.flatnonzero(fused)
