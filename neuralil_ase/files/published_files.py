"""Import of the published NeuralIL parameter files.

There are five kinds of files: single potentials (arXiv:2106.16220), committees and deep ensembles
(arXiv:2302.08805). They are Python pickles. :mod:`neuralil_ase.files.published_pickle` reads them without
running any code in them, and this module gives their parameters our names.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from neuralil_ase.errors import ConfigError, ModelFileError
from neuralil_ase.files.published_pickle import PickledArray, read_fields
from neuralil_ase.model.config import (
    DescriptorConfig,
    ModelConfig,
    NetworkConfig,
    NetworkKind,
    PairTerm,
)
from neuralil_ase.model.potential import Potential, unflatten

MAX_FILE_BYTES = 64 << 20
MAX_LEAVES = 1024

_ADVICE = (
    "Give one of the published NeuralIL parameter files, unchanged; models of this package are "
    "read with load_potential"
)
_HALF_CELL_REFERENCE = (
    "The DFT energies published with its 272-atom slabs are those of half of each slab. This "
    "potential gives the energy of all atoms shown, twice as much, and its forces are the gradient "
    "of that: halve the energy, not the forces, to compare."
)


@dataclass(frozen=True)
class _Kind:
    """The meaning of a model name and version.

    Attributes
    ----------
    branch
        The branch with the parameters of an ensemble; None for a single potential, which has no member axis.
    network, pair_term
        As in ModelConfig.
    has_hidden_biases
        False if the layers between the first and the last have no biases except those of the layer normalisation.
    note
        A note for the provenance.
    """

    branch: str | None
    network: NetworkKind
    pair_term: PairTerm
    has_hidden_biases: bool = True
    note: str | None = None


_KINDS = {
    ("NeuralIL+Morse", "0.4"): _Kind(None, "core", "repulsive-morse"),
    ("NNFF1", "0.3"): _Kind(
        None, "core", "none", has_hidden_biases=False, note=_HALF_CELL_REFERENCE
    ),
    ("PlainEnsemble", "0.1"): _Kind("neuralil", "resnet", "morse"),
    ("PlainEnsemble", "0.2"): _Kind("neuralil", "resnet", "none"),
    ("DeepEnsemble", "0.2"): _Kind("h_neuralil", "heteroscedastic", "none"),
}


def import_published(path: str | os.PathLike[str]) -> Potential:
    """Read one of the five kinds of published NeuralIL parameter files.

    Parameters
    ----------
    path
        The pickle.

    Returns
    -------
    Potential
        It has the published numbers in float32 and a zero energy reference. ``provenance`` holds name, version, date
        and random seed of the original, and the name and SHA-256 of the file.

    Raises
    ------
    ModelFileError
        If the file is missing, too large or damaged, asks for a global that no published file uses,
        or is not of one of the five kinds.
    """
    path = Path(path)
    content = _read(path)
    try:
        fields = read_fields(content)
    # A damaged pickle can make the unpickler fail in any way, with any exception.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ModelFileError(f"{path} was refused: {reason}. {_ADVICE}") from error
    try:
        return _potential(fields, _provenance(path, content, fields))
    except ConfigError as error:
        raise ModelFileError(f"{path} is not a published potential: {error}. {_ADVICE}") from error


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            kind = "is a folder, not a file" if path.is_dir() else "does not exist"
            raise ModelFileError(f"{path} {kind}. Check the spelling and the working folder")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                limit = MAX_FILE_BYTES >> 20
                raise ModelFileError(
                    f"{path} is larger than {limit} MiB, and no published file is. {_ADVICE}"
                )
            return file.read(size)  # reading in one call would allocate the whole limit
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error}). Check its permissions") from error


def _potential(fields: Mapping[str, Any], provenance: dict[str, Any]) -> Potential:
    kind = _kind(fields)
    arrays = _published_arrays(kind, fields)
    config = _config(kind, fields, arrays)
    params: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        ours = _our_name(name, len(config.network.widths))
        if ours in params:
            raise ConfigError(f"two of its parameters are {ours}")
        params[ours] = np.array(array if kind.branch else array[None], np.float32)
    if not kind.has_hidden_biases:
        for k, width in enumerate(config.network.widths[1:], start=1):
            params.setdefault(f"network/body/Dense_{k}/bias", np.zeros((1, width), np.float32))
    reference = np.zeros(len(config.descriptor.elements))
    note = {"note": kind.note} if kind.note else {}
    return Potential(config, unflatten(params), reference, provenance | note)


def _kind(fields: Mapping[str, Any]) -> _Kind:
    name, version = _field(fields, "model_name", str), _field(fields, "model_version", str)
    kind = _KINDS.get((name, version))
    if kind is None:
        known = ", ".join(" ".join(key) for key in _KINDS)
        raise ConfigError(f"unknown kind {name[:80]!r} version {version[:80]!r}; known are {known}")
    if _field(fields, "constructor_kwargs", dict):
        raise ConfigError("its constructor_kwargs are not empty, and their meaning is unknown")
    return kind


def _config(
    kind: _Kind, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> ModelConfig:
    elements = _items(fields, "sorted_elements", str)
    unknown = sorted(set(elements) - set(chemical_symbols[1:]))
    if unknown:
        raise ConfigError(
            f"sorted_elements holds {unknown!s:.200}, which are not chemical elements"
        )
    embedding = arrays.get("embed/embedding")
    if embedding is None or embedding.ndim != (3 if kind.branch else 2):
        raise ConfigError("its element embedding is missing or has the wrong number of axes")
    has_aleatoric = kind.network == "heteroscedastic"
    network = NetworkConfig(
        kind=kind.network,
        widths=_items(fields, "extractor_widths" if has_aleatoric else "core_widths", int),
        head_widths=_items(fields, "head_widths", int) if has_aleatoric else (),
        embed_d=_field(fields, "embed_d", int),
    )
    r_cut = float(_field(fields, "r_cut", float))
    descriptor = DescriptorConfig(elements, _field(fields, "n_max", int), r_cut)
    return ModelConfig(descriptor, network, len(embedding) if kind.branch else 1, kind.pair_term)


def _field(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"its field {name} is missing or of type {type(value).__name__}")
    return value


def _items(fields: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    items = tuple(_field(fields, name, list))
    if len(items) > 128 or not all(type(item) is kind for item in items):
        raise ConfigError(f"its field {name} is not a short list of type {kind.__name__}")
    return items


def _published_arrays(kind: _Kind, fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All parameters by their slash-separated published names."""
    tree: Any = _field(fields, "params", dict)
    for branch in ["params", kind.branch] if kind.branch else ["params"]:
        if set(tree) != {branch} or not isinstance(tree[branch], dict):
            raise ConfigError(f"its parameters should all be under {branch!r}")
        tree = tree[branch]
    arrays: dict[str, np.ndarray] = {}
    _collect(tree, (), arrays)
    if sum(array.size for array in arrays.values()) > MAX_FILE_BYTES // 4:
        raise ConfigError("its parameters are more than its size can hold")
    return arrays


