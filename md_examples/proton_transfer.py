"""Proton transfer: from ethylammonium to nitrate in one ion pair, the barrier with its error bar.

    python md_examples/proton_transfer.py [STEPS]

Nitrogen and oxygen are held 3.1 Å apart. At shorter distances they share the proton, and there is no barrier. The whole
workflow, which relaxes the end points and the path, runs with the mean potential and again with every member
(``propagate``). Writes proton_transfer.png.
"""

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io import read
from ase.mep import NEB
from ase.optimize import FIRE
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator
from neuralil_ase.response import propagate

STEPS = int(sys.argv[1]) if sys.argv[1:] else 300
NITROGEN, PROTON, IMAGES, APART = 0, 1, 7, 3.1


def ends() -> list[Atoms]:
    """The proton on nitrogen, and on the oxygen nearest to it."""
    pair = read(Path(__file__).parent / "ean_pair.extxyz")
    oxygens = [atom.index for atom in pair if atom.symbol == "O"]
    oxygen = min(oxygens, key=lambda index: pair.get_distance(PROTON, index))
    nitrate = [index for index in range(len(pair)) if pair.symbols[index] == "O"]
    nitrate.append(min(a.index for a in pair if a.symbol == "N" and a.index != NITROGEN))
    pair.set_distance(NITROGEN, oxygen, APART, fix=0, indices=nitrate)
    pair.set_constraint(FixAtoms([NITROGEN, oxygen]))
    moved = pair.copy()
    pair.set_distance(NITROGEN, PROTON, 1.05, fix=0)
    moved.set_distance(oxygen, PROTON, 1.0, fix=0)
    return [pair, moved]


def path(both: list[Atoms]) -> np.ndarray:
    """Energies of the relaxed images in eV, counted from the first."""
    for end in both:
        FIRE(end, logfile=None).run(fmax=0.02, steps=STEPS)
    images = [both[0], *(both[0].copy() for _ in range(IMAGES - 2)), both[1]]
    for image in images[1:-1]:
        image.calc = both[0].calc
    neb = NEB(images, climb=True, method="improvedtangent", allow_shared_calculator=True)
    neb.interpolate()
    FIRE(neb, logfile=None).run(fmax=0.05, steps=STEPS)
    energies = np.array([image.get_potential_energy() for image in images])
    return energies - energies[0]


found = propagate(path, ends(), NeuralILCalculator(dtype="float64", uncertainty="off"), unit="eV")
barrier = found.map(lambda energies: energies.max(), "eV")
print(f"barrier {barrier}, proton on oxygen {found.map(lambda energies: energies[-1], 'eV')}")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots()
axes.plot(found.members.T, color="0.8", lw=0.8)
axes.errorbar(range(IMAGES), found.value, found.error_bar, fmt="o-", capsize=3, label="error bar")
axes.set(xlabel="image: proton from nitrogen to oxygen", ylabel="energy (eV)")
axes.legend()
figure.savefig("proton_transfer.png", dpi=100)
