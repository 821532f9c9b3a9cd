"""The steps of active learning: data, training, monitored MD, selecting and labelling frames, test.

Every step makes one file or folder, completely or not at all, and is skipped if that already exists.
"""

import json
import lzma
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.constraints import FixCom
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from tqdm import tqdm

from neuralil_ase import ExtrapolationMonitor, NeuralILCalculator, load_potential, predict_many
from neuralil_ase.progress import Progress
from neuralil_ase.training import train

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ean_gfn1"))

from ean_boxes import wrap_ions
from ean_sampling import FRICTION, HYDROGEN_MASS, MAX_FORCE, TIMESTEP, labelled

ATTEMPTS = 10  # runs from one starting box, where the monitor ends them


@dataclass(frozen=True)
class Exploration:
    """Monitored MD: temperature in K, number of steps of 2 fs (hydrogen has 8 u, see ean_sampling.py),
    steps between two checks, and the thresholds (low, high) of the spread in eV/Å."""

    temperature: float
    steps: int
    interval: int
    bands: tuple[float, float]


def product(path: Path, make: Callable[[Path], object]) -> Path:
    """A file or folder that is made under another name and then renamed, so that it is complete."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"partial-{path.name}")
        make(partial)
        os.replace(partial, path)
    return path


def read_data(path: Path) -> list[Atoms]:
    """Labelled frames. The archive is unpacked first: ASE reads compressed files slowly."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return read(StringIO(file.read()), ":", format="extxyz")


def md_frames(
    data: Sequence[Atoms], size: int, T: float, splits: tuple[str, ...], count: int
) -> list[Atoms]:
    """Some of the frames from MD of the boxes of `size` atoms at T (K), spread over all trajectories."""
    found = [
        atoms
        for atoms in data
        if atoms.info["T"] == T and atoms.info["split"] in splits
        if atoms.info["config_type"] == "md" and len(atoms) == size
    ]
    chosen = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[k] for k in chosen]


def trained(folder: Path, files: Sequence[Path], start_from: Path | None, **options: Any) -> Path:
    """Train a model on labelled files, starting from another model if one is given.

    The same as ``neuralil-ase train FILES -o MODEL --start-from OLD --split-by split --resume``.
    """

    def make(partial: Path) -> None:
        partial.mkdir(exist_ok=True)  # one that is there holds the checkpoint of a killed run
        model = partial / "model.safetensors"
        result = train(
            files, model, start_from=start_from, split_by="split", resume=True, progress=True,
            # The validation frames calibrate the spread. They must not choose the best epoch, as
            # they do not resemble the new frames. Therefore the last epoch is used.
            validate_every=options["epochs"], **options,
        )  # fmt: skip
        if result.reason == "interrupted":
            raise KeyboardInterrupt

    return product(folder, make) / "model.safetensors"


