"""The model file: round trip, stability of the format, and every way to get it wrong."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from ensembles import random_potential
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralil_ase.calibration import Calibration
from neuralil_ase.engine.arrays import System
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.errors import ModelFileError, OutputError
from neuralil_ase.files import atomic, model_file
from neuralil_ase.files.model_file import load_potential, save_potential
from neuralil_ase.files.published_files import import_published
from neuralil_ase.model.config import DescriptorConfig, NetworkConfig
from neuralil_ase.model.potential import Potential, cast_params, flatten

FORMAT_1 = Path(__file__).parent / "data" / "format_version_1.safetensors"
POSITIONS = np.array([(0, 0, 0), (1.1, 0, 0), (0.2, 1.3, 0), (0.1, 0.3, 1.4), (1.5, 1.2, 0.9)])
TYPES = np.array([0, 1, 2, 3, 1])
FORMAT_1_ENERGIES = (-33.84422817964416, -35.91478836762938)
"""Of both members for these atoms in eV, by the version of this package that wrote the file."""


def energies(potential: Potential) -> np.ndarray:
    pairs = NeighborList(potential.r_cut, 0.0).pairs(
        POSITIONS, np.zeros((3, 3)), np.zeros(3, bool), TYPES
    )
    system = System(TYPES, pairs, None)
    return Predictor(potential, "float64").predict([system], "energy")[0].member_energies


def assert_same(first: Potential, second: Potential) -> None:
    assert first.config == second.config
    assert first.provenance == second.provenance
    assert first.calibration == second.calibration
    np.testing.assert_array_equal(first.energy_reference, second.energy_reference)
    ours, theirs = flatten(first.params), flatten(second.params)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name])


@pytest.fixture
def path(tmp_path: Path, small_potential: Potential) -> Path:
    path = tmp_path / "model.safetensors"
    save_potential(small_potential, path)
    return path


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], object]) -> None:
    """Rewrite a file with its description and arrays changed, as a forger would."""
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["neuralil-ase"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, arrays)
    safetensors.numpy.save_file(arrays, path, {"neuralil-ase": json.dumps(header)})


def frame(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


# ---- what works ----


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_round_trip_keeps_everything(tmp_path: Path, dtype: str) -> None:
    base = random_potential()
    potential = Potential(
        base.config,
        cast_params(base.params, dtype),
        np.array([-1030.123456789012, -13.6, -1485.0, 1e-9]),
        {"data": "113 frames, Å", "nested": {"rmse": [1.5, None, True]}},
        Calibration({"C": 1.25}, {"C": 0.0}, thresholds={"low": 0.5, "high": 1.0}),
    )
    save_potential(potential, tmp_path / "model.safetensors")
    assert_same(load_potential(tmp_path / "model.safetensors"), potential)


@settings(max_examples=3, deadline=None)
@given(
    elements=st.sets(st.sampled_from(["Al", "C", "H", "O", "Ti"]), min_size=1),
    members=st.integers(1, 3),
    network=st.sampled_from(
        [
            NetworkConfig("core", (4, 3), shared_layers=1, linear=True),
            NetworkConfig("resnet", (4, 4, 2), activation="gelu", embed_d=0),
            NetworkConfig("heteroscedastic", (4, 2), head_widths=(3,), embed_d=3),
        ]
    ),
    cross_terms=st.booleans(),
)
def test_round_trip_of_every_architecture(
    tmp_path_factory: pytest.TempPathFactory,
    elements: set[str],
    members: int,
    network: NetworkConfig,
    cross_terms: bool,
) -> None:
    potential = random_potential(
        descriptor=DescriptorConfig(tuple(sorted(elements)), 1, 2.5, cross_terms),
        network=network,
        n_members=members,
    )
    path = tmp_path_factory.mktemp("round") / "model.safetensors"
    save_potential(potential, path)
    assert_same(load_potential(path), potential)


def test_a_file_of_format_version_1_still_loads_and_gives_its_energies() -> None:
    """Never regenerate the file: potentials that people keep are like it."""
    np.testing.assert_allclose(energies(load_potential(FORMAT_1)), FORMAT_1_ENERGIES, atol=1e-9)


def test_the_file_can_be_read_without_this_package(path: Path, small_potential: Potential) -> None:
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["neuralil-ase"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert header["format"] == "neuralil-ase"
    assert header["format_version"] == 1
    assert header["elements"] == ["C", "H", "N", "O"]
    assert header["units"]["energy"] == "eV"
    assert header["config"] == json.loads(json.dumps(small_potential.config.to_dict()))
    reference = arrays.pop("energy_reference")
    assert reference.dtype == np.float64
    assert header["parameter_count"] == sum(array.size for array in arrays.values())


def test_saving_replaces_a_file_and_leaves_nothing_beside_it(path: Path) -> None:
    newer = random_potential(seed=1)
    save_potential(newer, path)
    assert_same(load_potential(path), newer)
    assert list(path.parent.iterdir()) == [path]


def test_saving_through_a_link_keeps_the_link(path: Path) -> None:
    link = path.with_name("link.safetensors")
    link.symlink_to(path)
    save_potential(random_potential(seed=1), link)
    assert link.is_symlink()
    assert_same(load_potential(path), random_potential(seed=1))


# ---- writing fails ----


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(
        OutputError, match=r"No space left.*disk has room; the file holds what it held before"
    ):
        save_potential(random_potential(seed=1), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    monkeypatch.setattr(
        atomic,
        "open",
        lambda *_: open("/dev/full", "wb", buffering=0),  # noqa: SIM115
        raising=False,
    )
    with pytest.raises(OutputError, match="cannot write"):
        save_potential(random_potential(seed=1), path)
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_a_missing_folder_is_reported(tmp_path: Path, small_potential: Potential) -> None:
    with pytest.raises(OutputError, match="Check that the folder exists"):
        save_potential(small_potential, tmp_path / "missing" / "model.safetensors")


@pytest.mark.parametrize("value", [np.float32(1), float("nan"), object(), {1, 2}])
def test_provenance_that_is_not_json_is_refused(tmp_path: Path, value: object) -> None:
    base = random_potential()
    potential = Potential(base.config, base.params, base.energy_reference, {"value": value})
    with pytest.raises(ModelFileError, match="not JSON data"):
        save_potential(potential, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_parameters_that_are_not_floats_are_refused(tmp_path: Path) -> None:
    base = random_potential()
    potential = Potential(base.config, cast_params(base.params, int), base.energy_reference)
    with pytest.raises(ModelFileError, match=r"has dtype int64.*cast_params"):
        save_potential(potential, tmp_path / "model.safetensors")


# ---- files that are none ----


def test_a_missing_file_and_a_folder_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        load_potential(tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match="is a folder"):
        load_potential(tmp_path)


def test_a_pickle_is_sent_to_the_importer(tmp_path: Path) -> None:
    path = tmp_path / "published.pickle"
    path.write_bytes(pickle.dumps({"params": 1}))
    with pytest.raises(ModelFileError, match=r"Python pickle.*neuralil-ase import"):
        load_potential(path)


@pytest.mark.parametrize("length", [0x10280, 0x10380, 0x10480, 0x10580])
def test_no_length_of_a_header_makes_a_file_a_pickle(path: Path, length: int) -> None:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert size < length
    header = content[8 : 8 + size].ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + content[8 + size :])
    assert len(load_potential(path).elements) > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated: it has 0 bytes"),
        (b"\x80\x05", "truncated: it has 2 bytes"),
        (b"PK\x03\x04 archive", "zip archive"),
        (b"#!/usr/bin/env python", "announces a header"),
        (b"\xff" * 64, "announces a header"),
        (frame(b"{}")[:-1], "is truncated"),
        (frame(b"\xff\xfe garbage"), "not valid JSON"),
        (frame(b'{"a": '), "not valid JSON"),
        (frame(b'{"a": NaN}'), "NaN is not JSON"),
        (frame(b'{"a": 1, "a": 2}'), "a key occurs twice"),
        (frame(b"[" * 100_000), "not valid JSON"),
        (frame(b'{"a":' * 100_000), "not valid JSON"),
        (frame(b"9" * 100_000), "not valid JSON"),
        (frame(b"[]"), "not a JSON table"),
        (frame(b'{"__metadata__": 3}'), "not a table"),
        (frame(b"{}"), "without the metadata entry"),
        (frame(b'{"a": 3}'), "array 'a' of dtype None"),
        (frame(b'{"a": {"dtype": "I64"}}'), "array 'a' of dtype 'I64'"),
        (frame(b'{"a": {"dtype": "F32", "data_offsets": [0]}}'), "no valid offsets"),
        (frame(b'{"a": {"dtype": "F32", "data_offsets": [0, 8]}}'), "is truncated"),
        (frame(b"{}", b"behind"), "longer than its header says"),
    ],
)
def test_bytes_that_are_no_model_file_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_potential(path)
    assert str(path) in str(caught.value)


def test_oversized_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.truncate(model_file.MAX_FILE_BYTES + 1)
    with pytest.raises(ModelFileError, match="larger than the 2048 MiB"):
        load_potential(path)


def test_too_many_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    empty = np.zeros(0, np.float32)
    safetensors.numpy.save_file({f"a{k}": empty for k in range(5000)}, path)
    with pytest.raises(ModelFileError, match="holds 5000 arrays"):
        load_potential(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_loads_or_is_refused_but_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any cut or flipped byte ends in a potential (a changed digit) or in ModelFileError."""
    content = bytearray(FORMAT_1.read_bytes())
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:place])
        with pytest.raises(ModelFileError):
            load_potential(path)
        return
    # Most of the interesting bytes are in the header.
    place = data.draw(st.sampled_from([place, place % 4000, place % 8]))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert isinstance(load_potential(path), Potential)
    except ModelFileError as error:
        assert str(path) in str(error)  # noqa: PT017


