"""Import of published files: the layouts, and that nothing in a file can run."""

import contextlib
import datetime
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import published_oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_writer import dump

from neuralil_ase.engine.arrays import System
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.errors import ModelFileError
from neuralil_ase.files import published_files, published_pickle
from neuralil_ase.files.model_file import load_potential, save_potential
from neuralil_ase.files.published_files import import_published
from neuralil_ase.model.potential import flatten

N_MEMBERS = 3
PUBLISHED = {
    "model_params_neuralil_OPTAX_2B25114.pickle": 13_144,
    "EAN_params_committee_1FEB3E08.pkl": 10 * 25_324,
    "EAN_params_deep_ensemble_8ABE86C9.pkl": 10 * 26_610,
    # Ours has zero biases in the six hidden layers where the published one has none.
    "model_nnff1.pickle": 77_625 + 128 + 64 + 32 + 3 * 16,
}


# ---- a file of the fifth kind, which is not at hand, written as the original writes it ----


def random_tree(seed: int = 0) -> dict[str, Any]:
    """Parameters of the kind PlainEnsemble 0.1, for O, Sr and Ti, below "neuralil"."""
    rng = np.random.default_rng(seed)

    def array(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.normal(size=(N_MEMBERS, *shape))).astype(np.float32)

    def dense(a: int, b: int) -> dict[str, np.ndarray]:
        return {"kernel": array(a, b, scale=a**-0.5), "bias": array(b, scale=0.1)}

    def norm(width: int) -> dict[str, np.ndarray]:
        return {"scale": 1 + array(width, scale=0.1), "bias": array(width, scale=0.1)}

    def block(n: int, a: int, b: int) -> dict[str, Any]:
        layers: dict[str, Any] = {f"LayerNorm_{k}": norm(a) for k in (0, 1)}
        if b > 1:
            layers |= {f"LayerNorm_{k}": norm(b) for k in (2, 3)}
        pairs = [(n, a), (a, a), (a, b), (n, b)]
        return layers | {f"Dense_{k}": dense(*pair) for k, pair in enumerate(pairs)}

    core = {
        "ResNetDense_1_64_to_32": block(128, 64, 32),
        "ResNetDense_2_32_to_16": block(32, 32, 16),
        "ResNetDense_3_16_to_1": block(16, 16, 1),
    }
    return {
        "core_model": core,
        "denormalizer": {"kernel": 3 * array(1, 1), "bias": array(1)},
        "embed": {"embedding": array(3, 2)},
        "morse": {"embed": {"embedding": array(3, 3)}, "switch_param": array(1, 1)},
    }


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "model_name": "PlainEnsemble",
        "model_version": "0.1",
        "timestamp": datetime.datetime(2022, 7, 4, 12),
        "r_cut": 5.5,
        "n_max": 5,
        "sorted_elements": ["O", "Sr", "Ti"],
        "embed_d": 2,
        "core_widths": [64, 32, 16],
        "constructor_kwargs": {},
        "random_seed": 31337,
        "params": {"params": {"neuralil": random_tree()}},
        "specific_info": None,
    } | changes


def write(folder: Path, content: Any) -> Path:
    path = folder / "published.pkl"
    path.write_bytes(content if isinstance(content, bytes) else dump(content))
    return path


