"""Which kind of ensemble knows best what it does not know? All kinds trained at equal cost, on one system.

    python tests/benchmarks/extrapolation.py --system ean -o extrapolation     # liquid EAN, GFN1-xTB
    python tests/benchmarks/extrapolation.py --system sto -o extrapolation     # SrTiO3, 500 K against 1000 K
    python tests/benchmarks/extrapolation.py --system dft -o extrapolation     # EAN, published DFT cells
    python tests/benchmarks/extrapolation.py --system ean -o seed1 --seed 1 --kinds independent deep

Writes SYSTEM.json, SYSTEM.md (the tables that are printed) and SYSTEM.png; the models go to SYSTEM/ and are not
trained again if they are there. "sto" and "dft" need the reference data beside the repository.

Two questions. On ordinary frames that took no part in training, selection or calibration: do errors follow the
signal? And: are strange frames told from ordinary ones (AUROC, the probability that the strange one of a pair has
the higher signal) by the largest, the mean, or the energy's signal of a frame, or atom by atom?
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ensemble_kinds import (
    KINDS,
    DescriptorDistance,
    Scores,
    Trained,
    score_sets,
    train_kinds,
)
from extrapolation_cases import Problem, load
from matplotlib.figure import Figure
from scipy.stats import norm, rankdata

from neuralil_ase.calibration import Calibration
from neuralil_ase.evaluation.calibration import HeldOut, fit_calibration
from neuralil_ase.evaluation.quality import auroc, crps, quality

PUBLISHED = {"published committee": (0.57, 2.4), "published deep ensemble": (0.70, 1.07)}
SIGNALS = [
    ("independent", "spread"), ("shared trunk", "spread"), ("bootstrap", "spread"), ("deep", "spread"),
    ("deep", "noise"), ("deep", "both"), ("independent", "distance"),
]  # fmt: skip
TITLES = {("deep", "noise"): "deep: noise", ("deep", "both"): "deep: both"} | {
    ("independent", "distance"): "distance"
}
HOW = ("max", "mean", "energy", "atoms")
Signal = tuple[str, str]
Results = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """The scores of all kinds on one set of frames."""

    of: dict[str, Scores]

    def __getitem__(self, signal: Signal) -> tuple[Scores, np.ndarray]:
        scores = self.of[signal[0]]
        return scores, scores.signals[signal[1]]


def score_all(models: dict[str, Trained], problem: Problem) -> dict[str, Scored]:
    """Of the sets "valid", "test", "ordinary", and of every kind of strange frames."""
    parts = {s: [a for a in problem.data if a.info["split"] == s] for s in ("train", "valid")}
    sets = {"valid": parts["valid"], "test": problem.test, "ordinary": problem.ordinary}
    sets |= {case: strange.frames for case, strange in problem.strange.items()}
    distance = DescriptorDistance(next(iter(models.values())).potential, parts["train"])
    of = {
        kind: score_sets(model.potential, sets, distance if kind == "independent" else None)
        for kind, model in models.items()
    }
    return {name: Scored({kind: scores[name] for kind, scores in of.items()}) for name in sets}


def title(signal: Signal) -> str:
    return TITLES.get(signal, signal[0])


def measure(
    problem: Problem, folder: Path, seconds: float, kinds: list[str], seed: int
) -> tuple[Results, dict[str, Any]]:
    """All numbers, and what the picture is drawn from: errors, raw and calibrated error bars of the test set."""
    options = {**problem.options, "seed": seed}
    models = train_kinds(kinds, problem.data, folder, seconds, **options)
    signals = [signal for signal in SIGNALS if signal[0] in kinds]
    sets = score_all(models, problem)
    strange = {case: sets[case] for case in problem.strange}
    labelled = {"test": sets["test"]} | {
        k: s for k, s in strange.items() if problem.strange[k].frames[0].calc is not None
    }
    results: Results = {
        "notes": problem.notes,
        "costs": {k: m.cost for k, m in models.items()},
        "quality": {},
    }
    bars = {s: error_bars(sets["valid"], s) for s in signals}
    for label, scored in labelled.items():
        results["quality"][label] = {title(s): qualities(scored, s, bars[s]) for s in signals}
    results["auroc"] = {
        case: {how: {title(s): told(problem, case, sets["ordinary"], scored, s, how) for s in signals} for how in HOW}
        for case, scored in strange.items()
    }  # fmt: skip
    results["ranking"] = ranking(results)
    test = {title(s): drawn(sets["test"], s, bars[s]) for s in signals}
    return results, test


def error_bars(valid: Scored, signal: Signal) -> Calibration:
    """A calibration: of spread and noise together as the package does it, of others as if they were spreads."""
    scores, _ = valid[signal]
    none = np.full(len(scores.sizes), np.nan)
    spread, noise = spread_and_noise(scores, signal)
    held_out = HeldOut(scores.symbols, scores.errors, spread, scores.sizes, none, none, noise)
    return fit_calibration(held_out, {}, "validation frames")


def spread_and_noise(scores: Scores, signal: Signal) -> tuple[np.ndarray, np.ndarray | None]:
    if signal[1] == "both":
        return scores.signals["spread"], scores.signals["noise"]
    return scores.signals[signal[1]], None


def drawn(scored: Scored, signal: Signal, calibration: Calibration) -> tuple[np.ndarray, ...]:
    """Errors (n, 3), signal and calibrated error bar (n,)."""
    scores, values = scored[signal]
    bars = calibration.force_error_bars(scores.symbols.tolist(), *spread_and_noise(scores, signal))
    return scores.errors, values, bars


def qualities(scored: Scored, signal: Signal, calibration: Calibration) -> dict[str, Any]:
    errors, raw, calibrated = drawn(scored, signal, calibration)
    return {
        "force_mae": float(np.abs(errors).mean()),
        "raw": quality(errors, raw),
        "calibrated": quality(errors, calibrated),
        "crps": crps(errors, calibrated),
    }


def told(
    problem: Problem, case: str, ordinary: Scored, scored: Scored, signal: Signal, how: str
) -> float:
    """AUROC of one case by one signal of the frames, or of the strange atoms against all ordinary ones."""
    (usual, usual_values), (odd, odd_values) = ordinary[signal], scored[signal]
    if how == "atoms":
        negative, positive = usual_values, odd_values[np.concatenate(problem.strange[case].atoms)]
    else:
        negative, positive = usual.per_frame(signal[1], how), odd.per_frame(signal[1], how)
    values = np.concatenate([negative, positive])
    if not np.isfinite(values).all():
        return float("nan")
    return auroc(values, np.arange(len(values)) >= len(negative))


def ranking(results: Results) -> dict[str, float]:
    """Mean rank of each signal (1 is best) in accuracy, Spearman, calibration and telling strange frames."""
    titles = list(results["quality"]["test"])
    test = [results["quality"]["test"][t] for t in titles]
    columns = [
        [entry["force_mae"] for entry in test],
        [-entry["calibrated"]["spearman"] for entry in test],
        [entry["calibrated"]["miscalibration_area"] for entry in test],
    ]
    if results["auroc"]:
        means = [np.mean([c["max"][t] for c in results["auroc"].values()]) for t in titles]
        columns.append([-mean for mean in means])
    ranks = np.mean([rankdata(np.round(column, 4)) for column in columns], axis=0)
    return dict(zip(titles, ranks.tolist(), strict=True))


def tables(system: str, results: Results) -> str:
    """All numbers as text."""
    lines = [f"# {system}: kinds of ensembles at equal cost", ""]
    lines += [f"- {note}" for note in results["notes"]]
    lines += [
        f"- {kind}: {c['members']} members, {c['epochs']} epochs, {c['cpu_seconds']:.0f} CPU s"
        for kind, c in results["costs"].items()
    ]
    for label, entries in results["quality"].items():
        lines += ["", *quality_table(label, entries)]
        if label == "test":
            lines += [
                f"| ({t}, its own DFT cells) | | | {spearman:.2f} | | {ratio:.2f} | | | |"
                for t, (spearman, ratio) in PUBLISHED.items()
            ]
    if results["auroc"]:
        lines += ["", *auroc_table(results["auroc"])]
    means = {t: f"{rank:.2f}" for t, rank in sorted(results["ranking"].items(), key=lambda x: x[1])}
    order = ", ".join(f"{t} {rank}" for t, rank in means.items())
    lines += ["", f"Mean rank (1 is best): {order}.", f"Winner: {next(iter(means))}."]
    return "\n".join(lines) + "\n"


def quality_table(label: str, entries: dict[str, Any]) -> list[str]:
    lines = [
        f"Forces, {label} frames; ratio is rms error / rms bar; before -> after calibration",
        "",
        "| signal | MAE meV/Å | CRPS meV/Å | Spearman | largest 10 % | ratio | within 68 % | within 95 % | area |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name_of, entry in entries.items():
        raw, calibrated = entry["raw"], entry["calibrated"]
        keys = ("rms_error_over_rms_sigma", "coverage_68", "coverage_95", "miscalibration_area")
        cells = [f"{raw[key]:.2f} -> {calibrated[key]:.2f}" for key in keys]
        lines.append(
            f"| {name_of} | {1e3 * entry['force_mae']:.1f} | {1e3 * entry['crps']:.1f} "
            f"| {raw['spearman']:.2f} -> {calibrated['spearman']:.2f} "
            f"| {calibrated['auroc_largest_tenth']:.2f} | {' | '.join(cells)} |"
        )
    return lines


def auroc_table(cases: dict[str, Any]) -> list[str]:
    titles = list(next(iter(cases.values()))["max"])
    lines = [
        "Strange frames told from ordinary ones: AUROC by the largest, mean or energy signal, or by atoms",
        "",
        f"| case | by | {' | '.join(titles)} |",
        "|---|---|" + "---|" * len(titles),
    ]
    for case, by in cases.items():
        for how, values in by.items():
            cells = ["" if np.isnan(values[t]) else f"{values[t]:.2f}" for t in titles]
            lines.append(f"| {case} | {how} | {' | '.join(cells)} |")
    return lines


def picture(test: dict[str, tuple[np.ndarray, ...]]) -> Figure:
    """Error by error bar in bins, and coverage; before calibration dashed, after it solid."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    expected = np.linspace(0.01, 0.99, 50)
    for number, (label, (errors, raw, calibrated)) in enumerate(test.items()):
        size = (errors**2).sum(axis=1)
        for sigma, style in ((raw, "--"), (calibrated, "-")):
            bins = np.array_split(np.argsort(sigma), 12)
            rms = [[np.sqrt(x[b].mean()) for b in bins] for x in (sigma**2, size)]
            ratio = np.abs(errors) / (sigma / np.sqrt(3))[:, None]
            within = [(ratio <= z).mean() for z in norm.ppf(0.5 + expected / 2)]
            options = {"color": f"C{number}", "label": label if style == "-" else None}
            if label != "distance" or style == "-":  # raw distances have no unit of force
                left.loglog(*rms, style, **options)
                right.plot(expected, within, style, **options)
    low, high = left.get_ylim()
    left.plot([low, high], [low, high], color="0.6", lw=0.8)
    right.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    left.set(
        xlabel="error bar in eV/Å (rms of each bin)", ylabel="error of the force in eV/Å (rms)"
    )
    right.set(xlabel="expected share of errors within the bar", ylabel="observed share")
    left.legend(frameon=False, fontsize="small", title="before - - , after — calibration")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=["sto", "ean", "dft"], required=True)
    parser.add_argument("-o", "--output", type=Path, default=Path("extrapolation"), help="folder")
    parser.add_argument("--seconds", type=float, default=150.0, help="CPU time of each training")
    parser.add_argument("--frames", type=int, default=100, help="to train on, at most; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters of all members")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--data", type=Path, help="other data for ean: extxyz.xz with info split")
    given = parser.parse_args()
    folder = given.output / given.system
    folder.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    try:
        problem = load(given.system, given.frames, data=given.data)
    except FileNotFoundError as error:
        raise SystemExit(f"skipped: {error}") from error
    results, test = measure(problem, folder, given.seconds, given.kinds, given.seed)
    results["cpu_seconds_in_all"] = time.process_time() - began
    text = tables(given.system, results)
    folder.with_suffix(".json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    folder.with_suffix(".md").write_text(text, encoding="utf-8")
    picture(test).savefig(folder.with_suffix(".png"), dpi=150)
    print(text)


if __name__ == "__main__":
    main()
