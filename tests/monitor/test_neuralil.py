"""The monitor on a real NeuralIL committee in float32: not one bit of the run changes."""

from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.io import read
from ase.md.langevin import Langevin

from neuralil_ase.monitor import ExtrapolationMonitor, MaxEnergySpread, MaxForceSpread

ORIGINAL = Path(__file__).parents[2].parent / "shared" / "original"
COMMITTEE = ORIGINAL / "EAN_params_committee_1FEB3E08.pkl"
FRAMES = ORIGINAL / "ean_dft_50.extxyz"


@pytest.mark.skipif(not COMMITTEE.exists(), reason="the published EAN committee is not at hand")
def test_committee_run_with_and_without_monitor_is_bit_identical(in_folder):
    from neuralil_ase.calculator import NeuralILCalculator
    from neuralil_ase.files.published_files import import_published

    potential = import_published(COMMITTEE)
    ends = []
    for watched in (False, True):
        atoms = read(FRAMES, 0)
        # Fast and hot, so that the pair list is rebuilt several times within few steps.
        atoms.calc = NeuralILCalculator(potential, skin=0.2)
        rng = np.random.default_rng(1)
        atoms.set_momenta(np.zeros((len(atoms), 3)))
        dynamics = Langevin(
            atoms, 0.5 * units.fs, temperature_K=900, friction=0.5, fixcm=False, rng=rng
        )
        if watched:
            monitor = ExtrapolationMonitor(
                dynamics,
                criteria=[MaxForceSpread(1e-3), MaxEnergySpread(100.0)],
                log="log.txt",
                save="frames.extxyz",
                before=4,
                patience=5,  # so that frames from long before are compared at the flag
                warn=False,
            )
            dynamics.attach(monitor, interval=4)
        dynamics.run(36)
        builds = atoms.calc.neighbor_list_builds
        ends.append((atoms.positions.tobytes(), atoms.get_momenta().tobytes(), builds))
    assert builds > 2
    assert monitor.n_saved > 1
    assert ends[0] == ends[1]
