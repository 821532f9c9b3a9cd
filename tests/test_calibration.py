"""Thresholds of the calibration: above what held-out frames have, per element where relative."""

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError, DataError, UncertaintyError
from neuralil_ase.evaluation.calibration import (
    HIGH,
    LOW,
    ORDINARY,
    HeldOut,
    fit_calibration,
)
from neuralil_ase.evaluation.quality import crps, quality

FRAMES, SIZE = 40, 50


def held_out(hydrogen: np.ndarray, nitrogen: np.ndarray) -> HeldOut:
    """Frames of hydrogen atoms and as many nitrogen atoms with these spreads, (frames, atoms); errors of that size."""
    rng = np.random.default_rng(0)
    spreads = np.concatenate([hydrogen, nitrogen], axis=1).ravel()
    symbols = np.tile(np.repeat(["H", "N"], hydrogen.shape[1]), len(hydrogen))
    errors = rng.normal(size=(spreads.size, 3)) * spreads[:, None]
    none = np.full(FRAMES, np.nan)
    return HeldOut(symbols, errors, spreads, np.full(FRAMES, 2 * SIZE), none, none)


def spreads(scale: float, seed: int) -> np.ndarray:
    return scale * np.random.default_rng(seed).lognormal(sigma=0.3, size=(FRAMES, SIZE))


def test_an_element_of_few_atoms_gets_the_error_bars_of_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An adsorbed atom, one in each frame, must not cost the others their error bars."""
    data = held_out(spreads(0.05, 1), spreads(0.2, 2))
    symbols = data.symbols.copy()
    symbols[:20] = "O"
    record = fit_calibration(replace(data, symbols=symbols), {}, "test")
    assert "error bars of O are those of all held-out atoms together" in caplog.text
    assert set(record.force_scale) == {"H", "N", "O"}
    assert record.force_std_quantiles["O"]["0.99"] == pytest.approx(
        np.quantile(data.force_spreads, 0.99)
    )
    bars = record.force_error_bars(["O", "O"], np.array([0.05, 0.2]))
    np.testing.assert_allclose(bars, np.sqrt(3) * np.array([0.05, 0.2]), rtol=0.1)
    few = replace(data, symbols=np.resize([f"X{k}" for k in range(200)], len(symbols)))
    with pytest.raises(DataError, match="one element at least needs 30"):
        fit_calibration(few, {}, "test")


def test_thresholds_lie_above_the_held_out_frames() -> None:
    data = held_out(spreads(0.05, 1), spreads(0.2, 2))
    record = fit_calibration(data, {}, "test")
    largest = data.force_spreads.reshape(FRAMES, -1).max(axis=1)
    assert record.thresholds["low"] == pytest.approx(LOW * np.quantile(largest, ORDINARY))
    assert record.thresholds["high"] == pytest.approx(HIGH * record.thresholds["low"])
    assert record.thresholds["low"] > largest.max()


def test_relative_thresholds_see_the_element_that_is_usually_calm() -> None:
    """A hydrogen at six times its usual spread hides below nitrogen's, but not in its own units."""
    data = held_out(spreads(0.05, 1), spreads(0.2, 2))
    record = fit_calibration(data, {}, "test")
    strange = 6 * 0.05
    usual = record.force_std_quantiles["H"]["0.99"]
    assert strange < record.thresholds["low"]
    assert strange / usual > record.relative_thresholds["low"]


def test_relative_thresholds_do_not_depend_on_the_size_of_the_spreads() -> None:
    """Nitrogen with ten times the spread changes its own unit and no relative threshold."""
    first = fit_calibration(held_out(spreads(0.05, 1), spreads(0.2, 2)), {}, "test")
    second = fit_calibration(held_out(spreads(0.05, 1), spreads(2.0, 2)), {}, "test")
    assert second.relative_thresholds["low"] == pytest.approx(first.relative_thresholds["low"])
    assert second.thresholds["low"] > 5 * first.thresholds["low"]


def test_members_that_never_differ_give_no_division_by_zero() -> None:
    zero = np.zeros((FRAMES, SIZE))
    data = replace(held_out(zero, zero), force_errors=np.ones((2 * FRAMES * SIZE, 3)))
    record = fit_calibration(data, {}, "test")
    assert record.thresholds == record.relative_thresholds == {"low": 0.0, "high": 0.0}


def test_one_strange_frame_does_not_move_the_thresholds() -> None:
    ordinary = spreads(0.05, 1), spreads(0.2, 2)
    strange = ordinary[0].copy()
    strange[7, 3] = 50.0
    before = fit_calibration(held_out(*ordinary), {}, "test").thresholds["low"]
    assert (
        fit_calibration(held_out(strange, ordinary[1]), {}, "test").thresholds["low"] < 1.1 * before
    )


