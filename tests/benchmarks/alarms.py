"""Does the monitor keep quiet where it should, and stop where it must? One model in four runs of liquid EAN.

    python tests/benchmarks/alarms.py --model MODEL.safetensors -o alarms

- ordinary: NVT at 300 K; every flag is a false alarm.
- heated: from 300 K towards 1500 K, stop=True; run on without the monitor afterwards, to see when a molecule breaks.
- compressed: 30 % less volume at once, ions rigid, stop=True.
- squeezed: the volume taken away 1 % at a time, ions and all, with MD in between, stop=True.

The monitor looks at member forces every 10th step, with the thresholds of the model file: on the largest spread, or
with --criterion relative on the largest in units of what is usual for the element. Molecules are looked at
on the same steps. A proton passing to a nitrate is a reaction of GFN1-xTB, counted apart; any other bond beyond 1.5
times its length, or a hydrogen held by two heavy atoms, is in no training set of this liquid. Writes alarms.json and
alarms.md.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, thermalize_momenta

from neuralil_ase import ExtrapolationMonitor, NeuralILCalculator, Potential, load_potential
from neuralil_ase.files.model_file import default_model
from neuralil_ase.monitor import Criterion, MaxForceSpread, RelativeForceSpread

EXAMPLES = Path(__file__).resolve().parents[2] / "md_examples"
MODELS = EXAMPLES.parent / "neuralil_ase" / "shipped"
sys.path.insert(0, str(EXAMPLES / "ean_gfn1"))

from ean_boxes import broken_bonds, fused_hydrogens, scale_volume  # noqa: E402 - from there

INTERVAL = 10
COMPRESSED = 0.7
SQUEEZE = 0.99
CRITERIA: dict[str, Criterion] = {
    "absolute": MaxForceSpread(),
    "relative": RelativeForceSpread(low=None),
}


@dataclass
class Molecules:
    """The step at which something first happened to a molecule, and the largest force seen, eV/Å."""

    atoms: Atoms
    broken: int | None = None
    transferred: int | None = None
    fused: int | None = None
    max_force: float = 0.0
    what: list[str] = field(default_factory=list)

    def look(self, step: int) -> None:
        """At the present frame."""
        pairs = [tuple(self.atoms.symbols[pair]) for pair in broken_bonds(self.atoms)]
        others = [pair for pair in pairs if set(pair) != {"N", "H"}]
        if others and self.broken is None:
            self.broken = step
            self.what.append(", ".join("-".join(pair) for pair in others) + f" at step {step}")
        if len(others) < len(pairs) and self.transferred is None:
            self.transferred = step
        if len(fused_hydrogens(self.atoms)) and self.fused is None:
            self.fused = step
        forces = self.atoms.get_forces()
        self.max_force = max(self.max_force, float(np.linalg.norm(forces, axis=1).max()))

    @property
    def first_harm(self) -> int | None:
        """The first step of what no training set of this liquid has."""
        return min((s for s in (self.broken, self.fused) if s is not None), default=None)

    def record(self) -> dict[str, Any]:
        """For JSON, as of now."""
        names = ("broken", "transferred", "fused", "max_force", "first_harm")
        return {name: getattr(self, name) for name in names} | {"what": list(self.what)}


@dataclass(frozen=True)
class Setup:
    """What all runs share."""

    potential: Potential
    start: Atoms
    seed: int
    criterion: str = "absolute"

    def dynamics(self, atoms: Atoms, temperature: float) -> Langevin:
        """Langevin dynamics from 300 K, at the given temperature of the bath."""
        atoms.calc = NeuralILCalculator(self.potential, uncertainty="off")
        rng = np.random.default_rng(self.seed)
        thermalize_momenta(atoms, temperature_K=300, rng=rng)
        Stationary(atoms)
        return Langevin(
            atoms,
            0.5 * units.fs,
            temperature_K=temperature,
            friction=0.01 / units.fs,
            rng=rng,
            fixcm=False,
        )


def ordinary(setup: Setup, steps: int) -> dict[str, Any]:
    """NVT at 300 K."""
    return _run(setup, setup.start.copy(), 300.0, steps, stop=False)


def heated(setup: Setup, steps: int) -> dict[str, Any]:
    """Towards 1500 K; after the stop on alone, for at most as many steps as are left."""
    return _run(setup, setup.start.copy(), 1500.0, steps, stop=True, run_on=True)


def compressed(setup: Setup, steps: int) -> dict[str, Any]:
    """At 70 % of the volume from the first step on."""
    return _run(setup, scale_volume(setup.start, COMPRESSED), 300.0, steps, stop=True)


def squeezed(setup: Setup, steps: int) -> dict[str, Any]:
    """1 % of the volume less before every check, down to 70 %."""
    atoms = setup.start.copy()
    first = atoms.get_volume()
    volumes = {0: 1.0}

    def squeeze(step: int) -> None:
        if atoms.get_volume() > COMPRESSED * first * 1.001:
            atoms.set_cell(atoms.cell.array * SQUEEZE ** (1 / 3), scale_atoms=True)
            atoms.get_forces()
        volumes[step] = atoms.get_volume() / first

    result = _run(setup, atoms, 300.0, min(steps, 40 * INTERVAL), stop=True, before=squeeze)
    for name in ("flagged", "high", "stopped"):
        step = result[f"{name}_at"]
        result[f"volume_{name}"] = None if step is None else volumes.get(step)
    return result


def _run(
    setup: Setup,
    atoms: Atoms,
    temperature: float,
    steps: int,
    *,
    stop: bool,
    run_on: bool = False,
    before: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    began = time.process_time()
    dyn = setup.dynamics(atoms, temperature)
    molecules = Molecules(atoms)
    monitor = ExtrapolationMonitor(dyn, criteria=[CRITERIA[setup.criterion]], warn=False, stop=stop)

    def look() -> None:
        if before is not None and dyn.nsteps > 0 and not monitor.stopped:
            before(dyn.nsteps)
        molecules.look(dyn.nsteps)
        if not monitor.stopped:
            monitor()

    dyn.attach(look, interval=INTERVAL)
    dyn.run(steps)
    result = _reading(monitor, atoms, dyn.nsteps) | {"molecules": molecules.record()}
    result["temperature_K"] = float(atoms.get_temperature())
    if run_on and monitor.stopped:
        _until_harm(dyn, molecules, steps)
        result["molecules_later"] = molecules.record()
    result["cpu_seconds"] = time.process_time() - began
    return result


def _until_harm(dyn: Langevin, molecules: Molecules, steps: int) -> None:
    """Go on until a molecule breaks, or the steps are used up."""
    while molecules.first_harm is None and dyn.nsteps < steps:
        dyn.run(INTERVAL)


def _reading(monitor: ExtrapolationMonitor, atoms: Atoms, steps: int) -> dict[str, Any]:
    records, (criterion,) = monitor.records, monitor.criteria
    spread, band, at = (records[name] for name in (criterion.name, "band", "step"))
    flagged, high = band >= 1, band >= 2
    worst = records[f"{criterion.name}_atom"].astype(int)
    return {
        "steps": steps,
        "checks": len(band),
        "flagged": int(flagged.sum()),
        "episodes": int(flagged[0]) + int((flagged[1:] & ~flagged[:-1]).sum()),
        "high": int(high.sum()),
        "flagged_at": _first(at, flagged),
        "high_at": _first(at, high),
        "stopped_at": steps if monitor.stopped else None,
        "low": criterion.low,
        "threshold_high": criterion.high,
        "criterion": criterion.name,
        "unit": criterion.unit,
        "largest": float(spread.max()),
        "quantiles_of_largest": {str(q): float(np.quantile(spread, q)) for q in (0.5, 0.9, 0.99)},
        "elements_flagged": dict(Counter(atoms.symbols[i] for i in worst[flagged]))
        if flagged.any()
        else {},
    }


def _first(steps: np.ndarray, chosen: np.ndarray) -> int | None:
    return int(steps[chosen][0]) if chosen.any() else None


def verdicts(results: dict[str, Any]) -> dict[str, bool]:
    """The bars: quiet at 300 K, and stopped before harm elsewhere."""
    found = {"ordinary: not flagged at 300 K": results["ordinary"]["flagged"] == 0}
    found["ordinary: never high at 300 K"] = results["ordinary"]["high"] == 0
    for run in ("heated", "compressed", "squeezed"):
        stopped = results[run]["stopped_at"] is not None
        whole = results[run]["molecules"]["first_harm"] is None
        found[f"{run}: stopped before a molecule broke"] = stopped and whole
    found["compressed: flagged at the first check"] = results["compressed"]["flagged_at"] == 0
    return found


def table(results: dict[str, Any], model: str) -> str:
    first = results["ordinary"]
    lines = [
        f"Model {model}: thresholds {first['low']:.3f} and {first['threshold_high']:.3f} {first['unit']} on "
        f"{first['criterion']} (force spread: standard deviation over members, ddof 1, norm over x, y, z)",
        "",
        "| run | steps | checks | flagged | high | first flag | stop | largest spread | first harm | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run, r in results.items():
        harm = (r.get("molecules_later") or r["molecules"])["first_harm"]
        lines.append(
            f"| {run} | {r['steps']} | {r['checks']} | {r['flagged']} | {r['high']} | {_step(r['flagged_at'])} "
            f"| {_step(r['stopped_at'])} | {r['largest']:.2f} | {_step(harm)} | {r['cpu_seconds']:.0f} |"
        )
    per = 1e4 / max(first["steps"], 1)
    lines += ["", f"False alarms per 10⁴ steps at 300 K: {per * first['flagged']:.0f} checks in "
              f"{per * first['episodes']:.0f} episodes, {per * first['high']:.0f} high; by element "
              f"{first['elements_flagged']}; median of the largest spread "
              f"{first['quantiles_of_largest']['0.5']:.3f} eV/Å."]  # fmt: skip
    hot = results["heated"]
    later = (hot.get("molecules_later") or hot["molecules"])["what"] or ["nothing broke"]
    lines.append(
        f"Heated: {hot['temperature_K']:.0f} K at the end or stop; afterwards {later[0]}; largest force before "
        f"{hot['molecules']['max_force']:.1f} eV/Å."
    )
    if results["squeezed"].get("volume_stopped") is not None:
        volume = results["squeezed"]["volume_stopped"]
        lines.append(f"Squeezed: stopped at {volume:.2f} of the volume.")
    lines += [f"- {'pass' if ok else 'FAIL'}: {what}" for what, ok in verdicts(results).items()]
    return "\n".join(lines) + "\n"


def _step(step: int | None) -> str:
    return "never" if step is None else f"{step}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("--structure", type=Path, default=EXAMPLES / "ean_start.extxyz")
    parser.add_argument("-o", "--output", type=Path, default=Path("alarms"), help="folder")
    parser.add_argument("--steps", type=int, default=10_000, help="of the run at 300 K")
    parser.add_argument("--hot-steps", type=int, default=4_000, help="of the others, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--criterion", choices=list(CRITERIA), default="absolute")
    given = parser.parse_args()
    start: Any = read(given.structure)
    setup = Setup(load_potential(given.model), start, given.seed, given.criterion)
    results = {"ordinary": ordinary(setup, given.steps)}
    results |= {run.__name__: run(setup, given.hot_steps) for run in (heated, compressed, squeezed)}
    given.output.mkdir(parents=True, exist_ok=True)
    text = table(results, given.model.name)
    (given.output / "alarms.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (given.output / "alarms.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