def _collect(tree: Mapping[Any, Any], path: tuple[str, ...], arrays: dict[str, np.ndarray]) -> None:
    """Walk the tree. There are limits, because a forged tree may contain itself or share its branches.

    Every branch must end in an array. The number of arrays therefore limits the number of steps.
    """
    for key, value in tree.items():
        name = "/".join((*path, str(key)[:80]))
        if isinstance(value, dict) and value and len(path) < 6:
            _collect(value, (*path, str(key)[:80]), arrays)
        elif isinstance(value, PickledArray) and len(arrays) < MAX_LEAVES:
            arrays[name] = value.values
        else:
            raise ConfigError(f"its parameter {name} is not an array, or there are too many")


_LEAF = r"/(?P<leaf>kernel|bias|scale)$"
_BLOCK = r"/ResNet(?:Dense|Identity)_(?P<block>[1-9]\d?)_\w+/(?P<layer>(?:Dense|LayerNorm)_[0-3])"
_NAMES = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^embed/embedding$", "network/embed/embedding"),
        (r"^morse/embed/embedding$", "pair/embedding"),
        (r"^morse/switch_param$", "pair/switch"),
        (r"^denormalizer" + _LEAF, "network/body/denormalizer/{leaf}"),
        (r"^core_model/Inlet" + _LEAF, "network/body/Dense_0/{leaf}"),
        (r"^core_model/(?:Stage|Dense)_(?P<k>\d{1,3})" + _LEAF, "network/body/Dense_{k}/{leaf}"),
        (r"^core_model/Outlet" + _LEAF, "network/body/Dense_{depth}/{leaf}"),
        # Our names have the number of the layer before. The first layer has no normalisation.
        (
            r"^core_model/LayerNorm_(?P<norm>\d{1,3})" + _LEAF,
            "network/body/LayerNorm_{next}/{leaf}",
        ),
        (r"^core_model" + _BLOCK + _LEAF, "network/body/blocks/block_{index}/{layer}/{leaf}"),
        (r"^feature_extractor" + _BLOCK + _LEAF, "network/body/trunk/block_{index}/{layer}/{leaf}"),
        (
            r"^(?P<head>energy|sigma2e|sigma2f)_head" + _BLOCK + _LEAF,
            "network/body/{head}_head/block_{index}/{layer}/{leaf}",
        ),
        (
            r"^(?P<head>energy|sigma2e|sigma2f)_denormalizer" + _LEAF,
            "network/body/{head}_denormalizer/{leaf}",
        ),
    )
]


def _our_name(published: str, depth: int) -> str:
    """Our name of a published parameter; ``depth`` is the number of layers of the core before its outlet."""
    for pattern, ours in _NAMES:
        if match := pattern.match(published):
            found = match.groupdict()
            return ours.format(
                **found,
                depth=depth,
                next=int(found.get("norm") or 0) + 1,
                index=int(found.get("block") or 1) - 1,
            )
    raise ConfigError(f"its parameter {published} belongs to no known layout")


def _provenance(path: Path, content: bytes, fields: Mapping[str, Any]) -> dict[str, Any]:
    timestamp, seed = fields.get("timestamp"), fields.get("random_seed")
    return {
        "origin": "published NeuralIL parameters",
        "model_name": _field(fields, "model_name", str)[:80],
        "model_version": _field(fields, "model_version", str)[:80],
        "timestamp": timestamp.isoformat() if isinstance(timestamp, datetime) else None,
        "random_seed": seed if isinstance(seed, int) and abs(seed) < 2**64 else None,
        "source_file": path.name,
        "source_sha256": hashlib.sha256(content).hexdigest(),
    }