# ---- what works ----


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_published_files_are_read_without_a_warning(original: Path, name: str, count: int) -> None:
    """The numbers of parameters are those the papers and the files state."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential = import_published(original / name)
    assert sum(leaf.size for leaf in flatten(potential.params).values()) == count
    assert potential.n_members == (10 if "ensemble" in name or "committee" in name else 1)
    assert potential.provenance["source_file"] == name
    assert json.loads(json.dumps(potential.provenance)) == potential.provenance


def test_an_imported_potential_survives_the_model_file(original: Path, tmp_path: Path) -> None:
    potential = import_published(original / "EAN_params_committee_1FEB3E08.pkl")
    save_potential(potential, tmp_path / "model.safetensors")
    loaded = load_potential(tmp_path / "model.safetensors")
    assert loaded.config == potential.config
    ours, theirs = flatten(loaded.params), flatten(potential.params)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_committee_with_morse_term_agrees_with_plain_numpy(tmp_path: Path) -> None:
    """Kind PlainEnsemble 0.1, against an oracle that shares no code with the package."""
    potential = import_published(write(tmp_path, fields()))
    assert sum(leaf.size for leaf in flatten(potential.params).values()) == N_MEMBERS * 23_028
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*3 * [np.arange(3)], indexing="ij"), -1).reshape(-1, 3)[:12]
    positions = 1.9 * grid + rng.uniform(-0.3, 0.3, (12, 3))
    kinds = rng.permutation(np.repeat([0, 1, 2], [7, 2, 3]))
    pairs = NeighborList(5.5, 0.0).pairs(positions, np.zeros((3, 3)), np.zeros(3, bool), kinds)
    prediction = Predictor(potential, "float64").predict([System(kinds, pairs, None)], "energy")[0]
    structure = {
        "positions": positions, "cell": np.zeros((3, 3)), "pbc": np.zeros(3, bool), "types": kinds
    }  # fmt: skip

    def energies(tree: dict[str, Any]) -> np.ndarray:
        members = published_oracle.members("committee_morse", tree)
        found = published_oracle.outputs("committee_morse", members, structure, 5, 5.5)
        return found[..., 0].sum(axis=1)

    expected = energies(random_tree())
    np.testing.assert_allclose(prediction.member_energies, expected, rtol=0, atol=1e-8)
    without = random_tree()
    without["morse"]["embed"]["embedding"][..., 2] = -50
    assert (np.abs(expected - energies(without)) > 0.1).all(), (
        "the Morse term must matter in this test"
    )


def test_provenance_names_the_source(tmp_path: Path) -> None:
    path = write(tmp_path, fields())
    provenance = import_published(path).provenance
    assert provenance["model_name"] == "PlainEnsemble"
    assert provenance["model_version"] == "0.1"
    assert provenance["timestamp"] == "2022-07-04T12:00:00"
    assert provenance["random_seed"] == 31337
    assert provenance["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


# ---- nothing runs ----


def stack_global(module: str, name: str, *, argument: str = "touch RAN") -> bytes:
    """A pickle that calls module.name(argument)."""

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + len(value.encode()).to_bytes(4, "little") + value.encode()

    call = text(argument) + pickle.TUPLE1 + pickle.REDUCE
    return b"\x80\x05" + text(module) + text(name) + pickle.STACK_GLOBAL + call + b"."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("datetime", "datetime.fromtimestamp"),
        ("datetime", "sys.modules"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("neuralil.model", "NeuralILModelInfo.__init__"),
        ("neuralil.model", "os"),
        ("jax._src.device_array", "reconstruct_device_array.__globals__"),
        ("pickle", "loads"),
        ("", ""),
    ],
)
def test_every_other_global_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, stack_global(module, name))
    with pytest.raises(ModelFileError, match=re.escape(f"asks for {module}.{name},")):
        import_published(path)
    assert list(tmp_path.iterdir()) == [path]


def test_payloads_of_reduce_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pickled by Python itself, in every protocol, alone and hidden among the fields."""

    class Payload:
        def __reduce__(self) -> Any:
            return os.system, ("touch RAN",)

    monkeypatch.chdir(tmp_path)
    contents = [pickle.dumps(Payload(), protocol) for protocol in range(6)]
    for content in [*contents, dump(fields(specific_info=Payload()))]:
        path = write(tmp_path, content)
        with pytest.raises(
            ModelFileError, match=r"asks for \w+.system, which no published file uses"
        ):
            import_published(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["published.pkl"]


def test_admitted_globals_cannot_be_changed(tmp_path: Path) -> None:
    """BUILD on a global would set attributes that outlive the import."""
    for module, name in published_pickle.GLOBALS:
        build = stack_global(module, name)[: -len(pickle.TUPLE1 + pickle.REDUCE) - 1]
        build = build.split(pickle.STACK_GLOBAL)[0] + pickle.STACK_GLOBAL
        text = pickle.SHORT_BINUNICODE + b"\x01x"
        state = b"N" + pickle.EMPTY_DICT + text + text + pickle.SETITEM + pickle.TUPLE2
        with pytest.raises(ModelFileError, match="was refused"):
            import_published(write(tmp_path, build + state + pickle.BUILD + b"."))
    assert not any(hasattr(stand_in, "x") for stand_in in published_pickle.GLOBALS.values())


@pytest.mark.parametrize(
    "state",
    [
        (1, (2,), np.dtype("O"), False, [1, 2]),
        (1, (2,), np.dtype("<f4"), False, [1.0, 2.0]),
        (1, (2,), np.dtype(">f4"), False, b"12345678"),
        (1, (3,), np.dtype("<f4"), False, b"12345678"),
        (1, (-2,), np.dtype("<f4"), False, b"12345678"),
        (1, (2.0,), np.dtype("<f4"), False, b"12345678"),
        (1, (0, 10**30), np.dtype("<f4"), False, b""),
        (1,),
        "state",
    ],
)
def test_forged_arrays_are_refused(tmp_path: Path, state: Any) -> None:
    class Forged:
        def __reduce__(self) -> Any:
            return (*np.zeros(1).__reduce__()[:2], state)

    with pytest.raises(ModelFileError, match="was refused"):
        import_published(write(tmp_path, fields(random_seed=Forged())))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_pickles_are_refused_cleanly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(BYTES)
    place = data.draw(
        st.sampled_from([1, 3000, len(content)]).flatmap(lambda n: st.integers(0, n - 1))
    )
    content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[:place]
    with contextlib.suppress(ModelFileError):
        import_published(write(tmp_path_factory.getbasetemp(), bytes(content)))


BYTES = dump(fields())


# ---- what is no published file ----


def _renamed(old: str, new: str) -> dict[str, Any]:
    tree = random_tree()
    tree[new] = tree.pop(old)
    return {"params": {"params": {"neuralil": tree}}}


def _endless() -> dict[str, Any]:
    tree: dict[str, Any] = {}
    tree["forged"] = tree
    return tree


def _bushy() -> dict[str, Any]:
    """Few bytes, 10^15 paths."""
    tree: dict[str, Any] = {}
    for _ in range(5):
        tree = {str(key): tree for key in range(1000)} | {"forged": tree}
    return tree


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "NNFF9"}, "unknown kind 'NNFF9' version '0.1'; known are"),
        ({"model_version": "7"}, "unknown kind 'PlainEnsemble' version '7'"),
        ({"model_version": None}, "model_version is missing or of type NoneType"),
        ({"constructor_kwargs": {"a": 1}}, "constructor_kwargs are not empty"),
        ({"sorted_elements": ["Sr", "O", "Ti"]}, "alphabetical order"),
        ({"sorted_elements": ["A", "O", "Ti"]}, "not chemical elements"),
        ({"sorted_elements": "OTi"}, "sorted_elements is missing or of type str"),
        ({"sorted_elements": ["O", "Ti"]}, "has shape"),
        ({"n_max": 4}, "has shape"),
        ({"n_max": True}, "n_max is missing or of type bool"),
        ({"r_cut": float("nan")}, "r_cut must lie between"),
        ({"core_widths": [64, "32"]}, "not a short list of type int"),
        ({"core_widths": [1] * 1000}, "not a short list"),
        ({"core_widths": [64, 32]}, "do not belong to this architecture"),
        ({"params": {}}, "should all be under 'params'"),
        ({"params": {"params": {"other": {}}}}, "should all be under 'neuralil'"),
        ({"params": {"params": {"neuralil": {"embed": 3}}}}, "embed is not an array"),
        ({"params": {"params": {"neuralil": {}}}}, "element embedding is missing"),
        ({"params": {"params": {"neuralil": _endless()}}}, "is not an array"),
        ({"params": {"params": {"neuralil": _bushy()}}}, "is not an array"),
        (_renamed("denormalizer", "normalizer"), "normalizer/kernel belongs to no known layout"),
        (_renamed("embed", "embedding"), "element embedding is missing"),
        ({"model_version": "0.2"}, "unexpected .*pair/embedding"),
    ],
)
def test_other_descriptions_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, fields(**changes))
    with pytest.raises(ModelFileError, match=message) as caught:
        import_published(path)
    assert str(path) in str(caught.value)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tree = random_tree()
    tree["denormalizer"]["bias"][0] = np.nan
    with pytest.raises(ModelFileError, match="denormalizer/bias holds values that are not finite"):
        import_published(write(tmp_path, fields(params={"params": {"neuralil": tree}})))


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], "text"])
def test_other_pickles_are_refused(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path, pickle.dumps(content))
    with pytest.raises(ModelFileError, match="holds no NeuralIL model information"):
        import_published(path)


