"""Accuracy of the published potentials on the published DFT data, as a Markdown table.

    python tests/benchmarks/published_accuracy.py [../shared/original]

Energies are compared after the mean difference over the set has been removed, one offset per model:
the potentials and the data count energies from different zeros. Errors of forces are over
components. Evaluated in float32, as the potentials are used. The SrTiO3 cells are bulk, while the
data that nnff1 itself comes with are slabs: that row is a transfer, not a validation.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from neuralil_ase.engine.arrays import System
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.files.published_files import import_published
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Prediction

MODELS = [
    ("EAN single", "model_params_neuralil_OPTAX_2B25114.pickle", "ean_dft_50.extxyz"),
    ("EAN committee, mean", "EAN_params_committee_1FEB3E08.pkl", "ean_dft_50.extxyz"),
    ("EAN deep ensemble, mean", "EAN_params_deep_ensemble_8ABE86C9.pkl", "ean_dft_50.extxyz"),
    ("SrTiO3 nnff1, on bulk", "model_nnff1.pickle", "sto_dft_100.extxyz"),
]
HEADER = """\
| model | data | energy MAE / RMSE meV/atom | force MAE / RMSE meV/Å | offset eV/atom |
|---|---|---|---|---|"""


def predictions(potential: Potential, frames: list[Atoms]) -> Iterator[Prediction]:
    """Of every frame, at level "off"."""
    predictor = Predictor(potential, "float32")
    neighbours = NeighborList(potential.r_cut, 0.0)
    for atoms in frames:
        types = np.array([potential.elements.index(symbol) for symbol in atoms.symbols])
        pairs = neighbours.pairs(atoms.positions, atoms.cell.array, atoms.pbc, types)
        yield predictor.predict([System(types, pairs, atoms.get_volume())], "off")[0]


def row(name: str, potential: Potential, frames: list[Atoms]) -> str:
    """One line of the table."""
    found = list(predictions(potential, frames))
    sizes = np.array([len(atoms) for atoms in frames])
    energy = np.array([p.energy for p in found]) - [
        atoms.get_potential_energy() for atoms in frames
    ]
    energy /= sizes
    forces = np.concatenate(
        [p.forces - atoms.get_forces() for p, atoms in zip(found, frames, strict=True)]
    )
    offset = energy.mean()
    errors = [1e3 * value for pair in (energy - offset, forces) for value in mae_rmse(pair)]
    return (
        f"| {name} | {len(frames)} cells of {sizes.max()} atoms "
        f"| {errors[0]:.2f} / {errors[1]:.2f} | {errors[2]:.1f} / {errors[3]:.1f} | {offset:.4f} |"
    )


def mae_rmse(errors: np.ndarray) -> tuple[float, float]:
    """Mean absolute and root mean square error."""
    return float(np.abs(errors).mean()), float(np.sqrt((errors**2).mean()))


def main() -> None:
    """Print the table."""
    default = Path(__file__).resolve().parents[3] / "shared" / "original"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    folder = parser.parse_args().folder
    print(HEADER)
    for name, parameters, data in MODELS:
        frames = ase.io.read(folder / data, index=":")
        print(row(name, import_published(folder / parameters), frames), flush=True)


if __name__ == "__main__":
    main()
