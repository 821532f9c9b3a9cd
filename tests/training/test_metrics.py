"""The numbers of the accuracy card, from errors that are known beforehand."""

from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from small_runs import frames

from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.calibration import calibration_report, held_out_errors
from neuralil_ase.evaluation.dataset import Frame
from neuralil_ase.evaluation.evaluate import compare, evaluation_of
from neuralil_ase.evaluation.metrics import Comparison, accuracy, format_table
from neuralil_ase.evaluation.quality import coverage
from neuralil_ase.evaluation.report import binned_rms
from neuralil_ase.prediction import Members, Prediction


def known_errors(**changes: Any) -> Comparison:
    """Two frames of two and three atoms; the mean of two members is off by known amounts."""
    forces = np.zeros((5, 3))
    error = np.array([[3.0, 0, 0], [0, 4, 0], [0, 0, 0], [0, 0, -2], [0, 0, 0]]) / 1000
    spread = np.array([1.0, 0, 0])
    fields: dict[str, Any] = {
        "sizes": np.array([2, 3]),
        "symbols": np.array(["H", "O", "H", "H", "O"]),
        "energies": np.array([-1.0, -2.0]),
        "member_energies": np.array([[-0.994, -1.988], [-0.998, -1.988]]),
        "forces": forces,
        "member_forces": np.stack([error + spread, error - spread]),
        "stresses": np.zeros((2, 6)),
        "predicted_stresses": np.full((2, 6), 0.002),
    }
    return Comparison(**fields | changes)


def test_the_card_holds_the_errors_that_were_put_in() -> None:
    card = accuracy(known_errors())
    energy, force = card["energy_meV_per_atom"], card["force_meV_per_A"]
    assert (energy["mae"], energy["offset"]) == (3, 3)  # 2 and 4 meV/atom
    assert energy["rmse"] == pytest.approx(np.sqrt(10), abs=1e-3)
    assert energy["offset_removed"] == {"mae": 1, "rmse": 1}
    assert force["mae"] == pytest.approx(9 / 15)
    assert force["rmse"] == pytest.approx(np.sqrt(29 / 15), abs=1e-3)
    assert force["norm"] == pytest.approx(9 / 5)
    assert force["by_element"]["O"] == {"mae": 0.6667, "rmse": 1.633, "norm": 2}
    assert card["stress_meV_per_A3"] == {"mae": 2, "rmse": 2}
    assert card["members"]["number"] == 2
    assert card["members"]["energy_mae"] == 3
    assert card["members"]["force_mae"] == pytest.approx((10000 + 12) / 30, abs=0.05)


def test_spreads_use_ddof_1_and_the_norm_over_components() -> None:
    comparison = known_errors()
    np.testing.assert_allclose(comparison.force_spreads, np.sqrt(2))
    np.testing.assert_allclose(comparison.energy_spreads, [0.004 / np.sqrt(2), 0], atol=1e-15)


def test_a_perfect_spread_has_rank_correlation_and_ratio_one() -> None:
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.1, 1, 3000)
    error = sigma[:, None] * np.array([1.0, 0, 0])
    offset = sigma[:, None] / np.sqrt(2) * np.array([1.0, 0, 0])  # ddof 1 of ± x is x √2
    comparison = known_errors(
        sizes=np.array([1500, 1500]),
        symbols=np.full(3000, "H"),
        forces=np.zeros((3000, 3)),
        member_forces=np.stack([error + offset, error - offset]),
    )
    spread = accuracy(comparison)["spread"]["force"]
    assert spread == {"spearman": 1.0, "rms_error_over_rms_spread": 1.0}
    np.testing.assert_allclose(*binned_rms(comparison.force_spreads, sigma), rtol=1e-9)


def test_missing_labels_leave_gaps_and_nothing_else_changes() -> None:
    whole = accuracy(known_errors())
    energies = np.array([-1.0, np.nan])
    forces = np.zeros((5, 3))
    forces[2:] = np.nan
    part = accuracy(known_errors(energies=energies, forces=forces))
    assert part["energy_meV_per_atom"]["mae"] == 2
    assert part["energy_meV_per_atom"]["offset_removed"]["mae"] == 0
    assert part["force_meV_per_A"]["norm"] == 3.5
    assert part["force_meV_per_A"]["by_element"]["H"]["norm"] == 3
    none = accuracy(
        known_errors(energies=np.full(2, np.nan), forces=np.full((5, 3), np.nan),
                     stresses=np.full((2, 6), np.nan))
    )  # fmt: skip
    assert none.keys() == {"frames", "atoms", "members", "spread"}
    assert "energy MAE" in format_table({"whole": whole, "none": none})
    assert "energy MAE" not in format_table({"none": none})
    assert held_out_errors(known_errors(forces=forces)).frame_sizes.tolist() == [2]


def test_the_table_shows_every_set_and_says_what_a_spread_is() -> None:
    card = accuracy(known_errors())
    table = format_table({"train": card, "validation": card})
    assert "train" in table.splitlines()[0]
    assert "validation" in table.splitlines()[0]
    row = next(line for line in table.splitlines() if line.startswith("force error, mean norm"))
    assert row.split()[-2:] == ["1.8", "1.8"]
    assert "ddof 1" in table
    assert "mean over 2 members" in table
    assert len({len(line) for line in table.splitlines()[:-2]}) == 1


def test_one_member_has_no_spread() -> None:
    single = known_errors(
        member_energies=np.array([[-1.0, -2.0]]), member_forces=np.zeros((1, 5, 3))
    )
    assert accuracy(single).keys().isdisjoint({"members", "spread"})
    assert "ddof" not in format_table({"x": accuracy(single)})


