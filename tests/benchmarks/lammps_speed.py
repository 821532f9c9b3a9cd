"""CPU time of one LAMMPS step for each atom: NeuralIL and other potentials in the same binary and run.

    python tests/benchmarks/lammps_speed.py --rounds 3
    python tests/benchmarks/lammps_speed.py --memory 1000000
    python tests/benchmarks/lammps_speed.py --nep calorine-4.1/src/nepy  # of its source archive

Each row is one input on one rank, NVE at 0.5 fs. In a round all rows run once; the last column is the median of the
ratios to NeuralIL with one member in the same round. EAN has 1800 atoms, and the metals as many in their own structure.
CPU time is that of LAMMPS's loop: its length times the CPU use that LAMMPS prints. --ranks 2 compares wall times, also
with independent runs at once, which show what the machine has to give.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory

import numpy as np
from ase.io import read
from ase.io.lammpsdata import write_lammps_data
from ase_step import CALCULATORS, START
from peers import write_nep

from neuralil_ase import save_potential
from neuralil_ase.hosts import lammps as host

PROGRAMS = Path(sys.executable).parent
DYNAMICS = (
    "velocity all create 300 1 dist gaussian\ntimestep {step}\nfix move all nve\nthermo 1000\n"
)
SPREAD = "fix u all pair {every} neuralil {name} 1\n"
METALS = {
    "snap (Mo, Zuo 2020)": ("bcc 3.16", "Mo", 95.9, "snap",
                            "Mo_Zuo_JPCA2020.snapcoeff Mo_Zuo_JPCA2020.snapparam Mo"),
    "uf3 (Nb)": ("bcc 3.32", "Nb", 92.9, "uf3 3", "Nb.uf3 Nb"),
    "pod (Ta)": ("bcc 3.30", "Ta", 180.9, "pod", "Ta_param.pod Ta_coeff.pod Ta"),
}  # fmt: skip


def inputs(folder: Path, repeat: int) -> dict[str, tuple[str, int]]:
    """By row: an input without its run command, and how many steps it is given."""
    atoms = read(START).repeat(repeat)
    for units, style in (("metal", "atomic"), ("real", "charge")):
        path = folder / f"{units}.data"
        write_lammps_data(
            path, atoms, specorder=list("CHNO"), masses=True, units=units, atom_style=style
        )
    for name in ("neuralil-1", "neuralil-10"):
        save_potential(CALCULATORS[name]().potential, folder / f"{name}.safetensors")
    head = "units metal\natom_style atomic\nread_data metal.data\n"
    head += "pair_style neuralil {model}.safetensors\npair_coeff * * C H N O\n"
    found = {}
    for row, model, every, name in (
        ("NeuralIL, one member", "neuralil-1", 0, ""),
        ("ten members", "neuralil-10", 0, ""),
        ("ten, energies_std every step", "neuralil-10", 1, "energies_std"),
        ("ten, forces_std every 10th", "neuralil-10", 10, "forces_std"),
        ("ten, forces_std every step", "neuralil-10", 1, "forces_std"),
    ):
        spread = SPREAD.format(every=every, name=name) if every else ""
        found[row] = (head.format(model=model) + DYNAMICS.format(step=0.0005) + spread, 100)
    reax = "units real\natom_style charge\nread_data real.data\npair_style reaxff NULL\n"
    reax += "pair_coeff * * ffield.reax.rdx C H N O\nfix q all qeq/reaxff 1 0.0 10.0 1e-6 reaxff\n"
    found["reaxff (EAN, rdx)"] = (reax + DYNAMICS.format(step=0.5), 20)
    for row, (lattice, _, mass, style, coefficients) in METALS.items():
        text = f"units metal\nlattice {lattice}\nregion r block 0 10 0 10 0 9\ncreate_box 1 r\n"
        text += f"create_atoms 1 box\nmass 1 {mass}\npair_style {style}\n"
        text += f"pair_coeff * * {coefficients}\n"
        found[row] = (text + DYNAMICS.format(step=0.0005), 20)
    return found


def with_nep(sources: Path, folder: Path) -> tuple[str, int]:
    """NEP's own class for LAMMPS, of the sources of calorine, in a pair style that is compiled here."""
    product, lammps = folder / "nepplugin.so", host.lammps_folder()
    includes = (sources, lammps / "include" / "lammps", PROGRAMS.parent / "include")
    command = ["c++", "-std=c++17", "-O3", "-march=native", "-fPIC", "-shared"]
    command += [f'-DVERSION="{host.lammps_date(version("lammps"))}"']
    command += [f"-I{path}" for path in includes]
    parts = [path for path in sources.glob("*.cpp") if path.name != "nepy.cpp"]
    command += [str(path) for path in (Path(__file__).with_name("pair_nep.cpp"), *parts)]
    subprocess.run([*command, "-o", str(product)], check=True)
    write_nep(folder / "nep.txt")
    text = f"plugin load {product}\nunits metal\natom_style atomic\nread_data metal.data\n"
    text += "pair_style nep nep.txt\npair_coeff * * C H N O\n"
    return text + DYNAMICS.format(step=0.0005), 40


