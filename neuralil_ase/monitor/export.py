"""Spreads into files: frames that extxyz and .traj keep, and that viewers colour by."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from neuralil_ase.monitor.protocols import PredictionLike

_RESULTS = ("energy", "energies", "forces", "stress")


def annotate(
    atoms: Atoms,
    prediction: PredictionLike,
    *,
    per_atom_info: bool = False,
    as_charges: bool = False,
) -> Atoms:
    """A copy of `atoms` that carries the prediction and its spreads into a file.

    ``frame.calc`` holds energy, energies, forces and stress of the model (eV, eV/Å, eV/Å³);
    ``frame.info["energy_std"]`` the spread of the energy (eV); ``frame.arrays["energies_std"]``
    and ``frame.arrays["forces_std"]`` those of each atom's energy (eV) and force (eV/Å), the
    latter when the prediction holds it. Spreads are standard deviations over members with
    ddof 1; of a force, the norm of the vector of component deviations.

    Parameters
    ----------
    atoms : Atoms
        Not changed.
    prediction : PredictionLike
        Of the same geometry.
    per_atom_info : bool
        Also put the arrays into ``frame.info``: a ``.traj`` file keeps info, but not own arrays.
        Leave it off for extxyz, which keeps the arrays.
    as_charges : bool
        Also store the force spread as initial charges, the one per-atom number of this kind that
        the ASE GUI colours by.

    Returns
    -------
    Atoms

    Notes
    -----
    *OVITO*: open the extxyz file, add the modification "Color coding", property ``forces_std``. (OVITO reads an
    entry ``origin`` in ``info`` as a vector and refuses the file if it is text.)
    *ASE GUI*: write with ``as_charges=True``, then View → Colors → By initial charge.
    *nglview*: ``frame.set_array("bfactor", 1e3 * frame.arrays["forces_std"])``, in meV/Å because a PDB file keeps
    two decimals; ``ase.io.write("frame.pdb", frame)``; then ``view = nglview.show_file("frame.pdb")``,
    ``view.clear()`` and ``view.add_spacefill(color_scheme="bfactor")``.

    Examples
    --------
    >>> frame = annotate(atoms, calc.prediction(atoms, uncertainty="forces"))  # doctest: +SKIP
    >>> ase.io.write("frames.extxyz", frame, append=True)  # doctest: +SKIP
    """
    frame = _plain_copy(atoms)
    frame.info["energy_std"] = float(prediction.energy_std)
    spreads = {"energies_std": prediction.energies_std}
    # A prediction without member forces raises UncertaintyError, which is an AttributeError.
    forces_std = getattr(prediction, "forces_std", None)
    if forces_std is not None:
        spreads["forces_std"] = forces_std
        if as_charges:
            frame.set_initial_charges(forces_std)
    for name, values in spreads.items():
        frame.set_array(name, np.array(values, dtype=float))
        if per_atom_info:
            frame.info[name] = np.array(values, dtype=float)
    frame.calc = SinglePointCalculator(frame, **_results(prediction))
    return frame


def _plain_copy(atoms: Atoms) -> Atoms:
    """A copy whose info and arrays do not collide with the results written beside them."""
    frame = atoms.copy()
    for name in (*_RESULTS, "free_energy", "stresses"):
        frame.info.pop(name, None)
        frame.arrays.pop(name, None)
    return frame


def _results(prediction: PredictionLike) -> dict[str, Any]:
    results = {name: getattr(prediction, name, None) for name in _RESULTS}
    return {name: value for name, value in results.items() if value is not None}
