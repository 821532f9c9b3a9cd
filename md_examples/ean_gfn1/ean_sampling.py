"""One seed of the EAN data set: build, equilibrate, sample, label with GFN1-xTB.

The sampler moves the atoms. The labels are always from GFN1-xTB (through tblite). A heavier hydrogen
does not change the distribution of configurations (it does not depend on the masses) and allows a
time step of 2 fs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

import ase
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.optimize import FIRE
from ean_boxes import (
    broken_bonds,
    build_box,
    build_cluster,
    ethylammonium,
    fused_hydrogens,
    ion_atoms,
    nitrate,
    scale_volume,
    wrap_ions,
)

from neuralil_ase.errors import StructureError

TIMESTEP = 2.0  # fs
HYDROGEN_MASS = 8.0  # u
FRICTION = 0.01  # 1/fs
HOTTEST = 700.0  # K, of the first third of a box's equilibration: from packed ions to a liquid
CHECK_EVERY = 50  # steps between two looks at the molecules
ATTEMPTS = 3  # boxes tried when the sampler breaks molecules
MAX_FORCE = 30.0  # eV/Å per component; a label beyond belongs to no liquid: left out and counted


@dataclass(frozen=True)
class Schedule:
    """How long a trajectory is, in ps: equilibration, then one frame every `spacing`."""

    relaxation_steps: int
    equilibration: float
    spacing: float


@dataclass(frozen=True)
class Task:
    """One independent trajectory; `kind` is box, cluster, cation or anion; density in g/cm³."""

    seed: int
    kind: str
    n_pairs: int
    temperature: float
    density: float
    frames: int
    split: str
    schedule: Schedule
    sampler: str

    @property
    def charge(self) -> int:
        """Total charge in e."""
        return {"cation": 1, "anion": -1}.get(self.kind, 0)


@dataclass
class Outcome:
    """The outcome of one task: counts for the data card, so that nothing is left out silently."""

    seed: int
    frames: int = 0
    scf_failures: int = 0
    too_large_forces: int = 0
    broken_runs: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0


class BrokenTrajectory(RuntimeError):
    """The sampler broke a molecule, or positions are not finite."""


SAMPLER_FAILED = (BrokenTrajectory, CalculationFailed, StructureError)


def gfn1(charge: int = 0, accuracy: float = 0.01) -> Calculator:
    """A fresh GFN1-xTB calculator; labels looser than 0.01 carry 5e-4 eV/Å of noise."""
    from tblite.ase import TBLite

    return TBLite(method="GFN1-xTB", charge=charge, accuracy=accuracy, verbosity=0)


@cache
def model_calculator(path: str) -> Calculator:
    """The sampling model, once per process: its compiled functions serve all seeds."""
    from neuralil_ase import NeuralILCalculator  # lazily: the bootstrap does without

    return NeuralILCalculator(path, uncertainty="off")


def sampling_calculator(task: Task) -> Calculator:
    """Clusters and ions always use GFN1-xTB: it is cheap for them, and models of the liquid fail."""
    if task.sampler == "gfn1" or task.kind != "box":
        return gfn1(task.charge, accuracy=0.1)
    return model_calculator(task.sampler)


def _built(task: Task, attempt: int) -> Atoms:
    seed = task.seed + 100_000 * attempt
    if task.kind == "box":
        return build_box(task.n_pairs, task.density, seed)
    if task.kind == "cluster":
        return build_cluster(task.n_pairs, seed)
    return ion_atoms(ethylammonium() if task.kind == "cation" else nitrate())


def check_whole(atoms: Atoms) -> None:
    """Raise `BrokenTrajectory` for broken or fused molecules; N-H may break: that is chemistry."""
    if not np.isfinite(atoms.positions).all():
        raise BrokenTrajectory("positions are not finite")
    for i, j in broken_bonds(atoms):
        ends = atoms.symbols[i], atoms.symbols[j]
        if set(ends) != {"N", "H"}:
            raise BrokenTrajectory(f"bond {ends[0]}{i}-{ends[1]}{j} broke")
    for hydrogen in fused_hydrogens(atoms):
        raise BrokenTrajectory(f"H{hydrogen} sits between two heavy atoms")


def advance(atoms: Atoms, ps: float, temperature: float, rng: np.random.Generator) -> None:
    """Langevin dynamics of `atoms`, in place, for `ps` at `temperature` (K)."""
    dynamics = Langevin(
        atoms,
        TIMESTEP * units.fs,
        temperature_K=temperature,
        friction=FRICTION / units.fs,
        fixcm=False,  # fixcm=True is no strict NVT; the constraint FixCom is
        rng=rng,
    )
    steps = max(1, round(1000.0 * ps / TIMESTEP))
    for done in range(0, steps, CHECK_EVERY):
        dynamics.run(min(CHECK_EVERY, steps - done))
        check_whole(atoms)


def trajectory(task: Task, attempt: int) -> Iterator[Atoms]:
    """Equilibrate, then yield the frames one by one."""
    rng = np.random.default_rng([task.seed, 2, attempt])
    atoms = _built(task, attempt)
    atoms.calc = sampling_calculator(task)
    # the stiffest bonds (about 100 eV/Å²) bound the step of FIRE: beyond 0.2 they blow up
    FIRE(atoms, logfile=None, dtmax=0.2).run(fmax=0.5, steps=task.schedule.relaxation_steps)
    check_whole(atoms)
    atoms.set_masses(np.where(atoms.numbers == 1, HYDROGEN_MASS, atoms.get_masses()))
    atoms.set_constraint(FixCom())
    hot = HOTTEST if task.kind == "box" else task.temperature  # from rest: the thermostat heats
    advance(atoms, task.schedule.equilibration / 3, hot, rng)
    advance(atoms, task.schedule.equilibration * 2 / 3, task.temperature, rng)
    for _ in range(task.frames):
        advance(atoms, task.schedule.spacing, task.temperature, rng)
        yield _bare(atoms, task, "md" if task.kind == "box" else task.kind)


def _bare(atoms: Atoms, task: Task, config_type: str) -> Atoms:
    """Symbols, positions, cell and `info` only: no masses, momenta or constraints.

    Numbers are rounded *before* they are labelled: what the file says is what was computed.
    """
    cell = np.round(atoms.cell.array, 6)
    frame = Atoms(atoms.symbols, positions=atoms.positions, cell=cell, pbc=atoms.pbc)
    wrap_ions(frame)
    frame.positions = np.round(frame.positions, 6)
    frame.info = {
        "config_type": config_type,
        "T": task.temperature,
        "n_pairs": task.n_pairs,
        "charge": task.charge,
        "seed": task.seed,
        "split": task.split,
        "method": "GFN1-xTB",
        "versions": f"tblite {version('tblite')}, ase {ase.__version__}",
    }
    return frame


def derived(frames: list[Atoms], task: Task) -> list[Atoms]:
    """A rattled frame and one of another volume, from the first and the middle frame of a box."""
    if task.kind != "box" or not frames:
        return []
    rng = np.random.default_rng([task.seed, 3])
    rattled = frames[0].copy()
    rattled.positions += rng.normal(scale=rng.uniform(0.01, 0.04), size=rattled.positions.shape)
    change = rng.choice([-1.0, 1.0]) * rng.uniform(0.02, 0.05)
    scaled = scale_volume(frames[len(frames) // 2], 1.0 + change)
    return [
        _bare(rattled, task, "rattle"),
        _bare(scaled, task, "expanded" if change > 0.0 else "compressed"),
    ]


def labelled(frame: Atoms) -> Atoms:
    """The frame with GFN1-xTB energy (eV), forces (eV/Å) and, in a cell, stress (eV/Å³).

    The total charge is read from ``info["charge"]``. In a cell ``info["density"]`` (g/cm³) is set.
    Raises `ase.calculators.calculator.CalculationFailed` when the SCF does not converge.
    """
    frame = frame.copy()
    frame.calc = gfn1(int(frame.info["charge"]))
    results: dict[str, Any] = {
        "energy": float(frame.get_potential_energy()),
        "forces": np.round(frame.get_forces(), 6),
    }
    if frame.cell.rank == 3:
        results["stress"] = np.round(frame.get_stress(), 9)
        grams = frame.get_masses().sum() / units.kg * 1e3
        frame.info["density"] = round(grams / (frame.get_volume() * 1e-24), 4)
    frame.calc = SinglePointCalculator(frame, **results)
    return frame


def sampled(task: Task, outcome: Outcome) -> list[Atoms]:
    """The sampled frames. If a run breaks, this is noted and another box is tried; the longest run is used."""
    best: list[Atoms] = []
    for attempt in range(ATTEMPTS):
        frames: list[Atoms] = []
        try:
            for frame in trajectory(task, attempt):
                frames.append(frame)
            return frames
        except SAMPLER_FAILED as error:
            note = f"attempt {attempt}, after {len(frames)} frames: {type(error).__name__}: {error}"
            outcome.broken_runs.append(note)
            best = max(best, frames, key=len)
    return best


def run_task(task: Task) -> tuple[list[Atoms], Outcome]:
    """All labelled frames of one seed, and the counts of frames that were left out."""
    outcome = Outcome(task.seed)
    frames = sampled(task, outcome)
    kept = []
    for frame in [*frames, *derived(frames, task)]:
        try:
            result = labelled(frame)
        except CalculationFailed:
            outcome.scf_failures += 1
            continue
        if np.abs(result.get_forces()).max() > MAX_FORCE:
            outcome.too_large_forces += 1
        else:
            kept.append(result)
    outcome.frames = len(kept)
    return kept, outcome
