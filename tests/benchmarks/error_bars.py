"""Are error bars of derived quantities right? Error over error bar for geometries, frequencies, elastic constants, …

    python tests/benchmarks/error_bars.py copper --output error_bars
    python tests/benchmarks/error_bars.py ean --output error_bars

``copper``: an ensemble that learnt strained and rattled crystals from EMT, as md_examples/train.py does; each quantity
is computed with ASE alone for the teacher, and with ``response`` for the ensemble. ``ean``: the shipped model against
its own teacher, GFN1-xTB (needs tblite), for one ion pair in vacuum.

Every member relaxes by itself (``propagate``). For each quantity: value, error bar, teacher, and error over error bar.
At the end: the root mean square of the latter (1 is right), and the share within one and two error bars (68 and 95 %).
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS
from ase.phonons import Phonons as FiniteDisplacements
from ase.vibrations import Vibrations

from neuralil_ase import NeuralILCalculator, train
from neuralil_ase.response import Estimate, Phonons, elastic_constants, propagate

EXAMPLES = Path(__file__).parents[2] / "md_examples"
Workflow = Callable[[Atoms], Any]


class Quantity(NamedTuple):
    """Values of one kind: their names, the estimate by the ensemble, the numbers of the teacher."""

    names: list[str]
    found: Estimate
    teacher: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=["copper", "ean"])
    parser.add_argument("--output", type=Path, default=Path("error_bars"), help="folder")
    parser.add_argument("--epochs", type=int, default=60, help="of the model of copper")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.system == "copper":
        quantities = list(copper(options.output / "copper.safetensors", options.epochs))
    else:
        quantities = list(ion_pair())
    text = table(quantities)
    (options.output / f"{options.system}.md").write_text(text, encoding="utf-8")
    print(text)


def table(quantities: list[Quantity]) -> str:
    lines = [
        "| quantity | teacher | ensemble | spread | error bar | error / error bar |",
        "|---|---|---|---|---|---|",
    ]
    ratios = []
    for names, found, teacher in quantities:
        columns = (np.ravel(x) for x in (teacher, found.value, found.std, found.error_bar))
        for name, true, value, std, bar in zip(names, *columns, strict=True):
            ratios.append((value - true) / bar)
            numbers = f"{true:.4g} | {value:.4g} | {std:.2g} | {bar:.2g} | {ratios[-1]:.2f}"
            lines.append(f"| {name} ({found.unit}) | {numbers} |")
    r = np.abs(ratios)
    lines += [
        "",
        f"{len(r)} values: rms of error over error bar {np.sqrt(np.mean(r**2)):.2f}, median of its "
        f"magnitude {np.median(r):.2f} (0.67 is right), within one error bar {np.mean(r < 1):.0%}, "
        f"within two {np.mean(r < 2):.0%}.",
    ]
    return "\n".join(lines) + "\n"


# ---- copper, with EMT as teacher ----


def copper(model: Path, epochs: int) -> Iterator[Quantity]:
    if not model.exists():
        train(copper_frames(), model, members=4, epochs=epochs)
    calc = NeuralILCalculator(model, dtype="float64")

    def both(names: list[str], workflow: Workflow, atoms: Atoms, unit: str) -> Quantity:
        taught = atoms.copy()
        taught.calc = EMT()
        found = propagate(workflow, atoms, calc, unit=unit)
        return Quantity(names, found, np.ravel(workflow(taught)))

    crystal = bulk("Cu")
    yield both(["lattice constant"], lattice_constant, crystal, "Å")
    yield both(["bulk modulus", "C11", "C12", "C44"], elasticity, crystal, "GPa")
    points = {
        "X": (0.5, 0, 0.5),
        "L": (0.5, 0.5, 0.5),
        "W": (0.5, 0.25, 0.75),
        "K": (3 / 8, 3 / 8, 3 / 4),
    }
    names = [f"ν at {point}, band {k}" for point in points for k in (1, 2, 3)]
    bands = with_points(np.array(list(points.values())))
    yield both(names, bands, crystal, "THz")
    yield both(["vacancy"], vacancy_energy, crystal, "eV")
    yield both(["(111) surface"], surface_energy, crystal, "J/m²")
    yield both(["first layers of (111)", "second layers"], layer_distances, crystal, "Å")
    yield both(["bcc - fcc", "hcp - fcc"], polymorphs, crystal, "meV/atom")


def copper_frames() -> list[Atoms]:
    """As in md_examples/train.py: strained crystals with displaced atoms; no vacancy, surface or other lattice."""
    frames = []
    for number in range(60):
        rng = np.random.default_rng(number)
        atoms = bulk("Cu", cubic=True) * (2, 2, 2)
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.015, (3, 3))), scale_atoms=True)
        atoms.rattle(rng.uniform(0.02, 0.2), rng=rng)  # Å
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.get_stress()
        frames.append(atoms)
    return frames


def relaxed_crystal(atoms: Atoms) -> Atoms:
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=200)
    return atoms


def lattice_constant(atoms: Atoms) -> float:
    return float((4 * relaxed_crystal(atoms).cell.volume) ** (1 / 3))


def elasticity(atoms: Atoms) -> np.ndarray:
    """Bulk modulus, C11, C12 and C44 in GPa: slopes of the stress of the teacher, exact for ours."""
    relaxed_crystal(atoms)
    if isinstance(atoms.calc, NeuralILCalculator):
        c = elastic_constants(atoms, atoms.calc).relaxed.value
    else:
        c = stress_slopes(atoms)
    c11, c12, c44 = c[0, 0], c[0, 1], c[3, 3]
    return np.array([(c11 + 2 * c12) / 3, c11, c12, c44]) / units.GPa


def stress_slopes(atoms: Atoms, h: float = 1e-3) -> np.ndarray:
    """dσ_I/dε_J of a crystal of one atom, whose ions need no relaxation."""
    columns = []
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        ends = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += sign * h / 2
            strain[b, a] += sign * h / 2
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            moved.calc = atoms.calc
            ends.append(moved.get_stress())
        columns.append((ends[0] - ends[1]) / (2 * h))
    return np.array(columns).T


def with_points(q_points: np.ndarray) -> Workflow:
    def frequencies(atoms: Atoms) -> np.ndarray:
        """THz at the relaxed lattice constant, by displacements in a supercell for the teacher, exact for ours."""
        relaxed_crystal(atoms)
        to_thz = units._e / units._hplanck * 1e-12
        if isinstance(atoms.calc, NeuralILCalculator):
            return Phonons(atoms, atoms.calc).energies(q_points).value * to_thz
        with tempfile.TemporaryDirectory() as folder:
            steps = FiniteDisplacements(atoms, atoms.calc, supercell=(5, 5, 5), name=f"{folder}/p")
            steps.run()
            steps.read(acoustic=True)
        return steps.band_structure(q_points, verbose=False) * to_thz

    return frequencies


def vacancy_energy(atoms: Atoms) -> float:
    crystal = relaxed_crystal(atoms).repeat(3)
    crystal.calc = atoms.calc
    whole = crystal.get_potential_energy()
    del crystal[0]
    BFGS(crystal, logfile=None).run(fmax=1e-3, steps=200)
    return crystal.get_potential_energy() - whole * (len(crystal) / (len(crystal) + 1))


def slab(atoms: Atoms) -> tuple[Atoms, float]:
    """Seven relaxed layers, and the energy of an atom of the crystal."""
    energy = relaxed_crystal(atoms).get_potential_energy()
    layers = fcc111(
        "Cu", (1, 1, 7), a=(4 * atoms.cell.volume) ** (1 / 3), vacuum=8.0, periodic=True
    )
    layers.calc = atoms.calc
    BFGS(layers, logfile=None).run(fmax=1e-3, steps=200)
    return layers, energy


def surface_energy(atoms: Atoms) -> float:
    layers, energy = slab(atoms)
    area = np.linalg.norm(np.cross(*layers.cell.array[:2]))
    excess = layers.get_potential_energy() - len(layers) * energy
    return float(excess / (2 * area) / (units.J / units.m**2))


def layer_distances(atoms: Atoms) -> np.ndarray:
    heights = np.sort(slab(atoms)[0].positions[:, 2])[::-1]
    return (heights[:-1] - heights[1:])[:2]


def polymorphs(atoms: Atoms) -> np.ndarray:
    energy = relaxed_crystal(atoms).get_potential_energy()
    others = []
    for structure in ("bcc", "hcp"):
        other = bulk("Cu", structure, a=2.87 if structure == "bcc" else 2.55)
        other.calc = atoms.calc
        # A body-centred crystal is a saddle: only its volume relaxes.
        BFGS(FrechetCellFilter(other, hydrostatic_strain=True), logfile=None).run(1e-3, 100)
        others.append(other.get_potential_energy() / len(other) - energy)
    return 1000 * np.array(others)


# ---- one ion pair, with GFN1-xTB as teacher ----


def ion_pair() -> Iterator[Quantity]:
    from tblite.ase import TBLite

    pair: Any = read(EXAMPLES / "ean_pair.extxyz")
    calc = NeuralILCalculator(dtype="float64")
    taught = pair.copy()
    taught.calc = TBLite(method="GFN1-xTB", verbosity=0, accuracy=0.01)
    relaxed(taught)
    distances = taught.get_all_distances()
    bonded = np.argwhere(np.triu((distances > 0) & (distances < 1.75)))
    names = [f"{pair.symbols[i]}{i}-{pair.symbols[j]}{j}" for i, j in bonded]

    def lengths(atoms: Atoms) -> np.ndarray:
        relaxed(atoms)
        return np.array([atoms.get_distance(i, j) for i, j in bonded])

    found = propagate(lengths, pair, calc, unit="Å")
    yield Quantity(names, found, distances[tuple(bonded.T)])

    def waves(atoms: Atoms) -> np.ndarray:
        """All 39 internal frequencies at the minimum of whoever computes them."""
        relaxed(atoms)
        hessian = atoms.calc.hessian(atoms).reshape(3 * len(atoms), -1)
        return wavenumbers(hessian, atoms)

    found = propagate(waves, pair, calc, unit="1/cm")
    with tempfile.TemporaryDirectory() as folder:
        steps = Vibrations(taught, delta=0.005, name=f"{folder}/vib")
        steps.run()
        hessian = steps.get_vibrations().get_hessian_2d()
    yield Quantity([f"mode {k}" for k in range(1, 40)], found, wavenumbers(hessian, taught))


def relaxed(atoms: Atoms) -> None:
    BFGS(atoms, logfile=None, maxstep=0.05).run(fmax=0.001, steps=1000)


def wavenumbers(hessian: np.ndarray, atoms: Atoms) -> np.ndarray:
    """Without the six rigid modes, rising; negative numbers stand for imaginary ones."""
    root = np.sqrt(np.repeat(atoms.get_masses(), 3))
    squares = np.linalg.eigvalsh((hessian + hessian.T) / 2 / np.outer(root, root))
    kept = np.sort(squares[np.argsort(np.abs(squares))[6:]])
    factor = units._hbar * 1e10 / np.sqrt(units._e * units._amu) / units.invcm
    return np.sign(kept) * np.sqrt(np.abs(kept)) * factor


if __name__ == "__main__":
    main()
