"""Engines other than ASE that run NeuralIL potentials."""
