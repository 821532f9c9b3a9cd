"""MD of a molecular liquid without a model at the start; GFN1-xTB is the teacher.

    python md_examples/learning/learn_ean.py 4000

Ethylammonium nitrate, eight ion pairs in a box, at 300 K. It needs pip install "neuralil-ase[train,data]".
Draws learn_ean.png.
"""

import lzma
import sys
from io import StringIO
from pathlib import Path

import numpy as np
from ase import units
from ase.constraints import FixCom
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from tblite.ase import TBLite

from neuralil_ase import LearningCalculator

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
DATA = Path(__file__).parents[1] / "ean_gfn1" / "ean_gfn1.extxyz.xz"

with lzma.open(DATA, "rt", encoding="utf-8") as file:
    frames = read(StringIO(file.read()), ":", format="extxyz")
atoms = next(frame for frame in frames if len(frame) == 120 and frame.info["T"] == 300).copy()

teacher = TBLite(method="GFN1-xTB", accuracy=0.01, verbosity=0)
atoms.calc = LearningCalculator(teacher, folder="learned_ean", max_queries=300, progress=True)
atoms.set_constraint(FixCom())
rng = np.random.default_rng(0)
thermalize_momenta(atoms, temperature_K=300, rng=rng)
dynamics = Langevin(
    atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False, rng=rng
)
dynamics.run(STEPS)

print(atoms.calc.summary())
atoms.calc.plot("learn_ean.png")
