"""Model files: one safetensors file with a description in JSON. It holds no code.

The arrays of a potential are stored under their slash-separated names, together with ``energy_reference``.
The metadata of the file have one entry, ``neuralil-ase``, a JSON table that describes everything else.
The file can be opened without this package::

    with safetensors.safe_open("model.safetensors", framework="numpy") as file:
        header = json.loads(file.metadata()["neuralil-ase"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}
"""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
import safetensors.numpy

from neuralil_ase import __version__
from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError, ModelFileError
from neuralil_ase.files.atomic import write_atomically
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.parameters import parameters
from neuralil_ase.model.potential import Potential, flatten, unflatten

FORMAT = "neuralil-ase"
FORMAT_VERSION = 1
UNITS = {"length": "Angstrom", "energy": "eV", "force": "eV/Angstrom", "stress": "eV/Angstrom^3"}
MAX_FILE_BYTES = 2 << 30
MAX_HEADER_BYTES = 16 << 20
MAX_ARRAYS = 4096
ENERGY_REFERENCE = "energy_reference"

_HEADER_TYPES: dict[str, type | tuple[type, ...]] = {
    "format": str,
    "format_version": int,
    "package_version": str,
    "config": dict,
    "elements": list,
    "units": dict,
    "parameter_count": int,
    "provenance": dict,
    "calibration": (dict, type(None)),
}
_DTYPES = ("F16", "F32", "F64")
_DAMAGED = (
    "Usually the file was cut short or changed during a transfer; compare its checksum with the source "
    "and copy or download it again"
)
_FOREIGN = (
    "Usually it was written by another program; give a model file that save_potential or "
    "neuralil-ase wrote"
)


def save_potential(potential: Potential, path: str | os.PathLike[str]) -> None:
    """Write a potential to one file, replacing what is there in one step.

    Parameters
    ----------
    potential
        The potential. Arrays keep their precision (float16, float32 or float64).
    path
        The file, usually ``*.safetensors``.

    Raises
    ------
    ModelFileError
        If the potential cannot be expressed in the format.
    OutputError
        If the file cannot be written. An existing file is then untouched.
    """
    arrays = {name: np.asarray(value) for name, value in flatten(potential.params).items()}
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise ModelFileError(
                f"cannot save the potential: parameter {name} has dtype {array.dtype}; convert "
                "the parameters to float32 with neuralil_ase.model.potential.cast_params"
            )
    count = sum(array.size for array in arrays.values())
    arrays[ENERGY_REFERENCE] = np.asarray(potential.energy_reference, np.float64)
    contiguous = {name: _little_endian(array) for name, array in arrays.items()}
    header = _header(potential, count, checksum(contiguous))
    write_atomically(path, safetensors.numpy.save(contiguous, {FORMAT: header}))


def load_potential(path: str | os.PathLike[str]) -> Potential:
    """Read a potential that :func:`save_potential` wrote. Runs no code from the file.

    Parameters
    ----------
    path
        The model file.

    Returns
    -------
    Potential
        With the same numbers, provenance and calibration. Arrays have the precision that they have in the file.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, forged, too large, of a newer format or inconsistent; the
        message names what is wrong.
    """
    path = Path(path)
    content = _read(path)
    metadata = _check_layout(path, content)
    header = _check_header(path, metadata)
    try:
        arrays = safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        _refuse(path, f"is not a valid safetensors file ({error})", _DAMAGED)
    try:
        found = checksum(arrays)
        potential = _assemble(header, arrays)
    except ConfigError as error:
        raise ModelFileError(f"{path} is inconsistent: {error}. {_DAMAGED}") from error
    if header.get("sha256", found) != found:  # files of the first releases have no checksum
        _refuse(path, "holds other numbers than were written to it", _DAMAGED)
    return potential


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and bytes of all arrays, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = _little_endian(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def default_model() -> Path:
    """The file of the potential that ships with the package: ethylammonium nitrate, a surrogate of GFN1-xTB."""
    return Path(str(files("neuralil_ase") / "shipped" / "ean_gfn1.safetensors"))


def as_potential(model: Potential | str | os.PathLike[str] | None) -> Potential:
    """The potential itself, the potential in a file, or for None the one that ships with the package."""
    if isinstance(model, Potential):
        return model
    return load_potential(default_model() if model is None else model)


def _header(potential: Potential, parameter_count: int, sha256: str) -> str:
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "config": potential.config.to_dict(),
        "elements": potential.elements,
        "units": UNITS,
        "parameter_count": parameter_count,
        "sha256": sha256,
        "provenance": dict(potential.provenance),
        "calibration": None if potential.calibration is None else potential.calibration.to_dict(),
    }
    try:
        return json.dumps(header, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"cannot save the potential: its provenance or calibration is not JSON data ({error}); "
            "use plain dictionaries, lists, strings and finite numbers"
        ) from error


