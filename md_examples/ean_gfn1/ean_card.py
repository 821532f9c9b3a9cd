"""The data card: what the EAN data set holds, how it was made, what was lost, what it is not."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ean_sampling import (
    FRICTION,
    HOTTEST,
    HYDROGEN_MASS,
    MAX_FORCE,
    TIMESTEP,
    Outcome,
)

SPLITS = ("train", "valid", "test")


def data_card(
    frames: list[Atoms], outcomes: list[Outcome], output: Path, settings: dict[str, Any]
) -> str:
    """The card as markdown text."""
    return "\n".join(
        [
            f"# {output.name}: ethylammonium nitrate, GFN1-xTB",
            "",
            f"{len(frames)} configurations, {sum(map(len, frames))} atoms (C, H, N, O), with "
            "energy (eV), forces (eV/Å) and, where there is a cell, stress (eV/Å³, "
            "tension positive).",
            "",
            "**Warning.** GFN1-xTB is a stand-in teacher, not DFT. Against the published DFT cells "
            "of this liquid its forces differ by 0.72 eV/Å (mean absolute error) and its bonds are "
            "2 to 4 % shorter. A model trained on these data reproduces GFN1-xTB, not experiment.",
            "",
            "## Composition",
            "",
            *_composition(frames),
            "",
            *_ranges(frames),
            "",
            "The split is by seed (`info` key `split`): frames of one trajectory, and what was "
            "derived from them, are never in two parts.",
            "",
            "## How it was made",
            "",
            *_method(frames, settings),
            "",
            "## What was lost",
            "",
            *_losses(outcomes),
            "",
            "## Licence",
            "",
            "CC0 1.0 (public domain dedication).",
            "",
        ]
    )


def _composition(frames: list[Atoms]) -> list[str]:
    count = Counter(
        (len(atoms), atoms.info["config_type"], atoms.info["split"]) for atoms in frames
    )
    lines = ["| atoms | kind | train | valid | test |", "|---:|---|---:|---:|---:|"]
    for size, kind in sorted({key[:2] for key in count}):
        cells = " | ".join(str(count[size, kind, split]) for split in SPLITS)
        lines.append(f"| {size} | {kind} | {cells} |")
    seeds = {
        split: {a.info["seed"] for a in frames if a.info["split"] == split} for split in SPLITS
    }
    totals = [sum(a.info["split"] == split for a in frames) for split in SPLITS]
    lines.append("| | all frames | " + " | ".join(map(str, totals)) + " |")
    lines.append("| | seeds | " + " | ".join(str(len(seeds[split])) for split in SPLITS) + " |")
    return lines


def _ranges(frames: list[Atoms]) -> list[str]:
    temperatures = Counter(float(a.info["T"]) for a in frames)
    densities = [float(a.info["density"]) for a in frames if a.cell.rank == 3]
    rms = np.sqrt(np.mean(np.concatenate([a.get_forces() for a in frames]) ** 2))
    largest = max(float(np.abs(a.get_forces()).max()) for a in frames)
    energy = _spread(frames, lambda a: a.get_potential_energy() / len(a))
    lines = [
        "- Temperatures: "
        + ", ".join(f"{t:.0f} K ({n} frames)" for t, n in sorted(temperatures.items())),
        f"- Forces: rms {rms:.2f} eV/Å per component, largest component {largest:.1f} eV/Å.",
        f"- Energies per atom of the frames in cells: {energy}.",
    ]
    if densities:
        lines.append(f"- Densities: {min(densities):.3f} to {max(densities):.3f} g/cm³.")
    charges = Counter(int(a.info["charge"]) for a in frames)
    if set(charges) != {0}:
        lines.append(
            f"- Charged frames (`info` key `charge`): {charges[1]} cations (+1), "
            f"{charges[-1]} anions (-1)."
        )
    return lines


def _spread(frames: list[Atoms], value: Callable[[Atoms], float]) -> str:
    values = np.array([value(a) for a in frames if a.cell.rank == 3])
    if len(values) < 2:
        return "too few"
    return f"mean {values.mean():.4f} eV, standard deviation {1e3 * values.std(ddof=1):.1f} meV"


def _method(frames: list[Atoms], settings: dict[str, Any]) -> list[str]:
    box, small = settings["schedule"], settings["small_schedule"]
    has_small = settings["clusters"] or settings["ions"]
    return [
        "- Labels: GFN1-xTB through tblite, accuracy 0.01, electronic temperature 300 K, Γ "
        f"point ({frames[0].info['versions']}). Positions were rounded to 1e-6 Å before labelling.",
        f"- Sampler of the boxes: {_sampler(settings)}.",
        *(["- Sampler of clusters and ions: GFN1-xTB (accuracy 0.1)."] if has_small else []),
        "- Start: ions packed at random, a soft relaxation, then up to "
        f"{box['relaxation_steps']} FIRE steps (ean_boxes.py, ean_sampling.py).",
        f"- Langevin NVT, {TIMESTEP:g} fs, friction {1e3 * FRICTION:g}/ps, hydrogen mass "
        f"{HYDROGEN_MASS:g} u (the distribution of configurations does not depend on masses), "
        "centre of mass fixed. Boxes: equilibration "
        f"{box['equilibration']:g} ps (a third of it at {HOTTEST:g} K), then a frame every "
        f"{box['spacing']:g} ps"
        + (
            f"; clusters and ions: {small['equilibration']:g} ps and {small['spacing']:g} ps."
            if has_small
            else "."
        ),
        "- `rattle`: normal displacements of 0.01 to 0.04 Å; `compressed`, `expanded`: volume "
        "changed by 2 to 5 %, ions moved as rigid bodies.",
        "- Boxes lie within ±{:g} % of {:g} g/cm³.".format(
            100 * settings["density_range"], settings["density"]
        ),
    ]


def _sampler(settings: dict[str, Any]) -> str:
    if settings["sampler"] == "gfn1":
        return "GFN1-xTB itself (accuracy 0.1)"
    name = Path(settings["sampler"]).name
    return f"the NeuralIL model `{name}` (SHA-256 {settings['sampler_sha256'][:16]}…)"


def _losses(outcomes: list[Outcome]) -> list[str]:
    broken = [f"  - seed {o.seed}: {note}" for o in outcomes for note in o.broken_runs]
    return [
        f"- SCF not converged: {sum(o.scf_failures for o in outcomes)} labels.",
        f"- Left out for a force component above {MAX_FORCE:g} eV/Å: "
        f"{sum(o.too_large_forces for o in outcomes)} frames.",
        f"- Trajectories in which the sampler broke a molecule: {len(broken)}"
        + (
            " (frames before the break count only if no later attempt went through):"
            if broken
            else "."
        ),
        *broken,
        f"- CPU time: {sum(o.cpu_seconds for o in outcomes) / 60:.1f} min.",
    ]
