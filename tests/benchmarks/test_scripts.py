"""The measuring scripts measure what they say: strange frames, distances, verdicts, rebuilt ensembles."""

import sys
from dataclasses import replace
from pathlib import Path

import alarms
import atom_kernels
import contacts
import extrapolation
import jax
import monitor_cost
import numpy as np
import preparation
import pytest
import slots
import step_parts
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ensemble_kinds import KINDS, DescriptorDistance, Scores, fingerprint, score_sets
from ensembles import random_potential
from extrapolation_cases import CASES, O_H, PUBLISHED, STRETCHED, Problem, Strange, load
from scipy.spatial import cKDTree

from neuralil_ase import NeuralILCalculator, predict_many
from neuralil_ase.calculator import to_system
from neuralil_ase.calibration import Calibration
from neuralil_ase.engine.jax_backend import precision
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.engine.predictor import Predictor
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.model.config import DescriptorConfig, NetworkConfig
from neuralil_ase.model.potential import cast_params
from neuralil_ase.prediction import Uncertainty

START = read(alarms.EXAMPLES / "ean_start.extxyz")
LIQUID = START[[*range(11), *range(11, 22), *range(165, 173)]]  # two pairs, in the cell of all
LIQUID.calc = None
SCALED = DescriptorConfig(("C", "H", "N", "O"), 2, 3.0, cross_terms=True, radial_scaling=3)


def made(case: str, atoms: Atoms = START) -> tuple[Atoms, np.ndarray]:
    return CASES[case](atoms, np.random.default_rng(3))


@pytest.mark.parametrize("case", ["N-H at 1.6 Å", "proton moved"])
def test_a_moved_hydrogen_is_all_that_moves(case: str) -> None:
    strange, marked = made(case)
    moved = np.flatnonzero(np.abs(strange.positions - START.positions).max(axis=1) > 1e-9)
    assert strange.symbols[moved].get_chemical_formula() == "H"
    assert marked[moved].all()
    (hydrogen,) = moved
    distances = strange.get_distances(hydrogen, range(len(strange)), mic=True)
    if case == "proton moved":
        assert distances[strange.symbols == "O"].min() == pytest.approx(O_H)
    else:
        assert distances[marked].max() == pytest.approx(STRETCHED)


@pytest.mark.parametrize(("case", "factor"), [("volume -10 %", 0.9), ("volume -30 %", 0.7)])
def test_compression_keeps_the_ions(case: str, factor: float) -> None:
    strange, marked = made(case)
    assert strange.get_volume() == pytest.approx(factor * START.get_volume())
    assert strange.get_distance(0, 4) == pytest.approx(START.get_distance(0, 4))
    assert marked.all()


@pytest.mark.parametrize(
    ("case", "formula", "guest"),
    [("water for nitrate", "NO3", "H2O"), ("pyridine for cation", "C2H8N", "C5H5N")],
)
def test_a_guest_takes_the_place_of_an_ion(case: str, formula: str, guest: str) -> None:
    strange, marked = made(case)
    assert strange.symbols[marked].get_chemical_formula() == guest
    expected = START.symbols.formula.count()
    for name, sign in ((formula, -1), (guest, +1)):
        for symbol, count in Atoms(name).symbols.formula.count().items():
            expected[symbol] += sign * count
    assert strange.symbols.formula.count() == expected
    inside = strange.get_all_distances(mic=True)[np.ix_(marked, ~marked)]
    assert inside.min() > 0.9


@pytest.mark.parametrize(("case", "formula"), [("cation alone", "C2H8N"), ("nitrate alone", "NO3")])
def test_an_ion_alone(case: str, formula: str) -> None:
    strange, marked = made(case)
    assert strange.get_chemical_formula() == formula
    assert not strange.pbc.any()
    assert marked.all()


