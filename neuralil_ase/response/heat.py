"""Heat flux of a many-body potential, for thermal conductivities by the Green-Kubo method.

With the energy of atom i, E_i = m_i v_i²/2 + U_i, the heat flux is J = d/dt Σ_i r_i E_i:

    J = Σ_i E_i v_i - Σ_k W_k v_k,        W_k = Σ_i r_ik ⊗ dU_i/dr_ik,  r_ik = r_k - r_i

W_k has nine components and is not symmetric. It belongs to the atom k whose motion does work on the energies of the
others. The usual symmetric virial with six components gives a wrong flux for many-body potentials (Fan et al., Phys.
Rev. B 92, 094301 (2015); Boone, Babaei and Wilmer, J. Chem. Theory Comput. 15, 5579 (2019)).
"""

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from scipy.signal import fftconvolve

from neuralil_ase.array_record import ArrayRecord
from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.errors import DataError, StructureError

W_PER_M_K = units._e * 1e25
"""W/(m K) of 1 eV/(Å fs K)."""


_UNITS = dict.fromkeys(("total", "convective", "virial"), "eV Å/fs") | {
    "energies": "eV",
    "virials": "eV",
}


@dataclass(frozen=True, eq=False, repr=False)
class HeatFlux(ArrayRecord, units=_UNITS):
    """Heat flux of N atoms and its parts.

    Attributes
    ----------
    total
        J in eV Å/fs, shape (3,). Divided by the volume it is a flux density.
    convective, virial
        Σ E_i v_i and -Σ W_k v_k, same unit.
    energies
        E_i, kinetic and potential, in eV, shape (N,). The energy reference of the model is not included: a constant per
        element would add a flux of mass, which conducts no heat.
    virials
        W_k in eV, shape (N, 3, 3). Their sum over atoms is dE/dε, the stress times the volume.
    """

    total: np.ndarray
    convective: np.ndarray
    virial: np.ndarray
    energies: np.ndarray
    virials: np.ndarray


def heat_flux(atoms: Atoms, calculator: NeuralILCalculator | None = None) -> HeatFlux:
    """Heat flux at the positions and velocities of a structure, from the mean potential.

    Parameters
    ----------
    atoms
        A structure with momenta.
    calculator
        The ensemble; by default the calculator of the atoms.

    Raises
    ------
    StructureError
        If the atoms have no momenta, or there is no NeuralIL calculator.
    """
    calc = atoms.calc if calculator is None else calculator
    if not isinstance(calc, NeuralILCalculator):
        raise StructureError(
            "a heat flux needs atomic energies and pair gradients of a NeuralIL model; pass the calculator"
        )
    if not atoms.has("momenta"):
        raise StructureError(
            "the atoms have no momenta, so that no heat flows; set momenta, for instance with "
            "ase.md.velocitydistribution.MaxwellBoltzmannDistribution"
        )
    potential, virials = calc.neighbor_virials(atoms)
    velocities = atoms.get_velocities() * units.fs  # Å/fs
    kinetic = (atoms.get_momenta() ** 2).sum(axis=1) / (2 * atoms.get_masses())
    energies = kinetic + potential
    convective = energies @ velocities
    virial = -np.einsum("kab,kb->a", virials, velocities)
    return HeatFlux(convective + virial, convective, virial, energies, virials)


def green_kubo(
    fluxes: np.ndarray, step: float, volume: float, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Thermal conductivity as the integral of the flux autocorrelation, as a function of its upper limit.

    κ(t) = 1/(3 V k T²) ∫₀ᵗ ⟨J(0) · J(s)⟩ ds

    Parameters
    ----------
    fluxes
        J along an equilibrium run (NVE), in eV Å/fs, shape (T, 3).
    step
        Time between fluxes in fs.
    volume
        Volume in Å³.
    temperature
        Temperature in K.

    Returns
    -------
    times : ndarray, shape (T // 2,)
        In fs.
    conductivity : ndarray, shape (T // 2,)
        κ(t) in W/(m K). Read it where it is constant, before noise dominates.

    Raises
    ------
    DataError
        If there are fewer than four fluxes.
    """
    fluxes = np.asarray(fluxes, float)
    if fluxes.ndim != 2 or fluxes.shape[1] != 3 or len(fluxes) < 4:
        raise DataError(f"fluxes have the shape {fluxes.shape}; give (T, 3) with four or more")
    n = len(fluxes)
    products = sum(fftconvolve(j, j[::-1])[n - 1 :] for j in (fluxes - fluxes.mean(axis=0)).T)
    correlation = (products / np.arange(n, 0, -1))[: n // 2]
    steps = (correlation[1:] + correlation[:-1]) / 2 * step
    integral = np.concatenate([[0.0], np.cumsum(steps)])
    factor = W_PER_M_K / (3 * volume * units.kB * temperature**2)
    return step * np.arange(n // 2), factor * integral
