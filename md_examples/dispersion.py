"""Dispersion: learn labels without D3, and add D3 when the potential is used.

    python md_examples/dispersion.py [EPOCHS]

A potential with a cutoff cannot learn dispersion beyond the cutoff. Therefore the D3 part is subtracted from the labels
before training, and a second calculator adds it again. The labels here are GFN1-xTB, which contains D3(BJ) with the
parameters below. For DFT labels, give the name of the functional: ``DFTD3(method="pbe")``.
Needs ``pip install "neuralil-ase[dispersion]"``. Writes dispersion.safetensors and dispersion.png.
"""

import lzma
import sys
from io import StringIO
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.mixing import SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from dftd3.ase import DFTD3
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator, train

EPOCHS = int(sys.argv[1]) if sys.argv[1:] else 40
GFN1 = {"s6": 1.0, "s8": 2.4, "a1": 0.63, "a2": 5.0, "s9": 0.0}  # Grimme et al. 2017, Table 3
FRAMES = Path(__file__).parent / "ean_gfn1" / "ean_gfn1.extxyz.xz"


def d3() -> Calculator:
    return DFTD3(damping="d3bj", params_tweaks=GFN1)


def without_d3(frame: Atoms) -> Atoms:
    """The frame without the D3 part in its labels."""
    atoms = frame.copy()
    atoms.calc = d3()
    labels = {
        "energy": frame.get_potential_energy() - atoms.get_potential_energy(),
        "forces": frame.get_forces() - atoms.get_forces(),
    }
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


if __name__ == "__main__":
    # Unpacked first, because ASE reads single frames of compressed files slowly.
    with lzma.open(FRAMES, "rt") as file:
        frames = read(StringIO(file.read()), ":", format="extxyz")
    clusters = [atoms for atoms in frames if len(atoms) == 15]  # one ion pair
    learnt = [without_d3(atoms) for atoms in clusters if atoms.info["split"] != "test"]
    train(learnt, "dispersion.safetensors", members=2, epochs=EPOCHS, progress=True)

    both = SumCalculator([NeuralILCalculator("dispersion.safetensors"), d3()])
    errors = []
    for atoms in clusters:
        if atoms.info["split"] == "test":
            forces = atoms.get_forces()
            atoms.calc = both
            errors.append(atoms.get_forces() - forces)
    print(
        f"force MAE on test clusters, D3 added: {1000 * np.abs(np.concatenate(errors)).mean():.0f} meV/Å"
    )

    # Two ion pairs are pulled apart: beyond the cutoff D3 alone holds them together.
    pair = read(Path(__file__).parent / "ean_pair.extxyz")
    distances = np.linspace(8, 16, 33)  # Å, between the centres of mass
    energies: dict[str, list[float]] = {"without D3": [], "with D3": []}
    for distance in distances:
        moved = pair.copy()
        moved.positions += [0, 0, distance]
        for calc, values in zip((both.mixer.calcs[0], both), energies.values(), strict=True):
            atoms = pair + moved
            atoms.calc = calc
            values.append(1000 * atoms.get_potential_energy())
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for name, values in energies.items():
        axes.plot(distances, np.array(values) - values[-1], label=name)
    axes.set(xlabel="distance of two ion pairs (Å)", ylabel="energy (meV)")
    axes.legend()
    figure.savefig("dispersion.png", dpi=100)
