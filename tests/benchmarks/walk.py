"""How many modules a training frame and a spread pass on their way, and how often they come back to one.

    python tests/benchmarks/walk.py             # of the package that is imported
    python tests/benchmarks/walk.py FOLDER      # of another checkout, to compare

Every call of a function of the package is followed. A walk enters a module when a call goes to another module than
the call before it, and returns when it has been there before. Two frames are trained for one epoch; then a monitor
flags the first step of a run and warns. Modules in which nothing is called are not seen.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet

ROOMS_OF_TRAINING = ("training", "samples", "evaluation")


def walked(action: Callable[[], Any], folder: Path, rooms: tuple[str, ...] = ("",)) -> list[str]:
    """The modules below `folder` in the order of their calls, those of some rooms only."""
    seen: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event != "call" or not path.startswith(f"{folder}/"):
            return
        module = path[len(str(folder)) + 1 :]
        if module.startswith(rooms) and module[-11:] != "__init__.py" and seen[-1:] != [module]:
            seen.append(module)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    return seen


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    if given:
        sys.path.insert(0, given[0])
    import neuralil_ase
    from neuralil_ase import ExtrapolationMonitor, NeuralILCalculator
    from neuralil_ase.monitor import MaxForceSpread
    from neuralil_ase.training import train

    package = Path(neuralil_ase.__file__).parent
    frames = []
    for seed in range(2):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    options: dict[str, Any] = {
        "epochs": 1, "members": 2, "r_cut": 3.5, "n_max": 2, "validation_fraction": 0.0, "widths": (4,),
        "head_widths": (),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model.safetensors"
        way = walked(lambda: train(frames, model, **options), package, ROOMS_OF_TRAINING)
        print(f"a training frame: {len(set(way))} modules, {len(way) - len(set(way))} returns")
        atoms = frames[0].copy()
        atoms.calc = NeuralILCalculator(model)
        dynamics = VelocityVerlet(atoms, 1.0)
        monitor = ExtrapolationMonitor(dynamics, criteria=[MaxForceSpread(low=1e-9)])
        dynamics.attach(monitor, interval=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            way = walked(lambda: dynamics.run(1), package)
        print(f"a spread: {len(set(way))} modules, {len(way) - len(set(way))} returns")


if __name__ == "__main__":
    main()
