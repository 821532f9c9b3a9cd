"""Properties from derivatives of the energy, each with its error bar: phonons, vibrations, elasticity, heat flux.

``propagate`` gives an error bar to the result of any workflow, and ``thermal_average`` to averages along a run.
"""

from neuralil_ase.response.averages import ThermalAverage, thermal_average
from neuralil_ase.response.elasticity import (
    ElasticConstants,
    EquationOfState,
    elastic_constants,
    equation_of_state,
)
from neuralil_ase.response.estimate import Estimate
from neuralil_ase.response.heat import HeatFlux, green_kubo, heat_flux
from neuralil_ase.response.phonons import Bands, Phonons
from neuralil_ase.response.propagation import propagate
from neuralil_ase.response.vibrations import Vibrations, vibrations

__all__ = [
    "Bands",
    "ElasticConstants",
    "EquationOfState",
    "Estimate",
    "HeatFlux",
    "Phonons",
    "ThermalAverage",
    "Vibrations",
    "elastic_constants",
    "equation_of_state",
    "green_kubo",
    "heat_flux",
    "propagate",
    "thermal_average",
    "vibrations",
]
