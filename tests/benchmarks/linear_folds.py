"""What linear parts, fitted for each fold by itself, leave of the labels, for variants.py.

    python tests/benchmarks/linear_folds.py DATA -o left.npz --kinds none plain plain*30 robust robust*300
    python tests/benchmarks/variants.py DATA -o variants.jsonl --labels left.npz --each labels=none,plain,plain*30

"none" leaves all, "plain" is the fit with the penalty that predicts best, and "*30" multiplies this penalty. "robust"
fits three times more; a frame with the root mean square force residual r counts 1 / (1 + (r / 1.5 median)²). Prints the
errors of the linear parts alone: forces of held-out frames (mean, median) and of training frames (median) in meV/Å, and
the median of energies in meV/atom, the offset of a fold removed. Folds and frames are those of variants.py.
"""

import argparse
import tomllib
from pathlib import Path

import numpy as np
from ase.io import read
from variants import VALIDATION, schedule

from neuralil_ase.samples.batches import Sample, Targets
from neuralil_ase.samples.equations import Choice, Equations, Unknowns, equations_of
from neuralil_ase.samples.least_squares import FOLDS, _best_choice
from neuralil_ase.samples.linear import what_is_left
from neuralil_ase.training.data import load_data
from neuralil_ase.training.prepare import Task, prepare
from neuralil_ase.training.settings import TrainingSettings

N_FOLDS = 5


class Fits:
    """Fits to any choice of frames, from the equations of each."""

    def __init__(self, task: Task, count: int) -> None:
        self.task, self.samples = task, task.train
        alone = sorted({int(s.types[0]) for s in self.samples[count:]})
        self.unknowns = Unknowns.of(task.packer, self.samples[:count], alone)
        self.equations = [equations_of(task.packer, self.unknowns, [s]) for s in self.samples]

    def total(self, numbers: np.ndarray, weights: np.ndarray) -> Equations:
        found = Equations.empty(self.unknowns.size)
        for k, weight in zip(numbers, weights, strict=True):
            found = found.plus(self.equations[k], float(weight))
        return found

    def choice(self, numbers: np.ndarray, weights: np.ndarray) -> Choice:
        whole = self.total(numbers, weights)
        folds = [self.total(numbers[k::FOLDS], weights[k::FOLDS]) for k in range(FOLDS)]
        others = [whole.plus(fold, -1.0) for fold in folds]
        return _best_choice(others, folds, self.unknowns.n_elements)[0]

    def robust(self, numbers: np.ndarray) -> np.ndarray:
        weights = np.ones(len(numbers))
        for _ in range(3):
            solution = self.total(numbers, weights).solve(self.choice(numbers, weights))
            squares = [self.equations[k].forces.squared_error(solution) for k in numbers]
            sizes = [3 * len(self.samples[k].types) for k in numbers]
            errors = np.sqrt(np.maximum(squares, 0) / sizes)
            weights = 1 / (1 + (errors / (1.5 * np.median(errors))) ** 2)
            weights /= weights.mean()
        return weights

    def left(self, kind: str, numbers: np.ndarray) -> list[Targets]:
        """Labels of all frames after a fit to these."""
        if kind == "none":
            return [s.targets for s in self.samples]
        name, _, factor = kind.partition("*")
        weights = self.robust(numbers) if name == "robust" else np.ones(len(numbers))
        best = self.choice(numbers, weights)
        choice = best._replace(penalty=best.penalty * float(factor or 1))
        linear = self.unknowns.linear(self.total(numbers, weights).solve(choice)[None])
        return [s.targets for s in what_is_left(self.task.packer, linear, self.samples)]


def errors(samples: list[Sample], left: list[Targets], test: np.ndarray, learnt: np.ndarray) -> str:
    forces = np.array([1e3 * np.abs(targets.forces).mean() for targets in left])
    energies = np.array([1e3 * left[k].energy[0] / len(samples[k].types) for k in test])
    spread = np.median(np.abs(energies - np.median(energies)))
    return (
        f"forces {forces[test].mean():.1f}, {np.median(forces[test]):.1f}; training {np.median(forces[learnt]):.1f}; "
        f"energies {spread:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=["none", "plain"])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    structures = sorted(read(given.data, ":"), key=lambda atoms: len(atoms) == 1)
    count = sum(len(atoms) > 1 for atoms in structures)
    settings = TrainingSettings(
        head_widths=(), validation_fraction=0.0, memory_budget=2**45, linear="none"
    ).updated(tomllib.loads("\n".join(given.set)))
    frames, _ = load_data(structures, settings)
    task = prepare(
        settings.with_frames(round((1 - VALIDATION) * (1 - 1 / N_FOLDS) * count)), frames, []
    )
    fits = Fits(task, count)
    order = schedule(count, len(fits.samples), range(N_FOLDS), N_FOLDS, 1, 1)[:, :, 0]
    kept: dict[str, np.ndarray] = {}
    for fold in range(N_FOLDS):
        learnt, test = order[fold], np.arange(fold, count, N_FOLDS)
        for kind in given.kinds:
            left = fits.left(kind, learnt)
            kept[f"{kind}_energy_{fold}"] = np.array([x.energy[0] for x in left], np.float32)
            kept[f"{kind}_forces_{fold}"] = np.concatenate([x.forces[0] for x in left]).astype("f4")
            kept[f"{kind}_stress_{fold}"] = np.array([x.stress for x in left], np.float32)
            print(fold, kind, errors(fits.samples, left, test, learnt), flush=True)
    np.savez(given.output, **kept)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
