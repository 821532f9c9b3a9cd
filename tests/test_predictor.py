"""From host arrays to predictions: means, references, batches, capacities, compilations."""

import pickle
from dataclasses import replace

import jax
import numpy as np
import pytest
from ase import Atoms
from systems import CONFIG, REFERENCE, calculator, ensemble, random_params, structure

from neuralil_ase.calculator import NeuralILCalculator, to_system
from neuralil_ase.engine.arrays import System
from neuralil_ase.engine.jax_backend import jitted, precision
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.errors import ConfigError, PredictionError
from neuralil_ase.model.config import NetworkConfig
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.potential import Potential, cast_params


def system(atoms: Atoms, potential: Potential | None = None) -> System:
    potential = potential or ensemble()
    return to_system(atoms, potential, NeighborList(potential.r_cut, 0.0))


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="unknown dtype 'float16'; choose one of float32, float64"
    ):
        Predictor(ensemble(), "float16")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["molecule", "tiny"])
def test_means_and_spreads_by_hand(name: str) -> None:
    """From the members' forces and energies: plain mean, deviations with ddof 1, norm per atom."""
    record = calculator("forces").prediction(structure(name))
    energies, forces = record.member_energies, record.member_forces
    assert record.energy == pytest.approx(energies.mean(), abs=1e-11)
    assert record.energy == pytest.approx(record.energies.sum(), abs=1e-12)
    spread = np.sqrt(((energies - energies.mean()) ** 2).sum() / 2)
    assert record.energy_std == pytest.approx(spread, rel=1e-12)
    assert spread > 0.1
    deviations = forces - forces.mean(axis=0)
    expected = np.sqrt((deviations**2).sum(axis=(0, 2)) / 2)
    np.testing.assert_allclose(record.forces_std, expected, rtol=1e-12)
    np.testing.assert_allclose(record.forces, forces.mean(axis=0), rtol=0, atol=1e-12)
    if record.holds("stress"):
        np.testing.assert_allclose(record.stress, record.member_stresses.mean(axis=0), atol=1e-14)


def test_spread_of_atomic_energies_is_that_of_atoms_alone() -> None:
    """One atom per structure: atomic energy and energy of every member are the same thing."""
    record = calculator().prediction(structure("one atom"))
    np.testing.assert_allclose(record.energies_std, [record.energy_std], rtol=1e-12)


def test_reference_energies_are_added_for_every_atom() -> None:
    potential = ensemble()
    shifted = replace(potential, energy_reference=REFERENCE + np.array([1e5, 0, 2.0, 0]))
    atoms = structure("triclinic")
    before, after = (
        Predictor(p, "float64").predict([system(atoms)], "energy")[0] for p in (potential, shifted)
    )
    carbon, nitrogen = (atoms.symbols == "C").sum(), (atoms.symbols == "N").sum()
    assert after.energy - before.energy == pytest.approx(carbon * 1e5 + nitrogen * 2.0, abs=1e-9)
    np.testing.assert_array_equal(after.forces, before.forces)
    np.testing.assert_allclose(after.energies_std, before.energies_std, rtol=1e-6, atol=1e-10)


def test_identical_members_have_no_spread() -> None:
    potential = ensemble()
    flat = {k: np.repeat(v[:1], 3, axis=0) for k, v in _flat(potential).items()}
    same = Potential(CONFIG, _nested(flat), REFERENCE)
    (record,) = Predictor(same, "float64").predict([system(structure("triclinic"))], "forces")
    assert record.energy_std < 1e-13
    assert record.energies_std.max() < 1e-13
    assert record.forces_std.max() < 1e-13
    np.testing.assert_allclose(
        record.energy,
        calculator().prediction(structure("triclinic")).member_energies[0],
        rtol=1e-12,
    )


def _flat(potential: Potential) -> dict[str, np.ndarray]:
    from neuralil_ase.model.potential import flatten

    return flatten(potential.params)


def _nested(flat: dict[str, np.ndarray]) -> dict:
    from neuralil_ase.model.potential import unflatten

    return unflatten(flat)


@pytest.mark.parametrize("name", ["Dense_0", "denormalizer"])
@pytest.mark.parametrize("uncertainty", ["off", "forces"])
def test_parameters_too_large_end_in_an_error_and_not_in_nan(name: str, uncertainty: str) -> None:
    """Finite in the file, infinite in the network: it once gave NaN for an energy without a word."""
    potential = ensemble()
    flat = dict(_flat(potential))
    for part in ("kernel", "bias"):
        flat[f"network/body/{name}/{part}"] = np.full_like(
            flat[f"network/body/{name}/{part}"], 3e38
        )
    damaged = replace(potential, params=_nested(flat))
    with pytest.raises(
        PredictionError, match=r"of atom \d is not a finite number in float32.*damaged"
    ):
        Predictor(damaged, "float32").predict([system(structure("molecule"))], uncertainty)


