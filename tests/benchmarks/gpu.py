"""The pure JAX way on whatever device JAX has: time, memory and error against atoms, members and precisions.

    python tests/benchmarks/gpu.py -o gpu
    python tests/benchmarks/gpu.py -o gpu --repeat 1 2 --seconds 60        # small, for a CPU

Systems are replicas of md_examples/ean_start.extxyz; the shipped potential is cut to one member or extended to ten by
repeating its own. Rows, most wanted first:

- "graph": ``engine.derivatives.energies_and_forces`` as the calculator calls it, without and with all members' forces;
  "step" is a whole call of the calculator for atoms that moved, pair list and transfers included.
- "slots": the same from slots instead of scattered sums (slots.py), and how far both differ.
- precision: that of matrix products of float32 numbers (``jax.default_matmul_precision``). The calculator's is
  "float32"; JAX's "default" is TF32 on a GPU.
- "hessian": ``calc.force_constants``.

Errors are the largest differences of forces of the mean from those in float64 on the same device. A row that fails
says why, and the next one follows. After --seconds the rest is left out, and said to be. Writes gpu.json after every
row, and gpu.md.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import slots
from ase import Atoms
from ase.io import read
from monitor_cost import rebuilt

from neuralil_ase import NeuralILCalculator, Potential
from neuralil_ase.calculator import to_system
from neuralil_ase.engine.arrays import System
from neuralil_ase.engine.jax_backend import JaxModel, jitted, precision
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.model.potential import cast_params

ROOT = Path(__file__).resolve().parents[2]
REPEAT = [(1, 1, 1), (2, 2, 2), (3, 3, 3), (6, 6, 6), (7, 8, 8)]  # 225 to 100,800 atoms
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "numpy", "ase", "vesin")  # fmt: skip
COLUMNS = ["way", "atoms", "members", "uncertainty", "precision", "ms", "us_per_atom", "step_ms",
           "error", "buffers_mb", "peak_mb", "compile_s", "note"]  # fmt: skip


class Case(NamedTuple):
    """One row to measure."""

    way: str
    repeat: tuple[int, int, int]
    members: int = 10
    uncertainty: str = "energy"
    precision: str = "float32"

    @property
    def atoms(self) -> int:
        return 225 * int(np.prod(self.repeat))


def cases(repeats: list[tuple[int, int, int]]) -> list[Case]:
    """All rows, most wanted first."""
    found = []
    middle = repeats[min(3, len(repeats) - 1)]
    for repeat in repeats:
        found += [Case("graph", repeat), Case("slots", repeat)]
    for other in ("default", "BF16_BF16_F32"):
        found += [Case(way, middle, precision=other) for way in ("graph", "slots")]
    found += [Case("hessian", repeat, precision="float32") for repeat in repeats[:2]]
    found += [Case("hessian", repeat, precision="float64") for repeat in repeats[:2]]
    for repeat in repeats:
        found += [Case(way, repeat, uncertainty="forces") for way in ("graph", "slots")]
    for repeat in repeats:
        found += [Case(way, repeat, members=1) for way in ("graph", "slots")]
    found += [Case("graph", middle, precision=p) for p in ("TF32_TF32_F32_X3", "BF16_BF16_F32_X3")]
    return [*found, Case("graph", middle, uncertainty="forces", precision="default")]


class Bench:
    """What rows share: structures, potentials, float64 results."""

    def __init__(self, rounds: int, slow_after: float) -> None:
        start = read(ROOT / "md_examples" / "ean_start.extxyz")
        assert isinstance(start, Atoms)
        self.start = start
        shipped = as_potential(None)
        self.potentials = {members: rebuilt(shipped, members) for members in (1, 10)}
        self.rounds, self.slow_after = rounds, slow_after
        self._systems: dict[Any, tuple[Atoms, System]] = {}
        self._filled: dict[Any, tuple[slots.Slots, tuple[int, ...]]] = {}
        self._exact: dict[Any, np.ndarray] = {}

    def measure(self, case: Case) -> dict[str, Any]:
        found = {"hessian": self._hessian, "graph": self._graph, "slots": self._slots}[case.way](
            case
        )
        return found | {"us_per_atom": 1e3 * found["ms"] / case.atoms, "peak_mb": _peak()}

    def _system(self, case: Case) -> tuple[Atoms, System]:
        if case.repeat not in self._systems:
            atoms = self.start * case.repeat
            # Copies of one cell would err alike.
            atoms.positions += np.random.default_rng(0).normal(scale=0.02, size=(len(atoms), 3))
            potential = self.potentials[10]
            system = to_system(atoms, potential, NeighborList(potential.r_cut, 0.0))
            self._systems[case.repeat] = atoms, system
        return self._systems[case.repeat]

    def _graph(self, case: Case) -> dict[str, Any]:
        atoms, system = self._system(case)
        potential = self.potentials[case.members]
        function = jitted(potential.config, case.uncertainty)._jitted  # type: ignore[arg-type]  # a level
        graph = JaxModel(potential, "float32")._pad(system)
        record, result = self._timed(case, function, potential, graph)
        record["error"] = self._error(case, np.asarray(result.forces)[: len(atoms)])
        if case.precision == "float32":
            record["step_ms"] = self._step(case, atoms, potential)
        return record

    def _slots(self, case: Case) -> dict[str, Any]:
        _, system = self._system(case)
        potential = self.potentials[case.members]
        config = potential.config
        if case.repeat not in self._filled:
            n_elements = len(config.descriptor.elements)
            self._filled[case.repeat] = slots.fill_slots(
                system.pairs, system.types, n_elements, potential.r_cut, "float32"
            )
        filled, sizes = self._filled[case.repeat]
        by_member = case.uncertainty == "forces"
        function = jax.jit(partial(slots.energies_and_forces, config, sizes, by_member))
        record, (_, forces) = self._timed(case, function, potential, filled)
        return record | {"error": self._error(case, np.asarray(forces).mean(axis=0))}

    def _timed(
        self, case: Case, function: Any, potential: Potential, geometry: Any
    ) -> tuple[dict[str, Any], Any]:
        """Compiled ahead, on arrays that lie on the device."""
        params = jax.device_put(cast_params(potential.params, "float32"))
        geometry = jax.device_put(geometry)
        with precision("float32"), jax.default_matmul_precision(case.precision):
            began = time.perf_counter()
            compiled = function.lower(params, geometry).compile()
            record = {"compile_s": time.perf_counter() - began, "buffers_mb": _buffers(compiled)}
            result = jax.block_until_ready(compiled(params, geometry))
            record["ms"] = self._median(lambda: jax.block_until_ready(compiled(params, geometry)))
        return record, result

    def _median(self, call: Callable[[], Any]) -> float:
        """Median in ms, of fewer calls where they are slow."""
        times: list[float] = []
        while len(times) < self.rounds and (len(times) < 3 or sum(times) < self.slow_after):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return 1e3 * float(np.median(times))

    def _step(self, case: Case, atoms: Atoms, potential: Potential) -> float:
        """A call of the calculator, pairs and transfers included, the pair list rebuilt as seldom as in MD."""
        calculator = NeuralILCalculator(potential, uncertainty=case.uncertainty)  # type: ignore[arg-type]  # a level
        calculator._predictor = Predictor(potential, backend="jax")
        moving, rng = atoms.copy(), np.random.default_rng(1)
        moving.calc = calculator
        moving.get_forces()

        def step() -> None:
            moving.positions += rng.normal(scale=1e-3, size=(len(moving), 3))
            moving.get_forces()

        step()
        return self._median(step)

    def _error(self, case: Case, forces: np.ndarray) -> float | None:
        """Largest difference in eV/Å from float64 by this device, where that fits."""
        key = case.repeat, case.members
        if key not in self._exact:
            _, system = self._system(case)
            potential = self.potentials[case.members]
            (exact,) = Predictor(potential, "float64", "jax").predict([system], "off")
            self._exact[key] = exact.forces
        return float(np.abs(forces - self._exact[key]).max())

    def _hessian(self, case: Case) -> dict[str, Any]:
        atoms, _ = self._system(case)
        calculator = NeuralILCalculator(self.potentials[10], dtype=case.precision)  # type: ignore[arg-type]  # a dtype
        began = time.perf_counter()
        found = calculator.force_constants(atoms).blocks
        record: dict[str, Any] = {"compile_s": time.perf_counter() - began, "uncertainty": "off"}
        record["ms"] = self._median(lambda: calculator.force_constants(atoms))
        key = case.repeat, "hessian"
        if case.precision == "float32":
            self._exact[key] = found
        elif key in self._exact:
            difference = np.abs(found - self._exact[key]).max()
            record["note"] = (
                f"float32 differs by {difference:.1e} eV/Å² of {np.abs(found).max():.1f}"
            )
        return record


def _buffers(compiled: Any) -> float | None:
    """MB of arguments, results and what stands between them, as the compiler planned."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    names = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(analysis, name) for name in names) / 1e6