# ---- forged content ----


def test_a_newer_format_names_both_versions(path: Path) -> None:
    edit(path, lambda header, _: header.update(format_version=7, package_version="9.1", new=1))
    message = r"format version 7, written by neuralil-ase 9.1;.* up to version 1.*pip install"
    with pytest.raises(ModelFileError, match=message):
        load_potential(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "has format 'other'"),
        ({"format_version": 0}, "not a positive integer"),
        ({"format_version": True}, "not a positive integer"),
        ({"surprise": 1}, r"unknown \['surprise'\]"),
        ({"provenance": []}, "'provenance' of type list"),
        ({"calibration": "good"}, "'calibration' of type str"),
        ({"calibration": {}}, "the calibration lacks force_floor, force_scale"),
        (
            {"calibration": {"force_scale": {}, "force_floor": {"H": "0"}}},
            "calibration holds an invalid force_floor",
        ),
        ({"units": {"energy": "Hartree"}}, "is in units"),
        ({"elements": ["C", "H", "O", "N"]}, "list of elements"),
        ({"parameter_count": 3}, "the header says 3"),
        ({"config": {}}, "must be a table of settings"),
    ],
)
def test_a_forged_description_is_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    edit(path, lambda header, _: header.update(changes))
    with pytest.raises(ModelFileError, match=message):
        load_potential(path)


