"""Make a GFN1-xTB data set of liquid ethylammonium nitrate (EAN) from nothing but this folder.

Boxes are built (ean_boxes.py), sampled by Langevin dynamics at several temperatures and densities
and labelled with GFN1-xTB (ean_sampling.py). Every finished seed is a small file in the parts
folder. If a run is killed, the same command continues from there. At the end the parts are merged
into one compressed extxyz file, with a data card (ean_card.py) beside it.

    python make_ean_data.py --sampler gfn1          # the bootstrap: hours, GFN1-xTB moves the atoms
    python make_ean_data.py --sampler MODEL         # a trained model file moves them, minutes
    python make_ean_data.py --quick -o /tmp/x.extxyz.xz     # does it run here? seconds

The labels are GFN1-xTB in every case; tblite is needed: `pip install "neuralil-ase[data]"`.
GFN1-xTB is a stand-in teacher, not DFT: see the warning on the card.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from ean_boxes import DENSITY
from ean_card import data_card
from ean_sampling import Outcome, Schedule, Task, run_task
from tqdm import tqdm

from neuralil_ase.errors import NeuralILError
from neuralil_ase.progress import Progress

TEMPERATURES = (300.0, 400.0, 500.0, 600.0, 700.0)  # K
CLUSTER_TEMPERATURES = (200.0, 300.0, 350.0, 400.0, 500.0)  # K; hotter ones fall apart
MODEL_SCHEDULE = Schedule(relaxation_steps=100, equilibration=10.0, spacing=0.8)
GFN1_SCHEDULE = Schedule(relaxation_steps=20, equilibration=0.5, spacing=0.04)
SMALL_SCHEDULE = Schedule(relaxation_steps=50, equilibration=1.5, spacing=0.2)  # clusters, ions
QUICK_SCHEDULE = Schedule(relaxation_steps=2, equilibration=0.02, spacing=0.004)


@dataclass(frozen=True)
class Settings:
    """Everything that the data set depends on. A resumed run must have the same settings."""

    sampler: str = "gfn1"
    sampler_sha256: str = ""
    boxes: int = 60
    large_boxes: int = 8
    clusters: int = 24
    ions: int = 0
    first_seed: int = 0
    pairs: int = 8
    large_pairs: int = 15
    frames: int = 6
    few_frames: int = 4
    density: float = DENSITY
    density_range: float = 0.05
    schedule: Schedule = MODEL_SCHEDULE
    small_schedule: Schedule = SMALL_SCHEDULE


def plan(settings: Settings) -> list[Task]:
    """All tasks, the longest first, so that both processes are busy until the end."""
    few = settings.few_frames
    return [
        *_tasks(settings, settings.large_boxes, 1000, [("box", settings.large_pairs)], few),
        *_tasks(settings, settings.boxes, 0, [("box", settings.pairs)], settings.frames),
        *_tasks(settings, settings.clusters, 2000, [("cluster", n) for n in (3, 2, 1)], few),
        *_tasks(settings, settings.ions, 3000, [("cation", 0), ("anion", 0)], few),
    ]


def _tasks(
    settings: Settings, count: int, offset: int, kinds: list[tuple[str, int]], frames: int
) -> Iterator[Task]:
    """`count` tasks of one family, with the seeds `first_seed` + `offset` and following."""
    for k in range(count):
        seed = settings.first_seed + offset + k
        kind, n_pairs = kinds[k % len(kinds)]
        box = kind == "box"
        temperatures = TEMPERATURES if box else CLUSTER_TEMPERATURES
        draw = np.random.default_rng([seed, 1]).uniform(-1.0, 1.0)
        yield Task(
            seed=seed,
            kind=kind,
            n_pairs=n_pairs,
            temperature=temperatures[k % len(temperatures)],
            density=settings.density * (1.0 + settings.density_range * draw) if box else 0.0,
            frames=frames,
            split=_split(k, count, len(temperatures)),
            schedule=settings.schedule if box else settings.small_schedule,
            sampler=settings.sampler,
        )


def _split(k: int, count: int, n_temperatures: int) -> str:
    """Split of the k-th of `count` seeds, by blocks that hold each temperature once where there are
    enough seeds: 75 / 12.5 / 12.5 % from eight blocks on, 50 / 25 / 25 % below."""
    block = k // n_temperatures if count >= 4 * n_temperatures else k
    train = 6 if count >= 8 * n_temperatures else 2
    names = [*["train"] * train, "valid", "test"]
    return names[block % len(names)]


def part_files(folder: Path, task: Task) -> tuple[Path, Path]:
    """The frames and the report of a task; the report comes last and marks the task as done."""
    stem = folder / f"seed_{task.seed:05d}"
    return stem.with_suffix(".extxyz"), stem.with_suffix(".json")


def _write_frames(target: Path, frames: list[Atoms]) -> None:
    """Write extxyz (compressed if the name ends in .xz or .gz) beside the target, then rename."""
    temporary = target.with_name(f"partial-{os.getpid()}-{target.name}")
    write(temporary, frames, format="extxyz")
    os.replace(temporary, target)


def write_text(target: Path, text: str) -> None:
    temporary = target.with_name(f"partial-{os.getpid()}-{target.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)


def work(task: Task, folder: Path) -> Outcome:
    """One task in a worker process: run it and write its part."""
    start = time.process_time()
    frames, outcome = run_task(task)
    outcome.cpu_seconds = round(time.process_time() - start, 1)
    frames_file, report_file = part_files(folder, task)
    if frames:
        _write_frames(frames_file, frames)
    write_text(report_file, json.dumps(asdict(outcome)))
    return outcome


def prepare(folder: Path, settings: Settings) -> None:
    """Make the parts folder, or check that its content was made with the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps(asdict(settings), indent=1)
    record = folder / "settings.json"
    if record.exists() and record.read_text(encoding="utf-8") != wanted:
        raise SystemExit(
            f"{folder} holds parts made with other settings (see {record.name} there), and two "
            "kinds of seeds must not be mixed. Give the former options, or another folder with "
            "--parts."
        )
    write_text(record, wanted)
    for stale in folder.glob("partial-*"):
        stale.unlink()