def exact(frame: Frame) -> Prediction:
    assert frame.forces is not None
    assert frame.energy is not None
    n = len(frame.symbols)
    energies = np.zeros(n)
    energies[0] = frame.energy
    stress = np.zeros(6) if frame.stress is None else frame.stress
    virials = np.tile(stress * abs(np.linalg.det(frame.cell)) / n, (n, 1))
    members = Members(np.stack([energies] * 2), np.stack([frame.forces] * 2), np.zeros((2, 6)))
    volume = None if frame.stress is None else abs(np.linalg.det(frame.cell))
    return Prediction(frame.symbols, energies, frame.forces.copy(), virials, volume, members)


def test_predictions_equal_to_the_labels_have_no_error() -> None:
    data = frames(3)
    card = evaluation_of(data, [exact(frame) for frame in data]).card
    assert card["frames"] == 3
    for part in ("energy_meV_per_atom", "force_meV_per_A", "stress_meV_per_A3"):
        assert card[part]["rmse"] < 1e-12  # a virial over a volume is rounded
    assert compare(data, [exact(frame) for frame in data]).n_members == 2
    with pytest.raises(DataError, match="no frames to evaluate"):
        evaluation_of([], [])


def test_calibrated_error_bars_describe_the_errors_they_were_made_from() -> None:
    """Errors drawn with σ² = (2 s)² + 0.3²: the raw spread is too small, the calibrated bar is right."""
    rng = np.random.default_rng(1)
    n = 6000
    spread = rng.uniform(0.05, 0.5, n)
    sigma = np.sqrt((2 * spread) ** 2 + 0.3**2) / np.sqrt(3)
    error = rng.normal(size=(n, 3)) * sigma[:, None]
    offset = spread[:, None] / np.sqrt(2) * np.array([1.0, 0, 0])
    comparison = known_errors(
        sizes=np.full(60, 100), symbols=np.full(n, "H"), forces=np.zeros((n, 3)),
        member_forces=np.stack([error + offset, error - offset]),
        energies=np.full(60, np.nan), member_energies=np.zeros((2, 60)),
        stresses=np.zeros((60, 6)), predicted_stresses=np.zeros((60, 6)),
    )  # fmt: skip
    record = Calibration({"H": 2.0}, {"H": 0.3})
    report = calibration_report(record, comparison)
    assert report.keys() == {"force spread", "force error bar"}
    assert report["force error bar"]["rms_error_over_rms_sigma"] == pytest.approx(1, abs=0.03)
    assert report["force error bar"]["coverage_68"] == pytest.approx(0.683, abs=0.02)
    assert report["force spread"]["rms_error_over_rms_sigma"] > 2
    foreign = replace(comparison, symbols=np.where(np.arange(n) < n // 2, "H", "He"))
    half = calibration_report(record, foreign)["force error bar"]
    assert half["rms_error_over_rms_sigma"] == pytest.approx(1, abs=0.04)
    only_foreign = replace(comparison, symbols=np.full(n, "He"))
    assert calibration_report(record, only_foreign).keys() == {"force spread"}
    unlabelled = replace(comparison, forces=np.full((n, 3), np.nan))
    single = replace(
        comparison, member_forces=comparison.member_forces[:1], member_energies=np.zeros((1, 60))
    )
    assert calibration_report(record, unlabelled) == calibration_report(record, single) == {}


def test_coverage_counts_components_inside_gaussian_intervals() -> None:
    rng = np.random.default_rng(0)
    errors, sigma = rng.normal(size=(500, 3)), rng.uniform(0.5, 2, 500)
    expected, observed = coverage(errors, sigma)
    for k in (0, 49, 67, 98):
        limit = NormalDist().inv_cdf(0.5 + expected[k] / 2) * sigma[:, None] / np.sqrt(3)
        assert observed[k] == pytest.approx((np.abs(errors) <= limit).mean())
    exact = rng.normal(size=(50_000, 3)) / np.sqrt(3)
    np.testing.assert_allclose(*coverage(exact, np.ones(50_000)), atol=0.01)


def test_the_aleatoric_part_stands_beside_the_spread_and_adds_in_squares() -> None:
    """Errors of known size: half of the variance is seen by the spread, half by the members' own estimate."""
    rng = np.random.default_rng(1)
    n = 4000
    spread, aleatoric = rng.uniform(0.1, 1, n), rng.uniform(0.1, 1, n)
    sigma = np.hypot(spread, aleatoric)
    deviation = np.zeros((n, 3))
    deviation[:, 0] = spread / np.sqrt(2)
    direction = rng.normal(size=(n, 3))
    error = direction * (sigma / np.sqrt(3))[:, None]
    comparison = known_errors(
        sizes=np.array([n]),
        symbols=np.full(n, "H"),
        energies=np.array([np.nan]),
        member_energies=np.full((2, 1), np.nan),
        forces=np.zeros((n, 3)),
        member_forces=np.stack([error + deviation, error - deviation]),
        stresses=np.full((1, 6), np.nan),
        predicted_stresses=np.zeros((1, 6)),
        energy_aleatoric=np.array([1.0]),
        force_aleatoric=aleatoric,
    )
    card = accuracy(comparison)["spread"]
    assert card["force_total"]["rms_error_over_rms_spread"] == pytest.approx(1, abs=0.03)
    assert card["force"]["rms_error_over_rms_spread"] == pytest.approx(2**0.5, abs=0.05)
    assert card["force_total"]["spearman"] > card["force_aleatoric"]["spearman"] > 0.1
    table = format_table({"data": accuracy(comparison)})
    assert "force error: rank correlation with spread and aleatoric" in table
    assert "Aleatoric:" in table
