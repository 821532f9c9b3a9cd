"""Errors and spreads far from the data, with and without a linear part of the energy.

    python tests/benchmarks/linear_part.py FOLDER

Default settings but for four members, trained on 40 cells of an alloy (Cu3Au, 32 atoms, EMT, 400 K), are tried on other
structures: hotter, molten, compressed, expanded, clusters. Models are kept in FOLDER. The rows "shared" are of the same
model, but every member has the mean of the linear parts. Columns: root mean square error of force vectors in meV/Å;
this error over the spread, divided by the same ratio for structures like the training data; the part of the atoms whose
spread is more than twice the largest one there; rank correlation of errors and spreads.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cluster import Icosahedron
from ase.md.langevin import Langevin
from scipy.stats import spearmanr

from neuralil_ase import Potential, load_potential, train
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.evaluate import predict_frames
from neuralil_ase.samples.linear import Linear, linear_of, with_linear


def labelled(atoms: Atoms) -> Atoms:
    copy = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    copy.calc = EMT()
    energy, forces = copy.get_potential_energy(), copy.get_forces()
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces)
    return copy


def quarter_gold(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    atoms.symbols[rng.permutation(len(atoms))[: len(atoms) // 4]] = "Au"
    return atoms


def dynamics(rng: np.random.Generator, kelvin: float, count: int, begin: int = 200) -> list[Atoms]:
    """Frames of MD, 0.1 ps apart."""
    atoms = quarter_gold(bulk("Cu", cubic=True, a=3.72).repeat(2), rng)
    atoms.calc = EMT()
    run = Langevin(atoms, 4 * units.fs, temperature_K=kelvin, friction=0.02, fixcm=False, rng=rng)
    run.run(begin)
    found = []
    for _ in range(count):
        run.run(25)
        found.append(labelled(atoms))
    return found


def scaled(frames: list[Atoms], factor: float) -> list[Atoms]:
    found = []
    for atoms in frames:
        copy = atoms.copy()
        copy.set_cell(factor * copy.cell, scale_atoms=True)
        found.append(labelled(copy))
    return found


def cluster(rng: np.random.Generator) -> Atoms:
    atoms = quarter_gold(Icosahedron("Cu", 3), rng)
    atoms.rattle(0.1, rng=rng)
    return labelled(Atoms(atoms.symbols, atoms.positions))


def structures() -> tuple[list[Atoms], dict[str, list[Atoms]]]:
    """Training data, and what is tried."""
    rng = np.random.default_rng(0)
    data = [frame for _ in range(4) for frame in dynamics(rng, 400, 10)]
    same = dynamics(rng, 400, 6)
    return data, {
        "400 K, as the data": same,
        "1000 K": dynamics(rng, 1000, 6),
        "3000 K": dynamics(rng, 3000, 6, 600),
        "compressed by 8 %": scaled(same, 0.92),
        "expanded by 8 %": scaled(same, 1.08),
        "expanded by 20 %": scaled(same, 1.2),
        "clusters": [cluster(rng) for _ in range(6)],
    }


def norms(potential: Potential, structures: list[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Errors and spreads of all atoms in eV/Å."""
    frames = frames_from_atoms(structures)
    found = predict_frames(potential, frames)
    errors = [
        np.linalg.norm(p.forces - f.forces, axis=1) for p, f in zip(found, frames, strict=True)
    ]
    return np.concatenate(errors), np.concatenate([p.forces_std for p in found])


def shared(potential: Potential) -> Potential:
    """All members with the mean of the linear parts."""
    linear = linear_of(potential)
    assert linear is not None
    return with_linear(
        potential, Linear(*(np.broadcast_to(x.mean(axis=0), x.shape) for x in linear))
    )


def rows(name: str, potential: Potential, tried: dict[str, list[Atoms]]) -> list[str]:
    found, scale, usual = [], 1.0, np.inf
    for kind, frames in tried.items():
        errors, spreads = norms(potential, frames)
        ratio = float(np.sqrt((errors**2).mean() / (spreads**2).mean()))
        if not found:
            scale, usual = ratio, float(spreads.max())
        found.append(
            f"| {name} | {kind} | {1e3 * np.sqrt((errors**2).mean()):.1f} | {ratio / scale:.2f} | "
            f"{100 * (spreads > 2 * usual).mean():.0f} % | {spearmanr(errors, spreads)[0]:.2f} |"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    data, tried = structures()
    print("| linear part | structures | error | error / spread | flagged | rank |")
    print("|---|---|---|---|---|---|")
    for name, linear in (("by member", "all"), ("half", "half"), ("none", "none")):
        path = folder / f"{name.replace(' ', '_')}.safetensors"
        if not path.exists():
            train(data, path, members=4, linear=linear, report=False)
        potential = load_potential(path)
        variants = (
            {name: potential, "shared": shared(potential)} if linear == "all" else {name: potential}
        )
        for row in (r for n, p in variants.items() for r in rows(n, p, tried)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
