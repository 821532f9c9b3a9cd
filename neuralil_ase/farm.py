"""Many structures: predicted in batches, or labelled by another calculator, here or by workers."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from neuralil_ase.array_record import count
from neuralil_ase.calculator import to_system
from neuralil_ase.engine.arrays import Dtype
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.errors import StructureError
from neuralil_ase.files.atomic import make_folder, write_atomically
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.model.potential import Potential
from neuralil_ase.prediction import Prediction, Uncertainty, check_uncertainty
from neuralil_ase.workers import Lost, answers_of, died, unless_lost

_log = logging.getLogger(__name__)


def predict_many(
    potential: Potential | str | Path,
    structures: Iterable[Atoms],
    *,
    dtype: Dtype = "float32",
    uncertainty: Uncertainty = "energy",
    batch_atoms: int = 4096,
    executor: Executor | None = None,
) -> list[Prediction]:
    """Predictions for many structures in batches, each batch as one disconnected graph.

    Parameters
    ----------
    potential
        A loaded potential or the path of its model file.
    structures
        Structures of any sizes and cells.
    dtype, uncertainty
        As for :class:`NeuralILCalculator`.
    batch_atoms
        A batch is closed when it holds this many atoms.
    executor
        Its workers predict, one message for each batch. Without an executor, this process predicts. Give each worker
        about one processor core, because the compiled core uses all processor cores that its process may use.

    Returns
    -------
    list of Prediction
        One for each structure, in their order.

    Raises
    ------
    ProcessError
        If a worker dies and the executor does not survive, or if the second worker that is given the batch dies, too.
    """
    check_uncertainty(uncertainty)
    loaded = as_potential(potential)
    batches = _batches(structures, batch_atoms)
    if executor is None:
        predictor = Predictor(loaded, dtype)
        parts: Iterable[list[Prediction]] = (_predicted(predictor, b, uncertainty) for b in batches)
    else:
        messages = {k: (loaded, batch, dtype, uncertainty) for k, batch in enumerate(batches)}
        answers = dict(answers_of(executor, _predict, messages))
        parts = (unless_lost(answers[k]) for k in messages)
    return [prediction for part in parts for prediction in part]


class Labelled(NamedTuple):
    """What :func:`label` found for L frames.

    Attributes
    ----------
    frames
        The L frames in their order, with energy, forces and, where the calculator has it, stress; None for frames that
        failed.
    failures
        The error message for each frame that failed, by number of the frame.
    """

    frames: list[Atoms | None]
    failures: dict[int, str]

    def __repr__(self) -> str:
        return f"Labelled: {count(len(self.frames), 'frame')}, {len(self.failures)} of them failed"


def label(
    frames: Iterable[Atoms],
    calculator_factory: Callable[[], Any],
    executor: Executor | None,
    folder: str | Path,
) -> Labelled:
    """Energies and forces of frames by any ASE calculator. Labels are saved and never computed again.

    Every label is written as soon as it is computed, to a file of its own in ``folder``, named by a digest of the
    geometry. Call again with the same folder after an interruption, or with more frames: only missing labels are
    computed. Identical frames are labelled once. Use one folder for each setting of the calculator.

    Parameters
    ----------
    frames
        Structures. Elements, positions, cell, periodicity, initial charges and magnetic moments, and charge, spin,
        multiplicity and uhf in ``info`` identify them.
    calculator_factory
        Makes an ASE calculator; called by the worker for every frame. Process pools need a factory that can be pickled:
        a function of a module, or ``functools.partial``.
    executor
        Its workers compute. With None, this process computes.
    folder
        The folder for the labels; created if it does not exist.

    Raises
    ------
    ConfigError
        If the calculator factory cannot be sent to a worker.
    OutputError
        If the folder or a label cannot be written.
    ProcessError
        If the executor stopped because a worker died; all finished labels are kept. If the executor survives, the frame
        is given to another worker; if that worker dies, too, only this frame fails.
    """
    folder, given = make_folder(folder), list(frames)
    files = [folder / f"{digest(atoms)}.extxyz" for atoms in given]
    missing = {file: atoms for file, atoms in zip(files, given, strict=True) if not file.exists()}
    reasons: dict[Path, str] = {}
    for file, outcome in _outcomes(missing, calculator_factory, executor):
        if isinstance(outcome, str):
            reasons[file] = outcome
            _log.warning("frame %d could not be labelled: %s", files.index(file), outcome)
        else:
            _keep(file, missing[file], outcome)
    failures = {k: reasons[file] for k, file in enumerate(files) if file in reasons}
    found = [
        None if file in reasons else _with_label(atoms, file)
        for file, atoms in zip(files, given, strict=True)
    ]
    return Labelled(found, failures)


def _batches(structures: Iterable[Atoms], batch_atoms: int) -> Iterator[list[Atoms]]:
    batch: list[Atoms] = []
    for atoms in structures:
        batch.append(atoms)
        if sum(map(len, batch)) >= batch_atoms:
            yield batch
            batch = []
    if batch:
        yield batch


def _predicted(
    predictor: Predictor, batch: list[Atoms], uncertainty: Uncertainty
) -> list[Prediction]:
    potential = predictor.potential
    systems = [to_system(a, potential, NeighborList(potential.r_cut, skin=0)) for a in batch]
    return predictor.predict(systems, uncertainty)


def _predict(
    potential: Potential, batch: list[Atoms], dtype: Dtype, uncertainty: Uncertainty
) -> list[Prediction]:
    """What a worker does for one message."""
    return _predicted(Predictor(potential, dtype), batch, uncertainty)


ELECTRONS = ("charge", "spin", "multiplicity", "uhf")
"""Keys of ``atoms.info`` in which calculators look for charge and spin."""
_Label = dict[str, Any]
"""energy in eV, forces in eV/Å, shape (N, 3), and perhaps stress in eV/Å³, shape (6,)."""


def _outcomes(
    missing: dict[Path, Atoms], factory: Callable[[], Any], executor: Executor | None
) -> Iterator[tuple[Path, _Label | str]]:
    """Labels, or reasons of failure, in the order in which they arrive."""
    if executor is None:
        yield from ((file, _label_one(atoms, factory)) for file, atoms in missing.items())
        return
    files, broken = [*missing], None
    messages = {k: (missing[file], factory) for k, file in enumerate(files)}
    for k, answer in answers_of(executor, _label_one, messages):
        if not isinstance(answer, Lost):
            yield files[k], answer
        elif answer.executor_broke:
            broken = answer  # others may have finished before
        else:
            yield files[k], answer.reason
    if broken is not None:
        raise died(broken)


def _label_one(atoms: Atoms, factory: Callable[[], Any]) -> _Label | str:
    """The work for one frame. Never raises an error, so that one bad frame does not stop the others."""
    try:
        atoms = atoms.copy()
        atoms.set_constraint()  # labels are forces on all atoms, also on fixed ones
        atoms.calc = factory()
        return _computed(atoms)
    except Exception as error:  # calculators raise errors of any type
        return f"{type(error).__name__}: {error}"


def _computed(atoms: Atoms) -> _Label | str:
    """Energy, forces and, if there is one, stress; or why they are no label. A calculator that was interrupted forgets
    the structure: otherwise its next call could continue halfway."""
    calc = atoms.calc
    try:
        found = {"forces": atoms.get_forces()}
        try:  # the forces are its slope; VASP's "energy", for instance, is extrapolated to no smearing
            found["energy"] = atoms.get_potential_energy(force_consistent=True)
        except (NotImplementedError, PropertyNotImplementedError):
            found["energy"] = atoms.get_potential_energy()
        if atoms.cell.rank == 3:
            with suppress(NotImplementedError, PropertyNotImplementedError):
                try:
                    found["stress"] = atoms.get_stress()
                except AssertionError:  # of ASE, without a message
                    return "stress of another shape than (6,) or (3, 3)"
    except BaseException:
        with suppress(Exception):
            calc.reset()
        raise
    shapes = {"energy": (), "forces": (len(atoms), 3), "stress": (6,)}
    for name, value in found.items():
        try:
            found[name] = np.asarray(value, float)
        except (TypeError, ValueError):
            return f"the {name} {'is' if name != 'forces' else 'are'} no number: {value!r:.100}"
        if name == "energy":
            found[name] = found[name].reshape(()) if found[name].size == 1 else found[name]
        if found[name].shape != shapes[name]:
            return f"{name} of shape {found[name].shape}, not {shapes[name]}"
    wrong = [name for name, value in found.items() if not np.isfinite(value).all()]
    return (
        f"not finite: {', '.join(wrong)}" if wrong else found | {"energy": float(found["energy"])}
    )


def electrons_of(atoms: Atoms) -> dict[str, Any]:
    """What of a structure is no geometry, but changes its energy in some calculators; by name, if it is not zero."""
    found = {
        "initial charges": atoms.get_initial_charges(),
        "initial magnetic moments": atoms.get_initial_magnetic_moments(),
    }
    found = {name: values.copy() for name, values in found.items() if values.any()}
    info = {key: atoms.info.get(key) for key in ELECTRONS}
    return found | {f"info[{key!r}]": value for key, value in info.items() if value is not None}


def digest(atoms: Atoms) -> str:
    """A hash of the exact geometry, charge and spin, by which :func:`label` names the file of a structure."""
    found = hashlib.sha256()
    for array in (
        atoms.numbers.astype("<i8"), atoms.positions.astype("<f8"), atoms.cell.array.astype("<f8"),
        atoms.pbc.astype("u1"), atoms.get_initial_charges().astype("<f8"),
        atoms.get_initial_magnetic_moments().astype("<f8"),
    ):  # fmt: skip
        found.update(repr(array.shape).encode() + array.tobytes())
    for key in ELECTRONS:
        if key in atoms.info:
            found.update(f"{key}={atoms.info[key]}".encode())
    return found.hexdigest()[:32]


def _keep(file: Path, atoms: Atoms, found: _Label) -> None:
    info = {k: atoms.info[k] for k in ELECTRONS if _can_be_kept(atoms.info.get(k))}
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=info)
    if (charges := atoms.get_initial_charges()).any():
        bare.set_initial_charges(charges)
    if (moments := atoms.get_initial_magnetic_moments()).any():
        bare.set_initial_magnetic_moments(moments)
    bare.calc = SinglePointCalculator(bare, **found)
    text = StringIO()
    write(text, bare, format="extxyz")
    write_atomically(file, text.getvalue().encode())


def _can_be_kept(value: Any) -> bool:
    """Whether extxyz keeps this entry of ``info``. A string with a line break would damage the file."""
    return value is not None and (not isinstance(value, str) or value.isprintable())


def _with_label(atoms: Atoms, file: Path) -> Atoms:
    """The given frame, with its info and arrays, and with the saved label."""
    try:
        kept = read(file, format="extxyz")
        assert isinstance(kept, Atoms)
        results = {
            n: kept.calc.results[n]
            for n in ("energy", "forces", "stress")
            if n in kept.calc.results
        }
        if len(kept) != len(atoms) or not {"energy", "forces"} <= results.keys():
            raise ValueError("it holds no label of this frame")
    except Exception as error:  # for damaged files, ASE's reader raises errors of any type
        raise StructureError(
            f"the label {file} cannot be read ({error}); remove the file, and call again to label that frame anew"
        ) from error
    labelled = atoms.copy()
    labelled.calc = SinglePointCalculator(labelled, **results)
    return labelled