def test_distances_are_to_the_nearest_standardised_descriptor() -> None:
    """Against SciPy's tree."""
    training = [molecule(name) for name in ("CH3CH2OH", "CH3CH2NH2", "HCOOH", "C2H6")]
    potential = random_potential()
    distance = DescriptorDistance(potential, training)
    assert distance(training[1]) == pytest.approx(0, abs=1e-2)
    probe = molecule("CH3OH")
    calculator = NeuralILCalculator(potential)
    rows = np.concatenate([calculator.descriptors(atoms) for atoms in training])
    hydrogens = rows[np.concatenate([atoms.numbers for atoms in training]) == 1]
    used = hydrogens.std(axis=0) > 1e-9 * hydrogens.max()
    scale = hydrogens.std(axis=0)[used]
    wanted = calculator.descriptors(probe)[probe.numbers == 1][:, used] / scale
    expected, _ = cKDTree(hydrogens[:, used] / scale).query(wanted)
    assert distance(probe)[probe.numbers == 1] == pytest.approx(expected, rel=1e-3, abs=1e-2)


def test_scores_of_a_deep_ensemble() -> None:
    """Errors are prediction minus label; both parts add up as variances."""
    network = NetworkConfig("heteroscedastic", (8, 6), head_widths=(4,))
    potential = random_potential(network=network)
    frames = [molecule("CH3OH"), molecule("H2O")]
    (first, second) = predict_many(potential, frames, uncertainty="forces")
    for atoms, prediction in zip(frames, (first, second), strict=True):
        atoms.calc = SinglePointCalculator(atoms, forces=prediction.forces - 0.5)
    scores = score_sets(potential, {"first": frames, "again": frames[1:]})["first"]
    assert scores.errors == pytest.approx(np.full((9, 3), 0.5))
    total = scores.signals["spread"] ** 2 + scores.signals["noise"] ** 2
    assert scores.signals["both"] ** 2 == pytest.approx(total)
    assert scores.per_frame("spread", "max") == pytest.approx(
        [first.forces_std.max(), second.forces_std.max()]
    )
    assert scores.per_frame("spread", "mean")[1] == pytest.approx(second.forces_std.mean())
    assert scores.per_frame("spread", "energy")[1] == pytest.approx(second.energy_std / 3)


def test_other_frames_or_another_split_are_other_data() -> None:
    """So that no model is scored on frames that it was trained on when the data change."""
    frames = [molecule("H2O"), molecule("CH3OH")]
    for atoms in frames:
        atoms.info["split"] = "train"
    first = fingerprint(frames)
    assert fingerprint([atoms.copy() for atoms in frames]) == first
    frames[1].info["split"] = "valid"
    second = fingerprint(frames)
    frames[0].positions[0, 0] += 1e-6
    assert len({first, second, fingerprint(frames), fingerprint(frames[:1])}) == 4


class Fixed:
    """Scores that are there already."""

    def __init__(self, values: list[float], sizes: list[int]) -> None:
        array = np.array(values)
        self.scores = Scores(
            np.repeat("H", len(array)), np.array(sizes), np.zeros((len(array), 3)),
            {"spread": array}, {},
        )  # fmt: skip

    def __getitem__(self, signal: extrapolation.Signal) -> tuple[Scores, np.ndarray]:
        return self.scores, self.scores.signals["spread"]


@pytest.mark.parametrize(("how", "expected"), [("max", 1.0), ("mean", 0.5), ("atoms", 1.0)])
def test_how_strange_frames_are_told(how: str, expected: float) -> None:
    """One atom stands out in each strange frame, while its neighbour is calm."""
    strange = Strange([LIQUID, LIQUID], [np.array([True, False])] * 2)
    problem = Problem([], {}, [], [], {"case": strange}, [])
    usual, odd = Fixed([1, 1, 2, 2], [2, 2]), Fixed([3, 0, 3, 0], [2, 2])
    signal = ("independent", "spread")
    found = extrapolation.told(problem, "case", usual, odd, signal, how)  # type: ignore[arg-type]  # a stand-in
    assert found == expected
    none = extrapolation.told(problem, "case", usual, odd, signal, "energy")  # type: ignore[arg-type]  # a stand-in
    assert np.isnan(none)


