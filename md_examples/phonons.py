"""Phonons of copper from its primitive cell, with error bars, compared with the reference method.

    python md_examples/phonons.py [EPOCHS]

The model learns EMT as in train.py, unless copper.safetensors already exists. The force constants of one atom with all
its images are exact, and give the phonons at every wave vector. The reference is EMT with ASE's finite displacements in
a supercell. Writes phonons.png.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.phonons import Phonons as FiniteDisplacements
from ase.units import GPa
from matplotlib.figure import Figure
from train import FRAMES, labelled

from neuralil_ase import NeuralILCalculator, train
from neuralil_ase.response import Phonons, elastic_constants
from neuralil_ase.response.phonons import THZ

EPOCHS = int(sys.argv[1]) if sys.argv[1:] else 60
MODEL = Path("copper.safetensors")


def teacher_bands(lattice_constant: float, q_points: np.ndarray) -> np.ndarray:
    """In THz, by displacements of one atom in a supercell."""
    with tempfile.TemporaryDirectory() as folder:
        crystal = bulk("Cu", a=lattice_constant)
        by_steps = FiniteDisplacements(crystal, EMT(), supercell=(5, 5, 5), name=f"{folder}/cu")
        by_steps.run()
        by_steps.read(acoustic=True)
    return by_steps.band_structure(q_points, verbose=False) * THZ


if __name__ == "__main__":
    if not MODEL.exists():
        train([labelled(k) for k in range(FRAMES)], MODEL, members=4, epochs=EPOCHS)
    calc = NeuralILCalculator(MODEL, dtype="float64")
    crystal = bulk("Cu")
    crystal.calc = calc
    BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-3, steps=100)

    phonons = Phonons(crystal, calc)
    bands = phonons.bands("GXWKGL", npoints=120)
    lattice_constant = (4 * crystal.cell.volume) ** (1 / 3)
    path = bands.band_structure.path
    expected = teacher_bands(lattice_constant, path.kpts)
    errors = bands.energies.value * THZ - expected
    bars = (
        bands.energies.std if calc.potential.calibration is None else bands.energies.error_bar
    ) * THZ
    print(f"acoustic sum rule violated by {phonons.acoustic_residual:.0e} eV/Å²")
    print(
        f"rms error of the bands {np.sqrt(np.mean(errors**2)):.3f} THz, rms error bar {np.sqrt(np.mean(bars**2)):.3f}"
    )
    modulus = elastic_constants(crystal, calc).bulk_modulus
    print(f"bulk modulus {modulus.value / GPa:.1f} GPa, spread {modulus.std / GPa:.1f}")

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = bands.plot(figure.subplots())
    axes.plot(path.get_linear_kpoint_axis()[0], expected, color="black", lw=0.8, ls=":")
    axes.set_title("copper: ensemble with error bar, and its teacher (dotted)", fontsize=10)
    figure.savefig("phonons.png", dpi=100)