@pytest.mark.parametrize("key", ["format", "config", "provenance", "calibration", "units"])
def test_a_missing_entry_is_refused(path: Path, key: str) -> None:
    edit(path, lambda header, _: header.pop(key))
    with pytest.raises(ModelFileError, match=key):
        load_potential(path)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("descriptor", {"n_max": "2"}, "n_max must be of type int"),
        ("descriptor", {"n_max": True}, "n_max must be of type int"),
        ("descriptor", {"n_max": 10**6}, "n_max must lie between"),
        ("descriptor", {"r_cut": 10**400}, "r_cut must be of type float"),
        ("descriptor", {"elements": ["H", "C"]}, "alphabetical order"),
        ("descriptor", {"n_max": 3}, "expected"),
        ("network", {"widths": [8] * 100_000}, "more layers than the file has arrays"),
        ("network", {"widths": [8, 7]}, "has shape"),
        ("network", {"activation": "__import__"}, "unknown activation"),
        ("network", {"kind": ["core"]}, "unknown network kind"),
        ("network", {"exec": "1"}, r"unknown settings \['exec'\]"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(
    path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    edit(path, lambda header, _: header["config"][part].update(changes))
    with pytest.raises(ModelFileError, match=message):
        load_potential(path)


def _rename(arrays: dict[str, np.ndarray], old: str, new: str) -> None:
    arrays[new] = arrays.pop(old)


KERNEL = "network/body/Dense_0/kernel"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop(KERNEL), f"missing: .*{KERNEL}"),
        (lambda a: a.update(extra=np.zeros(2, np.float32)), "unexpected: .*extra"),
        (lambda a: a.update({f"{KERNEL}/x": np.zeros(2)}), "unexpected"),
        (lambda a: _rename(a, KERNEL, "network"), "unexpected: .*network"),
        (lambda a: a.update({KERNEL: a[KERNEL][:, :-1].copy()}), "has shape|parameters, and the"),
        (lambda a: a.update({KERNEL: a[KERNEL].swapaxes(1, 2).copy()}), "has shape"),
        (lambda a: a.update({KERNEL: a[KERNEL] * np.nan}), "not finite"),
        (lambda a: a.update({KERNEL: a[KERNEL].astype(int)}), "of dtype 'I64'"),
        (lambda a: a.pop("energy_reference"), "energy_reference is missing"),
        (lambda a: a.update(energy_reference=np.zeros(4, np.float32)), "not float64"),
        (lambda a: a.update(energy_reference=np.full(4, np.inf)), "not finite"),
        (lambda a: a.update(energy_reference=np.zeros(3)), "one energy for each of the 4"),
    ],
)
def test_forged_arrays_are_refused(
    path: Path, change: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    edit(path, lambda _, arrays: change(arrays))
    with pytest.raises(ModelFileError, match=message):
        load_potential(path)


def test_flipped_bits_in_the_arrays_are_refused(path: Path) -> None:
    """Every number stays finite and every shape right; such files were once read."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start, len(content), 97):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ModelFileError, match=r"other numbers than were written|not finite"):
            load_potential(path)


@pytest.mark.parametrize("name", ["x" * 256, "x/" * 3000, "a\0b"])
def test_paths_that_no_file_can_have_are_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match=r"cannot be read|does not exist"):
        load_potential(tmp_path / name)
    with pytest.raises(ModelFileError, match=r"cannot be read|does not exist"):
        import_published(tmp_path / name)
