"""What a learning calculator returns: the results of the model, or those of the teacher."""

from typing import Any

from ase import Atoms

from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.prediction import Prediction


def results_of_model(prediction: Prediction) -> dict[str, Any]:
    """Energy, forces and, with a volume, stress, by their names in ASE."""
    results: dict[str, Any] = {
        "energy": prediction.energy,
        "free_energy": prediction.energy,
        "forces": prediction.forces.copy(),
    }
    if prediction.volume is not None:
        results["stress"] = prediction.stress.copy()
    return results


def results_of_teacher(label: Atoms, model: NeuralILCalculator) -> dict[str, Any]:
    """The same results by the teacher. If the teacher gives no stress, the stress is the model's."""
    energy = float(label.get_potential_energy())
    results: dict[str, Any] = {
        "energy": energy,
        "free_energy": energy,
        "forces": label.get_forces(),
    }
    if label.cell.rank == 3:
        has_stress = label.calc is not None and "stress" in label.calc.results
        results["stress"] = label.get_stress() if has_stress else model.prediction(label).stress
    return results
