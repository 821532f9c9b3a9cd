"""Restarts: which row of a log belongs to the structure that a run begins with.

A trajectory may be behind the log (frames every 20 steps, checks every 10), so that the run does not continue at the
last row. Energy and spreads depend on the positions alone: a row with the same values belongs to the same structure,
whatever velocities, thermostat or optimiser the run continues with.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from neuralil_ase.errors import MonitorError

ENERGY_NOISE = 2e-6
"""In eV per atom: how much two evaluations of one structure may differ in energy. Five times the effect of float32
instead of float64, another order of summation, and positions rounded to 1e-6 Å, in 225, 450 and 6075 atoms of liquid
EAN."""
SPREAD_NOISE = 2e-3, 5e-6
"""The same for spreads: relative, and absolute (in eV, eV/Å or without unit)."""
TIE = 1e-3
"""Rows whose deviations differ by less than this, in units of the noise, match equally well, as for a structure at
rest."""

Row = Mapping[str, float]
Records = Mapping[str, np.ndarray]


def matching_step(present: Sequence[Row], records: Records, atoms: int) -> int | None:
    """The step whose rows belong to the present structures.

    Parameters
    ----------
    present : sequence of Row
        One row for each image.
    records : mapping of str to array
        The log, by column.
    atoms : int
        Number of atoms of a structure.

    Returns
    -------
    int or None
        The latest of the steps that match best; None if no step matches within the noise.
    """
    worst: dict[float, float] | None = None
    for row in present:
        same_image = records["image"] == row["image"]
        deviations = _deviations(
            row, {name: column[same_image] for name, column in records.items()}, atoms
        )
        steps = records["step"][same_image].tolist()
        one = dict(zip(steps, deviations.tolist(), strict=True))
        worst = one if worst is None else {s: max(d, one[s]) for s, d in worst.items() if s in one}
    if not worst or (best := min(worst.values())) > 1:
        return None
    return int(max(step for step, deviation in worst.items() if deviation <= best + TIE))


def unknown_structure(path: Path, present: Sequence[Row], records: Records) -> MonitorError:
    """The error for a structure that is in no row of the log."""
    energy = present[0]["energy_eV"]
    nearest = int(np.nanargmin(np.append(np.abs(records["energy_eV"] - energy), np.inf)))
    nearest = min(nearest, len(records["step"]) - 1)
    return MonitorError(
        f"{path}: the structure that this run begins with ({energy:.6f} eV) is in no row of the log; the nearest is "
        f"step {records['step'][nearest]:.0f} with {records['energy_eV'][nearest]:.6f} eV. Usually the run was "
        "restarted from a frame between two checks, from another run, or with another model. Give first_step=, the "
        "number of steps done before this dynamics began (0 if it counts on from the earlier parts itself), or begin "
        "a new log with append=False. No file was changed"
    )


def _deviations(row: Row, records: Records, atoms: int) -> np.ndarray:
    """Largest difference between `row` and each row of the log, in units of the noise; inf without an energy."""
    compared = [
        name
        for name in records
        if name == "energy_std_eV" or (f"{name}_atom" in records and name in row)
    ]
    found = np.abs(records["energy_eV"] - row["energy_eV"]) / (ENERGY_NOISE * atoms)
    found = np.where(np.isfinite(found), found, np.inf)
    relative, absolute = SPREAD_NOISE
    for name in compared:
        known = np.isfinite(records[name]) & np.isfinite(row[name])
        noise = (
            relative * np.abs(row[name])
            + absolute
            + 0.1 * ENERGY_NOISE * atoms * (name == "energy_std_eV")
        )
        difference = np.divide(
            np.abs(records[name] - row[name]), noise, where=known, out=np.zeros(len(known))
        )
        found = np.maximum(found, difference)
    return found
