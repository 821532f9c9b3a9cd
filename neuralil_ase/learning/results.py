"""What a learning calculator returns: the results of the model, or those of the teacher."""

from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from neuralil_ase.calculator import NO_VOLUME, NeuralILCalculator
from neuralil_ase.prediction import Prediction

NO_STRESS = (
    "the teacher gives no stress, so that the model has learnt none: a cell cannot be relaxed, nor kept at a pressure. "
    "Use a teacher with stresses, or begin with a model that was trained with stresses (model=...)"
)


def check_properties(atoms: Atoms, properties: Sequence[str], knows_stress: bool) -> None:
    """Raise ASE's error if a stress is wanted that there cannot be."""
    if "stress" not in properties:
        return
    if atoms.cell.rank < 3:
        raise PropertyNotImplementedError(NO_VOLUME)
    if not knows_stress:
        raise PropertyNotImplementedError(NO_STRESS)


def results_of_model(prediction: Prediction, with_stress: bool) -> dict[str, Any]:
    """Energy, forces and, with a volume and if it was learnt, stress, by their names in ASE."""
    results: dict[str, Any] = {
        "energy": prediction.energy,
        "free_energy": prediction.energy,
        "forces": prediction.forces.copy(),
    }
    if prediction.volume is not None and with_stress:
        results["stress"] = prediction.stress.copy()
    return results


def results_of_teacher(
    label: Atoms, model: NeuralILCalculator, with_stress: bool
) -> dict[str, Any]:
    """The same results by the teacher. If the teacher gives no stress, the stress is the model's, if it was learnt."""
    energy = float(label.get_potential_energy())
    results: dict[str, Any] = {
        "energy": energy,
        "free_energy": energy,
        "forces": label.get_forces(),
    }
    if label.calc is not None and "stress" in label.calc.results:
        results["stress"] = label.get_stress()
    elif label.cell.rank == 3 and with_stress:
        results["stress"] = model.prediction(label).stress
    return results


def restore(atoms: Atoms, earlier: Atoms) -> None:
    """Give the atoms the positions, the cell and, if it has some, the momenta of an earlier structure."""
    atoms.cell[:] = earlier.cell
    atoms.positions[:] = earlier.positions
    if earlier.has("momenta"):
        atoms.set_array("momenta", earlier.arrays["momenta"].copy())
