"""Every published potential against what the original code computes with it.

The reference data (see ../shared/NEURALIL.md) hold the original's results in float64 and, as
shipped, in float32.
"""

from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
import pytest

from neuralil_ase.engine.derivatives import atomic_outputs
from neuralil_ase.engine.neighbors import NeighborList, Pairs
from neuralil_ase.engine.predictor import Dtype, Predictor, System, precision
from neuralil_ase.files.published_files import import_published
from neuralil_ase.model.config import DescriptorConfig
from neuralil_ase.model.descriptors import descriptors
from neuralil_ase.model.graph import Graph, pad_graph
from neuralil_ase.model.potential import Potential, cast_params
from neuralil_ase.model.radial_basis import radial_series
from neuralil_ase.prediction import Prediction

CASES = {
    "ean_single": "model_params_neuralil_OPTAX_2B25114.pickle",
    "ean_committee": "EAN_params_committee_1FEB3E08.pkl",
    "ean_deep": "EAN_params_deep_ensemble_8ABE86C9.pkl",
    "sto_nnff1": "model_nnff1.pickle",
}
WITH_DESCRIPTORS = ("ean_single", "sto_nnff1")


@lru_cache
def published(original: Path, case: str) -> Potential:
    return import_published(original / CASES[case])


@lru_cache
def reference(original: Path, case: str) -> dict[str, np.ndarray]:
    with np.load(original / f"{case}.npz") as data:
        return dict(data)


@lru_cache
def neighbours(original: Path, case: str) -> list[tuple[np.ndarray, Pairs]]:
    data = reference(original, case)
    r_cut = published(original, case).r_cut
    geometry = zip(data["positions"], data["cell"], data["pbc"], data["types"], strict=True)
    # A list for each, as what a list returns is valid until its next call.
    return [(types, NeighborList(r_cut, 0.0).pairs(*rest, types)) for *rest, types in geometry]


@lru_cache
def predictions(original: Path, case: str, dtype: Dtype) -> list[Prediction]:
    """Of every configuration by itself, at level "forces"."""
    predictor = Predictor(published(original, case), dtype)
    systems = [System(types, pairs, None) for types, pairs in neighbours(original, case)]
    return [predictor.predict([system], "forces")[0] for system in systems]


def graphs(original: Path, case: str, dtype: Dtype) -> list[Graph]:
    """Graphs without padding atoms, all of one number of pairs."""
    found = neighbours(original, case)
    n_pairs = max(len(pairs.centers) for _, pairs in found)
    r_cut = published(original, case).r_cut
    return [
        pad_graph(*pairs, types, n_atoms=len(types), n_pairs=n_pairs, r_cut=r_cut, dtype=dtype)
        for types, pairs in found
    ]


@lru_cache
def outputs(original: Path, case: str, dtype: Dtype) -> np.ndarray:
    """All outputs of every atom, member and configuration: (configurations, M, N, outputs)."""
    potential = published(original, case)
    with precision(dtype):
        function = jax.jit(lambda params, graph: atomic_outputs(potential.config, params, graph))
        params = cast_params(potential.params, dtype)
        found = [np.asarray(function(params, graph)) for graph in graphs(original, case, dtype)]
    return np.array(found, float)


def describe(config: DescriptorConfig, found: list[Graph], dtype: Dtype) -> np.ndarray:
    with precision(dtype):
        function = jax.jit(lambda graph: descriptors(config, graph))
        return np.array([np.asarray(function(graph)) for graph in found], float)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize("case", CASES)