def test_large_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.pkl"
    with open(path, "wb") as file:
        file.truncate(published_files.MAX_FILE_BYTES + 1)
    with pytest.raises(ModelFileError, match="larger than 64 MiB"):
        import_published(path)
    with pytest.raises(ModelFileError, match="does not exist"):
        import_published(tmp_path / "none.pkl")
    with pytest.raises(ModelFileError, match="is a folder"):
        import_published(tmp_path)


# ---- files that would cost memory or time ----


def text(value: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()


def doubled(depth: int) -> bytes:
    """A tuple of two references to a tuple of two references …: 2^depth paths in 4 bytes each."""
    start = pickle.EMPTY_TUPLE + pickle.MEMOIZE
    return start + b"".join(
        pickle.BINGET + bytes([k]) + pickle.BINGET + bytes([k]) + pickle.TUPLE2 + pickle.MEMOIZE
        for k in range(depth)
    )


RECORD = (
    b"\x80\x04" + text("neuralil.model") + text("NeuralILModelInfo") + pickle.STACK_GLOBAL
    + pickle.EMPTY_TUPLE + pickle.NEWOBJ
)  # fmt: skip
DEEP = pickle.EMPTY_TUPLE + pickle.TUPLE1 * 50_000
FORGED = {
    "a memo of 13.5 GB": b"\x80\x04" + pickle.NONE + pickle.LONG_BINPUT + (845_688_680).to_bytes(4, "little") + b".",
    "hashed": b"\x80\x04" + pickle.EMPTY_DICT + doubled(200) + pickle.NONE + pickle.SETITEM + b".",
    "a name": RECORD + b"}" + text("model_name") + doubled(200) + pickle.SETITEM + pickle.BUILD + b".",
    "a deep name": RECORD + b"}" + text("model_name") + DEEP + pickle.SETITEM + pickle.BUILD + b".",
    "a date": RECORD + b"}" + text("timestamp") + doubled(200) + pickle.SETITEM + pickle.BUILD + b".",
    "a dtype": b"\x80\x04" + text("numpy") + text("dtype") + pickle.STACK_GLOBAL + doubled(200)[:-1] + pickle.TUPLE1
    + pickle.REDUCE + b".",
    "deep": b"\x80\x04" + DEEP + b".",
    "marks": b"\x80\x04" + pickle.MARK * 90_000 + b".",
    "too many operations": b"\x80\x04" + pickle.EMPTY_LIST * 200_000 + b".",
    "called": b"\x80\x04" + text("len") + pickle.EMPTY_TUPLE + pickle.REDUCE + b".",
    "appended to a number": b"\x80\x04" + b"K\x01K\x01" + pickle.APPEND + b".",
    "nothing": b"\x80\x04.",
    "a shape": dump([np.zeros(1)]).replace(b"K\x01\x85", doubled(60)),
}  # fmt: skip


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
def test_forged_pickles_are_refused_at_once(tmp_path: Path, content: bytes) -> None:
    """Python's own unpickler took gigabytes, hung for ever or ran into its limit of recursion."""
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(ModelFileError, match=r"was refused|is not a published potential"):
        import_published(write(tmp_path, content))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    assert time.process_time() - began < 20  # with tracemalloc; a fraction of a second without


@pytest.mark.slow
def test_mutants_are_refused_quickly_and_in_little_memory() -> None:
    script = Path(__file__).parent / "properties" / "fuzz_files.py"
    words = [sys.executable, str(script), "--mutants", "10000"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=3000)
    found = json.loads(done.stdout)
    assert found["memory_rise_MB"] < 256
    for kind in ("published", "model"):
        assert found[kind]["longest_s"] < 1
