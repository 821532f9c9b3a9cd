"""Small labelled data and short runs that the tests of training share: copper-gold crystals labelled with EMT."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms
from neuralil_ase.training.loop import Trainer
from neuralil_ase.training.output import Output, Recorder
from neuralil_ase.training.prepare import prepare
from neuralil_ase.training.settings import TrainingSettings

TINY = TrainingSettings(
    epochs=4, members=2, widths=(8, 4), n_max=2, r_cut=3.4, validation_fraction=0.25,
    batch_size=4, validate_every=2, checkpoint_every=2, learning_rate=0.02, ema=0.5,
)  # fmt: skip
ALLOY = bulk("Cu", cubic=True, a=3.7) * (2, 2, 1)


def labelled(atoms: Atoms, *names: str) -> Atoms:
    """A copy with EMT's energy, forces and stress, or only some of them."""
    source = atoms.copy()
    source.calc = EMT()
    copy = atoms.copy()
    values = {
        n: source.calc.get_property(n, source) for n in names or ("energy", "forces", "stress")
    }
    copy.calc = SinglePointCalculator(copy, **values)
    return copy


@lru_cache
def alloy(count: int = 12, seed: int = 0) -> tuple[Atoms, ...]:
    """Rattled cells of 16 atoms in four groups, all of them with every label."""
    rng = np.random.default_rng(seed)
    structures = []
    for k in range(count):
        atoms = ALLOY.copy()
        atoms.symbols[rng.permutation(16)[: 4 + k % 4]] = "Au"
        atoms.positions += rng.normal(0, 0.12, atoms.positions.shape)
        atoms.info["seed"] = k % 4
        structures.append(labelled(atoms))
        structures[-1].info["seed"] = k % 4
    return tuple(structures)


def frames(count: int = 12, seed: int = 0) -> list[Frame]:
    """The same as frames."""
    return frames_from_atoms(alloy(count, seed))


def trainer_for(train: list[Frame], validation: list[Frame], **options: Any) -> Trainer:
    """A trainer with tiny networks."""
    return Trainer(prepare(TINY.updated(options), train, validation))


@lru_cache
def shared_trainer() -> Trainer:
    """One trainer for all tests that do not change settings: its functions are compiled once."""
    return trainer_for(frames()[:9], frames()[9:])


@contextmanager
def recorder(path: Path | None) -> Iterator[Recorder]:
    """A recorder of the shared trainer."""
    with (
        nullcontext() if path is None else Output(path) as output,
        Recorder(shared_trainer(), output, progress=False) as record,
    ):
        yield record


def losses(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Everything in a history but the times."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]
