"""The EAN data script: geometry of what it builds, the physics of its labels, splits, resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.io import read
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = Path(__file__).resolve().parents[1] / "md_examples" / "ean_gfn1"
sys.path.insert(0, str(EXAMPLES))

import ean_boxes as boxes  # noqa: E402
import ean_sampling as sampling  # noqa: E402
import make_ean_data as script  # noqa: E402
from ean_card import data_card  # noqa: E402

QUICK = script.QUICK_SCHEDULE


def task(**changes: object) -> sampling.Task:
    """A tiny box; `changes` replace its fields."""
    base = sampling.Task(7, "box", 1, 300.0, 1.0, 2, "test", QUICK, "gfn1")
    return replace(base, **changes)


def closest_between_ions(atoms: Atoms) -> float:
    """Smallest minimum-image distance between different ions (an oracle: ASE's own distances)."""
    owner = np.empty(len(atoms), dtype=int)
    for k, ion in enumerate(boxes.ion_slices(atoms)):
        owner[ion] = k
    distances = atoms.get_all_distances(mic=atoms.pbc.any())
    return float(distances[owner[:, None] != owner].min())


# --- ions and boxes ----------------------------------------------------------------------------


def test_ethylammonium_geometry():
    ion = boxes.ion_atoms(boxes.ethylammonium())
    assert ion.get_chemical_formula() == "C2H8N"
    assert ion.info["charge"] == 1
    assert ion.get_distance(0, 4) == pytest.approx(1.50)
    assert ion.get_distance(4, 7) == pytest.approx(1.51)
    assert ion.get_angle(0, 4, 7) == pytest.approx(110.0)
    # staggered: the hydrogens of both ends lie 60° from the heavy atoms' chain or opposite to it
    ends = [ion.get_dihedral(7, 4, 0, h) for h in (1, 2, 3)]
    ends += [ion.get_dihedral(0, 4, 7, h) for h in (8, 9, 10)]
    np.testing.assert_allclose(ends, [60.0, 180.0, 300.0] * 2)
    hydrogens = [i for i in range(11) if ion.symbols[i] == "H"]
    distances = ion.get_all_distances()[np.ix_(hydrogens, hydrogens)]
    assert distances[distances > 0.0].min() > 1.6


def test_nitrate_geometry():
    ion = boxes.ion_atoms(boxes.nitrate())
    assert ion.get_chemical_formula() == "NO3"
    assert ion.info["charge"] == -1
    for i, j in ((1, 2), (2, 3), (1, 3)):
        assert ion.get_angle(i, 0, j) == pytest.approx(120.0)
    np.testing.assert_allclose(ion.get_distances(0, [1, 2, 3]), 1.25)


@settings(max_examples=4, deadline=None)
@given(
    n_pairs=st.integers(1, 5), density=st.floats(1.0, 1.3), seed=st.integers(0, 2**31), n=st.just(0)
)
def test_a_box_has_its_density_whole_ions_and_no_overlap(n_pairs, density, seed, n):
    atoms = boxes.build_box(n_pairs, density, seed)
    grams = atoms.get_masses().sum() * units._amu * 1e3
    assert grams / (atoms.get_volume() * 1e-24) == pytest.approx(density, rel=1e-6)
    assert atoms.pbc.all()
    assert len(atoms) == 15 * n_pairs
    assert len(boxes.broken_bonds(atoms, stretch=1.15)) == 0
    assert closest_between_ions(atoms) > 1.5


def test_a_box_is_reproducible_from_its_seed():
    first, again, other = (boxes.build_box(2, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.positions, again.positions)
    assert np.abs(first.positions - other.positions).max() > 0.1


def test_the_edge_of_the_standard_box():
    assert boxes.cell_edge(8) == pytest.approx(10.5874, abs=1e-3)


def test_a_cluster_is_in_contact_and_has_no_cell():
    atoms = boxes.build_cluster(3, seed=1)
    assert not atoms.pbc.any()
    assert atoms.cell.rank == 0
    centres = np.array([atoms.positions[ion].mean(axis=0) for ion in boxes.ion_slices(atoms)])
    gaps = np.linalg.norm(centres[:, None] - centres, axis=-1) + 1e3 * np.eye(6)
    assert gaps.min(axis=1).max() < 6.0
    assert closest_between_ions(atoms) > 1.5


def test_the_soft_field_has_the_gradient_of_its_energy():
    ions = [boxes.ethylammonium(), boxes.nitrate()] * 2
    symbols = [symbol for ion in ions for symbol in ion.symbols]
    start = np.random.default_rng(0).uniform(0.0, 7.0, 90)
    for edge in (None, 7.0):
        soft = boxes.SoftField(ions, symbols, edge)
        _, gradient = soft(start)
        for k in (0, 13, 47, 88):
            step = np.zeros(90)
            step[k] = 1e-5
            slope = (soft(start + step)[0] - soft(start - step)[0]) / 2e-5
            assert slope == pytest.approx(gradient[k], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("arguments", [(0, 1.21), (2, -1.0)])
def test_a_senseless_box_is_refused(arguments):
    with pytest.raises(ValueError, match="need n_pairs >= 1"):
        boxes.build_box(*arguments)


def test_a_cluster_of_nothing_is_refused():
    with pytest.raises(ValueError, match="need n_pairs >= 1"):
        boxes.build_cluster(0)


def test_a_box_that_cannot_be_packed_says_so():
    with pytest.raises(boxes.PackingError, match="lower the density"):
        boxes.pack(4, boxes.cell_edge(4, 6.0), periodic=True, seed=0, attempts=2)


def test_scaling_the_volume_keeps_the_ions_rigid():
    atoms = boxes.build_box(2, seed=0)
    scaled = boxes.scale_volume(atoms, 0.9)
    assert scaled.get_volume() == pytest.approx(0.9 * atoms.get_volume())
    for ion in boxes.ion_slices(atoms):
        np.testing.assert_allclose(
            scaled[ion].get_all_distances(), atoms[ion].get_all_distances(), atol=1e-10
        )


def test_wrapping_moves_whole_ions_by_lattice_vectors():
    atoms = boxes.build_box(2, seed=0)
    moved = atoms.copy()
    for k, ion in enumerate(boxes.ion_slices(moved)):
        moved.positions[ion] += (k - 1) * atoms.cell.lengths()
    boxes.wrap_ions(moved)
    np.testing.assert_allclose(
        moved.get_all_distances(mic=True), atoms.get_all_distances(mic=True), atol=1e-9
    )
    firsts = moved.get_scaled_positions(wrap=False)[[ion.start for ion in boxes.ion_slices(moved)]]
    assert (firsts >= 0.0).all()
    assert (firsts < 1.0).all()
    assert len(boxes.broken_bonds(moved)) == 0


def test_broken_molecules_are_seen_and_proton_transfer_is_allowed():
    atoms = boxes.build_cluster(1)
    sampling.check_whole(atoms)
    atoms.positions[1] += 2.0 * (atoms.positions[1] - atoms.positions[0])
    assert boxes.broken_bonds(atoms).tolist() == [[0, 1]]
    sampling.check_whole(atoms)
    atoms.positions[8] += 2.0 * (atoms.positions[8] - atoms.positions[7])
    with pytest.raises(sampling.BrokenTrajectory, match="bond C7-H8 broke"):
        sampling.check_whole(atoms)
    atoms.positions[3] = np.nan
    with pytest.raises(sampling.BrokenTrajectory, match="not finite"):
        sampling.check_whole(atoms)


# --- the plan ----------------------------------------------------------------------------------


def test_the_production_plan_is_split_by_seed_with_every_temperature_in_every_split():
    tasks = script.plan(script.Settings(ions=4))
    assert len({task.seed for task in tasks}) == len(tasks) == 96
    small = [task for task in tasks if task.n_pairs == 8]
    assert len(small) == 60
    for split, count in (("train", 50), ("valid", 5), ("test", 5)):
        chosen = [task for task in small if task.split == split]
        assert len(chosen) == count
        assert {task.temperature for task in chosen} == set(script.TEMPERATURES)
    large = [task for task in tasks if task.n_pairs == 15]
    assert {task.split for task in large} == {"train", "valid", "test"}
    densities = np.array([task.density for task in [*small, *large]])
    assert densities.min() > 0.95 * 1.21
    assert densities.max() < 1.05 * 1.21
    assert densities.std() > 0.02
    assert [task.charge for task in tasks if task.kind in ("cation", "anion")] == [1, -1, 1, -1]


def test_the_plan_does_not_depend_on_other_families():
    alone = script.plan(script.Settings(large_boxes=0, clusters=0))
    assert set(alone) <= set(script.plan(script.Settings()))


def test_further_data_have_seeds_of_their_own():
    first = script.plan(script.Settings())
    further = script.plan(script.Settings(first_seed=4000))
    assert [task.seed for task in further] == [task.seed + 4000 for task in first]


# --- labels ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled_box() -> tuple[list[Atoms], sampling.Outcome]:
    pytest.importorskip("tblite", reason="the labels need tblite")
    return sampling.run_task(task())


def test_a_seed_gives_labelled_frames_with_a_full_description(labelled_box):
    frames, outcome = labelled_box
    assert outcome.frames == len(frames) == 4
    assert outcome.scf_failures == outcome.too_large_forces == 0
    kinds = [atoms.info["config_type"] for atoms in frames]
    assert kinds[:3] == ["md", "md", "rattle"]
    assert kinds[3] in ("compressed", "expanded")
    for atoms in frames:
        assert set(atoms.calc.results) == {"energy", "forces", "stress"}
        assert atoms.info["seed"] == 7
        assert atoms.info["split"] == "test"
        assert atoms.info["method"] == "GFN1-xTB"
        assert "tblite" in atoms.info["versions"]
        assert not atoms.constraints
        assert not atoms.has("momenta")
        assert not atoms.has("masses")
        np.testing.assert_allclose(atoms.get_forces().sum(axis=0), 0.0, atol=1e-3)
    assert frames[0].info["density"] == pytest.approx(1.0, rel=1e-3)
    assert frames[3].info["density"] != pytest.approx(1.0, rel=1e-2)


def test_forces_and_stress_are_derivatives_of_the_energy(labelled_box):
    atoms = labelled_box[0][0].copy()

    def energy(changed: Atoms) -> float:
        return sampling.labelled(changed).get_potential_energy()

    reference = sampling.labelled(atoms)
    moved = [atoms.copy(), atoms.copy()]
    for sign, frame in zip((1.0, -1.0), moved, strict=True):
        frame.positions[4, 1] += sign * 0.005
    slope = (energy(moved[0]) - energy(moved[1])) / 0.01
    assert -slope == pytest.approx(reference.get_forces()[4, 1], abs=5e-3)
    strained = [atoms.copy(), atoms.copy()]
    for sign, frame in zip((1.0, -1.0), strained, strict=True):
        cell = frame.cell.array.copy()
        cell[:, 0] *= 1.0 + sign * 0.002
        frame.set_cell(cell, scale_atoms=True)
    slope = (energy(strained[0]) - energy(strained[1])) / 0.004 / atoms.get_volume()
    assert slope == pytest.approx(reference.get_stress()[0], abs=5e-4)


def test_a_single_ion_is_labelled_with_its_charge():
    pytest.importorskip("tblite", reason="the labels need tblite")
    frames, _ = sampling.run_task(task(kind="anion", n_pairs=0, frames=1))
    assert len(frames) == 1
    assert frames[0].info["charge"] == -1
    assert set(frames[0].calc.results) == {"energy", "forces"}
    neutral = frames[0].copy()
    neutral.info["charge"] = 0
    # nitrate binds its electron: by several eV in experiment, and in GFN1-xTB as well
    gap = sampling.labelled(neutral).get_potential_energy() - frames[0].get_potential_energy()
    assert gap > 2.0


def test_lost_labels_are_counted(monkeypatch, labelled_box):
    frames = [atoms.copy() for atoms in labelled_box[0][:2]]
    label = sampling.labelled
    monkeypatch.setattr(sampling, "sampled", lambda task, outcome: frames)
    monkeypatch.setattr(sampling, "derived", lambda frames, task: [])

    def failing(frame: Atoms) -> Atoms:
        if frame is frames[0]:
            raise sampling.CalculationFailed("SCF not converged")
        return label(frame)

    monkeypatch.setattr(sampling, "labelled", failing)
    kept, outcome = sampling.run_task(task())
    assert (len(kept), outcome.frames, outcome.scf_failures) == (1, 1, 1)
    monkeypatch.setattr(sampling, "labelled", label)
    monkeypatch.setattr(sampling, "MAX_FORCE", 1e-3)
    kept, outcome = sampling.run_task(task())
    assert (len(kept), outcome.frames, outcome.too_large_forces) == (0, 0, 2)


def test_a_broken_trajectory_is_noted_and_tried_again(monkeypatch):
    frame = boxes.build_box(1, 1.0)

    def breaking(task: sampling.Task, attempt: int):
        yield frame
        if attempt == 0:
            raise sampling.BrokenTrajectory("bond C4-C7 broke")
        yield frame

    monkeypatch.setattr(sampling, "trajectory", breaking)
    outcome = sampling.Outcome(7)
    assert len(sampling.sampled(task(), outcome)) == 2
    assert outcome.broken_runs == ["attempt 0, after 1 frames: BrokenTrajectory: bond C4-C7 broke"]


def test_a_model_moves_boxes_and_gfn1_moves_the_rest(monkeypatch):
    pytest.importorskip("tblite", reason="clusters are sampled with tblite")
    asked = []
    monkeypatch.setattr(sampling, "model_calculator", lambda path: asked.append(path) or "model")
    assert sampling.sampling_calculator(task(sampler="some.file")) == "model"
    assert asked == ["some.file"]
    for kind in ("cluster", "cation", "anion"):
        assert sampling.sampling_calculator(task(sampler="some.file", kind=kind)) != "model"
    assert asked == ["some.file"]


def test_a_structure_the_model_refuses_counts_as_a_broken_run(monkeypatch):
    def refused(task: sampling.Task, attempt: int):
        raise sampling.StructureError("positions are not finite")
        yield

    monkeypatch.setattr(sampling, "trajectory", refused)
    outcome = sampling.Outcome(7)
    assert sampling.sampled(task(), outcome) == []
    assert len(outcome.broken_runs) == sampling.ATTEMPTS


# --- the script as it is run -------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tblite", reason="the labels need tblite")
    output = tmp_path_factory.mktemp("ean") / "tiny.extxyz.xz"
    run(output, "--processes", "1", check=True)
    return output


def run(output: Path, *options: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "make_ean_data.py"), "--quick", "-o", str(output)]
    done = subprocess.run([*command, *options], check=check, capture_output=True, text=True)
    assert "\r" not in done.stderr  # progress goes to a pipe line by line, and seldom
    return done


def test_quick_writes_data_that_ase_reads_and_a_card(quick_run):
    frames = read(quick_run, index=":")
    assert [len(atoms) for atoms in frames] == [30] * 4 + [45]
    assert {atoms.info["split"] for atoms in frames} == {"train"}
    again = sampling.labelled(frames[0])
    assert again.get_potential_energy() == pytest.approx(frames[0].get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(again.get_forces(), frames[0].get_forces(), atol=1e-5)
    np.testing.assert_allclose(again.get_stress(), frames[0].get_stress(), atol=1e-8)
    card = script.card_path(quick_run).read_text(encoding="utf-8")
    assert "5 configurations" in card
    assert "not DFT" in card
    assert "0.72 eV/Å" in card
    assert "| 30 | md | 2 | 0 | 0 |" in card
    assert "CC0" in card
    assert not list(quick_run.parent.rglob("partial-*"))


@pytest.mark.slow
def test_a_second_run_takes_finished_seeds_and_makes_the_missing_ones(quick_run):
    parts = quick_run.with_name("tiny_parts")
    kept, lost = parts / "seed_00000.json", parts / "seed_02000.json"
    before, data = kept.stat().st_mtime_ns, quick_run.read_bytes()
    lost.unlink()
    (parts / "partial-1-seed_02000.extxyz").write_text("half a frame")
    assert "1 of 2 seeds are finished already" in run(quick_run, check=True).stdout
    assert kept.stat().st_mtime_ns == before
    assert json.loads(lost.read_text())["frames"] == 1
    assert quick_run.read_bytes() == data  # seeds are reproducible
    assert not list(parts.glob("partial-*"))


def test_parts_of_other_settings_are_not_mixed_in(quick_run):
    with pytest.raises(SystemExit, match=r"other settings .*--parts"):
        script.main(["--quick", "-o", str(quick_run), "--density", "1.1"])


def test_a_sampler_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="neither gfn1 nor a file"):
        script.main(["-o", str(tmp_path / "x.extxyz.xz"), "--sampler", str(tmp_path / "no.model")])


@pytest.mark.slow
def test_a_file_that_is_no_model_is_refused_by_the_package(tmp_path):
    pytest.importorskip("tblite", reason="labels need tblite: pip install neuralil-ase[data]")
    (tmp_path / "not_a.model").write_text("hello, this is no model")
    options = ["--sampler", str(tmp_path / "not_a.model"), "--processes", "1"]
    result = run(tmp_path / "x.extxyz.xz", *options)
    assert result.returncode != 0
    assert "not_a.model" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_stopped_run_goes_on(tmp_path):
    pytest.importorskip("tblite", reason="the labels need tblite")
    output = tmp_path / "stopped.extxyz.xz"
    command = [sys.executable, str(EXAMPLES / "make_ean_data.py"), "--quick", "-o", str(output)]
    process = subprocess.Popen([*command, "--processes", "1"], stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "stopped_parts"
    deadline = time.monotonic() + 60.0
    while not list(parts.glob("seed_*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "continues from there" in stderr
    assert not output.exists()
    run(output, check=True)
    assert len(read(output, index=":")) == 5


def test_nothing_labelled_is_an_error_with_the_reasons(tmp_path):
    tasks = [task()]
    report = sampling.Outcome(7, broken_runs=["attempt 0, after 0 frames: bond broke"])
    script.write_text(script.part_files(tmp_path, tasks[0])[1], json.dumps(vars(report)))
    with pytest.raises(SystemExit, match="bond broke"):
        script.merge(tasks, tmp_path, tmp_path / "x.extxyz.xz", script.Settings())


def test_the_card_reports_what_was_lost(labelled_box):
    frames, _ = labelled_box
    outcomes = [sampling.Outcome(7, 4, 2, 3, ["attempt 0: bond C4-C7 broke"], 60.0)]
    made = script.asdict(script.Settings(sampler="/some/model.nilm", sampler_sha256="ab" * 32))
    card = data_card(frames, outcomes, Path("x.extxyz.xz"), made)
    assert "SCF not converged: 2 labels" in card
    assert "bond C4-C7 broke" in card
    assert "3 frames" in card
    assert "`model.nilm`" in card
    assert "/some" not in card
    assert "Sampler of clusters" in card
    boxes_alone = script.asdict(script.Settings(clusters=0))
    assert "clusters" not in data_card(frames, outcomes, Path("x.extxyz.xz"), boxes_alone)


def test_the_shipped_start_structure():
    atoms = read(EXAMPLES.parent / "ean_start.extxyz")
    assert len(atoms) == 225
    assert atoms.pbc.all()
    assert boxes.pairs_in(atoms) == 15
    assert len(boxes.broken_bonds(atoms)) == 0
    grams = atoms.get_masses().sum() * units._amu * 1e3
    assert grams / (atoms.get_volume() * 1e-24) == pytest.approx(1.21, rel=0.02)
    assert closest_between_ions(atoms) > 1.2


def test_a_hydrogen_between_two_heavy_atoms_is_found():
    atoms = boxes.build_box(2, 0.5, seed=3)
    assert len(boxes.fused_hydrogens(atoms)) == 0
    carbon = int(np.flatnonzero(atoms.symbols == "C")[0])
    nitrate_n = int(np.flatnonzero(atoms.symbols == "N")[-1])
    hydrogens = np.flatnonzero(atoms.symbols == "H")
    of_carbon = int(hydrogens[np.argmin(atoms.get_distances(carbon, hydrogens, mic=True))])
    on_nitrate = int(hydrogens[-1])
    atoms.positions[of_carbon] = atoms.positions[carbon] + (0, 0, 1.1)
    oxygen = int(np.flatnonzero(atoms.symbols == "O")[0])
    atoms.positions[oxygen] = atoms.positions[carbon] + (0, 0, 2.2)
    assert of_carbon in boxes.fused_hydrogens(atoms)
    atoms.positions[on_nitrate] = atoms.positions[nitrate_n] + (0, 0, 1.1)
    assert on_nitrate in boxes.fused_hydrogens(atoms)
