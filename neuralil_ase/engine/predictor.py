"""From host arrays to predictions: the compiled core or JAX, then means and spreads.

Uses no ASE. The calculator, ``predict_many`` and other hosts call it. JAX is loaded only where it computes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from neuralil_ase.engine import backend as backends
from neuralil_ase.engine import compiled, native
from neuralil_ase.engine.arrays import Derivatives, Dtype, System, merge
from neuralil_ase.engine.backend import Backend
from neuralil_ase.engine.force_constants import ForceConstants
from neuralil_ase.errors import ConfigError, PredictionError
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Aleatoric, Members, Prediction, Uncertainty

if TYPE_CHECKING:
    from neuralil_ase.engine.jax_backend import JaxModel


class Predictor:
    """Predicts with one potential in one precision.

    Parameters
    ----------
    potential
        The potential.
    dtype
        Precision of descriptor and networks, "float32" or "float64".
    backend
        "compiled" uses the compiled core, or JAX if the core was not built, if the core does not support the
        architecture, or if JAX has an accelerator. "jax" always uses JAX. Second derivatives always come from JAX.
    """

    def __init__(
        self, potential: Potential, dtype: Dtype = "float32", backend: Backend = "compiled"
    ) -> None:
        if dtype not in get_args(Dtype):
            raise ConfigError(
                f"unknown dtype {dtype!r}; choose one of {', '.join(get_args(Dtype))}"
            )
        self.potential = potential
        self.dtype: Dtype = dtype
        self._wanted: Backend = backend
        self._elements = np.array(potential.elements)
        self._core: native.CoreModel | None = None
        self._in_jax: JaxModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_core": None}

    def predict(self, systems: Sequence[System], uncertainty: Uncertainty) -> list[Prediction]:
        """Predictions for several structures, computed together as one disconnected graph."""
        merged = merge(systems)
        host = self._run(merged, uncertainty)
        ends = np.cumsum([len(system.types) for system in systems])
        return [
            self._prediction(system, _rows(host, end - len(system.types), end), uncertainty)
            for system, end in zip(systems, ends, strict=True)
        ]

    def descriptors(self, system: System) -> np.ndarray:
        """Power spectrum of every atom, shape (N, features), in Å^-3."""
        return self._jax_model().descriptors(system)

    def force_constants(
        self,
        system: System,
        positions: np.ndarray,
        cell: np.ndarray,
        *,
        by_member: bool = False,
        motion: np.ndarray | None = None,
    ) -> ForceConstants:
        """Second derivatives of the energy, or their slope along a motion; see ``engine.force_constants``."""
        return self._jax_model().force_constants(
            system, positions, cell, by_member=by_member, motion=motion
        )

    def neighbor_virials(self, system: System) -> tuple[np.ndarray, np.ndarray]:
        """Atomic energies without reference, (N,), and nine-component virials at the neighbours, (N, 3, 3), in eV."""
        return self._jax_model().neighbor_virials(system)

    @property
    def compilations(self) -> int:
        """Number of compilations by JAX that calls of this predictor have caused."""
        return 0 if self._in_jax is None else self._in_jax.compilations

    @property
    def backend(self) -> Backend:
        """The backend for energies and forces on this machine."""
        return "compiled" if self.backend_reason is None else "jax"

    @property
    def backend_reason(self) -> str | None:
        """Why JAX computes energies and forces; None if the compiled core does."""
        if self._wanted == "jax":
            return "JAX was requested"
        return backends.reason_for_jax(self.potential.config)

    @property
    def backend_in_words(self) -> str:
        """ "compiled, AVX2", or "JAX on cpu:" with the reason."""
        reason = self.backend_reason
        return backends.in_words(reason, "cpu" if reason is None else backends.device())

    def _run(self, system: System, uncertainty: Uncertainty) -> Derivatives:
        reason = self.backend_reason
        if reason is None:
            if self._core is None:
                self._core = compiled.core_model(self.potential, self.dtype)
            return compiled.energies_and_forces(self._core, system.types, system.pairs, uncertainty)
        if self._wanted == "compiled" and backends.device() == "cpu":
            backends.warn_of_slow_backend(reason)
        return self._jax_model().energies_and_forces(system, uncertainty)

    def _jax_model(self) -> "JaxModel":
        if self._in_jax is None:
            from neuralil_ase.engine.jax_backend import JaxModel

            self._in_jax = JaxModel(self.potential, self.dtype)
        return self._in_jax

    def _prediction(
        self, system: System, values: Derivatives, uncertainty: Uncertainty
    ) -> Prediction:
        """Add the energy reference, and convert to float64."""
        outputs = values.outputs
        self._check_finite(values)
        energies = outputs[..., 0] + self.potential.energy_reference[system.types]
        members = aleatoric = None
        if uncertainty != "off":
            members = Members(energies, *_of_members(values))
            aleatoric = _aleatoric(outputs) if outputs.shape[-1] == 3 else None
        return Prediction(
            self._elements[system.types],
            energies.mean(axis=0),
            np.asarray(values.forces, float),
            np.asarray(values.virials, float),
            system.volume,
            members,
            aleatoric,
            self.potential.calibration,
        )

    def _check_finite(self, values: Derivatives) -> None:
        for what, array in (
            ("energy", values.outputs),
            ("force", values.forces),
            ("virial", values.virials),
        ):
            if not np.isfinite(array).all():
                atom = int(np.argwhere(~np.isfinite(array))[0][-2])
                raise PredictionError(
                    f"the {what} of atom {atom} is not a finite number in {self.dtype}: the parameters of this "
                    "potential are too large, as in a damaged or diverged model, or the structure is far from the "
                    'training data. Try dtype="float64", and check the model and the structure'
                )


def _rows(values: Derivatives, start: int, stop: int) -> Derivatives:
    """The atoms of one structure, without padding."""
    return Derivatives(*(None if x is None else x[..., start:stop, :] for x in values))


def _of_members(values: Derivatives) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Forces (M, N, 3) and virials (M, 6) of members in float64, where there are any."""
    if values.member_forces is None or values.member_virials is None:
        return None, None
    # einsum takes a third of the time that sum() takes over rows of six.
    virials = np.einsum("mij->mj", values.member_virials, dtype=float)
    return np.asarray(values.member_forces, float), virials


def _aleatoric(outputs: np.ndarray) -> Aleatoric:
    """From the aleatoric variances of the members, outputs 1 and 2 of shape (M, N, 3)."""
    variances = outputs[..., 1].sum(axis=1, dtype=float)
    energy_std = float(np.sqrt(variances.mean()))
    return Aleatoric(energy_std, np.sqrt(3 * outputs[..., 2].mean(axis=0, dtype=float)))