def _start_worker() -> None:
    """End without a traceback on Ctrl-C, and also if the parent process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run_all(tasks: list[Task], folder: Path, processes: int) -> None:
    """Run the tasks that are not done yet."""
    missing = [task for task in tasks if not part_files(folder, task)[1].exists()]
    if len(missing) < len(tasks):
        print(f"{len(tasks) - len(missing)} of {len(tasks)} seeds are finished already")
    lost = 0
    with (
        ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start_worker) as pool,
        Progress(len(missing), "seed", "EAN data", True) as progress,
    ):
        try:
            futures = [pool.submit(work, task, folder) for task in missing]
            for done, future in enumerate(as_completed(futures), 1):
                outcome = future.result()
                lost += outcome.scf_failures + outcome.too_large_forces
                progress.update(done, f"{lost} labels lost")
                for note in outcome.broken_runs:
                    tqdm.write(f"seed {outcome.seed}: {note}")
        except BaseException:
            for worker in active_children():  # a seed can take long: do not wait for it
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def merge(tasks: list[Task], folder: Path, output: Path, settings: Settings) -> list[Atoms]:
    """Join the parts in the order of their seeds, write the data file and its card."""
    frames: list[Atoms] = []
    outcomes = []
    for task in sorted(tasks, key=lambda task: task.seed):
        frames_file, report_file = part_files(folder, task)
        outcomes.append(Outcome(**json.loads(report_file.read_text(encoding="utf-8"))))
        if outcomes[-1].frames:
            frames += read(frames_file, index=":")
    if not frames:
        reasons = sorted({note for outcome in outcomes for note in outcome.broken_runs})
        raise SystemExit("not one frame could be labelled:\n" + "\n".join(reasons[:10]))
    output.parent.mkdir(parents=True, exist_ok=True)
    _write_frames(output, frames)
    card = data_card(frames, outcomes, output, asdict(settings))
    write_text(card_path(output), card)
    return frames


def card_path(output: Path) -> Path:
    """The data card beside the data: data.extxyz.xz -> data.md."""
    return output.with_name(output.name.split(".")[0] + ".md")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line; its defaults are the production run."""
    here = Path(__file__).resolve().parent
    standard = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sampler", default="gfn1", help="gfn1, or a neuralil_ase model file (default: gfn1)")
    add("-o", "--output", type=Path, default=here / "ean_gfn1.extxyz.xz", help="merged data file")
    add("--parts", type=Path, help="folder of the finished seeds (default: beside the output)")
    add("--processes", type=int, default=2, help="single-threaded processes (default: 2)")
    add("--boxes", type=int, default=standard.boxes, help="seeds of 8 pairs, 120 atoms")
    add("--large-boxes", type=int, default=standard.large_boxes, help="seeds of 15 pairs")
    add("--clusters", type=int, default=standard.clusters, help="seeds of 1 to 3 pairs in vacuum")
    add("--ions", type=int, default=0, help="seeds of single ions, info charge ±1 (default: 0)")
    add("--first-seed", type=int, default=0, help="of the boxes; others follow (default: 0)")
    add("--frames", type=int, default=standard.frames, help="MD frames per box")
    add("--density", type=float, default=DENSITY, help="g/cm³; the boxes lie within ±5 %% of it")
    add("--equilibrate", type=float, help="ps per box (default: 10 with a model, 0.5 with gfn1)")
    add(
        "--spacing",
        type=float,
        help="ps between frames (default: 0.8 with a model, 0.04 with gfn1)",
    )
    add("--quick", action="store_true", help="one tiny box and one cluster, a few steps: a test")
    return parser.parse_args(arguments)


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings that the options stand for."""
    model = options.sampler != "gfn1"
    if model and not Path(options.sampler).is_file():
        raise SystemExit(f"--sampler {options.sampler}: neither gfn1 nor a file; a model is needed")
    base = MODEL_SCHEDULE if model else GFN1_SCHEDULE
    if options.quick:
        base = QUICK_SCHEDULE
    schedule = Schedule(
        base.relaxation_steps,
        base.equilibration if options.equilibrate is None else options.equilibrate,
        base.spacing if options.spacing is None else options.spacing,
    )
    tiny = {"boxes": 1, "large_boxes": 0, "clusters": 1, "pairs": 2, "frames": 2, "few_frames": 1}
    wanted = {
        "boxes": options.boxes,
        "large_boxes": options.large_boxes,
        "clusters": options.clusters,
        "frames": options.frames,
    }
    return Settings(
        sampler=str(Path(options.sampler).resolve()) if model else "gfn1",
        sampler_sha256=_sha256(Path(options.sampler)) if model else "",
        ions=options.ions,
        first_seed=options.first_seed,
        density=options.density,
        schedule=schedule,
        small_schedule=QUICK_SCHEDULE if options.quick else SMALL_SCHEDULE,
        **(tiny if options.quick else wanted),
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: list[str] | None = None) -> None:
    """Sample, label, merge; see the module's docstring."""
    options = parse(arguments)
    settings = settings_from(options)
    tasks = plan(settings)
    output: Path = options.output
    folder: Path = options.parts or output.with_name(output.name.split(".")[0] + "_parts")
    prepare(folder, settings)
    # this program runs several processes of one thread each; its workers inherit these
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
        os.environ[name] = "1"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    on = f"the finished seeds are in {folder}: the same command continues from there"
    try:
        run_all(tasks, folder, options.processes)
    except KeyboardInterrupt:
        sys.exit(f"stopped; {on}")
    except BrokenProcessPool:
        sys.exit(f"a worker process was killed from outside (out of memory?); {on}")
    except NeuralILError as error:  # for instance a sampler that is no model file
        sys.exit(str(error))
    frames = merge(tasks, folder, output, settings)
    print(f"{len(frames)} frames in {output}; their card: {card_path(output)}")


if __name__ == "__main__":
    main()
