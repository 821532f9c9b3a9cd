"""What a LAMMPS input must know about a model, as lines that LAMMPS reads: ``neuralil-ase info MODEL --lammps``."""

import os
from pathlib import Path
from typing import Literal

from neuralil_ase.errors import ModelFileError
from neuralil_ase.files.model_file import default_model, load_potential

LAMMPS_UNITS = {"metal": 1.0, "real": 23.060549}
"""1 eV in each unit system of LAMMPS, as LAMMPS itself converts energies; lengths are in Å in both systems."""


def variables(
    model: str | os.PathLike[str] | None = None, units: Literal["metal", "real"] = "metal"
) -> str:
    """Definitions of variables for ``include``; values given to ``lmp`` with ``-var`` override them.

    Parameters
    ----------
    model
        Model file; by default the one that ships with the package.
    units
        Unit system of the thresholds: eV/Å for "metal", kcal/(mol Å) for "real".

    Returns
    -------
    str
        ``model`` (the absolute path), ``elements``, ``members``, ``cutoff`` in Å; for a calibrated model also ``low``
        and ``high``, the monitor's thresholds for the largest force spread.

    Raises
    ------
    ModelFileError
        If the file cannot be read, or if LAMMPS cannot read its path.
    """
    path = Path(default_model() if model is None else model).resolve()
    potential = load_potential(path)
    config, calibration = potential.config, potential.calibration
    values: dict[str, object] = {
        "model": _quoted(path),
        "elements": f'"{" ".join(potential.elements)}"',
        "members": potential.n_members,
        "cutoff": config.descriptor.r_cut,
    }
    bands = calibration.thresholds if calibration is not None else {}
    values |= {name: f"{LAMMPS_UNITS[units] * bands[name]:.8g}" for name in bands}
    lines = [f"variable {name} index {value}" for name, value in values.items()]
    if not bands:
        lines.append("# no thresholds low and high: the model is not calibrated")
    return "\n".join([f"# for units {units}, by neuralil-ase info --lammps", *lines])


def _quoted(path: Path) -> str:
    """The path. With blanks, in quotes that remain in the value of the variable."""
    text = str(path)
    if not text.isprintable() or any(character in text for character in "\"'$#&"):
        raise ModelFileError(
            f"LAMMPS cannot read a path with quotes, $, # or &: {text!r}. Move or rename the model"
        )
    return f"""'"{text}"'""" if " " in text else text