def test_a_batch_equals_its_members_one_by_one() -> None:
    names = ["tiny", "one atom", "molecule"]
    predictor = Predictor(ensemble(), "float64")
    together = predictor.predict([system(structure(name)) for name in names], "energy")
    for name, found in zip(names, together, strict=True):
        expected = calculator().prediction(structure(name))
        assert found.energy == pytest.approx(expected.energy, abs=1e-11)
        np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.member_energies, expected.member_energies, atol=1e-11)
        assert found.holds("stress") == expected.holds("stress")
        if found.holds("stress"):
            np.testing.assert_allclose(found.stress, expected.stress, rtol=0, atol=1e-13)


def test_compilations_are_counted_and_shared() -> None:
    """In JAX a new architecture compiles once; a second predictor of it and more or fewer pairs do not."""
    config = replace(CONFIG, descriptor=replace(CONFIG.descriptor, r_cut=2.9))
    potential = Potential(config, random_params(config, 0), REFERENCE)
    predictor = Predictor(potential, "float64", backend="jax")
    atoms = structure("triclinic")
    predictor.predict([system(atoms, potential)], "energy")
    assert predictor.compilations == 1
    for scale in (0.98, 1.03, 1.1):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell * scale, scale_atoms=True)
        predictor.predict([system(scaled, potential)], "energy")
    predictor.predict([system(atoms[:5], potential)], "energy")
    assert predictor.compilations == 1, "similar sizes share a bucket"
    second = Predictor(
        replace(potential, params=random_params(config, 1)), "float64", backend="jax"
    )
    second.predict([system(atoms, potential)], "energy")
    assert second.compilations == 0, "parameters are arguments of the compiled function"


def test_capacity_grows_by_itself_and_drops_nothing() -> None:
    """From 30 pairs to more than a thousand: a molecule squeezed into one spot of periodic images."""
    atoms = structure("molecule")
    calc = NeuralILCalculator(ensemble(), dtype="float64")
    calc.prediction(atoms)
    atoms.set_cell([1.9, 1.9, 1.9])
    atoms.pbc = True
    assert len(system(atoms).pairs.centers) > 600
    dense = calc.prediction(atoms)
    fresh = NeuralILCalculator(ensemble(), dtype="float64").prediction(atoms)
    np.testing.assert_allclose(dense.forces, fresh.forces, rtol=0, atol=1e-12)


def test_pickles_travel_without_device_arrays() -> None:
    predictor = Predictor(ensemble(), "float64")
    expected = predictor.predict([system(structure("tiny"))], "energy")[0]
    again = pickle.loads(pickle.dumps(predictor))
    found = again.predict([system(structure("tiny"))], "energy")[0]
    assert found.energy == expected.energy


def test_noise_that_a_deep_ensemble_predicts() -> None:
    """sqrt of the mean over members of σ²_E summed over atoms, and of 3 σ²_F per atom."""
    network = NetworkConfig("heteroscedastic", (4,), head_widths=(3,))
    config = replace(CONFIG, network=network, n_members=2)
    potential = Potential(config, random_params(config, 0), REFERENCE)
    predictor = Predictor(potential, "float64")
    atoms = structure("molecule")
    (record,) = predictor.predict([system(atoms, potential)], "energy")
    assert record.energy_aleatoric_std > 0
    assert record.forces_aleatoric_std.shape == (6,)
    twice = atoms.copy()
    twice.positions += [50.0, 0, 0]
    (double,) = predictor.predict([system(atoms + twice, potential)], "energy")
    assert double.energy_aleatoric_std == pytest.approx(
        np.sqrt(2) * record.energy_aleatoric_std, rel=1e-9
    )
    np.testing.assert_allclose(
        double.forces_aleatoric_std, np.tile(record.forces_aleatoric_std, 2), rtol=1e-9
    )


@pytest.mark.parametrize("level", ["off", "energy", "forces"])
def test_float32_is_close_to_float64(level: str) -> None:
    """Energies to 1e-5 eV per atom, forces to 1e-5 of the largest."""
    atoms = structure("triclinic")
    exact = calculator("forces").prediction(atoms)
    (rough,) = Predictor(ensemble(), "float32").predict([system(atoms)], level)
    assert rough.forces.dtype == np.float64
    assert 0 < abs(rough.energy - exact.energy) < 1e-5 * len(atoms)
    assert np.abs(rough.forces - exact.forces).max() < 3e-5 * np.abs(exact.forces).max()
    assert rough.holds("member_energies") == (level != "off")
    assert rough.holds("forces_std") == (level == "forces")


def test_matrix_products_round_nothing_that_the_user_did_not_ask_for() -> None:
    """By default JAX rounds float32 to TF32 on GPUs; what would run there is read from the lowered function."""
    function = jitted(ensemble().config, "forces")
    graph = Graph(
        np.ones((8, 3), np.float32),
        np.zeros(8, np.int32),
        np.ones(8, np.int32),
        np.zeros(8, np.int32),
    )

    def products() -> list[str]:
        params = cast_params(ensemble().params, "float32")
        with precision("float32"):
            text = function.lower(params, graph).as_text()
        return [line for line in text.splitlines() if "dot_general" in line]

    assert products()
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products())
    with jax.default_matmul_precision("bfloat16"):
        assert not any("HIGHEST" in line for line in products())
