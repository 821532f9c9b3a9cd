"""From arrays on the host to predictions: pair lists, compiled functions, derivatives. Uses no ASE."""
