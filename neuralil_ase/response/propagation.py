"""Error bars for any workflow: it runs with the mean potential and with each member."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.errors import ConfigError
from neuralil_ase.progress import Progress
from neuralil_ase.response.estimate import Estimate, error_scale


def propagate(
    function: Callable[[Any], Any],
    atoms: Atoms | Sequence[Atoms],
    calculator: NeuralILCalculator,
    *,
    unit: str = "",
    progress: bool = True,
) -> Estimate:
    """Run a workflow with the mean potential and with every member.

    >>> from ase.build import molecule
    >>> from ase.optimize import BFGS
    >>> from neuralil_ase import NeuralILCalculator
    >>> from neuralil_ase.response import propagate
    >>> def bond(atoms):
    ...     BFGS(atoms, logfile=None).run(fmax=0.01)
    ...     return atoms.get_distance(0, 1)
    >>> length = propagate(bond, molecule("CH3CH2NH2"), NeuralILCalculator(), unit="Å", progress=False)
    >>> length.members.shape
    (8,)

    Parameters
    ----------
    function
        A function of structures with a calculator that returns a number or an array, always of the same shape: the
        result of a relaxation, a barrier, an elastic constant. It may change the structures; each call gets new copies.
    atoms
        The argument of ``function``: one structure, or a list of structures (such as the images of a NEB).
    calculator
        The ensemble.
    unit
        Unit of the result.
    progress
        Show a progress bar.

    Returns
    -------
    Estimate
        Value, members, spread and error bar. The whole workflow, such as a relaxation, is done for each member
        separately, and all of it contributes to the spread.

    Raises
    ------
    ConfigError
        If the results of two members differ in shape.
    """
    is_one = isinstance(atoms, Atoms)
    structures: list[Atoms] = [atoms] if is_one else list(atoms)  # type: ignore[list-item] # is_one tells
    runs = [calculator, *calculator.members()]
    results = []
    with Progress(len(runs), "run", "members", progress) as bar:
        for chosen in runs:
            copies = [structure.copy() for structure in structures]
            for copy in copies:
                copy.calc = chosen
            results.append(np.asarray(function(copies[0] if is_one else copies), float))
            bar.update(len(results))
    shapes = {result.shape for result in results}
    if len(shapes) > 1:
        raise ConfigError(
            f"the workflow returned arrays of different shapes {sorted(shapes)}; it must return the same number of "
            "values for every member. Use NaN for missing values"
        )
    symbols = [symbol for structure in structures for symbol in structure.get_chemical_symbols()]
    value = results[0].item() if results[0].ndim == 0 else results[0]
    return Estimate(value, np.stack(results[1:]), unit, error_scale(calculator.potential, symbols))
