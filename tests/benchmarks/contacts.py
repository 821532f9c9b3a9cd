"""Holes: how often the energy falls when two atoms come into contact as in no frame.

    python tests/benchmarks/contacts.py MODEL.safetensors DATA [--select KEY=VALUE]

Moves atoms of these frames as training does with its own (``neuralil_ase.samples.contacts``), and predicts the energies
before and after. No such contact lowers the energy of a real system. Prints the share of contacts at which the mean and
the members fall, and the deepest fall.
"""

import argparse
import logging
from pathlib import Path

import numpy as np

from neuralil_ase import load_potential
from neuralil_ase.evaluation.dataset import read_frames
from neuralil_ase.evaluation.evaluate import predict_frames
from neuralil_ase.samples.contacts import contacts_of
from neuralil_ase.samples.linear import linear_of
from neuralil_ase.training.prepare import prepare
from neuralil_ase.training.settings import TrainingSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--select", help="frames whose KEY in atoms.info has this VALUE")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    potential = load_potential(given.model)
    key, _, value = (given.select or "").partition("=")
    frames = read_frames([given.data], split_by=key or None)
    frames = [f for f in frames if len(f.symbols) > 1 and (not key or f.group == value)]
    options = {"members": 1, "linear": "none", "epochs": 1, "r_cut": potential.r_cut}
    task = prepare(TrainingSettings().updated(options), frames, [])
    found = list(contacts_of(task.packer, task.train[: len(frames)]))
    before, after = (
        np.array([p.member_energies for p in predict_frames(potential, [s.frame for s in samples])])
        for samples in zip(*found, strict=True)
    )
    rises = after - before
    linear = linear_of(potential)
    has = np.zeros(rises.shape[1], bool)
    if linear is not None:
        has = linear.weights.any(axis=(1, 2))
    print(f"{len(rises)} contacts of {len(frames)} frames: falls, and the deepest in eV")
    for name, values in (
        ("mean", rises.mean(axis=1)),
        ("members with a linear part", rises[:, has]),
        ("other members", rises[:, ~has]),
    ):
        if values.size:
            share, deepest = 100 * (values < 0).mean(), min(values.min(), 0.0)
            print(f"{name:28}{share:7.2f} %{deepest:9.1f}")


if __name__ == "__main__":
    main()
