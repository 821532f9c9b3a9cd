"""``python -m neuralil_ase``, the same as the command ``neuralil-ase``."""

import sys

from neuralil_ase.cli import main

if __name__ == "__main__":
    sys.exit(main())
