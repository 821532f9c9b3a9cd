"""Every kind of published potential against what the original computes with it.

In every clone: five potentials with parameters of our own, against tests/data/parity.npz. Its figures come from
published_oracle.py, which writes the original's formulas in plain NumPy and shares no code with the package.

With the reference data beside the repository: the published potentials against the results of the original code in
float64 and, as shipped, in float32; and the formulas of published_oracle.py against the same results.
"""

import datetime
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import published_oracle
import pytest
from published_writer import dump

from neuralil_ase.engine.arrays import Dtype, System
from neuralil_ase.engine.derivatives import atomic_outputs
from neuralil_ase.engine.jax_backend import precision
from neuralil_ase.engine.neighbors import NeighborList, Pairs
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.files.published_files import import_published
from neuralil_ase.files.published_pickle import PickledArray, read_fields
from neuralil_ase.model.descriptors import descriptors
from neuralil_ase.model.graph import Graph, pad_graph
from neuralil_ase.model.potential import Potential, cast_params
from neuralil_ase.model.radial_basis import radial_series
from neuralil_ase.prediction import Prediction

OURS = tuple(published_oracle.KINDS)
ORIGINAL = {
    "ean_single": ("single", "model_params_neuralil_OPTAX_2B25114.pickle"),
    "ean_committee": ("committee", "EAN_params_committee_1FEB3E08.pkl"),
    "ean_deep": ("deep", "EAN_params_deep_ensemble_8ABE86C9.pkl"),
    "sto_nnff1": ("slab", "model_nnff1.pickle"),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A potential, structures, and what the original makes of them; names as in its files of results."""

    potential: Potential
    data: dict[str, np.ndarray]


@pytest.fixture(params=[*OURS, *ORIGINAL])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param in OURS:
        return our_case(request.param)
    return original_case(request.getfixturevalue("original"), request.param)


def some(*names: Any) -> pytest.MarkDecorator:
    """These cases only."""
    return pytest.mark.parametrize("case", names, indirect=True)


@cache
def original_case(original: Path, name: str) -> Case:
    with np.load(original / f"{name}.npz") as data:
        return Case(import_published(original / ORIGINAL[name][1]), dict(data))


@cache
def our_case(kind: str) -> Case:
    """Read from a parameter file written as the original would have written it."""
    with np.load(published_oracle.FILE) as file:
        data = {
            name.removeprefix(f"{kind}/"): array
            for name, array in file.items()
            if name.startswith(f"{kind}/")
        }
    tree = parameters(data)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "published.pkl"
        path.write_bytes(dump(fields(kind, tree)))
        return Case(import_published(path), data)


def parameters(data: dict[str, np.ndarray]) -> dict[str, Any]:
    leaves = {name: array for name, array in data.items() if name.startswith("params/")}
    tree: dict[str, Any] = published_oracle.nested(leaves)["params"]
    return tree


def fields(kind: str, tree: dict[str, Any]) -> dict[str, Any]:
    """What a published file of this kind holds."""
    name, version = published_oracle.KINDS[kind]
    elements, n_max, r_cut = published_oracle.MATTER[kind]
    widths = list(published_oracle.WIDTHS[kind])
    is_deep = kind == "deep"
    layers = {"extractor_widths": widths, "head_widths": widths[-1:]} if is_deep else {}
    branch = {"deep": "h_neuralil", "committee": "neuralil", "committee_morse": "neuralil"}.get(
        kind
    )
    return {
        "model_name": name,
        "model_version": version,
        "timestamp": datetime.datetime(2026, 11, 25),
        "r_cut": r_cut,
        "n_max": n_max,
        "sorted_elements": elements,
        "embed_d": 2,
        "constructor_kwargs": {},
        "random_seed": 0,
        "params": {"params": {branch: tree} if branch else tree},
        "specific_info": None,
    } | (layers or {"core_widths": widths})


@cache
def neighbours(case: Case) -> list[tuple[np.ndarray, Pairs]]:
    data, r_cut = case.data, case.potential.r_cut
    geometry = zip(data["positions"], data["cell"], data["pbc"], data["types"], strict=True)
    # A list for each, as what a list returns is valid until its next call.
    return [(types, NeighborList(r_cut, 0.0).pairs(*rest, types)) for *rest, types in geometry]


@cache
def predictions(case: Case, dtype: Dtype) -> list[Prediction]:
    """Of every configuration by itself, at level "forces"."""
    predictor = Predictor(case.potential, dtype)
    systems = [System(types, pairs, None) for types, pairs in neighbours(case)]
    return [predictor.predict([system], "forces")[0] for system in systems]


def graphs(case: Case, dtype: Dtype) -> list[Graph]:
    """Graphs without padding atoms, all of one number of pairs."""
    found = neighbours(case)
    n_pairs = max(len(pairs.centers) for _, pairs in found)
    r_cut = case.potential.r_cut
    return [
        pad_graph(*pairs, types, n_atoms=len(types), n_pairs=n_pairs, r_cut=r_cut, dtype=dtype)
        for types, pairs in found
    ]


@cache
def outputs(case: Case, dtype: Dtype) -> np.ndarray:
    """All outputs of every atom, member and configuration: (configurations, M, N, outputs)."""
    potential = case.potential
    with precision(dtype):
        function = jax.jit(lambda params, graph: atomic_outputs(potential.config, params, graph))
        params = cast_params(potential.params, dtype)
        found = [np.asarray(function(params, graph)) for graph in graphs(case, dtype)]
    return np.array(found, float)


def described(case: Case, dtype: Dtype) -> np.ndarray:
    """Descriptors of all configurations, in the shape of the reference."""
    config = case.potential.config.descriptor
    with precision(dtype):
        function = jax.jit(lambda graph: descriptors(config, graph))
        found = np.array([np.asarray(function(graph)) for graph in graphs(case, dtype)], float)
    return found.reshape(case.data["descriptors_f64"].shape)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def test_energies_of_every_member_agree_with_the_original(case: Case) -> None:
    """Against float64, on every configuration."""
    expected = case.data["energies_f64"]
    found = np.array([p.member_energies for p in predictions(case, "float64")])
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-7)


def test_forces_of_every_member_agree_with_the_original(case: Case) -> None:
    """Against float64, on every configuration."""
    expected = case.data["forces_f64"]
    found = np.array([p.member_forces for p in predictions(case, "float64")])
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-7)
    mean = np.array([p.forces for p in predictions(case, "float64")])
    np.testing.assert_allclose(mean, found.mean(axis=1), rtol=0, atol=1e-12)


def test_atomic_energies_agree_with_the_original(case: Case) -> None:
    """Pair term included; this fixes the order of the elements in every embedding."""
    expected = case.data["atomic_energies_f64"]
    found = outputs(case, "float64")[..., 0]
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-9)


@some("single", "slab", "ean_single", "sto_nnff1")
def test_descriptors_agree_with_the_original(case: Case) -> None:
    """Largest deviation at most 1e-9 of the largest value."""
    expected = case.data["descriptors_f64"]
    found = described(case, "float64")
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


@some("deep", "ean_deep")
def test_variances_of_the_deep_ensemble_agree_with_the_original(case: Case) -> None:
    """σ²_E sums over atoms; σ²_F is one number per atom."""
    data = case.data
    found = outputs(case, "float64")
    np.testing.assert_allclose(found[..., 1].sum(axis=-1), data["sigma2_e_f64"], rtol=1e-9)
    np.testing.assert_allclose(found[..., 2], data["sigma2_f_f64"], rtol=1e-9)


@some("deep", "ean_deep")
def test_aleatoric_deviations_are_made_of_the_variances(case: Case) -> None:
    """sqrt of the mean of σ²_E, and of 3 σ²_F for the three components of a force."""
    data = case.data
    found = predictions(case, "float64")
    energy = [p.energy_aleatoric_std for p in found]
    forces = np.array([p.forces_aleatoric_std for p in found])
    np.testing.assert_allclose(energy, np.sqrt(data["sigma2_e_f64"].mean(axis=1)), rtol=1e-9)
    np.testing.assert_allclose(forces, np.sqrt(3 * data["sigma2_f_f64"].mean(axis=1)), rtol=1e-9)


@some(
    "ean_deep", "sto_nnff1",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("ean_single", "ean_committee")),
)  # fmt: skip
def test_float32_is_as_good_as_the_original(case: Case) -> None:
    """Deviation from its float64: ours no larger than that of its own float32."""
    data = case.data
    energies = outputs(case, "float32")[..., 0]
    exact = data["atomic_energies_f64"].reshape(energies.shape)
    theirs = data["atomic_energies_f32"].reshape(energies.shape) - exact
    assert rms(energies - exact) <= 1.1 * rms(theirs)

    forces = np.array([p.member_forces for p in predictions(case, "float32")])
    exact = data["forces_f64"].reshape(forces.shape)
    theirs = data["forces_f32"].reshape(forces.shape) - exact
    # One atom of the hottest slab decides about rms and maximum there: hence the median as well.
    assert np.median(np.abs(forces - exact)) <= 1.1 * np.median(np.abs(theirs))
    assert np.abs(forces - exact).max() <= 2 * np.abs(theirs).max()


@some("ean_single", "sto_nnff1")
def test_float32_descriptors_are_as_good_as_the_original(case: Case) -> None:
    """Largest deviation from float64 no larger than the original's."""
    data = case.data
    exact = data["descriptors_f64"]
    found = described(case, "float32")
    assert np.abs(found - exact).max() <= 1.1 * np.abs(data["descriptors_f32"] - exact).max()


@pytest.mark.parametrize(("n_max", "r_cut"), [(4, 3.5), (5, 5.5)])
def test_radial_functions_and_slopes_agree_with_the_original(
    original: Path, n_max: int, r_cut: float
) -> None:
    """g_nl and dg_nl/dr from the series in r², on the original's grid."""
    with np.load(original / "radial_basis_f64.npz") as data:
        r, g, slope = (data[f"{name}_n{n_max}_rc{r_cut}"] for name in ("r", "g", "dg"))
    orders = np.repeat(np.arange(n_max + 1), np.arange(n_max + 1, 0, -1))
    series = radial_series(n_max, r_cut, 1e-12)
    with precision("float64"):
        q, per_square = jax.jvp(series, (r**2,), (np.ones_like(r),))
        q, per_square = np.asarray(q).T, np.asarray(per_square).T
    power = r ** orders[:, None]
    np.testing.assert_allclose(power * q, g, rtol=0, atol=1e-11 * np.abs(g).max())
    inner = r > 0
    derivative = (2 * r * per_square + orders[:, None] * q / np.where(inner, r, 1)) * power
    np.testing.assert_allclose(
        derivative[:, inner], slope[:, inner], rtol=0, atol=1e-9 * np.abs(slope).max()
    )


@some("sto_nnff1")
def test_energies_of_nnff1_belong_to_twice_the_cell_of_its_dft_energies(case: Case) -> None:
    """What "energies are for the doubled cell" means: the atoms shown, with their own gradient."""
    data = case.data
    found = predictions(case, "float64")
    ratio = [p.energy for p in found] / data["dft_energies"]
    np.testing.assert_allclose(ratio, 2, rtol=3e-3)
    for prediction, dft in list(zip(found, data["dft_forces"], strict=True))[1:]:
        slope = np.vdot(prediction.forces, dft) / np.vdot(dft, dft)
        assert slope == pytest.approx(1, abs=0.1)
    assert "halve the energy" in case.potential.provenance["note"]


# ---- the formulas that stand for the original where its results are absent ----


@pytest.mark.parametrize("kind", OURS)
def test_the_file_holds_what_the_formulas_give(kind: str) -> None:
    """Outputs of all structures, and two components of a force."""
    data = our_case(kind).data
    _, n_max, r_cut = published_oracle.MATTER[kind]
    members = published_oracle.members(kind, parameters(data))
    for number in range(len(data["positions"])):
        structure = structure_of(data, number)
        found = published_oracle.outputs(kind, members, structure, n_max, r_cut)
        np.testing.assert_allclose(found[..., 0], data["atomic_energies_f64"][number], rtol=1e-9)
    for axis in (0, 2):
        force = published_oracle.force(kind, members, structure, n_max, r_cut, 5, axis)
        np.testing.assert_allclose(force, data["forces_f64"][-1, :, 5, axis], rtol=1e-9)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "ean_deep")) for name in ORIGINAL],
)
def test_the_formulas_reproduce_the_original(original: Path, name: str) -> None:
    """Descriptors, outputs and a force of its first configuration, in float64."""
    kind, file = ORIGINAL[name]
    data = original_case(original, name).data
    published = read_fields((original / file).read_bytes())
    tree: Any = arrays_of(published["params"])["params"]
    for branch in ("neuralil", "h_neuralil"):
        tree = tree.get(branch, tree)
    members = published_oracle.members(kind, tree)
    settings = published["n_max"], float(published["r_cut"])
    structure = structure_of(data, 0)
    found = published_oracle.outputs(kind, members, structure, *settings)
    expected = data["atomic_energies_f64"][0].reshape(found.shape[:2])
    np.testing.assert_allclose(found[..., 0], expected, rtol=0, atol=1e-9)
    if kind == "deep":
        np.testing.assert_allclose(found[..., 1].sum(axis=-1), data["sigma2_e_f64"][0], rtol=1e-9)
        np.testing.assert_allclose(found[..., 2], data["sigma2_f_f64"][0], rtol=1e-9)
    force = published_oracle.force(kind, members, structure, *settings, 3, 1)
    expected = data["forces_f64"][0].reshape(len(members), -1, 3)[:, 3, 1]
    np.testing.assert_allclose(force, expected, rtol=0, atol=1e-8)
    if "descriptors_f64" in data:
        parts = [structure[key] for key in ("positions", "cell", "pbc")]
        near = published_oracle.environments(*parts, settings[1])
        n_elements = len(members[0]["embed"]["embedding"])
        spectrum = published_oracle.power_spectrum(near, structure["types"], n_elements, *settings)
        expected = data["descriptors_f64"][0]
        assert np.abs(spectrum - expected).max() <= 1e-9 * np.abs(expected).max()


def structure_of(data: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    return {key: data[key][number] for key in ("positions", "cell", "pbc", "types")}


def arrays_of(tree: Any) -> Any:
    """The arrays of an unpickled file, as they are."""
    if isinstance(tree, PickledArray):
        return tree.values
    return {key: arrays_of(value) for key, value in tree.items()}