def _peak() -> float | None:
    """MB of the device that were in use at most so far, in this process."""
    statistics = jax.devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] / 1e6 if statistics else None


def versions() -> str:
    """Device, Python and packages that ran."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{jax.devices()[0].device_kind} ({jax.default_backend()}); " + ", ".join(found)


def table(head: str, rows: list[dict[str, Any]]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.2e}" if 0 < abs(value) < 1e-2 else f"{value:.4g}"
        return "" if value is None else str(value)

    lines = [head, "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(shown(row.get(name)) for name in COLUMNS) + " |" for row in rows]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu"), help="folder")
    parser.add_argument(
        "--repeat",
        type=int,
        nargs="+",
        help="cubes of the start cell; default: up to 100,800 atoms",
    )
    parser.add_argument("--seconds", type=float, default=210, help="start no row later than this")
    parser.add_argument("--rounds", type=int, default=50, help="calls for each median")
    options = parser.parse_args()
    began = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    # The calculator meets functions that were compiled ahead.
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    head = versions()
    print(head, flush=True)
    repeats = [(r, r, r) for r in options.repeat] if options.repeat else REPEAT
    bench, rows = Bench(options.rounds, slow_after=1.0), []
    for case in cases(repeats):
        row: dict[str, Any] = {"atoms": case.atoms, **case._asdict()}
        if time.monotonic() - began > options.seconds:
            row["note"] = "left out: out of time"
        else:
            try:
                row |= bench.measure(case)
            except Exception as error:  # one row must not take the others with it
                row["note"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:150]}"
        rows.append(row)
        print(f"{time.monotonic() - began:6.1f} s ", json.dumps(row, default=str), flush=True)
        (options.output / "gpu.json").write_text(json.dumps({"ran": head, "rows": rows}, indent=1))
    text = table(head, rows)
    (options.output / "gpu.md").write_text(text, encoding="utf-8")
    print(text, flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
