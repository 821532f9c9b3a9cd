"""Calculators of other projects with random parameters, each for an environment of its own (requirements-*.txt).

Speed does not depend on parameters; all are scaled so that forces are small and atoms fly straight at 300 K.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

SMALL = 1e-3


def nep(r_cut: float = 3.5) -> Any:
    """NEP4 with the size of a published CHNO potential (calorine)."""
    from calorine.calculators import CPUNEP

    path = Path(tempfile.mkdtemp()) / "nep.txt"
    write_nep(path, r_cut)
    return CPUNEP(str(path))


def write_nep(path: Path, r_cut: float = 3.5) -> None:
    """The file of that model, with random parameters."""
    n_types, n_max, basis, l_max, neurons = 4, 6, 8, 4, 30
    n_features = (n_max + 1) * (1 + l_max)
    n_parameters = (
        n_types * (n_features + 2) * neurons + 1 + n_types**2 * 2 * (n_max + 1) * (basis + 1)
    )
    values = np.random.default_rng(0).normal(scale=0.05, size=n_parameters)
    header = [
        "nep4 4 C H N O", f"cutoff {r_cut} {r_cut} 100 60", f"n_max {n_max} {n_max}",
        f"basis_size {basis} {basis}", f"l_max {l_max} 0 0", f"ANN {neurons} 0",
    ]  # fmt: skip
    scale = np.ones(n_features)
    path.write_text("\n".join([*header, *(f"{v:.7e}" for v in [*values, *scale])]) + "\n")


def apax(stress: bool, r_cut: float = 3.5) -> Any:
    """GMNN of the default size. Its calculator reads a trained model only, so it is trained for one epoch on noise."""
    from apax.md import ASECalculator
    from apax.train.run import run

    folder = Path(tempfile.mkdtemp())
    write(folder / "noise.extxyz", _noise())
    data = {"directory": str(folder), "experiment": "model", "data_path": str(folder / "noise.extxyz"),
            "n_train": 2, "n_valid": 2, "batch_size": 1, "valid_batch_size": 1}  # fmt: skip
    model = {"name": "gmnn", "basis": {"name": "gaussian", "r_max": r_cut}, "calc_stress": stress}
    loss = [{"name": "energy"}, {"name": "forces"}]
    run({"n_epochs": 1, "data": data, "model": model, "loss": loss}, log_level="error")
    calculator = ASECalculator(folder / "model")
    calculator.params["params"]["energy_model"]["scale_shift"]["scale_per_element"] *= SMALL
    return calculator


def mace(r_cut: float = 3.5, device: str = "cpu") -> Any:
    """Two layers of 64 scalar channels, correlation 3, float32."""
    import torch

    torch.serialization.add_safe_globals([slice])  # e3nn reads its constants with torch.load
    from e3nn.o3 import Irreps
    from mace import modules
    from mace.calculators import MACECalculator

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=r_cut, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, interaction_cls=block,
        interaction_cls_first=block, num_interactions=2, num_elements=4, hidden_irreps=Irreps("64x0e"),
        MLP_irreps=Irreps("16x0e"), atomic_energies=np.zeros(4), avg_num_neighbors=17.0,
        atomic_numbers=[1, 6, 7, 8], correlation=3, gate=torch.nn.functional.silu, atomic_inter_scale=SMALL,
        atomic_inter_shift=0.0,
    )  # fmt: skip
    return MACECalculator(models=[model], device=device, default_dtype="float32")


def _noise() -> list[Atoms]:
    rng, frames = np.random.default_rng(0), []
    for _ in range(4):
        atoms = Atoms("C2H8N2O3", rng.uniform(0, 6, (15, 3)), cell=[6.0, 6.0, 6.0], pbc=True)
        atoms.calc = SinglePointCalculator(
            atoms, energy=rng.normal(), forces=rng.normal(size=(15, 3))
        )
        frames.append(atoms)
    return frames


PEERS = {"nep": nep, "apax": lambda: apax(False), "apax-stress": lambda: apax(True), "mace": mace}
MOST_ATOMS = {"apax": 2000, "apax-stress": 2000, "mace": 2000}
"""Of those that need some megabytes per atom."""
ENVIRONMENTS = {"calorine": ("nep",), "apax": ("apax", "apax-stress"), "mace": ("mace",)}
"""Which of them an environment offers: requirements-<name>.txt."""
