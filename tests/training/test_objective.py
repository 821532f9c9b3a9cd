"""What training sees is what the saved potential gives: two independent routes to forces and stresses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from jax.test_util import check_grads
from small_runs import alloy, labelled, trainer_for

from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.evaluate import evaluate
from neuralil_ase.samples.forward import permute


def structures() -> list[Atoms]:
    """Crystals, a cell so small that atoms neighbour their own images, a molecule without cell, and a close pair."""
    tiny = bulk("Cu", a=3.6)
    cluster = Atoms("CuAuCu", [(0, 0, 0), (2.4, 0.3, 0), (1.0, 2.2, 0.4)])
    close = Atoms("CuAu", [(0, 0, 0), (1.6, 0, 0)], cell=[8, 8, 8], pbc=True)
    return [*alloy(3), labelled(tiny), labelled(cluster, "energy", "forces"), labelled(close)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cross_terms": True, "pair_term": "none", "head_widths": ()},
        pytest.param({"network": "resnet", "widths": (12, 8)}, marks=pytest.mark.slow),
        pytest.param({"widths": (12, 8), "head_widths": (6, 4)}, marks=pytest.mark.slow),
        {"shared_layers": 1, "memory_budget": 0},
    ],
    ids=lambda options: "-".join(map(str, options)) or "core",
)
def test_residuals_in_training_are_the_errors_of_the_saved_potential(options: dict) -> None:
    """Energies, forces and stress from Jacobians and slots against ``derivatives.energies_and_forces`` on pairs."""
    data = frames_from_atoms(structures())
    trainer = trainer_for(data, [], max_force=1e6, **options)
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype),
        trainer.start().state.params,
    )
    energy, forces, stress = trainer.residuals(params, trainer.task.train)
    comparison = evaluate(trainer.potential(params), data).comparison

    expected_stress = comparison.predicted_stresses - comparison.stresses
    labelled_frames = np.isfinite(expected_stress).all(axis=1)
    scale = np.abs(comparison.member_forces).max()
    assert scale > 0.1
    assert labelled_frames.sum() == 5
    np.testing.assert_allclose(energy, comparison.energy_errors / comparison.sizes, atol=1e-4)
    np.testing.assert_allclose(forces, comparison.force_errors, atol=1e-4 * max(scale, 1))
    np.testing.assert_allclose(stress, expected_stress[labelled_frames], atol=2e-5)


def test_permutation_by_an_involution_has_the_right_derivative() -> None:
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
    involution = jnp.array([1, 0, 2, 5, 4, 3])
    check_grads(lambda x: permute(x, involution) ** 2, (rows,), 1, modes=["rev"], rtol=1e-2)
    weights = jnp.arange(12.0).reshape(6, 2)
    gradient = jax.grad(lambda x: (permute(x, involution) * weights).sum())(rows)
    np.testing.assert_array_equal(gradient, weights[involution])
