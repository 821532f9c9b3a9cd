"""Thresholds of the calibration: above what held-out frames have, per element where relative."""

import numpy as np
import pytest

from neuralil_ase.calibration import (
    HIGH,
    LOW,
    ORDINARY,
    HeldOut,
    calibrate,
    energy_error_bar,
    force_error_bars,
)

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


def test_thresholds_lie_above_the_held_out_frames() -> None:
    data = held_out(spreads(0.05, 1), spreads(0.2, 2))
    record = calibrate(data, {}, "test")
    largest = data.force_spreads.reshape(FRAMES, -1).max(axis=1)
    assert record["thresholds"]["low"] == pytest.approx(LOW * np.quantile(largest, ORDINARY))
    assert record["thresholds"]["high"] == pytest.approx(HIGH * record["thresholds"]["low"])
    assert record["thresholds"]["low"] > largest.max()


def test_relative_thresholds_see_the_element_that_is_usually_calm() -> None:
    """A hydrogen at six times its usual spread hides below nitrogen's, but not in its own units."""
    data = held_out(spreads(0.05, 1), spreads(0.2, 2))
    record = calibrate(data, {}, "test")
    strange = 6 * 0.05
    usual = record["force_std_quantiles"]["H"]["0.99"]
    assert strange < record["thresholds"]["low"]
    assert strange / usual > record["relative_thresholds"]["low"]


def test_relative_thresholds_do_not_depend_on_the_size_of_the_spreads() -> None:
    """Nitrogen with ten times the spread changes its own unit and no relative threshold."""
    first = calibrate(held_out(spreads(0.05, 1), spreads(0.2, 2)), {}, "test")
    second = calibrate(held_out(spreads(0.05, 1), spreads(2.0, 2)), {}, "test")
    assert second["relative_thresholds"]["low"] == pytest.approx(
        first["relative_thresholds"]["low"]
    )
    assert second["thresholds"]["low"] > 5 * first["thresholds"]["low"]


def test_members_that_never_differ_give_no_division_by_zero() -> None:
    zero = np.zeros((FRAMES, SIZE))
    data = held_out(zero, zero)._replace(force_errors=np.ones((2 * FRAMES * SIZE, 3)))
    record = calibrate(data, {}, "test")
    assert record["thresholds"] == record["relative_thresholds"] == {"low": 0.0, "high": 0.0}


def test_one_strange_frame_does_not_move_the_thresholds() -> None:
    ordinary = spreads(0.05, 1), spreads(0.2, 2)
    strange = ordinary[0].copy()
    strange[7, 3] = 50.0
    before = calibrate(held_out(*ordinary), {}, "test")["thresholds"]["low"]
    assert calibrate(held_out(strange, ordinary[1]), {}, "test")["thresholds"]["low"] < 1.1 * before


def test_error_bars_of_deep_ensembles_take_the_noise_in() -> None:
    """Errors made of a part that the spread sees and one that the members expect; half of what both say."""
    rng = np.random.default_rng(3)
    data = held_out(spreads(0.1, 1), spreads(0.1, 2))
    noise = 0.2 * rng.lognormal(sigma=0.5, size=data.force_spreads.shape)
    expected = np.hypot(data.force_spreads, noise)
    errors = rng.normal(size=(len(noise), 3)) * 0.5 * expected[:, None] / np.sqrt(3)
    energy_noise = rng.uniform(0.5, 2, FRAMES)
    energy_errors = rng.normal(size=FRAMES) * 0.5 * energy_noise
    data = data._replace(
        force_errors=errors, force_noise=noise, energy_noise=energy_noise,
        energy_errors=energy_errors, energy_spreads=np.full(FRAMES, 1e-6),
    )  # fmt: skip
    record = calibrate(data, {}, "test")
    assert record["with_noise"]
    assert "that the members expect" in record["estimator"]
    symbols = data.symbols.tolist()
    bars = force_error_bars(record, symbols, data.force_spreads, noise)
    usual = data.force_spreads < np.quantile(data.force_spreads, 0.98)
    np.testing.assert_allclose(bars[usual], 0.5 * expected[usual], rtol=0.1)
    assert energy_error_bar(record, 100, 0.0, 1.5) == pytest.approx(0.75, rel=0.25)
    assert energy_error_bar(record, 100, 0.0, None) < 0.5
    alone = calibrate(data._replace(force_noise=None, energy_noise=None), {}, "test")
    assert not alone["with_noise"]
    for kept in (alone, {k: v for k, v in alone.items() if k != "with_noise"}):
        ignored = force_error_bars(kept, symbols, data.force_spreads, 1e6 * noise)
        np.testing.assert_array_equal(ignored, force_error_bars(alone, symbols, data.force_spreads))
    assert record["thresholds"] == alone["thresholds"]


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
    data = data._replace(force_errors=errors, force_spreads=spread, force_noise=noise)
    record = calibrate(data, {}, "test")
    symbols = data.symbols.tolist()
    bars = force_error_bars(record, symbols, spread, noise)
    alone = force_error_bars(
        calibrate(data._replace(force_noise=None), {}, "test"), symbols, spread
    )
    np.testing.assert_array_equal(bars[odd], alone[odd])
    forgetful = {k: v for k, v in record.items() if not k.endswith("_of_spread")}
    before = force_error_bars(forgetful, symbols, spread, noise)
    assert (bars[odd] > 1.2 * before[odd]).all()
    usual = spread < np.quantile(spread, 0.98)
    np.testing.assert_array_equal(bars[usual], before[usual])
