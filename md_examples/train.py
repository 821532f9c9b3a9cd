"""Train: a potential for copper from frames that any ASE calculator has labelled, here EMT.

    python md_examples/train.py [EPOCHS]

For your own data, use ``train("my_data.extxyz", "my_model.safetensors")``, or the command
``neuralil-ase train my_data.extxyz -o my_model.safetensors``. The script writes copper.safetensors and the folder
copper.safetensors.report with pictures.
"""

import sys

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from neuralil_ase import NeuralILCalculator, train

EPOCHS = int(sys.argv[1]) if sys.argv[1:] else 60
FRAMES = 60


def labelled(number: int) -> Atoms:
    """A strained crystal with displaced atoms, and its energy and forces by EMT."""
    rng = np.random.default_rng(number)
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.015, (3, 3))), scale_atoms=True)
    atoms.rattle(rng.uniform(0.02, 0.2), rng=rng)  # Å
    atoms.calc = EMT()
    atoms.get_forces()
    atoms.get_stress()
    return atoms


if __name__ == "__main__":
    frames = [labelled(number) for number in range(FRAMES)]
    train(frames, "copper.safetensors", members=4, epochs=EPOCHS, progress=True)

    crystal = bulk("Cu", cubic=True) * (2, 2, 2)
    crystal.calc = NeuralILCalculator("copper.safetensors")
    vacancy = crystal[1:]  # no such frame was among the data
    vacancy.calc = crystal.calc
    for name, atoms in (("perfect crystal", crystal), ("vacancy", vacancy)):
        error = atoms.get_potential_energy()
        spread = atoms.calc.prediction(atoms, uncertainty="forces").forces_std.max()
        atoms.calc = EMT()
        error -= atoms.get_potential_energy()
        print(
            f"{name}: error {1000 * error / len(atoms):7.2f} meV/atom, force spread {spread:.3f} eV/Å"
        )
        atoms.calc = crystal.calc