def run(text: str, steps: int, folder: Path, ranks: int = 1) -> tuple[float, str, float]:
    """µs of CPU for an atom and step, all ranks together; what was printed; seconds for a step."""
    (folder / "in.lmp").write_text(f"{text}run 5\nrun {steps}\n")
    potentials = host.lammps_folder() / "share" / "lammps" / "potentials"
    settings = {
        "LAMMPS_POTENTIALS": str(potentials),
        "LAMMPS_PLUGIN_PATH": str(host.build()),
        "OMP_NUM_THREADS": "1",
    }
    command = [PROGRAMS / "mpiexec", "-n", str(ranks), PROGRAMS / "lmp", "-in", "in.lmp"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | settings, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-1000:] + done.stderr)
    loop = re.findall(r"Loop time of (\S+) on \d+ procs for (\d+) steps with (\d+)", done.stdout)
    use = re.findall(r"([\d.]+)% CPU use", done.stdout)
    seconds, count, atoms = (float(value) for value in loop[-1])
    cpu = 1e6 * seconds * float(use[-1]) / 100 * ranks / count / atoms
    return cpu, done.stdout, seconds / count


def table(found: dict[str, list[float]]) -> str:
    """Medians over the rounds, and medians of the ratios to the first row."""
    first = np.array(next(iter(found.values())))
    lines = ["| potential | µs of CPU for an atom and step | / one member |", "|---|---|---|"]
    for row, values in found.items():
        ratio = np.median(np.array(values) / first)
        lines.append(f"| {row} | {np.median(values):.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def memory(atoms: int, folder: Path) -> float:
    """Bytes for an atom: peak of a run of one step with `atoms` atoms, over that with 1800."""
    peaks = {}
    for repeat in (2, round((atoms / 225) ** (1 / 3))):
        text, _ = inputs(folder, repeat)["NeuralIL, one member"]
        printed = run(f"{text}run 1\ninfo memory\n", 1, folder)[1]
        peaks[225 * repeat**3] = float(re.findall(r"Maximum resident set size: (\S+)", printed)[-1])
    (few, small), (many, large) = peaks.items()
    return 2**20 * (large - small) / (many - few)


def speedup(ranks: int, rounds: int, folder: Path) -> tuple[float, float]:
    """Gains in wall time of a step, 6075 atoms and ten members; medians over rounds.

    The first is that of several ranks over one. The second is what the machine allows: as many independent runs at
    once, over one run alone.
    """
    text, steps = inputs(folder, 3)["ten, energies_std every step"]
    copies = [folder / str(k) for k in range(ranks)]
    for copy in copies:
        copytree(folder, copy, ignore=ignore_patterns("[0-9]*"))
    gains = []
    with ThreadPoolExecutor(ranks) as pool:
        for _ in range(rounds):
            one = run(text, steps, folder)[2]
            several = run(text, steps, folder, ranks)[2]
            alone = [run_[2] for run_ in pool.map(lambda copy: run(text, steps, copy), copies)]
            gains.append((one / several, one * ranks / np.mean(alone)))
    gain, ceiling = np.median(gains, axis=0)
    return float(gain), float(ceiling)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2, help="copies of the cell along an axis")
    parser.add_argument("--ranks", type=int, help="gain by so many ranks instead")
    parser.add_argument("--nep", type=Path, metavar="SOURCES", help="NEP, too, of this nep.cpp")
    parser.add_argument("--memory", type=int, metavar="ATOMS", help="bytes for an atom instead")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        if options.memory:
            print(f"{memory(options.memory, folder):.0f} bytes for an atom")
            return
        if options.ranks:
            gain, ceiling = speedup(options.ranks, options.rounds, folder)
            print(
                f"{options.ranks} ranks: {gain:.2f} times one; independent runs at once: {ceiling:.2f}"
            )
            return
        rows = inputs(folder, options.repeat)
        if options.nep is not None:
            rows["nep (EAN, random)"] = with_nep(options.nep, folder)
        found: dict[str, list[float]] = {row: [] for row in rows}
        for _ in range(options.rounds):
            for row, (text, steps) in rows.items():
                found[row].append(run(text, steps, folder)[0])
        print(table(found))


if __name__ == "__main__":
    main()
