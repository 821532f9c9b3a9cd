"""The potential: its description, its parameters, and the formulas from a graph to atomic energies."""
