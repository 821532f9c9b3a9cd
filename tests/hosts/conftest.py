import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Where ``lmp`` finds the plugin, as its entry point would say."""
    from neuralil_ase.hosts import lammps

    settings = {"LAMMPS_PLUGIN_PATH": str(lammps.build()), "OMP_NUM_THREADS": "1"}
    settings["MPIR_CVAR_POLLS_BEFORE_YIELD"] = (
        "1"  # more ranks than processors: who waits gives way
    )
    return os.environ | settings
