"""The data sets of tables.py, and the errors of any calculator on them. It needs nothing but ASE.

Environments of other projects (train_peers.py) use it, too.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
FOLDS = 5
Split = tuple[list[Atoms], list[Atoms]]


@dataclass(frozen=True)
class DataSet:
    """Files of one set: with test files, or a key that says "test" of a frame, one split; otherwise folds."""

    train: tuple[Path, ...]
    test: Path | None = None
    key: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether its files are."""
        return all(path.is_file() for path in (*self.train, *filter(None, [self.test])))

    def splits(self) -> list[Split]:
        """Structures to train on, and to test on."""
        structures = [atoms for path in self.train for atoms in read(path, ":")]
        if self.test is not None:
            return [(structures, read(self.test, ":"))]
        if self.key is not None:
            is_test = [atoms.info[self.key] == "test" for atoms in structures]
            parts = [
                [a for a, t in zip(structures, is_test, strict=True) if t == wanted]
                for wanted in (False, True)
            ]
            return [(parts[0], parts[1])]
        return [
            ([atoms for i, atoms in enumerate(structures) if i % FOLDS != k], structures[k::FOLDS])
            for k in range(FOLDS)
        ]


def _data_sets() -> dict[str, DataSet]:
    tables, original = SHARED / "tables", SHARED / "original"
    found = {
        element: DataSet(
            (tables / f"mlearn_{element}_train.extxyz.xz",),
            tables / f"mlearn_{element}_test.extxyz.xz",
        )
        for element in ("Ni", "Cu", "Si", "Mo", "Ge", "Li")
    }
    found["acetylacetone"] = DataSet(
        (tables / "acac_train_300K.extxyz.xz", tables / "acac_isolated_atoms.extxyz"),
        tables / "acac_test_MD_300K.extxyz.xz",
    )
    found["EAN"] = DataSet((original / "ean_dft_50.extxyz",))
    found["SrTiO3"] = DataSet((original / "sto_dft_100.extxyz",))
    own = ROOT / "md_examples" / "ean_gfn1" / "ean_gfn1.extxyz.xz"
    found["EAN GFN1"] = DataSet((own,), key="split")
    return found


DATA_SETS = _data_sets()


def score_peer(calculator: Any, structures: list[Atoms]) -> dict[str, Any]:
    """Errors of a calculator that is there, on the test frames."""
    sizes = np.array([len(atoms) for atoms in structures])
    energies, forces, seconds = [], [], 0.0
    for atoms in structures:
        labelled = atoms.get_potential_energy(), atoms.get_forces()
        copy = atoms.copy()
        copy.calc = calculator
        began = time.process_time()
        energies.append(copy.get_potential_energy() - labelled[0])
        forces.append(copy.get_forces() - labelled[1])
        seconds += time.process_time() - began
    per_atom = np.array(energies) / sizes
    return {
        "frames": [0, 0, len(structures)],
        "step_us_per_atom": round(1e6 * seconds / int(sizes.sum()), 2),
        "molecule_rmse_meV": 1e3 * rmse(np.array(energies)),
        "card": {
            "energy_meV_per_atom": _errors(per_atom),
            "force_meV_per_A": _errors(np.concatenate(forces)),
        },
    }


def _errors(errors: np.ndarray) -> dict[str, float]:
    return {"mae": 1e3 * float(np.abs(errors).mean()), "rmse": 1e3 * rmse(errors)}


def rmse(errors: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(errors**2)))