def test_energies_of_every_member_agree_with_the_original(original: Path, case: str) -> None:
    """Against float64, on every configuration."""
    expected = reference(original, case)["energies_f64"]
    found = np.array([p.member_energies for p in predictions(original, case, "float64")])
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_forces_of_every_member_agree_with_the_original(original: Path, case: str) -> None:
    """Against float64, on every configuration."""
    expected = reference(original, case)["forces_f64"]
    found = np.array([p.member_forces for p in predictions(original, case, "float64")])
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-7)
    mean = np.array([p.forces for p in predictions(original, case, "float64")])
    np.testing.assert_allclose(mean, found.mean(axis=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_atomic_energies_agree_with_the_original(original: Path, case: str) -> None:
    """Pair term included; this fixes the order of the elements in every embedding."""
    expected = reference(original, case)["atomic_energies_f64"]
    found = outputs(original, case, "float64")[..., 0]
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", WITH_DESCRIPTORS)
def test_descriptors_agree_with_the_original(original: Path, case: str) -> None:
    """Largest deviation at most 1e-9 of the largest value."""
    expected = reference(original, case)["descriptors_f64"]
    config = published(original, case).config.descriptor
    found = describe(config, graphs(original, case, "float64"), "float64").reshape(expected.shape)
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


def test_variances_of_the_deep_ensemble_agree_with_the_original(original: Path) -> None:
    """σ²_E sums over atoms; σ²_F is one number per atom."""
    data = reference(original, "ean_deep")
    found = outputs(original, "ean_deep", "float64")
    np.testing.assert_allclose(found[..., 1].sum(axis=-1), data["sigma2_e_f64"], rtol=1e-9)
    np.testing.assert_allclose(found[..., 2], data["sigma2_f_f64"], rtol=1e-9)


def test_predicted_noise_is_made_of_the_variances(original: Path) -> None:
    """sqrt of the mean of σ²_E, and of 3 σ²_F for the three components of a force."""
    data = reference(original, "ean_deep")
    found = predictions(original, "ean_deep", "float64")
    energy = [p.energy_aleatoric_std for p in found]
    forces = np.array([p.forces_aleatoric_std for p in found])
    np.testing.assert_allclose(energy, np.sqrt(data["sigma2_e_f64"].mean(axis=1)), rtol=1e-9)
    np.testing.assert_allclose(forces, np.sqrt(3 * data["sigma2_f_f64"].mean(axis=1)), rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_float32_is_as_good_as_the_original(original: Path, case: str) -> None:
    """Deviation from its float64: ours no larger than that of its own float32."""
    data = reference(original, case)
    energies = outputs(original, case, "float32")[..., 0]
    exact = data["atomic_energies_f64"].reshape(energies.shape)
    theirs = data["atomic_energies_f32"].reshape(energies.shape) - exact
    assert rms(energies - exact) <= 1.1 * rms(theirs)

    forces = np.array([p.member_forces for p in predictions(original, case, "float32")])
    exact = data["forces_f64"].reshape(forces.shape)
    theirs = data["forces_f32"].reshape(forces.shape) - exact
    # One atom of the hottest slab decides about rms and maximum there: hence the median as well.
    assert np.median(np.abs(forces - exact)) <= 1.1 * np.median(np.abs(theirs))
    assert np.abs(forces - exact).max() <= 2 * np.abs(theirs).max()


@pytest.mark.parametrize("case", WITH_DESCRIPTORS)
def test_float32_descriptors_are_as_good_as_the_original(original: Path, case: str) -> None:
    """Largest deviation from float64 no larger than the original's."""
    data = reference(original, case)
    exact = data["descriptors_f64"]
    config = published(original, case).config.descriptor
    found = describe(config, graphs(original, case, "float32"), "float32").reshape(exact.shape)
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


def test_energies_of_nnff1_belong_to_twice_the_cell_of_its_dft_energies(original: Path) -> None:
    """What "energies are for the doubled cell" means: the atoms shown, with their own gradient."""
    data = reference(original, "sto_nnff1")
    found = predictions(original, "sto_nnff1", "float64")
    ratio = [p.energy for p in found] / data["dft_energies"]
    np.testing.assert_allclose(ratio, 2, rtol=3e-3)
    for prediction, dft in list(zip(found, data["dft_forces"], strict=True))[1:]:
        slope = np.vdot(prediction.forces, dft) / np.vdot(dft, dft)
        assert slope == pytest.approx(1, abs=0.1)
    assert "halve the energy" in published(original, "sto_nnff1").provenance["note"]
