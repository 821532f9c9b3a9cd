"""From arrays on the host to predictions: pair lists, compiled functions, derivatives. Knows no ASE."""
