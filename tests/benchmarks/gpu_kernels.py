"""Fused kernels and a neighbour list on the device, against what the calculator does on a GPU.

    python tests/benchmarks/gpu_kernels.py -o gpu_kernels
    python tests/benchmarks/gpu_kernels.py -o gpu_kernels --repeat 1x1x1 --rounds 3        # small, for a CPU

Systems are those of gpu.py: replicas of md_examples/ean_start.extxyz, the shipped potential with one member or ten,
matrix products of float32 numbers in full. Rows, most wanted first:

- "energies and forces" of the mean and energies of all members, on arrays that lie on the device: by the graph
  (what the calculator uses), by slots (slots.py), by fused kernels (atom_kernels.py) in Pallas and left to XLA.
- "MD": velocity Verlet at 300 K and 0.5 fs from the start structure, ten members, a loop over NumPy arrays: with the
  calculator, and with the list on the device (device_list.py). Lists are rebuilt as the atoms move; "builds" counts.
- "part": where the time goes, every part compiled alone.
- "list": a list built on the device, and on the host.

Errors are the largest differences of forces, from float64 on the same device up to 10,000 atoms, from the graph's
above. A row that fails says why, and the next one follows. After --seconds the rest is left out, and said to be. Writes
gpu_kernels.json after every row.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import atom_kernels
import jax
import numpy as np
import slots
from ase import Atoms, units
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from device_list import OnDevice
from gpu import ROOT, versions
from monitor_cost import rebuilt

from neuralil_ase import NeuralILCalculator
from neuralil_ase.calculator import to_system
from neuralil_ase.engine import derivatives
from neuralil_ase.engine.jax_backend import JaxModel, jitted, precision
from neuralil_ase.engine.neighbors import DEFAULT_SKIN, NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.files.model_file import as_potential
from neuralil_ase.model import descriptors, spectrum
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.potential import cast_params

REPEAT = ["3x3x3", "7x8x8", "1x1x1", "6x6x6"]  # 6075, 100,800, 225 and 48,600 atoms
SLOW_AFTER = 0.7
"""Seconds of calls for one median."""
LARGEST_IN_FLOAT64 = 10_000
MD_SECONDS = 4.0


class Row(NamedTuple):
    """What to compile and time; its arguments lie on the device."""

    what: str
    way: str
    members: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    forces: Callable[[Any], Any] | None = None


class Bench:
    """One size."""

    def __init__(self, repeat: tuple[int, ...], rounds: int, largest: bool) -> None:
        start = read(ROOT / "md_examples" / "ean_start.extxyz")
        assert isinstance(start, Atoms)
        self.start = start * repeat
        self.atoms = self.start.copy()
        # Copies of one cell would err alike.
        self.atoms.positions += np.random.default_rng(0).normal(
            scale=0.02, size=(len(self.start), 3)
        )
        shipped = as_potential(None)
        self.potentials = {members: rebuilt(shipped, members) for members in (1, 10)}
        self.params = {
            members: jax.device_put(cast_params(potential.params, "float32"))
            for members, potential in self.potentials.items()
        }
        self.rounds, self.largest = rounds, largest
        self.system = to_system(self.atoms, shipped, NeighborList(shipped.r_cut, 0.0))
        filled, self.sizes = slots.fill_slots(
            self.system.pairs, self.system.types, len(shipped.elements), shipped.r_cut, "float32"
        )
        self.slots = jax.device_put(filled)
        self.blocks = jax.device_put(atom_kernels.filled_up(filled, shipped.r_cut))
        self.graph = jax.device_put(JaxModel(shipped, "float32")._pad(self.system))
        self.exact: dict[int, np.ndarray] = {}

    # ---- rows that are compiled ahead, all at once ----

    def rows(self) -> list[Row]:
        found = [row for members in (10, 1) for row in self._whole(members)]
        if self.largest:
            found += [*self._parts_of_blocks(), *self._parts_of_graph()]
        return found

    def _whole(self, members: int) -> Iterator[Row]:
        potential, params = self.potentials[members], self.params[members]
        config, what, n = potential.config, "energies and forces", len(self.atoms)
        function = partial(
            atom_kernels.energies_and_forces, config, self.sizes, atom_kernels.PALLAS
        )
        yield Row(
            what, "pallas", members, function, (params, self.blocks), lambda found: found[1][:n]
        )
        graph = jitted(config, "energy" if members > 1 else "off")._jitted
        yield Row(what, "graph", members, graph, (params, self.graph), lambda x: x.forces[:n])
        by_slots = partial(slots.energies_and_forces, config, self.sizes, False)
        yield Row(what, "slots", members, by_slots, (params, self.slots), lambda found: found[1][0])

    def in_xla(self) -> Row:
        """Compiled for long, hence apart."""
        config, n = self.potentials[10].config, len(self.atoms)
        function = partial(
            atom_kernels.energies_and_forces, config, self.sizes, atom_kernels.IN_XLA
        )
        arguments = self.params[10], self.blocks
        return Row(
            "energies and forces", "in XLA", 10, function, arguments, lambda found: found[1][:n]
        )

    def _parts_of_blocks(self) -> Iterator[Row]:
        config, blocks = self.potentials[10].config, self.blocks
        kernels = atom_kernels.PALLAS
        n_channels = atom_kernels._n_channels(config.descriptor)
        n = len(blocks.types)
        density = _random(len(self.sizes), n_channels, n)
        features = _random(config.descriptor.n_features, n)
        gradient = _random(*blocks.vectors.shape)
        yield from (
            Row("part: pairs to density, and pair term", "pallas", 10,
                partial(kernels.density, config, self.sizes), (blocks,)),
            Row("part: spectrum", "pallas", 10, partial(kernels.spectrum, config.descriptor), (density,)),
            Row("part: networks, there and back", "pallas", 10, partial(atom_kernels.network, config),
                (self.params[10], features, blocks.types)),
            Row("part: spectrum, back", "pallas", 10,
                partial(kernels.pull_back_spectrum, config.descriptor), (density, features)),
            Row("part: density and pair term, back", "pallas", 10,
                partial(kernels.pull_back_density, config, self.sizes), (blocks, density)),
            Row("part: forces and virial", "pallas", 10,
                lambda g, s: (slots.forces(g, s), atom_kernels.virial(g, s)), (gradient, blocks)),
        )  # fmt: skip

    def _parts_of_graph(self) -> Iterator[Row]:
        config, graph = self.potentials[10].config, self.graph
        n, n_pairs = len(graph.types), len(graph.centers)
        of_density = partial(descriptors.density_coefficients, config.descriptor)
        n_channels = atom_kernels._n_channels(config.descriptor)
        density = _random(n, len(self.sizes), n_channels)
        features = _random(n, config.descriptor.n_features)
        gradient = _random(n_pairs, 3)

        def density_back(graph: Graph, cotangent: Any) -> Any:
            return jax.vjp(lambda v: of_density(graph._replace(vectors=v)), graph.vectors)[1](cotangent)  # fmt: skip

        def on_atoms(gradient: Any, graph: Graph) -> Any:
            forces = derivatives.forces_from_pairs(gradient, graph)
            return forces, derivatives.virials_from_pairs(gradient, graph)

        yield from (
            Row("part: pairs to density", "graph", 10, of_density, (graph,)),
            Row("part: spectrum", "graph", 10, partial(spectrum.power_spectrum, config.descriptor), (density,)),
            Row("part: networks, there and back", "graph", 10,
                partial(derivatives._feature_gradients, config, False), (self.params[10], features, graph)),
            Row("part: spectrum, back", "graph", 10,
                partial(spectrum.pull_back_spectrum, config.descriptor), (density, features[None])),
            Row("part: density there and back", "graph", 10, density_back, (graph, density)),
            Row("part: pair term, there and back", "graph", 10,
                partial(derivatives._pair_term, config, False), (self.params[10], graph)),
            Row("part: forces and virials", "graph", 10, on_atoms, (gradient, graph)),
        )  # fmt: skip

    def compiled(self, row: Row) -> tuple[Any, float]:
        """The function of a row and how long it was compiled; in any thread."""
        with precision("float32"):
            began = time.perf_counter()
            function = row.function if hasattr(row.function, "lower") else jax.jit(row.function)
            found = function.lower(*row.arguments).compile()
            return found, time.perf_counter() - began

    def measure(self, row: Row, ahead: "Future[tuple[Any, float]]") -> dict[str, Any]:
        function, seconds = ahead.result()
        found = jax.block_until_ready(function(*row.arguments))
        record = {"compile_s": seconds}
        record["ms"] = self._median(lambda: jax.block_until_ready(function(*row.arguments)))
        record["us_per_atom"] = 1e3 * record["ms"] / len(self.atoms)
        if row.forces is not None:
            record["error"] = self._error(row, np.asarray(row.forces(found), float))
        return record

    def _median(self, call: Callable[[], Any]) -> float:
        """In ms, of fewer calls where they are slow."""
        times: list[float] = []
        while len(times) < self.rounds and (len(times) < 3 or sum(times) < SLOW_AFTER):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return 1e3 * float(np.median(times))

    def _error(self, row: Row, forces: np.ndarray) -> float:
        if row.members not in self.exact:
            self.exact[row.members] = self._reference(row.members)
        return float(np.abs(forces - self.exact[row.members]).max())

    def _reference(self, members: int) -> np.ndarray:
        dtype = "float64" if len(self.atoms) <= LARGEST_IN_FLOAT64 else "float32"
        predictor = Predictor(self.potentials[members], dtype, "jax")  # type: ignore[arg-type]  # a dtype
        # Compiled for the rows already.
        uncertainty = "energy" if members > 1 else "off"
        (found,) = predictor.predict([self.system], uncertainty)  # type: ignore[arg-type]  # a level
        return found.forces

    # ---- molecular dynamics ----

    def on_device(self, parts: atom_kernels.Parts) -> dict[str, Any]:
        device = OnDevice(
            self.potentials[10], self.system.types, self.start.cell.array, DEFAULT_SKIN, parts
        )
        began = time.perf_counter()
        device.make_room(self.start.positions, self.start.pbc)
        device(self.start.positions)
        record: dict[str, Any] = {"compile_s": time.perf_counter() - began}
        record |= self._dynamics(lambda positions: device(positions)[1], lambda: device.builds)
        positions = self.start.positions
        device.build(positions)
        still = self._median(lambda: jax.block_until_ready(device.compute(positions)))
        whole = self._median(lambda: device(positions))
        build = self._median(lambda: device.build(positions))
        record["note"] = (
            f"slots {device._layout.sizes}; a step without rebuilds {whole:.3g} ms, of which {still:.3g} ms before "
            f"results return; a list {build:.3g} ms"
        )
        return record

    def by_calculator(self) -> dict[str, Any]:
        calculator = NeuralILCalculator(self.potentials[10], uncertainty="energy")
        calculator._predictor = Predictor(self.potentials[10], backend="jax")
        atoms = self.start.copy()
        atoms.calc = calculator
        began = time.perf_counter()
        atoms.get_forces()
        record: dict[str, Any] = {"compile_s": time.perf_counter() - began}

        def forces(positions: np.ndarray) -> np.ndarray:
            atoms.positions[:] = positions
            return atoms.get_forces()

        return record | self._dynamics(forces, lambda: calculator._neighbor_list.builds)

    def _dynamics(
        self, forces: Callable[[np.ndarray], np.ndarray], builds: Callable[[], int]
    ) -> dict[str, Any]:
        """Mean of a step, and how often the list was rebuilt; the same path for everybody but for rounding."""
        atoms, step = self.start.copy(), 0.5 * units.fs
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
        positions, velocities = atoms.positions.copy(), atoms.get_velocities()
        masses = atoms.get_masses()[:, None]
        now, steps, before = forces(positions), 0, builds()
        began = time.perf_counter()
        while steps < 200 and (steps < 3 or time.perf_counter() - began < MD_SECONDS):
            velocities += 0.5 * step * now / masses
            positions += step * velocities
            now = forces(positions)
            velocities += 0.5 * step * now / masses
            steps += 1
        ms = 1e3 * (time.perf_counter() - began) / steps
        kinetic = 0.5 * float((masses * velocities**2).sum())
        temperature = 2 * kinetic / (3 * len(atoms) * units.kB)
        return {"ms": ms, "us_per_atom": 1e3 * ms / len(atoms), "steps": steps,
                "builds": builds() - before, "kelvin": temperature}  # fmt: skip

    def list_on_host(self) -> dict[str, Any]:
        """Found, sorted and filtered as the calculator does."""
        radius, start = self.potentials[10].r_cut, self.start

        def search() -> None:
            NeighborList(radius, DEFAULT_SKIN).pairs(
                start.positions, start.cell.array, start.pbc, self.system.types
            )

        return {"ms": self._median(search)}


def _random(*shape: int) -> Any:
    return jax.device_put(np.random.default_rng(0).normal(scale=0.1, size=shape).astype("float32"))


class Results:
    """Rows, written after each one."""

    def __init__(self, path: Path, head: str, seconds: float) -> None:
        self.path, self.head, self.seconds = path, head, seconds
        self.rows: list[dict[str, Any]] = []
        self.began = time.monotonic()

    def add(self, measure: Callable[[], dict[str, Any]], **row: Any) -> None:
        if time.monotonic() - self.began > self.seconds:
            row["note"] = "left out: out of time"
        else:
            try:
                row |= measure()
            except Exception as error:  # one row must not take the others with it
                self.failed(row, error)
                return
        self._write(row)

    def failed(self, row: dict[str, Any], error: Exception) -> None:
        self._write(row | {"note": f"failed: {type(error).__name__}: {str(error)[:400]}"})

    def _write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        passed = time.monotonic() - self.began
        print(f"{passed:6.1f} s ", json.dumps(row, default=str), flush=True)
        self.path.write_text(json.dumps({"ran": self.head, "rows": self.rows}, indent=1))


def measure_size(bench: Bench, results: Results, pool: ThreadPoolExecutor) -> None:
    atoms = len(bench.atoms)
    rows = bench.rows()
    ahead = [pool.submit(bench.compiled, row) for row in rows]
    for future in ahead:
        future.exception()  # Compiling would disturb the clock; what failed says so in its row.
    parts = [k for k, row in enumerate(rows) if row.what.startswith("part")]
    for k in [k for k in range(len(rows)) if k not in parts]:
        _add(bench, results, rows[k], ahead[k])
    for way, measure in (
        ("list on device, pallas", partial(bench.on_device, atom_kernels.PALLAS)),
        ("calculator", bench.by_calculator),
    ):
        results.add(measure, atoms=atoms, what="MD", way=way, members=10)
    for k in parts:
        _add(bench, results, rows[k], ahead[k])
    results.add(bench.list_on_host, atoms=atoms, what="list", way="host")


def _add(bench: Bench, results: Results, row: Row, ahead: "Future[tuple[Any, float]]") -> None:
    results.add(
        lambda: bench.measure(row, ahead),
        atoms=len(bench.atoms), what=row.what, way=row.way, members=row.members,
    )  # fmt: skip


def measure_xla(bench: Bench, results: Results, pool: ThreadPoolExecutor) -> None:
    row = bench.in_xla()
    _add(bench, results, row, pool.submit(bench.compiled, row))
    results.add(
        partial(bench.on_device, atom_kernels.IN_XLA),
        atoms=len(bench.atoms), what="MD", way="list on device, in XLA", members=10,
    )  # fmt: skip


def measure_blocks(bench: Bench, results: Results, pool: ThreadPoolExecutor) -> None:
    """Other numbers of atoms in a program."""
    usual = atom_kernels.BLOCK
    for block in (32, 128):
        atom_kernels.BLOCK = block
        filled = slots.Slots(*(np.asarray(values) for values in bench.slots))
        bench.blocks = jax.device_put(atom_kernels.filled_up(filled, bench.potentials[10].r_cut))
        row = next(bench._whole(10))._replace(way=f"pallas, {block} atoms")
        _add(bench, results, row, pool.submit(bench.compiled, row))
    atom_kernels.BLOCK = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_kernels"), help="folder")
    parser.add_argument("--repeat", nargs="+", default=REPEAT, help="of the start cell, as 7x8x8")
    parser.add_argument("--seconds", type=float, default=130, help="start no row later than this")
    parser.add_argument("--rounds", type=int, default=50, help="calls for each median")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    head = versions()
    print(head, flush=True)
    results = Results(options.output / "gpu_kernels.json", head, options.seconds)
    repeats = [tuple(map(int, text.split("x"))) for text in options.repeat]
    largest = max(repeats, key=np.prod)
    benches = []
    with ThreadPoolExecutor(8) as pool:
        for repeat in repeats:
            try:
                benches.append(Bench(repeat, options.rounds, repeat == largest))
                measure_size(benches[-1], results, pool)
            except Exception as error:
                results.failed({"what": f"size {repeat}"}, error)
        for bench in benches[:1]:
            measure_xla(bench, results, pool)
        for bench in benches:
            if bench.largest:
                measure_blocks(bench, results, pool)


if __name__ == "__main__":
    main()