def _little_endian(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            kind = "is a folder, not a file" if path.is_dir() else "does not exist"
            advice = "Check the spelling and the working folder; give a *.safetensors file"
            _refuse(path, kind, advice)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                limit = MAX_FILE_BYTES >> 20
                _refuse(path, f"is larger than the {limit} MiB a model file may have", _FOREIGN)
            return file.read(size)  # reading in one call would allocate the whole limit
    except OSError as error:
        _refuse(path, f"cannot be read ({error})", "Check its permissions")


def _check_layout(path: Path, content: bytes) -> Mapping[str, Any]:
    """Check the layout of a safetensors file (length, header, data) and return its metadata."""
    _check_start(path, content)
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER_BYTES:
        _refuse(path, f"announces a header of {length} bytes, so it is not a model file", _FOREIGN)
    if 8 + length > len(content):
        what = f"is truncated: its header has {length} bytes, and {len(content) - 8} are there"
        _refuse(path, what, _DAMAGED)
    table = _parse_json(path, content[8 : 8 + length], "header")
    metadata = table.pop("__metadata__", {})
    if len(table) > MAX_ARRAYS:
        _refuse(path, f"holds {len(table)} arrays; at most {MAX_ARRAYS} are allowed", _FOREIGN)
    ends = [_array_end(path, name, entry) for name, entry in table.items()]
    expected = 8 + length + max(ends, default=0)
    if expected != len(content):
        state = "truncated" if len(content) < expected else "longer than its header says"
        _refuse(path, f"is {state}: {len(content)} bytes instead of {expected}", _DAMAGED)
    if not isinstance(metadata, dict):
        _refuse(path, "has metadata that are not a table", _FOREIGN)
    return metadata


def _check_start(path: Path, content: bytes) -> None:
    if len(content) < 8:
        _refuse(path, f"is truncated: it has {len(content)} bytes", _DAMAGED)
    # A header length can begin with the same two bytes, but then it is a plausible length.
    long = int.from_bytes(content[:8], "little") > MAX_HEADER_BYTES
    if long and content[0] == 0x80 and content[1] in range(2, 6):
        advice = f"Import it once with: neuralil-ase import {path} -o MODEL.safetensors"
        _refuse(
            path,
            "is a Python pickle, perhaps published NeuralIL parameters, and not a model file",
            advice,
        )
    if content[:2] == b"PK":
        _refuse(path, "is a zip archive (.npz or PyTorch) and not a model file", _FOREIGN)


def _array_end(path: Path, name: str, entry: Any) -> int:
    """Check the precision of an array; returns where its data end."""
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    if dtype not in _DTYPES:
        _refuse(path, f"holds array {name!r} of dtype {dtype!r}, not one of {_DTYPES}", _FOREIGN)
    offsets = entry.get("data_offsets")
    if not (isinstance(offsets, list) and len(offsets) == 2 and type(offsets[1]) is int):
        _refuse(path, f"gives no valid offsets for array {name!r}", _DAMAGED)
    return offsets[1]


def _parse_json(path: Path, text: str | bytes, what: str) -> dict[str, Any]:
    """Parse strictly: one table, no duplicate keys, no NaN or infinity, limited nesting."""

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key occurs twice")
        return table

    try:
        table = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"has a {what} that is not valid JSON ({error})", _DAMAGED)
    if not isinstance(table, dict):
        _refuse(path, f"has a {what} that is not a JSON table", _FOREIGN)
    return table