def explored(folder: Path, model: Path, start: Sequence[Atoms], md: Exploration, seed: int) -> Path:
    """Monitored MD from every starting box; writes tables, collected frames and all checked frames.

    A run that the monitor stops is started again with new velocities, until all steps are done.
    """

    def make(partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        calc = NeuralILCalculator(model)
        for box, atoms in enumerate(start):
            rng, left = np.random.default_rng([seed, box]), md.steps
            for attempt in range(ATTEMPTS):
                output = partial / f"box_{box}_{attempt}"
                left -= watched_run(atoms, calc, replace(md, steps=left), rng, output)
                if left <= 0:
                    break

    return product(folder, make)


def watched_run(
    start: Atoms, calc: NeuralILCalculator, md: Exploration, rng: np.random.Generator, output: Path
) -> int:
    """Langevin dynamics until the end, or until the monitor stops it; returns the steps done."""
    atoms = Atoms(start.symbols, positions=start.positions, cell=start.cell, pbc=start.pbc)
    atoms.calc = calc
    atoms.set_masses(np.where(atoms.numbers == 1, HYDROGEN_MASS, atoms.get_masses()))
    atoms.set_constraint(FixCom())
    thermalize_momenta(atoms, temperature_K=md.temperature, rng=rng)
    dynamics = Langevin(
        atoms, TIMESTEP * units.fs, temperature_K=md.temperature, friction=FRICTION / units.fs,
        fixcm=False, rng=rng,
    )  # fmt: skip
    monitor = ExtrapolationMonitor(
        dynamics,
        threshold=md.bands,
        log=output.with_suffix(".log"),
        save=output.with_suffix(".flagged.extxyz"),
        max_saved=md.steps,
        stop=True,
        warn=False,
    )
    checked: list[Atoms] = []
    dynamics.attach(monitor, interval=md.interval)
    dynamics.attach(lambda: checked.append(bare(atoms)), interval=md.interval)
    with Progress(md.steps, "step", f"MD {output.name}", True) as progress:
        dynamics.attach(lambda: progress.update(dynamics.nsteps), interval=md.interval)
        dynamics.run(md.steps)
        progress.update(dynamics.nsteps, "stopped by the monitor" if monitor.stopped else "")
    write(output.with_suffix(".checked.extxyz"), checked, format="extxyz")
    band = monitor.records["band"]
    counts = {
        "flagged": int((band > 0).sum()), "checks": len(band), "stops": int(monitor.stopped)
    }  # fmt: skip
    output.with_suffix(".json").write_text(json.dumps(counts), encoding="utf-8")
    return dynamics.nsteps


def totals(md_folder: Path) -> dict[str, int]:
    """Numbers of flagged checks, checks, and stopped runs, summed over all boxes."""
    counts = [json.loads(path.read_text(encoding="utf-8")) for path in md_folder.glob("*.json")]
    return {key: sum(count[key] for count in counts) for key in counts[0]}


def taught(target: Path, md_folder: Path, kind: str, count: int, seed: int) -> list[Atoms]:
    """At most `count` frames of this exploration with GFN1-xTB labels; `kind` flagged or checked."""

    def make(partial: Path) -> None:
        found = [
            atoms
            for path in sorted(md_folder.glob(f"*.{kind}.extxyz"))
            for atoms in read(path, ":")
        ]
        frames = []
        if kind == "flagged":
            chosen = most_unsure([float(a.arrays["forces_std"].mean()) for a in found], count)
        else:
            chosen = at_random(len(found), count, seed)
        with Progress(len(chosen), "label", f"GFN1-xTB, {kind} frames", True) as progress:
            for done, k in enumerate(chosen, 1):
                try:
                    frame = labelled(bare(found[k]))
                except CalculationFailed:
                    tqdm.write("left out: GFN1-xTB found no solution for a frame")
                else:
                    if np.abs(frame.get_forces()).max() < MAX_FORCE:
                        frames.append(frame)
                    else:
                        tqdm.write(
                            f"left out: a force above {MAX_FORCE:g} eV/Å belongs to no liquid"
                        )
                progress.update(done)
        write(partial, frames, format="extxyz")

    product(target, make)
    return read(target, ":") if target.stat().st_size else []


def most_unsure(spreads: Sequence[float], count: int) -> list[int]:
    """Cut the sequence of flagged frames into `count` parts, and take from each part the frame with
    the largest mean spread. The frames are uncertain, and from different times and runs."""
    stretches = np.array_split(np.arange(len(spreads)), count or 1)
    return [int(part[np.argmax(np.take(spreads, part))]) for part in stretches if part.size][:count]


def at_random(available: int, count: int, seed: int) -> list[int]:
    """Any of the checked frames, each at most once."""
    rng = np.random.default_rng([seed, 7])
    return sorted(rng.permutation(available)[:count].tolist())


def bare(atoms: Atoms) -> Atoms:
    """A plain copy for labelling: whole ions in the cell, rounded positions, nothing else."""
    frame = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    wrap_ions(frame)
    frame.positions = np.round(frame.positions, 6)
    frame.info = {"charge": 0, "split": "train"}
    return frame


def judged(model: Path, test: Sequence[Atoms], low: float) -> dict[str, float]:
    """Mean absolute errors in meV/Å and meV/atom, and the share of frames that would be flagged."""
    predictions = predict_many(load_potential(model), test, uncertainty="forces")
    pairs = list(zip(predictions, test, strict=True))
    forces = np.concatenate([p.forces - a.get_forces() for p, a in pairs])
    energies = [(p.energy - a.get_potential_energy()) / len(a) for p, a in pairs]
    errors = np.linalg.norm(forces, axis=1)
    return {
        "force_mae": 1e3 * float(np.abs(forces).mean()),
        "force_99": 1e3 * float(np.quantile(errors, 0.99)),
        "energy_mae": 1e3 * float(np.abs(energies).mean()),
        "unsure": 100 * float(np.mean([p.forces_std.max() >= low for p in predictions])),
    }
