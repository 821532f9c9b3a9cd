"""The parts of one evaluation, with pytest-benchmark: pair list, compiled function, everything, many at once."""

from pathlib import Path

import jax
import numpy as np
import pytest
from ase.io import read

from neuralil_ase import Potential, predict_many
from neuralil_ase.calculator import to_system
from neuralil_ase.engine.neighbors import DEFAULT_SKIN, NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.model.config import DescriptorConfig, ModelConfig
from neuralil_ase.model.network import init_params
from neuralil_ase.prediction import Uncertainty

START = Path(__file__).parents[2] / "md_examples" / "ean_start.extxyz"


def ensemble(members: int) -> Potential:
    config = ModelConfig(DescriptorConfig(("C", "H", "N", "O")), n_members=members)
    return Potential(config, init_params(config, 0), np.zeros(4))


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_pair_list(benchmark, repeat: int) -> None:
    atoms, potential = read(START).repeat(repeat), ensemble(1)
    pair_list = NeighborList(potential.r_cut, skin=DEFAULT_SKIN)
    system = benchmark(lambda: to_system(atoms, potential, pair_list))
    benchmark.extra_info["atoms"], benchmark.extra_info["pairs"] = (
        len(atoms),
        len(system.pairs.centers),
    )
    assert pair_list.builds == 1


@pytest.mark.parametrize("level", ["off", "energy", "forces"])
@pytest.mark.parametrize("members", [1, 10])
def test_evaluation(benchmark, members: int, level: Uncertainty) -> None:
    atoms, potential = read(START), ensemble(members)
    system = to_system(atoms, potential, NeighborList(potential.r_cut, skin=0.0))
    predictor = Predictor(potential)
    predictor.predict([system], level)
    benchmark(lambda: predictor.predict([system], level))
    assert predictor.compilations <= 1


def test_many_structures(benchmark) -> None:
    rng = np.random.default_rng(0)
    structures = [read(START) for _ in range(50)]
    for atoms in structures:
        atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
    potential = ensemble(1)
    predict_many(potential, structures)
    predictions = benchmark(lambda: predict_many(potential, structures, uncertainty="off"))
    assert len(predictions) == 50
    assert jax.default_backend() in ("cpu", "gpu", "tpu")