def _check_header(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the model; keys and types are checked."""
    text = metadata.get(FORMAT)
    if not isinstance(text, str):
        _refuse(path, f"is a safetensors file without the metadata entry {FORMAT!r}", _FOREIGN)
    header = _parse_json(path, text, "description")
    if header.get("format") != FORMAT:
        _refuse(path, f"has format {header.get('format')!r} instead of {FORMAT!r}", _FOREIGN)
    _check_version(path, header)
    missing, unknown = (
        sorted(_HEADER_TYPES.keys() - header.keys()),
        sorted(header.keys() - _HEADER_TYPES.keys() - {"sha256"}),
    )
    if missing or unknown:
        _refuse(path, f"has a description without {missing} and with unknown {unknown}", _DAMAGED)
    for key, kind in _HEADER_TYPES.items():
        if not isinstance(header[key], kind):
            _refuse(path, f"has {key!r} of type {type(header[key]).__name__}", _DAMAGED)
    if header["units"] != UNITS:
        _refuse(path, f"is in units {header['units']}, not {UNITS}", _FOREIGN)
    return header


def _check_version(path: Path, header: Mapping[str, Any]) -> None:
    found = header.get("format_version")
    if type(found) is not int or found < 1:
        _refuse(path, f"has format_version {found!r}, not a positive integer", _DAMAGED)
    if found > FORMAT_VERSION:
        what = (
            f"has format version {found}, written by neuralil-ase {header.get('package_version')}; "
            f"this is {__version__}, which reads up to version {FORMAT_VERSION}"
        )
        _refuse(path, what, "Upgrade with: pip install --upgrade neuralil-ase")


def _assemble(header: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> Potential:
    """Build the potential. Parts that do not belong together raise ConfigError."""
    config = ModelConfig.from_dict(header["config"])
    if list(config.descriptor.elements) != header["elements"]:
        raise ConfigError(
            f"the list of elements {header['elements']} differs from the architecture's"
        )
    reference = arrays.pop(ENERGY_REFERENCE, None)
    if reference is None or reference.dtype != np.float64 or not np.isfinite(reference).all():
        raise ConfigError(f"the array {ENERGY_REFERENCE} is missing, not float64 or not finite")
    _check_names(config, arrays.keys())
    count = sum(array.size for array in arrays.values())
    if count != header["parameter_count"]:
        raise ConfigError(f"{count} parameters, and the header says {header['parameter_count']}")
    record = header["calibration"]
    calibration = None if record is None else Calibration.from_dict(record)
    return Potential(config, unflatten(arrays), reference, header["provenance"], calibration)


def _check_names(config: ModelConfig, names: Any) -> None:
    """Compare names before they become a tree, in which a forged name could collide with a branch."""
    # Every layer has an array. Without this check, a forged list of widths could be built without end.
    if len(config.network.widths) + len(config.network.head_widths) > len(names):
        raise ConfigError(
            f"the architecture has more layers than the file has arrays, {len(names)}"
        )
    expected = parameters(config).keys()
    missing, extra = sorted(expected - names), sorted(names - expected)
    if missing or extra:
        raise ConfigError(f"parameters are missing: {missing}, or unexpected: {extra}")


def _refuse(path: Path, what: str, advice: str) -> NoReturn:
    raise ModelFileError(f"{path} {what}. {advice}")
