"""Holes: how often the energy falls when two atoms come into contact as in no frame.

    python tests/benchmarks/contacts.py MODEL.safetensors DATA [--select KEY=VALUE]
    python tests/benchmarks/contacts.py --fit DATA [--linear half]

Moves atoms and molecules of these frames as training does with its own (``neuralil_ase.samples.contacts``), and
predicts the energies before and after. No such contact lowers the energy of a real system. Prints the share of contacts
at which the mean and the members fall, and the deepest fall, for atoms and for molecules that moved. With --fit, no
model is needed: a linear part is fitted to four fifths of the frames, with contacts and without, and the errors and
falls are those of the last fifth.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neuralil_ase import load_potential
from neuralil_ase.evaluation.dataset import Frame, read_frames
from neuralil_ase.evaluation.evaluate import predict_frames
from neuralil_ase.model.potential import Potential
from neuralil_ase.samples.contacts import RISE, contact_rows, contacts_of
from neuralil_ase.samples.equations import Unknowns
from neuralil_ase.samples.least_squares import BEFORE_NETWORKS, LinearFit, some_labelled
from neuralil_ase.samples.linear import Linear, linear_of, what_is_left
from neuralil_ase.training.prepare import Task, prepare
from neuralil_ase.training.settings import TrainingSettings

PREPARED = {"members": 1, "linear": "none", "epochs": 1}


def rises(potential: Potential, frames: Sequence[Frame]) -> tuple[np.ndarray, np.ndarray]:
    """How the energy of each member changes, shape (contacts, members), in eV, and where a molecule moved."""
    settings = TrainingSettings().updated(PREPARED | {"r_cut": potential.r_cut})
    task = prepare(settings, frames, [])
    found = list(contacts_of(task.packer, task.train[: len(frames)]))
    before, after = (
        np.array([p.member_energies for p in predict_frames(potential, [s.frame for s in samples])])
        for samples in ([c.before for c in found], [c.after for c in found])
    )
    return after - before, np.array([len(c.moved) > 1 for c in found])


def table(values: np.ndarray, has_linear: np.ndarray, is_whole: np.ndarray) -> str:
    """Rows of the mean and of the members with a linear part and without, for atoms and molecules that moved."""
    rows = []
    for kind, moved in (("an atom moves", values[~is_whole]), ("a molecule", values[is_whole])):
        for name, changes in (
            ("mean", moved.mean(axis=1)),
            ("members with a linear part", moved[:, has_linear]),
            ("other members", moved[:, ~has_linear]),
        ):
            if changes.size:
                share, deepest = 100 * (changes < 0).mean(), min(changes.min(), 0.0)
                rows.append(f"{kind:16}{name:28}{share:7.2f} %{deepest:9.1f}")
    return "\n".join(rows)


def compare_fits(frames: Sequence[Frame], setting: str = "all") -> str:
    """Errors of held-out frames and falls there, by a linear part without contacts and with them.

    Its penalty is that of this setting ``linear`` of training.
    """
    numbers = np.random.default_rng(1).permutation(len(frames))
    parts = [[frames[k] for k in numbers if (k in numbers[::5]) == held_out] for held_out in (0, 1)]
    task = prepare(TrainingSettings().updated(PREPARED), *parts)
    labelled = some_labelled(task.train[: len(parts[0])])
    fit = LinearFit(task.packer, labelled)
    rows = []
    for name in ("without contacts", "with contacts"):
        linear = fit.solve(4, 0, BEFORE_NETWORKS[setting][:1])
        if linear is None:
            return "no linear part predicts these data"
        rows.append(f"{name}\n{_held_out(task, linear)}")
        fit.raise_contacts(task.packer, labelled)
    return "\n".join(rows)


def _held_out(task: Task, linear: Linear) -> str:
    left = what_is_left(task.packer, linear.common, task.validation)
    forces = np.concatenate([s.targets.forces.ravel() for s in left])
    energies = [s.targets.energy[0] / len(s.types) for s in left]
    errors = [1e3 * np.sqrt(np.nanmean(np.square(x))) for x in (forces, energies)]
    # The energy of a contact is linear in the weights, and the biases do not change it.
    n_features, n_elements = linear.weights.shape[1:]
    plain = Unknowns(
        np.zeros((n_elements, n_features)),
        np.ones((n_elements, n_features)),
        np.ones(n_elements, bool),
    )
    rows, asked = contact_rows(task.packer, plain, task.validation)
    rows = rows[:, : n_features * n_elements]
    weights = linear.weights.swapaxes(1, 2).reshape(len(linear.weights), -1)
    falls = table(rows @ weights.T, np.ones(len(weights), bool), asked < RISE)
    return f"RMSE: forces {errors[0]:.1f} meV/Å, energies {errors[1]:.2f} meV/atom\n{falls}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("data")
    parser.add_argument("--select", help="frames whose KEY in atoms.info has this VALUE")
    parser.add_argument("--fit", action="store_true", help="compare linear parts, without a model")
    parser.add_argument(
        "--linear", choices=("all", "half"), default="all", help="with --fit: which penalty"
    )
    given = parser.parse_args(arguments)
    if (given.model is None) != given.fit:
        parser.error("give a model and data, or --fit and data")
    logging.disable(logging.WARNING)
    key, _, value = (given.select or "").partition("=")
    frames = read_frames([given.data], split_by=key or None)
    frames = [f for f in frames if len(f.symbols) > 1 and (not key or f.group == value)]
    if given.fit:
        print(compare_fits(frames, given.linear))
        return
    potential = load_potential(given.model)
    (values, is_whole), linear = rises(potential, frames), linear_of(potential)
    has_linear = np.zeros(values.shape[1], bool)
    if linear is not None:
        has_linear = linear.weights.any(axis=(1, 2))
    print(f"{len(values)} contacts of {len(frames)} frames: falls, and the deepest in eV")
    print(table(values, has_linear, is_whole))


if __name__ == "__main__":
    main()
