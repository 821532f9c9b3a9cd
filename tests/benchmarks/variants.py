"""Cross-validate many settings at once on one device: all folds and settings are trained in one compiled function.

    python tests/benchmarks/variants.py DATA -o variants.jsonl --each exponent=1,0.5 weight_decay=2,0.5
    python tests/benchmarks/variants.py DATA -o variants.jsonl --mixed 3 --set members=4 n_max=7

For choosing defaults. On an NVIDIA H200 five folds of 200 metal frames take one to two minutes for half a dozen
settings; on a CPU use ``neuralil-ase cross-validate``, which trains as ``neuralil-ase train`` does. What differs from
that: the last average of the weights is tested, not the best validated one; the frames of a fold take part in scales,
energy reference and repulsion radii, which hardly see them.

--each varies what needs no other compilation, value by value, together: ``exponent`` (``FEATURE_EXPONENT``),
``weight_decay``, ``energy_weight``, ``force_weight``, ``energy_scale`` and ``force_scale``. --set gives other settings
of training, --mixed adds four-body invariants (four_body.py) of so many channels, and --blind makes the descriptor one
of all neighbours alike. Writes a line of JSON for every setting, with the errors of the mean over members on all
held-out frames: energies in meV/atom, also without the median of a fold, forces in meV/Å, and frame by frame. --save
writes the model of the first setting and fold. With --labels, networks learn what linear parts leave
(linear_folds.py).
"""

import argparse
import json
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import four_body
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ase import Atoms
from ase.io import read
from four_body import Mixing, WithFourBody
from jax import Array

from neuralil_ase.files.model_file import save_potential
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.network import network_outputs
from neuralil_ase.model.potential import Params, Potential
from neuralil_ase.samples import forward
from neuralil_ase.samples.normalisation import (
    FEATURE_EXPONENT,
    Scaling,
    first_params,
    fold,
    scaling_of,
)
from neuralil_ase.training.data import load_data
from neuralil_ase.training.loss import Norms, loss_sums, total
from neuralil_ase.training.optimizer import averaged, build_optimizer, clip_members
from neuralil_ase.training.prepare import Task, prepare
from neuralil_ase.training.settings import TrainingSettings

VARIED = ("exponent", "weight_decay", "energy_weight", "force_weight", "energy_scale", "force_scale")  # fmt: skip
VALIDATION = 0.1
"""Part of a fold's training frames that is left out, as a run would validate on it."""
CHUNK = 500
"""Steps between two lines of progress."""


LABELS = ("energy", "forces", "stress")


class Frames(NamedTuple):
    """All frames, padded to the largest: F frames, N atoms, S slots, C channels.

    Energies, forces and stresses have one more axis in front, for the labels of different runs.
    """

    density: Array  # (F, N, elements, C)
    types: Array  # (F, N)
    slopes: Array  # (F, N, S, 3, C)
    vectors: Array  # (F, N, S, 3)
    reverse: Array  # (F, N, S)
    real: Array  # (F, N): 1 for an atom, 0 for padding
    energy: Array  # (F,)
    energy_weight: Array
    forces: Array  # (F, N, 3)
    force_weight: Array  # (F, N)
    stress: Array  # (F, 6)
    stress_weight: Array  # (F,)
    n_atoms: Array
    volume: Array


@dataclass(frozen=True)
class Problem:
    """What is the same for all folds and settings; ``unit`` is the scaling that gives features unit variance."""

    config: ModelConfig
    settings: TrainingSettings
    mixing: Mixing
    unit: Scaling
    slots: tuple[int, ...]
    has_stress: bool

    @property
    def descriptor(self) -> WithFourBody:
        """With its four-body part."""
        assert isinstance(self.config.descriptor, WithFourBody)
        return self.config.descriptor

    def scaling(self, chosen: dict[str, Array]) -> Scaling:
        """As ``normalisation.scaling_of`` would make it with this exponent, for labels of this size."""
        least = self.unit.factor.min()
        factor = least * jnp.asarray(self.unit.factor / least) ** chosen["exponent"]
        energy = self.unit.energy * chosen["size"]
        return self.unit._replace(factor=factor, energy=energy)  # type: ignore[arg-type]  # traced


