"""``Confirmed``: the object that an optimiser moves if the teacher is to confirm the minimum."""

from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.optimize.optimize import Optimizer
from ase.utils.abc import Optimizable

from neuralil_ase.errors import ConfigError
from neuralil_ase.learning.calculator import LearningCalculator
from neuralil_ase.learning.decision import Descent
from neuralil_ase.model.potential import Potential

DEEP = 0.5
"""The teacher is asked when the largest force of the model is below this multiple of fmax, or below fmax by more than
its expected error. If it is just below fmax, the teacher's force is above fmax as often as below."""

USUAL = 0.05
"""The default fmax of ASE's optimisers in eV/Å, used until the optimiser gives its own value."""


class _Left(NamedTuple):
    """What an update left at a minimum that was not confirmed.

    Attributes
    ----------
    x
        The degrees of freedom there.
    gradient
        Gradient of the teacher minus that of the models.
    models
        The models.
    """

    x: np.ndarray
    gradient: np.ndarray
    models: list[Potential | None]


class Confirmed(Optimizable):
    """Atoms, a cell filter or a NEB whose minimum the teacher of a :class:`LearningCalculator` confirms.

    >>> from ase.optimize import BFGS
    >>> from neuralil_ase import Confirmed
    >>> Confirmed(atoms).optimizer(BFGS).run(fmax=0.05)  # doctest: +SKIP

    The optimiser uses the forces of the model. On the way to the minimum, error bars may be larger than the tolerance:
    five times fmax, or 0.7 times the largest force of the structure, whichever is larger. When the largest force of the
    model is clearly below fmax, the teacher is asked, and only the teacher's own results end the optimisation. If the
    teacher's forces are larger than fmax, the model learns them and the optimiser continues. From then on, error bars
    near the minimum must be half as large, down to fmax. Until the model learns again, a constant is added to its
    forces, which makes them the teacher's at this minimum: an update leaves an error there, and that of the stress of a
    large cell may be larger than fmax for ever. "Force" means everything that the optimiser compares with fmax; with a
    filter, this includes the cell.

    Every label changes the energy surface. ``BFGS(Confirmed(atoms))`` works, too, but estimates curvatures from forces
    of two surfaces. It takes several times as many steps, and sometimes comes to a halt.

    Parameters
    ----------
    atoms
        Atoms with a :class:`LearningCalculator`, a filter around them, or a band of such atoms (NEB), in which every
        moving image has its own calculator.

    Raises
    ------
    ConfigError
        If ``atoms`` is nothing that an optimiser of ASE can move, has no LearningCalculator, or if images share one.
    """

    def __init__(self, atoms: Any) -> None:
        if not hasattr(atoms, "__ase_optimizable__"):
            raise ConfigError(
                f"Confirmed got {type(atoms).__name__}, which no optimiser of ASE can move: give Atoms, a filter or a "
                "NEB"
            )
        self._atoms = atoms
        self._inner: Optimizable = atoms.__ase_optimizable__()
        self._fmax: float | None = None
        self._refused = 0
        self._left: _Left | None = None
        self._calculators = _calculators_of(atoms)

    def optimizer(self, kind: type[Optimizer], **options: Any) -> Optimizer:
        """An optimiser that begins anew from the present structure whenever the model has learnt.

        Parameters
        ----------
        kind
            Class of an optimiser of ASE, as BFGS.
        options
            Its other arguments, as ``logfile`` and ``trajectory``.

        Raises
        ------
        ConfigError
            If this optimiser works with atoms alone, as those with a preconditioner.
        """
        calculators, confirmed = self._calculators, self
        used: list[Potential | None] = [None] * len(calculators)

        class Renewed(kind):  # type: ignore[misc, valid-type]  # the class is given at run time
            def step(self, *arguments: Any, **named: Any) -> Any:
                present = [calculator.potential for calculator in calculators]
                if any(a is not b for a, b in zip(used, present, strict=True)):
                    self.__dict__.update(confirmed._copy(fresh))
                    used[:] = present
                return super().step(*arguments, **named)

        Renewed.__name__ = Renewed.__qualname__ = kind.__name__  # for the log
        optimizer: Optimizer = Renewed(self, **options)
        if hasattr(optimizer, "_actual_atoms"):
            raise ConfigError(
                f"{kind.__name__} asks atoms for their forces itself, so that its minimum cannot be confirmed: use "
                "BFGS, LBFGS, FIRE or GPMin instead, or give it the atoms themselves, without Confirmed"
            )
        anything: Any = self
        common = vars(Optimizer(anything, logfile=None))
        fresh = self._copy({k: v for k, v in vars(optimizer).items() if k not in common})
        return optimizer

    def _copy(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """A deep copy of the state of an optimiser that moves the same structure."""
        shared = [self, self._inner, self._atoms, *self._calculators]
        if hasattr(
            self._atoms, "images"
        ):  # a band; its iterimages() gives copies, and needs forces
            shared += self._atoms.images
        else:
            shared += self._inner.iterimages()
        if hasattr(self._atoms, "atoms"):
            shared.append(self._atoms.atoms)
        return deepcopy(attributes, {id(item): item for item in shared})

    def __len__(self) -> int:
        return self.ndofs() // 3

    def ndofs(self) -> int:
        """Number of degrees of freedom."""
        return int(self._inner.ndofs())

    def get_x(self) -> np.ndarray:
        """All degrees of freedom, flat."""
        return self._inner.get_x()

    def set_x(self, x: np.ndarray) -> None:
        """Move the structure."""
        self._inner.set_x(x)

    def get_value(self) -> float:
        """Energy in eV."""
        with self._descending():
            value = float(self._inner.get_value())
        left = self._valid_left
        return value if left is None else value + float(left.gradient @ (self.get_x() - left.x))

    def get_gradient(self) -> np.ndarray:
        """Minus the forces, flat; these are the teacher's if the teacher has just been asked."""
        with self._descending():
            gradient = self._shifted(self._inner.get_gradient())
        if self._fmax is None or not self._is_due(gradient, self._fmax):
            return gradient
        return self._asked(self._fmax)

    def gradient_norm(self, gradient: np.ndarray) -> float:
        """What the optimiser compares with fmax."""
        return float(self._inner.gradient_norm(gradient))

    def converged(self, gradient: np.ndarray, fmax: float) -> bool:
        """Whether the teacher's own forces are below fmax."""
        self._fmax = fmax
        if self._is_due(gradient, fmax):
            gradient = self._asked(fmax)
        is_confirmed = all(calculator.is_confirmed for calculator in self._calculators)
        return is_confirmed and bool(self._inner.converged(gradient, fmax))

    def iterimages(self) -> Iterator[Any]:
        """The structures, for a trajectory."""
        yield from self._inner.iterimages()

    def _descending(self) -> ExitStack:
        """Context in which the larger error bars for the way to the minimum are allowed."""
        descent = Descent(self._fmax or USUAL, self._refused)
        with ExitStack() as stack:
            for calculator in self._calculators:
                stack.enter_context(calculator.descending(descent))
            return stack.pop_all()

    def _is_due(self, gradient: np.ndarray, fmax: float) -> bool:
        """Whether the teacher is to be asked if this is the minimum."""
        if all(calculator.is_confirmed for calculator in self._calculators):
            return False
        largest = self.gradient_norm(gradient)
        error = max(calculator.error for calculator in self._calculators)
        return largest < max(DEEP * fmax, fmax - error)

    def _asked(self, fmax: float) -> np.ndarray:
        """The gradient by the teacher; or by the model, if the minimum is not confirmed and ``on_query`` is "model"."""
        largest = self.gradient_norm(self._shifted(self._inner.get_gradient()))
        reason = f"largest force {largest:.4f} eV/Å, to be below {fmax:g}"
        is_new = [calculator.confirm(fmax, reason) for calculator in self._calculators]
        gradient = self._inner.get_gradient()
        if not self._inner.converged(gradient, fmax):
            if any(is_new):  # the optimiser asks for the same gradient several times
                self._refused += 1
                self._left = self._left_behind(gradient)
            for calculator in self._calculators:
                calculator.go_on()
            gradient = self._shifted(self._inner.get_gradient())
        return gradient

    def _left_behind(self, gradient: np.ndarray) -> _Left:
        """What the update left here, where this is the gradient of the teacher."""
        of_teacher = [calculator.results for calculator in self._calculators]
        of_models = [calculator.learnt() for calculator in self._calculators]
        models = [calculator.potential for calculator in self._calculators]
        try:
            for calculator, results in zip(self._calculators, of_models, strict=True):
                calculator.results = results
            of_model = self._inner.get_gradient()
        finally:
            for calculator, results in zip(self._calculators, of_teacher, strict=True):
                calculator.results = results
        return _Left(self.get_x().copy(), gradient - of_model, models)

    @property
    def _valid_left(self) -> _Left | None:
        """What updates left, if the results are those of the same models."""
        left = self._left
        if left is None or any(calculator.is_confirmed for calculator in self._calculators):
            return None
        present = [calculator.potential for calculator in self._calculators]
        return left if all(a is b for a, b in zip(present, left.models, strict=True)) else None

    def _shifted(self, gradient: np.ndarray) -> np.ndarray:
        """The gradient of the models, exact at the last minimum that was not confirmed."""
        left = self._valid_left
        return gradient if left is None else gradient + left.gradient


def _calculators_of(atoms: Any) -> list[LearningCalculator]:
    """The learning calculators of the atoms, of the atoms behind filters, or of the moving images of a band."""
    while not isinstance(atoms, Atoms) and hasattr(atoms, "atoms"):
        atoms = atoms.atoms
    images = atoms.images[1:-1] if hasattr(atoms, "images") else [atoms]
    found = [getattr(image, "calc", None) for image in images]
    learning = [calc for calc in found if isinstance(calc, LearningCalculator)]
    if not learning:
        raise ConfigError(
            "Confirmed found no LearningCalculator: set atoms.calc = LearningCalculator(...) first"
        )
    if len({id(calc) for calc in learning}) < len(learning):
        raise ConfigError(
            "images share one LearningCalculator, which keeps the results of one structure: give each image its own, "
            "with the same learner (LearningCalculator(learner=learner))"
        )
    return learning