def test_error_bars_of_deep_ensembles_take_the_noise_in() -> None:
    """Errors made of a part that the spread sees and one that the members expect; half of what both say."""
    rng = np.random.default_rng(3)
    data = held_out(spreads(0.1, 1), spreads(0.1, 2))
    noise = 0.2 * rng.lognormal(sigma=0.5, size=data.force_spreads.shape)
    expected = np.hypot(data.force_spreads, noise)
    errors = rng.normal(size=(len(noise), 3)) * 0.5 * expected[:, None] / np.sqrt(3)
    energy_aleatoric = rng.uniform(0.5, 2, FRAMES)
    energy_errors = rng.normal(size=FRAMES) * 0.5 * energy_aleatoric
    data = replace(data, force_errors=errors, force_aleatoric=noise, energy_aleatoric=energy_aleatoric,
        energy_errors=energy_errors, energy_spreads=np.full(FRAMES, 1e-6),
    )  # fmt: skip
    record = fit_calibration(data, {}, "test")
    assert record.uses_aleatoric
    assert "spread^2 + aleatoric^2" in record.estimator
    symbols = data.symbols.tolist()
    bars = record.force_error_bars(symbols, data.force_spreads, noise)
    usual = data.force_spreads < np.quantile(data.force_spreads, 0.98)
    np.testing.assert_allclose(bars[usual], 0.5 * expected[usual], rtol=0.1)
    assert record.energy_error_bar(100, 0.0, 1.5) == pytest.approx(0.75, rel=0.35)
    assert record.energy_error_bar(100, 0.0, None) < 0.5
    alone = fit_calibration(replace(data, force_aleatoric=None, energy_aleatoric=None), {}, "test")
    assert not alone.uses_aleatoric
    older = {key: value for key, value in alone.to_dict().items() if key != "with_noise"}
    for kept in (alone, Calibration.from_dict(older)):
        ignored = kept.force_error_bars(symbols, data.force_spreads, 1e6 * noise)
        np.testing.assert_array_equal(ignored, alone.force_error_bars(symbols, data.force_spreads))
    assert record.thresholds == alone.thresholds


