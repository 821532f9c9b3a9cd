"""Evaluate: do the error bars predict the errors on frames that were never learnt?

    python md_examples/evaluate.py [FRAMES]

``neuralil-ase evaluate MODEL DATA`` does this and more. This script shows the single steps. Writes evaluate.png.
"""

import lzma
import sys
from io import StringIO
from pathlib import Path

import numpy as np
from ase.io import read
from matplotlib.figure import Figure

from neuralil_ase import NeuralILCalculator, predict_many

FRAMES = int(sys.argv[1]) if sys.argv[1:] else 72

# Unpacked first, because ASE reads single frames of compressed files slowly.
with lzma.open(Path(__file__).parent / "ean_gfn1" / "ean_gfn1.extxyz.xz", "rt") as file:
    data = read(StringIO(file.read()), ":", format="extxyz")
test = [atoms for atoms in data if atoms.info["split"] == "test"][:FRAMES]
potential = NeuralILCalculator().potential  # or load_potential("my_model.safetensors")
predictions = list(predict_many(potential, test, uncertainty="forces"))

forces = [p.forces - atoms.get_forces() for p, atoms in zip(predictions, test, strict=True)]
error = np.linalg.norm(np.concatenate(forces), axis=1)  # (all atoms,), eV/Å
bar = np.concatenate([p.forces_error_bar for p in predictions])
print(f"{len(test)} frames, force MAE {1000 * np.abs(np.concatenate(forces)).mean():.1f} meV/Å")
print(f"rms error / rms error bar: {np.sqrt((error**2).mean() / (bar**2).mean()):.2f} (1 is right)")

figure = Figure(figsize=(5, 4), layout="constrained")
axes = figure.subplots()
axes.loglog(bar, error, ".", ms=1, color="0.7")
tenths = np.array_split(np.argsort(bar), 10)
rms = [[np.sqrt((values[part] ** 2).mean()) for part in tenths] for values in (bar, error)]
axes.loglog(*rms, "o-", label="tenths of the atoms, rms")
axes.loglog(rms[0], rms[0], "k", lw=0.8, label="error = error bar")
axes.set(xlabel="force error bar (eV/Å)", ylabel="norm of the force error (eV/Å)")
axes.legend()
figure.savefig("evaluate.png", dpi=100)
