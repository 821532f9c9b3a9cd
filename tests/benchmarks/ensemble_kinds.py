"""Kinds of ensembles trained at equal cost, and what each says about its own errors.

Used by extrapolation.py. A *signal* is a number per atom that should grow with the error of its force: the spread
of members, the noise that a deep ensemble predicts, both together, or the distance to the training set in the
space of descriptors.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from neuralil_ase import NeuralILCalculator, Potential, load_potential, predict_many, train
from neuralil_ase.prediction import Prediction
from neuralil_ase.training import TrainingSettings
from neuralil_ase.training.data import load_data
from neuralil_ase.training.loop import Trainer
from neuralil_ase.training.prepare import prepare

KINDS: dict[str, dict[str, Any]] = {
    "independent": {"members": 8, "head_widths": ()},
    "shared trunk": {"members": 8, "head_widths": (), "shared_layers": 2},
    "bootstrap": {"members": 8, "head_widths": (), "bootstrap": True},
    "deep": {"members": 8},
}
"""Options of each; a deep ensemble is an independent one whose members know the variance of their errors."""
PROBE_EPOCHS = 4


@dataclass(frozen=True)
class Trained:
    """A potential and what it cost: CPU seconds of training, compilation included, epochs and members."""

    potential: Potential
    cost: dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """Errors and signals of a set of frames.

    Attributes
    ----------
    symbols
        Of all atoms of all frames, shape (atoms,).
    sizes
        Atoms of every frame, shape (frames,).
    errors
        Mean prediction minus label, eV/Å, shape (atoms, 3); NaN without labels.
    signals
        By name, of every atom, shape (atoms,).
    energy_signals
        By name, of every frame, per atom, shape (frames,); what belongs to single atoms alone has none.
    """

    symbols: np.ndarray
    sizes: np.ndarray
    errors: np.ndarray
    signals: dict[str, np.ndarray]
    energy_signals: dict[str, np.ndarray]

    def per_frame(self, signal: str, how: str) -> np.ndarray:
        """The largest ("max") or mean ("mean") signal, or the "energy" signal, of every frame; NaN if there is none."""
        if how == "energy":
            return self.energy_signals.get(signal, np.full(len(self.sizes), np.nan))
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        values = self.signals[signal]
        if how == "max":
            return np.maximum.reduceat(values, starts)
        return np.add.reduceat(values, starts) / self.sizes


def train_kinds(
    kinds: Sequence[str], data: Sequence[Atoms], folder: Path, seconds: float, **options: Any
) -> dict[str, Trained]:
    """Train each kind for as many epochs as `seconds` of CPU time pay for, or read what these frames gave before.

    Prices of epochs are measured first, in turn, so that a busy machine is busy for all of them; compilation is not
    counted in the budget, but is in the cost. ``info["split"]`` of every frame says "train", "valid" or "test".
    """
    digest = fingerprint(data)
    outputs = {kind: folder / f"{kind.replace(' ', '_')}.safetensors" for kind in kinds}
    settings = {
        kind: TrainingSettings(split_by="split", validate_every=10, **{**KINDS[kind], **options})
        for kind in kinds
    }
    if any(_digest_in(output) != digest for output in outputs.values()):
        prices = _epoch_prices(data, settings)
        for kind, output in outputs.items():
            if _digest_in(output) != digest:
                epochs = max(2, round(seconds / prices[kind]))
                _train(data, output, settings[kind], epochs, digest)
    return {
        kind: Trained(
            load_potential(output), json.loads(_record(output).read_text(encoding="utf-8"))
        )
        for kind, output in outputs.items()
    }


def _train(
    data: Sequence[Atoms], output: Path, settings: TrainingSettings, epochs: int, digest: str
) -> None:
    began = time.process_time()
    train(data, output, settings=settings, epochs=epochs, report=False)
    cost = {"cpu_seconds": time.process_time() - began, "epochs": epochs}
    cost |= {"members": settings.members, "data": digest}
    _record(output).write_text(json.dumps(cost), encoding="utf-8")


def fingerprint(data: Sequence[Atoms]) -> str:
    """Of positions and parts: a model is never scored on frames that another split had it trained on."""
    digest = sha256()
    for atoms in data:
        digest.update(atoms.positions.tobytes() + str(atoms.info["split"]).encode())
    return digest.hexdigest()[:16]


def _record(output: Path) -> Path:
    return output.with_suffix(".json")


def _digest_in(output: Path) -> str | None:
    if not (output.exists() and _record(output).exists()):
        return None
    return json.loads(_record(output).read_text(encoding="utf-8")).get("data")


def _epoch_prices(
    data: Sequence[Atoms], settings: Mapping[str, TrainingSettings]
) -> dict[str, float]:
    """CPU seconds of one epoch of each kind: the cheapest of a few, after one that compiles."""
    runs = {}
    for kind, of_kind in settings.items():
        probe = of_kind.updated({"epochs": PROBE_EPOCHS + 2, "validate_every": 10**6})
        trainer = Trainer(prepare(probe, *load_data(data, probe)))
        runs[kind] = (trainer, trainer.epoch(trainer.start()))
    prices = dict.fromkeys(settings, np.inf)
    for _ in range(PROBE_EPOCHS):  # not the last one, which would validate
        for kind, (trainer, run) in runs.items():
            began = time.process_time()
            runs[kind] = (trainer, trainer.epoch(run))
            prices[kind] = min(prices[kind], time.process_time() - began)
    return prices


def score_sets(
    potential: Potential,
    sets: Mapping[str, Sequence[Atoms]],
    distance: "DescriptorDistance | None" = None,
) -> dict[str, Scores]:
    """Errors and all signals that this kind of ensemble has; evaluated together, so that few shapes are compiled."""
    every = [atoms for frames in sets.values() for atoms in frames]
    predictions = iter(predict_many(potential, every, uncertainty="forces"))
    return {
        name: _scores(frames, list(islice(predictions, len(frames))), distance)
        for name, frames in sets.items()
    }


def _scores(
    frames: Sequence[Atoms],
    predictions: Sequence[Prediction],
    distance: "DescriptorDistance | None",
) -> Scores:
    signals = {"spread": np.concatenate([p.forces_std for p in predictions])}
    energies = {"spread": np.array([p.energy_std for p in predictions])}
    if predictions[0].holds("forces_aleatoric_std"):
        noise = np.concatenate([p.forces_aleatoric_std for p in predictions])
        signals |= {"noise": noise, "both": np.hypot(signals["spread"], noise)}
        noise = np.array([p.energy_aleatoric_std for p in predictions])
        energies |= {"noise": noise, "both": np.hypot(energies["spread"], noise)}
    if distance is not None:
        signals["distance"] = np.concatenate([distance(atoms) for atoms in frames])
    sizes = np.array([len(atoms) for atoms in frames])
    errors = [p.forces - _forces(atoms) for p, atoms in zip(predictions, frames, strict=True)]
    return Scores(
        np.concatenate([np.array(atoms.get_chemical_symbols()) for atoms in frames]),
        sizes,
        np.concatenate(errors),
        signals,
        {name: values / sizes for name, values in energies.items()},
    )


class DescriptorDistance:
    """Distance of every atom to the nearest atom of its element in the training set.

    Euclidean, between the model's descriptors, each feature divided by its standard deviation over the atoms of
    that element in training. Knows nothing of forces, and needs no ensemble.
    """

    def __init__(self, potential: Potential, training: Sequence[Atoms]) -> None:
        self._calculator = NeuralILCalculator(potential)
        rows = np.concatenate([self._calculator.descriptors(atoms) for atoms in training])
        numbers = np.concatenate([atoms.numbers for atoms in training])
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for number in np.unique(numbers).tolist():
            of_element = rows[numbers == number]
            deviation = of_element.std(axis=0)
            scale = np.where(deviation > 1e-9 * np.abs(of_element).max(), deviation, np.inf)
            self._known[number] = (scale, (of_element / scale).astype(np.float32))

    def __call__(self, atoms: Atoms) -> np.ndarray:
        """Shape (N,), in standard deviations."""
        rows = self._calculator.descriptors(atoms)
        nearest = np.empty(len(atoms))
        for number in np.unique(atoms.numbers).tolist():
            chosen = atoms.numbers == number
            scale, known = self._known[number]
            scaled = (rows[chosen] / scale).astype(np.float32)
            squared = (known**2).sum(axis=1) - 2 * scaled @ known.T
            nearest[chosen] = squared.min(axis=1) + (scaled**2).sum(axis=1)
        return np.sqrt(np.maximum(nearest, 0))


def _forces(atoms: Atoms) -> np.ndarray:
    if atoms.calc is None:
        return np.full((len(atoms), 3), np.nan)
    return np.asarray(atoms.calc.results["forces"])
