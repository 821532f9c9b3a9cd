"""How much do quantum nuclei stretch N-H bonds? Path-integral MD of the ion pair by i-PI, with the committee's error.

    python md_examples/path_integral.py 2000

Needs ``pip install neuralil-ase[ipi]``. Runs i-PI twice at 300 K, with one bead (classical nuclei) and with sixteen,
and draws the distribution of N-H distances, path_integral.png; one of the three protons is shared with the nitrate.
The bands are the spread over the members of the ensemble: each would have made another trajectory, and the frames of
this one are reweighted for it by a cumulant expansion of first order (Imbalzano et al., J. Chem. Phys. 154, 074102
(2021)). They do not include the sampling error, which is printed with the mean.
"""

import argparse
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from matplotlib.figure import Figure

from neuralil_ase.hosts import ipi_driver

EXAMPLES = Path(__file__).parent
TEMPERATURE = 300
EVERY = 4  # steps between frames
BINS = np.linspace(0.85, 1.6, 61)
INPUT = """
<simulation verbosity='low' safe_stride='1000000'>
  <output prefix='run'>
    <properties stride='{every}' filename='out'> [step, time{{femtosecond}}, potential{{electronvolt}}] </properties>
    <trajectory stride='{every}' filename='beads' format='xyz'> positions{{angstrom}} </trajectory>
    <trajectory stride='{every}' filename='members' extra_type='committee_pot'> extras </trajectory>
  </output>
  <total_steps> {steps} </total_steps>
  <prng><seed> 1 </seed></prng>
  <ffcommittee name='committee'>
    <parse_json> True </parse_json>
    <ffsocket mode='unix' name='neuralil' pbc='false'>
      <address> {address} </address>
      <batch_size> {beads} </batch_size>
      <exit_on_disconnect> True </exit_on_disconnect>
    </ffsocket>
  </ffcommittee>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='ase'> start.xyz </file>
      <velocities mode='thermal' units='kelvin'> {temperature} </velocities>
    </initialize>
    <forces><force forcefield='committee'/></forces>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'> 0.25 </timestep>
        <thermostat mode='pile_l'><tau units='femtosecond'> 50 </tau></thermostat>
      </dynamics>
    </motion>
    <ensemble><temperature units='kelvin'> {temperature} </temperature></ensemble>
  </system>
</simulation>
"""


def run(folder: Path, pair: Atoms, beads: int, steps: int) -> None:
    """i-PI and our client, over a UNIX socket."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*run.*"):
        old.unlink()
    write(folder / "start.xyz", pair, format="extxyz")
    address = f"neuralil-{uuid.uuid4().hex[:12]}"
    text = INPUT.format(
        every=EVERY, steps=steps, address=address, beads=beads, temperature=TEMPERATURE
    )
    (folder / "input.xml").write_text(text, encoding="utf-8")
    programs = Path(sys.executable).parent
    with open(folder / "i-pi.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, programs / "i-pi", "input.xml"], cwd=folder, stdout=log, stderr=log
        )
        client = [sys.executable, programs / "i-pi-py_driver", "-u", "-a", address, "-m", "custom",
                  "-P", ipi_driver.__file__, "-o", "template=start.xyz"]  # fmt: skip
        try:
            while not Path(f"/tmp/ipi_{address}").exists():
                if server.poll() is not None:
                    sys.exit(f"i-PI did not start; see {folder / 'i-pi.log'}")
                time.sleep(0.1)
            subprocess.run(client, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            server.wait(60)
        finally:
            server.kill()


def distances(folder: Path) -> np.ndarray:
    """N-H distances in Å, shape (frames, beads, 3)."""
    beads = [read(path, ":", format="xyz") for path in sorted(folder.glob("run.beads_*.xyz"))]
    start = beads[0][0]
    nitrogen = next(k for k, s in enumerate(start.symbols) if s == "N")
    near = start.get_distances(nitrogen, range(len(start)))
    bonded = np.flatnonzero((start.symbols == "H") & (near < 1.25))
    positions = np.array([[atoms.positions for atoms in frames] for frames in beads])
    vectors = positions[:, :, bonded] - positions[:, :, [nitrogen]]
    return np.linalg.norm(vectors, axis=-1).swapaxes(0, 1)


def member_energies(folder: Path) -> np.ndarray:
    """Potential energy of every member in eV, mean over beads, shape (frames, members)."""
    found = []
    for path in sorted(folder.glob("run.members_*")):
        lines = [line for line in path.read_text().splitlines() if "#" not in line]
        found.append(
            [[float(x) for x in line.strip(" []").replace(",", " ").split()] for line in lines]
        )
    return units.Ha * np.array(found).mean(axis=0)


def distribution(bonds: np.ndarray, energies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Density of distances in 1/Å, and its spread over the members."""
    width = BINS[1] - BINS[0]
    counts = np.array([np.histogram(frame, BINS)[0] / frame.size / width for frame in bonds])
    deviations = energies - energies.mean(axis=1, keepdims=True)
    deviations -= deviations.mean(axis=0)
    shifts = -(counts - counts.mean(axis=0)).T @ deviations / len(counts) / (units.kB * TEMPERATURE)
    return counts.mean(axis=0), shifts.std(axis=1, ddof=1)


def standard_error(bonds: np.ndarray) -> float:
    """Of the mean distance, from five parts of the run."""
    means = [part.mean() for part in np.array_split(bonds, 5)]
    return float(np.std(means, ddof=1) / np.sqrt(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", type=int, nargs="?", default=2000)
    parser.add_argument("--beads", type=int, default=16)
    options = parser.parse_args()
    pair = read(EXAMPLES / "ean_pair.extxyz")
    pair.cell = [60.0, 60.0, 60.0]  # i-PI needs a cell; the potential sees that it is not periodic
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for beads, name in ((1, "classical"), (options.beads, f"quantum, {options.beads} beads")):
        folder = Path("path_integral") / f"{beads}_beads"
        run(folder, pair, beads, options.steps)
        equilibration = len(member_energies(folder)) // 4
        bonds = distances(folder)[equilibration:]
        energies = member_energies(folder)[equilibration:]
        density, spread = distribution(bonds, energies)
        centers = (BINS[1:] + BINS[:-1]) / 2
        (line,) = axes.plot(centers, density, label=name)
        band = density - spread, density + spread
        axes.fill_between(centers, *band, alpha=0.3, color=line.get_color(), lw=0)
        spread_of_energy = energies.std(axis=1, ddof=1).mean()
        print(f"{name}: N-H distance {bonds.mean():.4f} ± {standard_error(bonds):.4f} Å, standard deviation "
              f"{bonds.std():.4f} Å; spread of energy over the members {spread_of_energy:.3f} eV")  # fmt: skip
    axes.set(xlabel="N-H distance (Å)", ylabel="density (1/Å)")
    axes.legend(frameon=False)
    figure.savefig("path_integral.png", dpi=150)


if __name__ == "__main__":
    main()