def results(good: str) -> dict[str, object]:
    """Two signals, one of which is better in all."""
    raw = {
        "rms_error_over_rms_sigma": 2.0, "coverage_68": 0.4, "coverage_95": 0.6, "spearman": 0.5,
        "miscalibration_area": 0.2, "auroc_largest_tenth": 0.7,
    }  # fmt: skip
    better = raw | {"spearman": 0.6, "miscalibration_area": 0.01}
    quality = {
        t: {"force_mae": 0.1, "crps": 0.07, "raw": raw, "calibrated": better if t == good else raw}
        for t in ("bootstrap", "deep")
    }
    auroc = {how: {"bootstrap": 0.9, "deep": 0.9} for how in extrapolation.HOW}
    return {"quality": {"test": quality}, "auroc": {"case": auroc}, "notes": [], "costs": {}}


@pytest.mark.parametrize("good", ["bootstrap", "deep"])
def test_the_winner_comes_from_the_numbers(good: str) -> None:
    found = results(good)
    found["ranking"] = extrapolation.ranking(found)
    text = extrapolation.tables("ean", found)
    assert text.splitlines()[-1] == f"Winner: {good}."
    assert "0.50 -> 0.60" in text
    assert max(map(len, text.splitlines())) < 120


def test_missing_reference_data_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("extrapolation_cases.PUBLISHED", tmp_path)
    arguments = ["extrapolation.py", "--system", "sto", "-o", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"skipped: .*sto_dft_100.extxyz does not exist"):
        extrapolation.main()


@pytest.mark.skipif(
    not PUBLISHED.exists(), reason="the published DFT cells are not beside the repository"
)
def test_sto_is_split_by_temperature() -> None:
    problem = load("sto", 0)
    parts = [[a for a in problem.data if a.info["split"] == s] for s in ("train", "valid")]
    assert [len(part) for part in (*parts, problem.test)] == [25, 12, 13]
    cold = [*parts[0], *parts[1], *problem.test]
    assert {a.info["temperature_K"] for a in cold} == {500}
    assert len({a.info["index"] for a in cold}) == 50
    assert {a.info["temperature_K"] for a in problem.strange["1000 K"].frames} == {1000}


def test_harm_to_molecules_is_seen() -> None:
    atoms = START.copy()
    atoms.calc = NeuralILCalculator(random_potential(), uncertainty="off")
    molecules = alarms.Molecules(atoms)
    molecules.look(0)
    assert molecules.first_harm is None
    atoms.set_distance(0, 1, 1.8, fix=0)  # a proton on its way is no harm
    molecules.look(10)
    assert (molecules.first_harm, molecules.transferred) == (None, 10)
    atoms.set_distance(4, 7, 3.0, fix=0)
    molecules.look(20)
    molecules.look(30)
    assert (molecules.broken, molecules.first_harm) == (20, 20)
    assert molecules.what[0].startswith("C-C")


def bands(low: float, high: float) -> alarms.Setup:
    calibration = Calibration({}, {}, thresholds={"low": low, "high": high})
    return alarms.Setup(replace(random_potential(), calibration=calibration), START, seed=1)


def test_runs_stop_at_the_high_band_and_count_flags() -> None:
    """The same model with thresholds that nothing, or everything, exceeds."""
    quiet = alarms.ordinary(bands(1e6, 2e6), 30)
    assert (quiet["steps"], quiet["checks"], quiet["flagged"], quiet["stopped_at"]) == (
        30,
        4,
        0,
        None,
    )
    loud = alarms.ordinary(bands(1e-9, 1e6), 30)
    assert (loud["flagged"], loud["high"], loud["episodes"], loud["flagged_at"]) == (4, 0, 1, 0)
    stopped = alarms.compressed(bands(1e-9, 2e-9), 30)
    assert (stopped["steps"], stopped["flagged_at"], stopped["stopped_at"]) == (0, 0, 0)
    squeezed = alarms.squeezed(bands(1e6, 2e6), 30)
    assert squeezed["volume_stopped"] is None
    hot = alarms.heated(bands(1e-9, 2e-9), 30)
    assert hot["stopped_at"] == 0
    assert hot["molecules_later"]["max_force"] >= hot["molecules"]["max_force"]
    found = {"ordinary": quiet, "heated": hot, "compressed": stopped, "squeezed": squeezed}
    verdicts = alarms.verdicts(found)
    assert verdicts["ordinary: not flagged at 300 K"]
    assert not verdicts["squeezed: stopped before a molecule broke"]
    assert "FAIL: squeezed" in alarms.table(found, "random")


