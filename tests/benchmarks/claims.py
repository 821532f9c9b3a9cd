"""What the paper claims for its architecture, shown on the published cells of EAN: a picture, and a table of Markdown.

    run() { python tests/benchmarks/variants.py DATA -o claims.jsonl "$@" members=4; }
    for a in swish gelu tanh softplus elu relu; do run --save models/$a.safetensors \\
        --set activation="\\"$a\\"" r_cut=3.5 radial_scaling=0; done
    for r in 2.5:3 3.0:3 4.0:5 4.5:5 5.0:6; do run --set r_cut=${r%:*} n_max=${r#*:} radial_scaling=0; done
    for r in 4.0:3 4.5:3 5.0:5; do run --set r_cut=${r%:*} n_max=4 radial_scaling=${r#*:}; done
    for n in 4 8; do run --blind --set n_max=$n r_cut=3.5 radial_scaling=0; done
    python tests/benchmarks/claims.py claims.jsonl --models models -o claims.png

- a density for each element, against one that is blind to the elements of neighbours (the centre keeps its own);
- the error against the cutoff, without and with a radial scaling;
- Swish against other activations: error, what the largest step of MD does to the energy, and whether second derivatives
  are those of the forces.

Errors are those of five folds (variants.py): the mean over cells, without the five that no model predicts. The models
are those of the first fold. NVE of 225 atoms from 300 K, float64, so that rounding does not hide what kinks do.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms, units
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from neuralil_ase import NeuralILCalculator
from neuralil_ase.errors import PredictionError

START = Path(__file__).parents[2] / "md_examples" / "ean_start.extxyz"
WILD = 5
"""Cells with the largest errors of the first run, which decide the means of all and tell nothing."""
STEPS_FS = (0.25, 0.5, 1.0, 1.5)
LENGTH_FS = 500.0
DISPLACEMENT = 0.01
"""Å, for differences of forces."""
SWISH = "swish"


def force_errors(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over the usual cells of the mean absolute force error, meV/Å, by a name for each run."""
    by_frame = [{frame: force for frame, _, force in run["frames"]} for run in runs]
    usual = sorted(by_frame[0], key=by_frame[0].__getitem__)[:-WILD]
    return {
        name_of(run): float(np.mean([found[k] for k in usual]))
        for run, found in zip(runs, by_frame, strict=True)
    }


def name_of(run: dict[str, Any]) -> str:
    """What is special about a run."""
    options = run["options"]
    if run["blind"]:
        return f"blind, {run['features']} features"
    if "activation" in options:
        return str(options["activation"])
    scaled = ", scaled" if options.get("radial_scaling") else ""
    return f"{run['r_cut']:g} Å{scaled}"


def fluctuation(atoms: Atoms, calc: NeuralILCalculator, step: float) -> float:
    """Standard deviation of the total energy along NVE in meV/atom; infinite if the run breaks."""
    atoms = atoms.copy()
    atoms.calc = calc
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(1))
    energies: list[float] = []
    dynamics = VelocityVerlet(atoms, step * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    try:
        dynamics.run(round(LENGTH_FS / step))
    except PredictionError:
        return np.inf
    return 1e3 * float(np.std(energies)) / len(atoms)


def hessian_error(atoms: Atoms, calc: NeuralILCalculator, n_atoms: int = 6) -> float:
    """Root mean square difference between second derivatives and differences of forces, over the latter's size."""
    exact = calc.hessian(atoms).reshape(len(atoms), 3, len(atoms), 3)
    moved, differences, found = atoms.copy(), [], []
    moved.calc = calc
    for atom in np.linspace(0, len(atoms) - 1, n_atoms).astype(int):
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved.positions = atoms.positions
                moved.positions[atom, axis] += sign * DISPLACEMENT
                forces.append(moved.get_forces())
            differences.append((forces[1] - forces[0]) / (2 * DISPLACEMENT))
            found.append(exact[atom, axis])
    size = np.sqrt(np.mean(np.square(differences)))
    return float(np.sqrt(np.mean(np.square(np.subtract(found, differences)))) / size)


def draw(
    path: Path, errors: dict[str, float], smooth: dict[str, tuple[list[float], float]]
) -> None:
    """Errors by activation, descriptor and cutoff; fluctuation of the energy against the time step."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    names = [*smooth, *(name for name in errors if name.startswith("blind"))]
    colours = ["C0" if name == SWISH else "C7" if name in smooth else "C3" for name in names]
    left.barh(names, [errors[name] for name in names], color=colours)
    left.invert_yaxis()
    left.set(xlabel="force MAE (meV/Å)", title="activation; blind to elements")
    for ending, label in ((" Å", "published functions"), (" Å, scaled", "radial scaling")):
        found = {
            name.removesuffix(ending): e for name, e in errors.items() if name.endswith(ending)
        }
        cutoffs = {3.5: errors[SWISH]} | {float(radius): error for radius, error in found.items()}
        x = sorted(cutoffs)
        middle.plot(x, [cutoffs[r] for r in x], "o-", label=label)
    middle.set(xlabel="cutoff (Å)", ylabel="force MAE (meV/Å)", title="36 cells to train on")
    middle.legend(fontsize=8)
    for name, (values, _) in smooth.items():
        right.loglog(STEPS_FS, values, "o-", label=name, lw=2.5 if name == SWISH else 1.2)
    right.set(xlabel="time step (fs)", ylabel="std of total energy (meV/atom)", title="NVE")
    right.set_xticks(STEPS_FS, [f"{step:g}" for step in STEPS_FS])
    right.minorticks_off()
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    errors = force_errors([json.loads(line) for line in given.runs.read_text().splitlines()])
    atoms = read(START)
    smooth: dict[str, tuple[list[float], float]] = {}
    steps = ", ".join(f"{step:g}" for step in STEPS_FS)
    print(
        f"| | force MAE meV/Å | std of energy meV/atom, {steps} fs | error of second derivatives |"
    )
    print("|---|---|---|---|")
    for name, error in errors.items():
        model, cells = given.models / f"{name}.safetensors", ["", ""]
        if model.exists():
            calc = NeuralILCalculator(model, dtype="float64")
            values = [fluctuation(atoms, calc, step) for step in STEPS_FS]
            smooth[name] = values, hessian_error(atoms, calc)
            cells = [", ".join(f"{v:.2g}" for v in values), f"{smooth[name][1]:.1e}"]
        print(f"| {name} | {error:.1f} | {' | '.join(cells)} |", flush=True)
    draw(given.output, errors, smooth)


if __name__ == "__main__":
    main()