def problem_of(task: Task, mixed: int, blind: bool = False) -> Problem:
    """The task with four-body invariants or one density of all elements, and scales of all features."""
    descriptor = WithFourBody(**asdict(task.config.descriptor), mixed=mixed, blind=blind)
    samples = task.train[:: max(1, len(task.train) // 64)]
    density = np.concatenate([s.arrays.density for s in samples if s.arrays is not None])
    mixing = four_body.mixing_of(descriptor, density)
    features = jax.jit(partial(four_body.features, descriptor, mixing))(jnp.asarray(density))
    found = scaling_of(np.asarray(features), np.ones(1))
    least = found.factor.min()
    unit = least * (found.factor / least) ** (1 / FEATURE_EXPONENT)
    return Problem(
        replace(task.config, descriptor=descriptor),
        task.settings,
        mixing,
        Scaling(found.mean, unit, task.scaling.energy),
        task.packer.slots,
        task.has_stress,
    )


def frames_of(task: Task) -> Frames:
    """All samples of a task, those of isolated atoms at the end."""
    samples = task.train
    n_atoms = max(len(s.types) for s in samples)
    n_slots = sum(task.packer.slots)

    def padded(values: list[np.ndarray]) -> Array:
        found = np.zeros((len(values), n_atoms, *values[0].shape[1:]), values[0].dtype)
        for row, value in zip(found, values, strict=True):
            row[: len(value)] = value
        return jnp.asarray(found)

    def numbers(values: list[Any]) -> Array:
        return jnp.asarray(np.nan_to_num(np.array(values, np.float32)))

    arrays = [s.arrays for s in samples if s.arrays is not None]
    alone = np.arange(n_atoms * n_slots, dtype=np.int32).reshape(n_atoms, n_slots)
    reverse = [np.concatenate([a.reverse, alone[len(a.reverse) :]]) for a in arrays]
    real = [np.ones(len(s.types), np.float32) for s in samples]
    weights = [
        [s.weight * float(np.isfinite(label).all()) for label in (s.targets.energy, s.targets.forces, s.targets.stress)]
        for s in samples
    ]  # fmt: skip
    return Frames(
        padded([a.density for a in arrays]),
        padded([a.types for a in arrays]),
        padded([a.slopes for a in arrays]),
        padded([a.vectors for a in arrays]),
        jnp.asarray(np.stack(reverse).astype(np.int32)),
        padded(real),
        numbers([s.targets.energy[0] for s in samples]),
        numbers([w[0] for w in weights]),
        padded([np.nan_to_num(s.targets.forces[0]).astype(np.float32) for s in samples]),
        padded([w[1] * r for w, r in zip(weights, real, strict=True)]),
        numbers([s.targets.stress[0] for s in samples]),
        numbers([w[2] for w in weights]),
        numbers([len(s.types) for s in samples]),
        numbers([s.volume for s in samples]),
    )


def predicted(problem: Problem, params: Params, frames: Frames) -> forward.Predicted:
    """Of all members on B frames: energies (M, B), forces (M, B N, 3), stresses (M, B, 6)."""
    count, n_atoms = frames.types.shape

    def joined(values: Array) -> Array:
        return values.reshape(count * n_atoms, *values.shape[2:])

    density, types = joined(frames.density), joined(frames.types)
    config, descriptor = problem.config, problem.descriptor
    features = four_body.features(descriptor, problem.mixing, density)

    def summed(x: Array) -> tuple[Array, Array]:
        energies = network_outputs(config, params, x, types)[..., 0]
        return energies.sum(), energies

    shape = (config.n_members, *features.shape)
    gradient, energies = jax.grad(summed, has_aux=True)(jnp.broadcast_to(features, shape))
    gradient = four_body.pull_back(descriptor, problem.mixing, density, gradient)
    batch: Any = SimpleNamespace(slopes=joined(frames.slopes))
    pairs = forward.pair_gradient_of(problem.slots, gradient, batch)
    first = jnp.arange(count, dtype=jnp.int32)[:, None, None] * n_atoms * sum(problem.slots)
    of_frame = (config.n_members, count, n_atoms)
    stress = jnp.zeros((config.n_members, count, 6))
    if problem.has_stress:
        virials = forward.virials_of(pairs, joined(frames.vectors))
        by_frame = virials.reshape(count, n_atoms, 6, -1).sum(axis=1)
        stress = by_frame.transpose(2, 0, 1) / frames.volume[:, None]
    return forward.Predicted(
        (energies.reshape(of_frame) * frames.real).sum(axis=-1),
        forward.forces_of(pairs, joined(frames.reverse + first)),
        stress,
        None,
        None,
    )


def picked(frames: Frames, labels: Array, numbers: Array) -> Frames:
    """Some frames, with the labels of a run."""
    found = {
        name: values[labels, numbers] if name in LABELS else values[numbers]
        for name, values in frames._asdict().items()
    }
    return Frames(**found)


def with_labels(
    frames: Frames, samples: Sequence[Any], path: Path | None, kinds: Sequence[str], n_folds: int
) -> Frames:
    """With labels by kind and fold, (kinds * folds, F, …), of a file of linear_folds.py; without one all alike."""
    if path is None:
        return frames._replace(**{name: getattr(frames, name)[None] for name in LABELS})
    ends = np.cumsum([len(s.types) for s in samples])[:-1]
    found: dict[str, list[np.ndarray]] = {name: [] for name in LABELS}
    with np.load(path) as file:
        for kind in kinds:
            for fold in range(n_folds):
                part = {name: np.nan_to_num(file[f"{kind}_{name}_{fold}"]) for name in LABELS}
                padded = np.zeros(frames.forces.shape, np.float32)
                for row, values in zip(padded, np.split(part["forces"], ends), strict=True):
                    row[: len(values)] = values
                for name in LABELS:
                    found[name].append(padded if name == "forces" else part[name])
    return frames._replace(**{name: jnp.asarray(np.stack(found[name])) for name in LABELS})


def gradient_of(problem: Problem, chosen: dict[str, Array], params: Params, frames: Frames) -> Any:
    """Of the loss of all members on some frames."""
    count, n_atoms = frames.types.shape
    s = problem.settings
    settings: Any = SimpleNamespace(
        loss=s.loss, stress_scale=s.stress_scale, stress_weight=s.stress_weight,
        **{name: chosen[name] for name in VARIED[2:]},
    )  # fmt: skip
    batch: Any = SimpleNamespace(
        energy=frames.energy, energy_weight=frames.energy_weight,
        forces=frames.forces.reshape(-1, 3), force_weight=frames.force_weight.reshape(-1),
        stress=frames.stress, stress_weight=frames.stress_weight, n_atoms=frames.n_atoms,
        member_weight=jnp.ones((problem.config.n_members, count)),
        frame=jnp.repeat(jnp.arange(count), n_atoms),
    )  # fmt: skip
    labels = (frames.energy_weight, frames.force_weight, frames.stress_weight)
    norms: Any = Norms(
        *(jnp.maximum(1.0, k * (w > 0).sum()) for k, w in zip((1, 3, 6), labels, strict=True))
    )
    scaling = problem.scaling(chosen)

    def loss(p: Params) -> Array:
        sums = loss_sums(
            settings, predicted(problem, fold(problem.config, scaling, p), frames), batch
        )
        return total(settings, sums, norms).sum()

    return jax.grad(loss)(params)


class Trainers:
    """Runs of all folds and settings, side by side."""

    def __init__(self, problem: Problem, chosen: dict[str, Array], n_steps: int) -> None:
        self.problem, self.chosen, self.n_steps = problem, chosen, n_steps
        self.steps = jax.jit(self._steps)
        self.errors = jax.jit(self._errors)

    def start(self) -> Any:
        """States of all runs, which begin alike."""
        first = jax.tree.map(
            jnp.asarray, first_params(self.problem.config, self.problem.settings.seed)
        )
        state = first, first, self._optimizer(1.0).init(first), jnp.zeros((), jnp.int32)
        n_runs = len(self.chosen["exponent"])
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (n_runs, *x.shape)), state)

    def _optimizer(self, decay: Any) -> optax.GradientTransformation:
        settings: Any = SimpleNamespace(**{**vars(self.problem.settings), "weight_decay": decay})
        return build_optimizer(settings, self.n_steps)

    def _steps(self, states: Any, order: Array, frames: Frames) -> Any:
        """Through the batches ``order``, shape (runs, steps, batch)."""

        def step(states: Any, numbers: Array) -> tuple[Any, None]:
            return jax.vmap(self._step, (0, 0, 0, None))(self.chosen, states, numbers, frames), None

        return jax.lax.scan(step, states, order.swapaxes(0, 1))[0]

    def _step(self, chosen: dict[str, Array], state: Any, numbers: Array, frames: Frames) -> Any:
        params, average, memory, count = state
        batch = picked(frames, chosen["labels"], numbers)
        config, settings = self.problem.config, self.problem.settings
        gradient = gradient_of(self.problem, chosen, params, batch)
        gradient = clip_members(config, gradient, settings.clip_norm)
        updates, memory = self._optimizer(chosen["weight_decay"]).update(gradient, memory, params)
        params = optax.apply_updates(params, updates)
        return params, averaged(average, params, settings.ema, count), memory, count + 1

    def potential(self, averages: Params, task: Task) -> Potential:
        """The model of the first setting and fold."""
        average = jax.tree.map(lambda x: np.asarray(x[0]), averages)
        scaling = self.problem.scaling({k: v[0] for k, v in self.chosen.items()})
        params = jax.tree.map(np.asarray, fold(task.config, scaling, average))
        return Potential(task.config, params, task.reference)

    def _errors(self, averages: Params, held_out: Array, frames: Frames) -> Any:
        """For every run and held-out frame: eV/atom; of its forces the sums of |error| and error², and their number."""

        def of_frame(params: Params, labels: Array, number: Array) -> tuple[Array, ...]:
            one = picked(frames, labels, number[None])
            found = predicted(self.problem, params, one)
            wanted = one.forces.reshape(-1, 3)
            weight = (one.force_weight > 0).reshape(-1, 1)
            errors = (found.forces.mean(axis=0) - wanted) * weight
            energy = (found.energy.mean(axis=0) - one.energy)[0] / one.n_atoms[0]
            return energy, jnp.abs(errors).sum(), (errors**2).sum(), 3 * weight.sum()

        def of_run(run: Any) -> Any:
            chosen, average, numbers = run
            params = fold(self.problem.config, self.problem.scaling(chosen), average)
            return jax.lax.map(partial(of_frame, params, chosen["labels"]), numbers)

        return jax.lax.map(of_run, (self.chosen, averages, held_out))


