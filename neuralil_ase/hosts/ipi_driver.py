"""The i-PI client: energies, forces, virials and the whole committee from one model file.

    i-pi input.xml &
    i-pi-py_driver -u -a ADDRESS -m custom -P $(neuralil-ase host ipi) -o template=start.xyz

Options after ``-o``, separated by commas: ``template`` (a structure file that ASE reads, with periodicity and with the
atoms in i-PI's order), ``model`` (a model file; by default the one that ships with the package), ``dtype`` (float32 or
float64) and ``committee`` (True or False).

With ``committee=True``, the default for ensembles, the extras hold what ``<ffcommittee>`` reads with ``<parse_json>
True``: ``committee_pot``, ``committee_force`` and ``committee_virial`` of every member. ``<alpha>`` of
``<ffcommittee>`` scales the spread of the members; set it to ``energy_scale`` of the model's calibration. Beads that
i-PI sends together (``<batch_size>`` of ``<ffsocket>``) are evaluated together. Give
``<ffsocket exit_on_disconnect="True">``, else i-PI waits for another client when this client has stopped.

If the client stops with an error or by Ctrl-C, i-PI stops, too, because of ``exit_on_disconnect``. If the client is
killed while it computes, i-PI 3.3.1 prints ConnectionResetError and waits for ever. ``kill`` (SIGTERM) then ends i-PI
cleanly, with a restart file. In a script, end i-PI when the client has ended:
``i-pi input.xml & server=$!; i-pi-py_driver ...; kill $server``.

i-PI loads this file by its path and puts it into ``sys.modules`` under the file's name. The file must therefore
not be called ``ipi``.
"""

import inspect
import json
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read
from ipi.pes.dummy import Dummy_driver
from ipi.utils.units import unit_to_internal, unit_to_user

from neuralil_ase.calculator import to_system
from neuralil_ase.engine.arrays import Dtype
from neuralil_ase.engine.neighbors import DEFAULT_SKIN, NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.errors import ConfigError, NeuralILError, StructureError
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.model.elements import element_types
from neuralil_ase.prediction import Prediction

_log = logging.getLogger(__name__)
__DRIVER_NAME__ = "neuralil"
__DRIVER_CLASS__ = "NeuralILDriver"

PATIENCE = 10.0
"""Seconds to wait for i-PI to close the connection before the client ends with an error."""
_MATRIX = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
"""Position of each component of a 3 × 3 matrix in the order xx yy zz yz xz xy."""
Answer = tuple[float, np.ndarray, np.ndarray, str]
"""Potential, forces (N, 3), virial (3, 3) = -dE/dε, and extras in JSON; atomic units."""


