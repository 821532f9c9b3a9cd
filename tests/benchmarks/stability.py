"""Does a long run stay whole? NVT, NPT or NVE of EAN on a model, with molecules, spread and energy watched.

    python tests/benchmarks/stability.py --temperature 300 --ps 100

Ends with one line of JSON: broken covalent bonds (proton transfers are counted apart: they are chemistry), checks
above the monitor's thresholds, temperature, density, and for NVE the drift and fluctuation of the total energy.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from ase.md.bussi import Bussi
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import neighbor_list

from neuralil_ase import ExtrapolationMonitor, NeuralILCalculator

START = Path(__file__).parents[2] / "md_examples" / "ean_start.extxyz"
REACH = 1.45  # a covalent bond longer than this times its typical length is broken
TYPICAL = {("C", "C"): 1.5, ("C", "N"): 1.47, ("C", "H"): 1.09, ("N", "O"): 1.25, ("H", "N"): 1.04}


def bonds(atoms: Atoms, stretch: float) -> set[tuple[int, int]]:
    """Pairs of atoms closer than ``stretch`` times the typical length of their bond."""
    cutoffs = {pair: stretch * length for pair, length in TYPICAL.items()}
    i, j = neighbor_list("ij", atoms, cutoffs)
    return {(int(a), int(b)) for a, b in zip(i, j, strict=True) if a < b}


def dynamics(atoms: Atoms, options: argparse.Namespace) -> MolecularDynamics:
    step, rng = 0.5 * units.fs, np.random.default_rng(options.seed)
    if options.ensemble == "nve":
        return VelocityVerlet(atoms, step)
    if options.ensemble == "nvt":
        return Bussi(atoms, step, options.temperature, taut=100 * units.fs, rng=rng)
    return IsotropicMTKNPT(
        atoms, step, temperature_K=options.temperature, pressure_au=units.bar,
        tdamp=100 * units.fs, pdamp=1000 * units.fs,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--structure", default=START)
    parser.add_argument("--temperature", type=float, default=300.0)
    parser.add_argument("--ps", type=float, default=100.0)
    parser.add_argument("--ensemble", choices=["nve", "nvt", "npt"], default="nvt")
    parser.add_argument("--interval", type=int, default=100, help="steps between two checks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--last", help="write the last frame here")
    options = parser.parse_args()

    atoms = read(options.structure)
    atoms.calc = NeuralILCalculator(options.model, uncertainty="off")
    thermalize_momenta(
        atoms, temperature_K=options.temperature, rng=np.random.default_rng(options.seed)
    )
    Stationary(atoms)
    dyn = dynamics(atoms, options)
    first = bonds(atoms, 1.25)
    broken: set[tuple[int, int]] = set()
    rows: list[tuple[float, float, float]] = []

    def look() -> None:
        broken.update(first - bonds(atoms, REACH))
        mass = atoms.get_masses().sum() / units.mol * 1e24
        rows.append((atoms.get_total_energy(), atoms.get_temperature(), mass / atoms.get_volume()))

    monitor = ExtrapolationMonitor(dyn, warn=False)
    dyn.attach(look, interval=options.interval)
    dyn.attach(monitor, interval=options.interval)
    start = time.process_time()
    dyn.run(round(options.ps * 2000))
    total, temperature, density = np.array(rows).T
    proton = {pair for pair in broken if set(atoms.symbols[list(pair)]) == {"H", "N"}}
    half = len(rows) // 2
    record = {
        "ensemble": options.ensemble,
        "temperature_K": [options.temperature, float(temperature[half:].mean())],
        "ps": dyn.nsteps / 2000,
        "broken_bonds": len(broken - proton),
        "n_h_beyond_reach": len(proton),
        "density_g_cm3": float(density[half:].mean()),
        "max_force_std_eV_A": float(np.nanmax(monitor.records["max_force_std"])),
        "checks": len(monitor.records["band"]),
        "candidates": int((monitor.records["band"] == 1).sum()),
        "high": int((monitor.records["band"] == 2).sum()),
        "cpu_ms_per_step": 1e3 * (time.process_time() - start) / max(dyn.nsteps, 1),
        "compilations": atoms.calc.compilations,
    }
    if options.ensemble == "nve":
        slope = np.polyfit(np.arange(len(total)) * options.interval / 2000, total, 1)[0]
        record["drift_meV_per_atom_per_ps"] = 1e3 * float(slope) / len(atoms)
        record["fluctuation_meV_per_atom"] = 1e3 * float(total.std()) / len(atoms)
    if options.last:
        write(options.last, atoms)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
