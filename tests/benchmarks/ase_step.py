"""CPU and wall time of one MD step through ASE, for one calculator: a JSON line for each size.

Runs in whatever environment its interpreter belongs to, so that peers are measured with the same code:

    python tests/benchmarks/ase_step.py neuralil-1 --repeat 1 2 3 --steps 200
    /path/to/calorine/bin/python tests/benchmarks/ase_step.py nep --repeat 1 2 3

VelocityVerlet, 0.5 fs, 300 K, the 225-atom EAN start structure repeated; all that a step costs is
included: list rebuilds, transfers, ASE's own bookkeeping. Parameters are random: speed does not depend on them.
"""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from peers import PEERS

if TYPE_CHECKING:  # peers run without neuralil_ase
    from neuralil_ase.model.config import NetworkKind
    from neuralil_ase.prediction import Uncertainty

START = Path(__file__).parents[2] / "md_examples" / "ean_start.extxyz"


def neuralil(
    members: int, level: "Uncertainty", network: "NetworkKind" = "core", shared: int = 0
) -> Any:
    from neuralil_ase import NeuralILCalculator, Potential
    from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
    from neuralil_ase.model.network import init_params

    widths = (64, 32, 16, 16, 16) if network == "core" else (64, 32, 16)
    config = ModelConfig(
        DescriptorConfig(("C", "H", "N", "O"), n_max=4, r_cut=3.5),
        NetworkConfig(network, widths, shared_layers=shared),
        n_members=members,
    )
    params = init_params(config, 0)
    final = params["network"]["body"]["denormalizer"]
    final["kernel"] = 1e-3 * final["kernel"]  # so small a force that atoms fly straight at 300 K
    potential = Potential(config, params, np.zeros(4))
    return NeuralILCalculator(potential, uncertainty=level)


CALCULATORS = {
    "neuralil-1": lambda: neuralil(1, "off"),
    "neuralil-2": lambda: neuralil(2, "energy"),
    "neuralil-5": lambda: neuralil(5, "energy"),
    "neuralil-10": lambda: neuralil(10, "energy"),
    "neuralil-20": lambda: neuralil(20, "energy"),
    "neuralil-10-shared": lambda: neuralil(10, "energy", shared=3),
    "neuralil-10-forces": lambda: neuralil(10, "forces"),
    "neuralil-resnet-1": lambda: neuralil(1, "off", "resnet"),
    "neuralil-resnet-10": lambda: neuralil(10, "energy", "resnet"),
    **PEERS,
}


def measure(name: str, atoms: Atoms, steps: int) -> dict[str, Any]:
    """Medians and means over single steps, the first ones (compilation) apart."""
    atoms.calc = CALCULATORS[name]()
    start = time.perf_counter()
    atoms.get_forces()
    first = time.perf_counter() - start
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    dyn = VelocityVerlet(atoms, 0.5 * units.fs)
    dyn.run(5)
    cpu, wall = np.empty(steps), np.empty(steps)
    for k in range(steps):
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        dyn.run(1)
        cpu[k], wall[k] = time.process_time() - cpu_start, time.perf_counter() - wall_start
    return {
        "calculator": name,
        "atoms": len(atoms),
        "cpu_ms": 1e3 * float(np.median(cpu)),
        "cpu_mean_ms": 1e3 * float(cpu.mean()),
        "wall_ms": 1e3 * float(np.median(wall)),
        "first_call_s": first,
        "compilations": getattr(atoms.calc, "compilations", None),
        "list_builds": getattr(atoms.calc, "neighbor_list_builds", None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("calculator", choices=CALCULATORS)
    parser.add_argument("--repeat", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    cell = read(START)
    for repeat in options.repeat:
        atoms = cell.repeat(repeat)
        record = measure(options.calculator, atoms, max(options.steps // repeat**2, 10))
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