class NeuralILDriver(Dummy_driver):  # type: ignore[misc]  # i-PI has no types
    """A potential behind i-PI's interface; positions and cells in atomic units, cell vectors as columns.

    Parameters
    ----------
    template
        Path of a structure with elements and periodicity.
    model
        Path of a model file, or None for the potential that ships with the package.
    dtype
        As for the ASE calculator.
    committee
        Whether to send the energies, forces and virials of all members. Each member costs about as much as one
        evaluation. Default: True for ensembles.

    Raises
    ------
    SystemExit
        With one line that says why, instead of every error of the package. The client ends, and its socket closes.
    """

    def __init__(
        self,
        template: str = "",
        model: str | None = None,
        dtype: Dtype = "float32",
        committee: bool | None = None,
        verbose: bool = False,
        **unknown: Any,
    ) -> None:
        with _said_once():
            if unknown:
                raise ConfigError(
                    f"there is no option {', '.join(unknown)}; the options are: template, model, dtype, committee"
                )
            if committee not in (None, True, False):
                raise ConfigError(f"committee must be True or False, not {committee}")
        self._template, self._model, self._dtype = template, model, dtype
        self._wanted = committee
        super().__init__(verbose=verbose)

    def check_parameters(self) -> None:
        """Read model and template; called by i-PI's base class."""
        with _said_once():
            self._predictor = Predictor(as_potential(self._model), self._dtype)
            self._atoms = _read(self._template)
            if not self._atoms.pbc.any():
                _log.warning(
                    "neuralil: %s is not periodic, so that no atom sees an image", self._template
                )
            element_types(self._atoms.numbers, self._predictor.potential.elements)
            n_members = self._predictor.potential.n_members
            self._committee = n_members > 1 if self._wanted is None else self._wanted
            if self._committee and n_members < 2:
                raise ConfigError(
                    "committee=True needs a model of two members or more, and this has one; leave the option out"
                )
        self._lists: list[NeighborList] = []

    def compute(
        self, cell: np.ndarray | list[np.ndarray], pos: np.ndarray | list[np.ndarray]
    ) -> Answer | list[Answer]:
        """One structure, or a list of them in one evaluation."""
        if not isinstance(cell, list):
            return self._computed([cell], [np.asarray(pos)])[0]
        return self._computed(cell, list(pos))

    def _computed(self, cells: list[np.ndarray], positions: list[np.ndarray]) -> list[Answer]:
        with _hung_up(), _said_once():
            structures = [self._structure(*both) for both in zip(cells, positions, strict=True)]
            # Beads come in the same order every time, so that each bead keeps its own list.
            while len(self._lists) < len(structures):
                self._lists.append(NeighborList(self._predictor.potential.r_cut, DEFAULT_SKIN))
            systems = [
                to_system(atoms, self._predictor.potential, neighbors)
                for atoms, neighbors in zip(structures, self._lists, strict=False)
            ]
            found = self._predictor.predict(systems, "forces" if self._committee else "off")
            return [self._answer(prediction) for prediction in found]

    def _structure(self, cell: np.ndarray, positions: np.ndarray) -> Atoms:
        positions = unit_to_user("length", "angstrom", np.reshape(positions, (-1, 3)))
        if len(positions) != len(self._atoms):
            raise StructureError(
                f"i-PI sends {len(positions)} atoms, and the template {self._template} holds {len(self._atoms)}: "
                "both must be the same system, its atoms in the same order"
            )
        atoms = self._atoms.copy()
        atoms.positions = positions
        atoms.cell = unit_to_user("length", "angstrom", np.reshape(cell, (3, 3)).T)
        return atoms

    def _answer(self, prediction: Prediction) -> Answer:
        extras = ""
        members = prediction.members
        if self._committee:
            assert members is not None
            assert members.forces is not None
            assert members.virials is not None
            # Nested lists: flat ones make i-PI hang.
            committee = {
                "committee_pot": _energy(prediction.member_energies).tolist(),
                "committee_force": _force(members.forces).reshape(len(members.forces), -1).tolist(),
                "committee_virial": _virial(members.virials).reshape(-1, 9).tolist(),
            }
            extras = json.dumps(committee)
        energy = float(_energy(prediction.energy))
        return energy, _force(prediction.forces), _virial(prediction.virials.sum(axis=0)), extras


@contextmanager
def _said_once() -> Iterator[None]:
    """Ends the process with one line instead of a traceback, since i-PI's loop catches no errors."""
    try:
        yield
    except (NeuralILError, OSError) as error:
        sys.exit(f"neuralil: {' '.join(str(error).split())}")


@contextmanager
def _hung_up() -> Iterator[None]:
    """Closes the connection to i-PI before an error ends the process.

    i-PI sends the positions and the request for forces at once. A process that ends before it has read the request
    resets the connection; the thread of i-PI 3.3.1 that reads the answer then dies, and i-PI waits for ever. If the
    client first closes its sending side, i-PI reads an end of file and closes the other side correctly.
    """
    try:
        yield
    except BaseException:
        connection = _connection()
        if connection is not None:
            with suppress(OSError):
                connection.settimeout(PATIENCE)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
        raise


def _connection() -> socket.socket | None:
    """The socket in ``run_driver`` of i-PI, which passes on only positions and cells; None if it is not running."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "run_driver":
        frame = frame.f_back
    found = None if frame is None else frame.f_locals.get("sock")
    return found if isinstance(found, socket.socket) else None


def _read(path: str) -> Atoms:
    if not Path(path).is_file():
        raise StructureError(
            f"there is no template {path!r}: give a structure file, template=start.xyz"
        )
    try:
        atoms = read(path)
    except Exception as error:  # ASE's readers raise errors of any type
        raise StructureError(f"ASE cannot read the template {path!r}: {error}") from error
    assert isinstance(atoms, Atoms)
    return atoms


def _energy(value: Any) -> np.ndarray:
    return np.asarray(unit_to_internal("energy", "electronvolt", value), float)


def _force(value: np.ndarray) -> np.ndarray:
    # i-PI's own eV/Å differs from its eV over its Å by 1e-7.
    return np.ascontiguousarray(_energy(value) / unit_to_internal("length", "angstrom", 1.0))


def _virial(value: np.ndarray) -> np.ndarray:
    """From dE/dε in eV, shape (..., 6), to -dE/dε, shape (..., 3, 3)."""
    return -_energy(value)[..., _MATRIX]
