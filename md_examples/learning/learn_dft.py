"""Template: MD with a DFT code as teacher. Choose one of the three functions, fill in your settings, and run it.

    python md_examples/learning/learn_dft.py vasp start.extxyz 10000

The teacher must always give the same energy for the same structure: no symmetry (MD breaks it), a fixed basis and
k-point mesh, tight self-consistency (forces to 1 meV/Å), no wave functions reused between cells. Use another folder
whenever you change the settings: the labels in a folder must all have the same settings.
"""

import sys

import numpy as np
from ase import units
from ase.constraints import FixCom
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from neuralil_ase import LearningCalculator
from neuralil_ase.errors import QueryLimitError, TeacherError

TEMPERATURE, TIMESTEP = 300, 1.0  # K, fs


def vasp():
    """VASP, run by the command in ASE_VASP_COMMAND, with VASP_PP_PATH set."""
    from ase.calculators.vasp import Vasp

    return Vasp(
        xc="PBE", encut=500, ediff=1e-7, prec="Accurate", ismear=0, sigma=0.05, isym=0,
        nsw=0, lreal=False, lwave=False, lcharg=False, kpts=(1, 1, 1), directory="vasp",
    )  # fmt: skip


def gpaw():
    """GPAW with plane waves, so that stress is there."""
    from gpaw import GPAW, PW

    return GPAW(
        mode=PW(500), xc="PBE", kpts=(1, 1, 1), symmetry="off",
        convergence={"forces": 1e-3, "energy": 1e-7}, txt="gpaw.txt",
    )  # fmt: skip


def cp2k():
    """CP2K, run by the command in ASE_CP2K_COMMAND."""
    from ase.calculators.cp2k import CP2K

    return CP2K(
        xc="PBE", basis_set="DZVP-MOLOPT-SR-GTH", pseudo_potential="auto",
        cutoff=500 * units.Ry, stress_tensor=True, directory="cp2k",
        inp="&FORCE_EVAL\n &DFT\n  &SCF\n   EPS_SCF 1e-7\n  &END\n &END\n&END",
    )  # fmt: skip


def main() -> None:
    code, start, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    atoms = read(start)
    atoms.calc = calc = LearningCalculator(
        {"vasp": vasp, "gpaw": gpaw, "cp2k": cp2k}[code](),
        folder=f"learned_{code}",  # a second run of the same script continues from here
        tolerance=None,  # eV/Å for the error bar of any force; None: 0.4 times the usual force
        max_queries=300,
        retries=1,  # after a calculation that has failed
        progress=True,
    )
    atoms.set_constraint(FixCom())
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, temperature_K=TEMPERATURE, rng=rng)
    dynamics = Langevin(
        atoms, TIMESTEP * units.fs, temperature_K=TEMPERATURE, friction=0.01 / units.fs,
        fixcm=False, rng=rng, trajectory=f"{code}.traj",
    )  # fmt: skip
    try:
        dynamics.run(steps)
    except (TeacherError, QueryLimitError) as reason:
        print(f"ended: {reason}")
    print(calc.summary())
    if calc.history:
        calc.plot(f"learn_{code}.png")
    # A final model of any size, from all labels: the same as neuralil-ase train learned_CODE/labels/*.extxyz
    # calc.learner.retrain(f"{code}.safetensors", members=8)


if __name__ == "__main__":
    main()