def test_a_rebuilt_ensemble_has_the_members_it_says() -> None:
    """One member is the first; repeated members keep the mean; members on one trunk agree."""
    network = NetworkConfig("core", (8, 6, 4))
    potential = random_potential(network=network)
    (all_of,) = predict_many(potential, [LIQUID], uncertainty="forces")
    (one,) = predict_many(monitor_cost.rebuilt(potential, 1), [LIQUID], uncertainty="forces")
    assert one.forces == pytest.approx(all_of.member_forces[0], abs=1e-5)
    (ten,) = predict_many(monitor_cost.rebuilt(potential, 10), [LIQUID], uncertainty="forces")
    assert ten.forces == pytest.approx(all_of.forces, abs=1e-5)
    trunk = monitor_cost.rebuilt(potential, 10, shared_layers=2)
    assert trunk.config.network.shared_layers == 2
    (same,) = predict_many(trunk, [LIQUID], uncertainty="forces")
    assert same.forces == pytest.approx(one.forces, abs=1e-5)
    assert same.forces_std.max() < 1e-5


def test_cost_ratios_are_taken_within_rounds() -> None:
    """A round on a machine twice as slow changes no ratio."""
    slow = np.array([1.0, 2.0, 1.0, 4.0])
    costs = {"plain": 1.0, "monitor": 1.1, "one member": 0.5, "ten members": 1.0,
             "ten, energy level": 0.9, "ten, shared trunk, energy level": 0.6}  # fmt: skip
    found = {name: (cost * slow).tolist() for name, cost in costs.items()}
    ratios = monitor_cost.ratios(found)
    assert ratios["monitor / plain"] == pytest.approx((1.1, 1.1, 1.1))
    assert ratios["energy level of ten / one member"] == pytest.approx((1.8, 1.8, 1.8))
    levels = {"off": 1.0, "energy": 1.0, "forces": 1.2}
    text = monitor_cost.table({"cpu_ms": found, "ratios": ratios, "evaluation_ms": levels})
    assert "| monitor / plain | 1.10 | 1.10 to 1.10 | 1.2 | pass |" in text
    assert "FAIL" in text


def test_every_cost_case_runs() -> None:
    calibration = Calibration({}, {}, thresholds={"low": 1e6, "high": 2e6})
    network = NetworkConfig("core", (8, 6, 4))
    potential = replace(random_potential(network=network), calibration=calibration)
    made_cases = monitor_cost.cases(potential, LIQUID)
    found = monitor_cost.measure(made_cases, rounds=2, steps=10)
    assert all(len(values) == 2 and min(values) > 0 for values in found.values())
    assert set(monitor_cost.BARS) <= set(monitor_cost.ratios(found))
    assert "langevin.py" in monitor_cost.profile(lambda: made_cases["plain"].run(5))


