"""``python -m neuralil_ase.hosts.lammps``: build the plugin again and say where it is."""

import sys

from neuralil_ase.hosts.lammps import PluginError, build

if __name__ == "__main__":
    try:
        print(build(force=True))
    except (OSError, PluginError) as error:
        sys.exit(f"error: {error}")