def test_an_unusual_spread_is_not_talked_down_by_the_noise() -> None:
    """Errors follow the noise among usual atoms; a hundredth has spreads, and errors, twenty times larger."""
    rng = np.random.default_rng(5)
    data = held_out(spreads(0.05, 1), spreads(0.05, 2))
    count = len(data.symbols)
    noise = 0.3 * rng.lognormal(sigma=0.4, size=count)
    spread = 0.05 * rng.lognormal(sigma=0.2, size=count)
    places = [np.flatnonzero(data.symbols == element) for element in np.unique(data.symbols)]
    odd = np.concatenate([of_element[: len(of_element) // 120] for of_element in places])
    spread[odd] *= 20
    sigma = np.where(np.isin(np.arange(count), odd), 4 * spread, noise)
    errors = rng.normal(size=(count, 3)) * sigma[:, None] / np.sqrt(3)
    data = replace(data, force_errors=errors, force_spreads=spread, force_aleatoric=noise)
    record = fit_calibration(data, {}, "test")
    symbols = data.symbols.tolist()
    bars = record.force_error_bars(symbols, spread, noise)
    alone = fit_calibration(replace(data, force_aleatoric=None), {}, "test").force_error_bars(
        symbols, spread
    )
    np.testing.assert_array_equal(bars[odd], alone[odd])
    forgetful = replace(record, force_scale_of_spread={}, force_floor_of_spread={})
    before = forgetful.force_error_bars(symbols, spread, noise)
    assert (bars[odd] > 1.2 * before[odd]).all()
    usual = spread < np.quantile(spread, 0.98)
    np.testing.assert_array_equal(bars[usual], before[usual])


@lru_cache
def fitted() -> Calibration:
    return fit_calibration(held_out(spreads(0.05, 1), spreads(0.2, 2)), {"H-N": 1.0}, "test")


def test_the_scale_of_derived_quantities_is_that_of_spreads_alone() -> None:
    """Root mean square over the atoms; never below one; not known for elements that were not held out."""
    elements = {"H": 3.0, "N": 1.0}
    record = Calibration(dict.fromkeys(elements, 0.1), elements, elements, elements)
    assert record.scale_of_spread(["H", "H", "H", "N"]) == pytest.approx(np.sqrt(7))
    alone = Calibration(elements, elements)
    assert alone.scale_of_spread(["H", "N"]) == pytest.approx(np.sqrt(5))
    assert replace(alone, force_scale=dict.fromkeys(elements, 0.2)).scale_of_spread("HN") == 1
    assert np.isnan(record.scale_of_spread(["O"]))


def test_the_record_survives_json() -> None:
    record = fitted()
    data = record.to_dict()
    assert Calibration.from_dict(json.loads(json.dumps(data, allow_nan=False))) == record
    assert data["units"] == {"force": "eV/Å", "energy": "eV", "distance": "Å"}
    assert data["with_noise"] is False
    newer = data | {"an entry of a later version": 1}
    assert Calibration.from_dict(newer) == record


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("force_scale", 1.0), ("force_scale", {"H": "1"}), ("force_scale", {"H": 1.0}),
        ("force_floor", {"H": 0.1, "N": float("nan")}), ("force_floor", None),
        ("energy_scale", 1.0), ("energy_floor", [1.0]), ("with_noise", 1), ("n_frames", -1), ("n_atoms", 1.5),
        ("thresholds", {"low": 1.0}), ("relative_thresholds", {"low": 1, "high": None}), ("data", None),
        ("force_std_quantiles", {"H": 1.0}), ("force_std_quantiles", {"H": {"most": 1.0}}),
        ("shortest_distances", {"H-N": -1.0}), ("shortest_distances", []), ("estimator", {}),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused_by_name(key: str, value: Any) -> None:
    name = "uses_aleatoric" if key == "with_noise" else key
    with pytest.raises(ConfigError, match=f"the calibration (holds an invalid|has) .*{name}"):
        Calibration.from_dict(fitted().to_dict() | {key: value})


def test_what_a_record_cannot_do_without() -> None:
    with pytest.raises(ConfigError, match="lacks force_floor, force_scale"):
        Calibration.from_dict({})
    with pytest.raises(ConfigError, match="is a table, not list"):
        Calibration.from_dict([])  # type: ignore[arg-type]  # what a damaged file may hold
    with pytest.raises(UncertaintyError, match="calibrated without energies"):
        fitted().energy_error_bar(3, 0.1)


@pytest.mark.parametrize("exponent", [0.6, 0.8, 1.0])
def test_errors_that_grow_more_slowly_than_spreads_are_met(exponent: float) -> None:
    """Gaussian errors of that law over three decades of spreads: law, rms and coverage are found."""
    rng = np.random.default_rng(5)
    count = 2 * FRAMES * SIZE
    data = held_out(spreads(0.05, 1), spreads(0.2, 2))
    spread = 0.05 * 10 ** rng.uniform(-1.5, 1.5, count)
    sigma = 0.3 * spread**exponent
    errors = rng.normal(size=(count, 3)) * sigma[:, None] / np.sqrt(3)
    data = replace(data, force_errors=errors, force_spreads=spread)
    record = fit_calibration(data, {}, "test")
    assert record.force_exponent["H"] == pytest.approx(exponent, abs=0.05)
    bars = record.force_error_bars(data.symbols.tolist(), spread)
    np.testing.assert_allclose(bars, sigma, rtol=0.25)
    assert quality(errors, bars)["rms_error_over_rms_sigma"] == pytest.approx(1, abs=0.1)
    deep = fit_calibration(replace(data, force_aleatoric=np.full(count, 1e-9)), {}, "test")
    alone = deep.force_error_bars_of_spread(data.symbols.tolist(), spread)
    np.testing.assert_array_equal(alone, bars)
    usual = 0.3 * np.median(spread) ** (exponent - 1)
    assert record.usual_scales()["H"] == pytest.approx(usual, rel=0.2)
    assert Calibration.from_dict(record.to_dict()) == record


@pytest.mark.parametrize(
    ("exponent", "quantiles"),
    [
        ({"H": 0.7}, {"H": {"0.99": 0.1}, "N": {"0.99": 0.1}}),
        ({"H": 0.7, "N": 0.7}, {"H": {"0.99": 0.1}}),
        ({"H": 0.7, "N": 0.7}, {"H": {"0.99": 0.1}, "N": {"0.5": 0.1}}),
    ],
)
def test_an_exponent_without_its_unit_is_refused(exponent: dict, quantiles: dict) -> None:
    table = {"H": 1.0, "N": 1.0}
    with pytest.raises(ConfigError, match=r"and the 0\.99 quantile in force_std_quantiles"):
        Calibration(table, table, force_exponent=exponent, force_std_quantiles=quantiles)


def test_an_exponent_above_one_is_refused() -> None:
    table = {"H": 1.0}
    with pytest.raises(ConfigError, match="force_exponent"):
        Calibration(
            table, table, force_exponent={"H": 1e300}, force_std_quantiles={"H": {"0.99": 1}}
        )


def test_crps_is_that_of_samples() -> None:
    """E|X - y| - E|X - X'| / 2 for samples X of the Gaussian, the definition."""
    rng = np.random.default_rng(0)
    errors, sigma = rng.normal(size=(3, 3)), np.array([0.5, 1.0, 3.0])
    draws = rng.normal(size=(2, 400_000, 1, 1)) * (sigma / np.sqrt(3))[:, None]
    expected = np.abs(draws[0] - errors).mean() - np.abs(draws[0] - draws[1]).mean() / 2
    assert crps(errors, sigma) == pytest.approx(expected, rel=5e-3)
    assert crps(errors, np.zeros(3)) == pytest.approx(np.abs(errors).mean())