@pytest.mark.slow
def test_every_part_of_a_step_is_timed() -> None:
    times = step_parts.measure(LIQUID, steps=3)
    assert list(times)[:2] == ["step through ASE", "compiled function"]
    assert all(value > 0 for value in times.values())


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [["independent"], list(KINDS)], ids=len)
def test_extrapolation_end_to_end(
    kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["extrapolation.py", "--system", "ean", "-o", str(tmp_path), "--kinds", *kinds]
    monkeypatch.setattr(sys, "argv", [*arguments, "--seconds", "0.1", "--frames", "6"])
    extrapolation.main()
    assert "Winner: " in (tmp_path / "ean.md").read_text(encoding="utf-8")
    assert (tmp_path / "ean.png").stat().st_size > 10_000


@pytest.mark.parametrize("uncertainty", ["energy", "forces"])
def test_slots_compute_what_graphs_do(uncertainty: Uncertainty) -> None:
    potential = random_potential(pair_term="zbl", zbl_radii=(1.5,) * 10, descriptor=SCALED)
    system = to_system(LIQUID, potential, NeighborList(potential.r_cut, 0.5))
    (expected,) = Predictor(potential, "float64", "jax").predict([system], uncertainty)
    filled, sizes = slots.fill_slots(
        system.pairs, system.types, len(potential.elements), potential.r_cut, "float64"
    )
    compute = jax.jit(slots.energies_and_forces, static_argnums=(0, 1, 2))
    params = cast_params(potential.params, "float64")
    with precision("float64"):
        outputs, forces = compute(potential.config, sizes, uncertainty == "forces", params, filled)
    energies = np.asarray(outputs)[..., 0] + potential.energy_reference[system.types]
    np.testing.assert_allclose(energies, expected.members.energies, rtol=1e-12, atol=1e-12)
    wanted = expected.member_forces if uncertainty == "forces" else expected.forces[None]
    np.testing.assert_allclose(forces, wanted, atol=1e-10)


def test_kernels_compute_what_graphs_do() -> None:
    potential = random_potential(pair_term="zbl", zbl_radii=(1.5,) * 10, descriptor=SCALED)
    system = to_system(LIQUID, potential, NeighborList(potential.r_cut, 0.5))
    (expected,) = Predictor(potential, "float64", "jax").predict([system], "energy")
    filled, sizes = slots.fill_slots(
        system.pairs, system.types, len(potential.elements), potential.r_cut, "float32"
    )
    blocks = atom_kernels.filled_up(filled, potential.r_cut)
    params = cast_params(potential.params, "float32")
    with precision("float32"):
        outputs, forces, _ = atom_kernels.energies_and_forces(
            potential.config, sizes, atom_kernels.PALLAS, params, blocks
        )
    n = len(LIQUID)
    energies = np.asarray(outputs)[:, :n, 0] + potential.energy_reference[system.types]
    np.testing.assert_allclose(energies, expected.members.energies, rtol=0, atol=2e-5)
    np.testing.assert_allclose(np.asarray(forces)[:n], expected.forces, rtol=0, atol=2e-5)


def test_preparation_of_frames_of_many_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    preparation.main(["--frames", "6", "--no-linear"])
    assert "6 frames of " in capsys.readouterr().out


def test_the_table_of_contacts_tells_members_apart() -> None:
    values = np.array([[1.0, -3.0], [2.0, 1.0], [4.0, -5.0], [1.0, 2.0], [2.0, -1.0]])
    is_whole = np.array([False, False, False, False, True])
    rows = contacts.table(values, np.array([False, True]), is_whole).splitlines()
    mean, linear, other = rows[:3]
    assert mean.split()[-3:] == ["50.00", "%", "-1.0"]
    assert linear.split()[-3:] == ["50.00", "%", "-5.0"]
    assert other.split()[-3:] == ["0.00", "%", "0.0"]
    assert [row.split()[-3] for row in rows[3:]] == ["0.00", "100.00", "0.00"]


def test_contacts_are_measured_by_all_members_of_a_potential() -> None:
    atoms = LIQUID.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    far = DescriptorConfig(("C", "H", "N", "O"), n_max=2, r_cut=5.0)
    found, is_whole = contacts.rises(random_potential(descriptor=far), frames_from_atoms([atoms]))
    assert found.shape[1] == 2
    assert 3 <= is_whole.sum() <= len(found) - 5
    assert (found != 0).all()