def schedule(
    n_frames: int, n_all: int, folds: Sequence[int], n_folds: int, epochs: int, batch_size: int
) -> np.ndarray:
    """Batches of every fold, (folds, steps, batch); frames behind ``n_frames`` are in every fold's training."""
    orders = []
    for k in folds:
        rng = np.random.default_rng((0, k))
        rest = rng.permutation([i for i in range(n_frames) if i % n_folds != k])
        # As many for every fold, so that all have as many steps.
        most = n_frames - -(-n_frames // n_folds)
        kept = rest[: round((1 - VALIDATION) * most)]
        numbers = np.concatenate([kept, np.arange(n_frames, n_all)])
        per_epoch = len(numbers) // batch_size * batch_size
        passes = [rng.permutation(numbers)[:per_epoch] for _ in range(epochs)]
        orders.append(np.concatenate(passes).reshape(-1, batch_size))
    return np.stack(orders).astype(np.int32)


def cross_validate(
    structures: Sequence[Atoms],
    options: dict[str, Any],
    each: Sequence[dict[str, Any]],
    mixed: int,
    n_folds: int,
    blind: bool = False,
    save: Path | None = None,
    labels: Path | None = None,
) -> list[dict[str, Any]]:
    """One record for every setting of ``each``; ``save`` is for the model of the first one and its first fold."""
    began = time.perf_counter()
    settings = TrainingSettings(
        head_widths=(), validation_fraction=0.0, memory_budget=2**45, linear="none"
    ).updated(options)
    frames, _ = load_data(list(structures), settings)
    count = sum(len(atoms) > 1 for atoms in structures)
    settings = settings.with_frames(round((1 - VALIDATION) * (1 - 1 / n_folds) * count))
    task = prepare(settings, frames, [])
    problem = problem_of(task, mixed, blind)
    kinds = list(dict.fromkeys(entry.get("labels", "none") for entry in each))
    arrays = with_labels(frames_of(task), task.train, labels, kinds, n_folds)
    values: dict[str, list[float]] = {
        name: [entry.get(name, getattr(task.settings, name, FEATURE_EXPONENT)) for entry in each]
        for name in VARIED
    }
    n_runs = n_folds * len(each)
    chosen = {k: jnp.repeat(jnp.asarray(v, jnp.float32), n_folds) for k, v in values.items()}
    kind_of_run = np.repeat([kinds.index(entry.get("labels", "none")) for entry in each], n_folds)
    number = kind_of_run * n_folds + np.tile(np.arange(n_folds), len(each))
    number = np.zeros_like(number) if labels is None else number
    squares = jnp.sum(arrays.forces**2, axis=(1, 2, 3))
    whole = np.nansum(np.concatenate([s.targets.forces[0] for s in task.train]) ** 2)
    chosen |= {"labels": jnp.asarray(number), "size": jnp.sqrt(squares[number] / whole)}
    order = schedule(
        count,
        len(task.train),
        range(n_folds),
        n_folds,
        task.settings.epochs,
        task.settings.batch_size,
    )
    order = np.tile(order, (len(each), 1, 1))
    size = min(CHUNK, order.shape[1])
    order = order[:, : order.shape[1] // size * size]
    trainers = Trainers(problem, chosen, order.shape[1])
    states = trainers.start()
    for first in range(0, order.shape[1], size):
        states = jax.block_until_ready(
            trainers.steps(states, jnp.asarray(order[:, first : first + size]), arrays)
        )
        print(
            f"step {first + size} of {order.shape[1]}, {time.perf_counter() - began:.0f} s",
            file=sys.stderr,
        )
    if save is not None:
        save_potential(trainers.potential(states[1], task), save)
    tests = [np.arange(k, count, n_folds) for k in range(n_folds)]
    longest = max(map(len, tests))
    held_out = jnp.asarray(np.tile([np.resize(t, longest) for t in tests], (len(each), 1)))
    found = [np.asarray(x, float) for x in trainers.errors(states[1], held_out, arrays)]
    seconds = time.perf_counter() - began
    descriptor = problem.descriptor
    shared = {
        "options": options, "mixed": mixed, "blind": blind, "r_cut": descriptor.r_cut, "n_max": descriptor.n_max,
        "features": descriptor.n_features, "steps": order.shape[1], "runs": n_runs, "seconds": round(seconds, 1),
        "device": jax.devices()[0].device_kind,
    }  # fmt: skip
    records = []
    for k in range(len(each)):
        rows = [[x[k * n_folds + f, : len(tests[f])] for x in found] for f in range(n_folds)]
        settings_of = {name: values[name][k] for name in VARIED}
        settings_of |= {"labels": each[k].get("labels", "none")}
        records.append(shared | settings_of | summary(rows, tests))
    return records


def summary(folds: list[list[np.ndarray]], tests: list[np.ndarray]) -> dict[str, Any]:
    """Errors over all folds."""
    energy, size, square, number = (np.concatenate(x) for x in zip(*folds, strict=True))
    centred = np.concatenate([fold[0] - np.median(fold[0]) for fold in folds])

    def pair(values: np.ndarray) -> list[float]:
        return [
            round(1e3 * float(x), 3) for x in (np.abs(values).mean(), np.sqrt((values**2).mean()))
        ]

    frames = zip(np.concatenate(tests).tolist(), energy, size / np.maximum(number, 1), strict=True)
    return {
        "energy": pair(energy),
        "energy_offset_removed": pair(centred),
        "forces": [
            round(1e3 * size.sum() / number.sum(), 2),
            round(1e3 * float(np.sqrt(square.sum() / number.sum())), 2),
        ],
        "median_frame": round(1e3 * float(np.median(size / np.maximum(number, 1))), 2),
        "frames": [[k, round(1e3 * e, 3), round(1e3 * f, 2)] for k, e, f in frames],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--first", type=int, help="only so many frames")
    parser.add_argument("--mixed", type=int, default=0, help="mixed channels of the four-body part")
    parser.add_argument("--blind", action="store_true", help="one density of all elements")
    parser.add_argument("--save", type=Path, help="the model of the first setting and fold")
    parser.add_argument("--labels", type=Path, help="file of linear_folds.py, for --each labels=…")
    parser.add_argument("--each", nargs="*", default=[], metavar="NAME=X,Y,…")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="TOML values")
    given = parser.parse_args(arguments)
    lists: dict[str, list[Any]] = {
        name: text.split(",") if name == "labels" else [float(x) for x in text.split(",")]
        for name, text in (e.split("=") for e in given.each)
    }
    if unknown := set(lists) - {*VARIED, "labels"}:
        parser.error(
            f"--each knows {', '.join(VARIED)} and labels, not {', '.join(sorted(unknown))}"
        )
    count = max(map(len, lists.values()), default=1)
    if any(len(values) != count for values in lists.values()):
        parser.error("--each needs as many values of every name")
    each = [{name: values[k] for name, values in lists.items()} for k in range(count)]
    if given.blind and given.save:
        parser.error("--save needs a descriptor that model files have, not --blind")
    structures: list[Any] = [atoms for path in given.data for atoms in read(path, ":")]
    structures = structures[: given.first]
    structures.sort(key=lambda atoms: len(atoms) == 1)  # isolated atoms behind the others
    with jax.default_matmul_precision("float32"):
        records = cross_validate(
            structures,
            tomllib.loads("\n".join(given.set)),
            each,
            given.mixed,
            given.folds,
            given.blind,
            given.save,
            given.labels,
        )
    with open(given.output, "a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps({"data": given.data, **record}) + "\n")
            shown = {k: v for k, v in record.items() if k not in ("frames", "options", "runs")}
            print(json.dumps(shown))


if __name__ == "__main__":
    main()
