"""Criteria read what they say, bands and patience work, thresholds come from the calibration."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import neighbor_list
from hypothesis import given
from hypothesis import strategies as st
from lj_ensemble import LJEnsemble, argon

from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError, MonitorError
from neuralil_ase.monitor import (
    Band,
    Check,
    Criterion,
    EnergySpreadPerAtom,
    ExtrapolationMonitor,
    MaxEnergySpread,
    MaxForceErrorBar,
    MaxForceSpread,
    MeanForceSpread,
    Reading,
    RelativeForceSpread,
    ShortestDistance,
    shortest_distances,
)
from neuralil_ase.monitor.actions import Streaks

ETHANOL = molecule("CH3CH2OH")


def prediction(n, seed=0):
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        forces_std=rng.random(n), energies_std=rng.random(n), energy_std=0.7, energy=1.0
    )


def test_largest_force_spread_names_value_and_atom():
    p = prediction(9)
    reading = MaxForceSpread(0.1).read(ETHANOL, p)
    assert reading.value == p.forces_std.max()
    assert reading.atom == p.forces_std.argmax()
    assert (reading.low, reading.high, reading.threshold) == (0.1, None, 0.1)


def test_per_element_and_selection():
    p = prediction(9)
    of_h = MaxForceSpread(0.1, elements=("H",)).read(ETHANOL, p)
    hydrogens = np.flatnonzero(ETHANOL.numbers == 1)
    assert of_h.value == p.forces_std[hydrogens].max()
    assert ETHANOL.symbols[of_h.atom] == "H"
    chosen = MaxForceSpread(0.1, indices=(7, 2), elements=("C", "O", "H")).read(ETHANOL, p)
    assert chosen.value == max(p.forces_std[7], p.forces_std[2])
    assert MaxForceSpread(0.1, indices=(-1,)).read(ETHANOL, p).value == p.forces_std[8]


def test_means_and_energies():
    p = prediction(9)
    mean = MeanForceSpread(0.1, elements=("C",)).read(ETHANOL, p)
    assert mean.value == pytest.approx(p.forces_std[ETHANOL.numbers == 6].mean())
    assert mean.atom is None
    assert EnergySpreadPerAtom(0.1).read(ETHANOL, p).value == pytest.approx(0.7 / 9)
    assert MaxEnergySpread(0.1).read(ETHANOL, p).atom == p.energies_std.argmax()


def test_relative_spread_weighs_elements():
    p = prediction(9)
    p.forces_std[:] = 0.2
    usual = {"C": 1.0, "H": 0.1, "O": 0.4}
    reading = RelativeForceSpread(usual=usual).read(ETHANOL, p)
    assert reading.value == pytest.approx(2.0)
    assert ETHANOL.symbols[reading.atom] == "H"
    assert reading.band == Band.CANDIDATE


@given(
    value=st.floats(allow_nan=True, allow_infinity=True),
    low=st.floats(0.01, 1.0),
    width=st.floats(0.0, 3.0),
)
def test_bands_of_all_values(value, low, width):
    band = Reading("x", "", value, None, low, low + width).band
    if np.isnan(value) or np.isposinf(value) or value >= low + width:
        assert band == Band.HIGH
    elif value >= low:
        assert band == Band.CANDIDATE
    elif np.isfinite(value):
        assert band == Band.TRUSTED


def test_not_a_number_is_never_trusted():
    p = prediction(9)
    p.forces_std[4] = np.nan
    for criterion in (MaxForceSpread(5.0), MeanForceSpread(5.0)):
        assert criterion.read(ETHANOL, p).band == Band.HIGH
        assert criterion.read(ETHANOL, p).in_last_band
    assert MaxForceSpread(5.0).read(ETHANOL, p).atom == 4


@pytest.mark.parametrize("pbc", [False, True, (True, False, True)])
def test_shortest_distance_agrees_with_ase(pbc):
    atoms = argon()
    atoms.rattle(0.4, seed=2)
    atoms.pbc = pbc
    criterion = ShortestDistance(usual={"Ar-Ar": 3.5})
    reading = criterion.read(atoms, None)
    i, d = neighbor_list("id", atoms, 6.0)
    assert reading.value == pytest.approx(d.min() / 3.5, rel=1e-12)
    assert reading.atom in i[d == d.min()]


def test_short_is_bad_and_absent_is_good():
    dimer = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])
    criterion = ShortestDistance(0.9, 0.6, usual={"H-H": 0.74})
    assert criterion.read(dimer, None).band == Band.TRUSTED
    dimer.positions[1, 2] = 0.5
    assert criterion.read(dimer, None).band == Band.CANDIDATE
    dimer.positions[1, 2] = 0.3
    assert criterion.read(dimer, None).band == Band.HIGH
    dimer.positions[1, 2] = 40.0
    far = criterion.read(dimer, None)
    assert np.isposinf(far.value)
    assert far.band == Band.TRUSTED
    dimer.positions[1, 2] = np.nan
    assert criterion.read(dimer, None).band == Band.HIGH


def test_shortest_distances_of_a_training_set():
    stretched = ETHANOL.copy()
    stretched.positions *= 1.1
    table = shortest_distances([stretched, ETHANOL], cutoff=2.5)
    distances = ETHANOL.get_all_distances()
    for pair, value in table.items():
        a, b = pair.split("-")
        block = distances[np.ix_(ETHANOL.symbols == a, ETHANOL.symbols == b)]
        expected = min(block[block > 0].min(initial=np.inf), 2.5)
        assert value == pytest.approx(expected)
    assert set(table) == {"C-C", "C-H", "C-O", "H-H", "H-O", "O-O"}
    own = ShortestDistance(0.99, usual=table).read(ETHANOL, None)
    assert own.value == pytest.approx(1.0)
    assert own.band == Band.TRUSTED


def test_patience_counts_each_criterion_in_a_row():
    streaks = Streaks(patience=2)

    def step(value):
        lasting = streaks.update([Reading("x", "", value, None, 1.0, 2.0)])
        return streaks.band(lasting), streaks.stop(lasting)

    assert step(1.5) == (Band.TRUSTED, False)
    assert step(2.5) == (Band.CANDIDATE, False)  # flagged twice, high once
    assert step(2.5) == (Band.HIGH, True)
    assert step(0.5) == (Band.TRUSTED, False)
    assert step(2.5) == (Band.TRUSTED, False)


CALIBRATION = Calibration(
    force_scale={"Ar": 2.0},
    force_floor={"Ar": 0.001},
    thresholds={"low": 0.02, "high": 0.06},
    relative_thresholds={"low": 2.0, "high": 3.0},
    force_std_quantiles={"Ar": {"0.5": 0.004, "0.99": 0.02}},
    shortest_distances={"Ar-Ar": 3.3},
)
EMPTY = Calibration(force_scale={"Ar": 2.0}, force_floor={"Ar": 0.001})


def test_thresholds_come_from_the_calibration():
    atoms = argon()
    atoms.calc = LJEnsemble(calibration=CALIBRATION)
    (criterion,) = ExtrapolationMonitor(atoms).criteria
    assert (criterion.low, criterion.high) == (0.02, 0.06)
    own = [RelativeForceSpread(quantile=0.99), ShortestDistance()]
    relative, distance = ExtrapolationMonitor(atoms, criteria=own).criteria
    assert relative.usual == {"Ar": 0.02}
    assert distance.usual == {"Ar-Ar": 3.3}
    assert (relative.low, relative.high) == (1.0, None)
    (bands,) = ExtrapolationMonitor(atoms, criteria=[RelativeForceSpread(low=None)]).criteria
    assert (bands.low, bands.high, bands.usual) == (2.0, 3.0, {"Ar": 0.02})
    (kept,) = ExtrapolationMonitor(atoms, 0.5).criteria
    assert (kept.low, kept.high) == (0.5, None)


class NitrogenLike(MaxForceSpread):
    """A user's own criterion: thresholds from the calibration, and no more than that to write."""

    kind = "twice_usual"

    def bands(self, calibration):
        usual = calibration.force_std_quantiles["Ar"]["0.99"]
        return 2 * usual, None


def test_a_criterion_of_ones_own_takes_its_bands_from_the_calibration():
    atoms = argon()
    atoms.calc = LJEnsemble(calibration=CALIBRATION)
    one, two = ExtrapolationMonitor(
        atoms, criteria=[NitrogenLike(), NitrogenLike(high=9.0, label="other")]
    ).criteria
    assert isinstance(one, NitrogenLike)
    assert (one.name, one.low, one.high) == ("twice_usual", 0.04, None)
    assert (two.name, two.low, two.high) == ("other", 0.04, 9.0)
    monitor = ExtrapolationMonitor(atoms, criteria=[NitrogenLike()], warn=False)
    monitor()
    largest = atoms.calc.prediction(atoms, "forces").forces_std.max()
    assert monitor.last.value("twice_usual") == largest
    assert monitor.last.band == (largest >= 0.04)


@pytest.mark.parametrize("calibration", [None, EMPTY])
def test_a_criterion_of_ones_own_that_the_calibration_cannot_serve(calibration):
    atoms = argon()
    atoms.calc = LJEnsemble(calibration=calibration)
    why = "it has no calibration" if calibration is None else "does not hold them .KeyError: 'Ar'"
    with pytest.raises(MonitorError, match=f"twice_usual takes numbers .*{why}"):
        ExtrapolationMonitor(atoms, criteria=[NitrogenLike()])


@dataclass(frozen=True)
class StressNorm(Criterion):
    """A user's own criterion on the frame as a whole, in ten lines, with an option of its own."""

    power: int = 2

    kind = "stress_norm"
    unit = "eV/Å³"

    def read(self, atoms, prediction):
        return self.reading((abs(prediction.stress) ** self.power).sum() ** (1 / self.power))


def test_a_criterion_of_ones_own_on_the_whole_frame():
    atoms = argon()
    monitor = ExtrapolationMonitor(atoms, criteria=[StressNorm(10.0, power=2)])
    monitor()
    norm = float(np.linalg.norm(atoms.get_stress()))
    assert monitor.last.value("stress_norm") == pytest.approx(norm, rel=1e-12)
    assert monitor.records["stress_norm_atom"].tolist() == [-1]
    assert atoms.calc.asked == ["energy"]


def test_error_bars_are_watched_in_the_unit_of_the_error():
    p = prediction(9)
    p.forces_error_bar = np.hypot(2 * p.forces_std, 0.01)
    reading = MaxForceErrorBar(0.1, elements=("C",)).read(ETHANOL, p)
    carbons = np.flatnonzero(ETHANOL.numbers == 6)
    assert reading.value == p.forces_error_bar[carbons].max()
    assert (reading.criterion, reading.unit) == ("max_force_error_bar_C", "eV/Å")
    assert MaxForceErrorBar.needs == "forces"
    p.forces_error_bar[ETHANOL.numbers == 8] = np.nan
    with pytest.raises(MonitorError, match="the model has no error bars for O"):
        MaxForceErrorBar(0.1).read(ETHANOL, p)
    p.forces_std[:] = p.forces_error_bar[:] = np.nan  # exploded
    assert MaxForceErrorBar(0.1).read(ETHANOL, p).band == Band.HIGH


def test_error_bars_need_a_calibrated_model():
    atoms = argon()
    with pytest.raises(MonitorError, match="max_force_error_bar needs error bars"):
        ExtrapolationMonitor(atoms, criteria=[MaxForceErrorBar(0.1)])
    atoms.calc = LJEnsemble(calibration=CALIBRATION)
    assert ExtrapolationMonitor(atoms, criteria=[MaxForceErrorBar(0.1)]).criteria[0].low == 0.1
    with pytest.raises(MonitorError, match=r"no threshold .* give low= to MaxForceErrorBar"):
        ExtrapolationMonitor(atoms, criteria=[MaxForceErrorBar()])


def test_a_check_tells_the_worst_band_and_what_each_criterion_read():
    readings = [
        Reading(name, "", value, None, 1.0, 2.0) for name, value in (("a", 0.5), ("b", 1.5))
    ]
    check = Check(7, None, prediction(9), tuple(readings), complete=True)
    assert check.band == Band.CANDIDATE
    assert not check.trusted
    assert (check.value("a"), check.value("b")) == (0.5, 1.5)
    assert np.isnan(check.value("c"))


@pytest.mark.parametrize(
    ("criteria", "calibration", "message"),
    [
        (None, None, r"it has no calibration\. Give them yourself \(threshold="),
        (None, EMPTY, "its calibration does not hold them .KeyError: 'thresholds'"),
        ([RelativeForceSpread()], None, "has no calibration.*usual= of the criterion"),
        ([RelativeForceSpread(quantile=0.7)], CALIBRATION, "no 0.7 quantile for Ar, but 0.5, 0.99"),
        (
            [RelativeForceSpread(low=None, quantile=0.5)],
            CALIBRATION,
            "relative_force_std has no threshold.*give low=",
        ),
        (
            [RelativeForceSpread(low=None)],
            replace(EMPTY, force_std_quantiles={"Ar": {"0.99": 0.02}}),
            "does not hold them .KeyError: 'relative_thresholds'",
        ),
        ([ShortestDistance()], None, "has no calibration.*usual= of the criterion"),
        ([MeanForceSpread()], CALIBRATION, "mean_force_std has no threshold.*give low="),
    ],
)
def test_open_thresholds_are_asked_for(criteria, calibration, message):
    atoms = argon()
    atoms.calc = LJEnsemble(calibration=calibration)
    with pytest.raises(MonitorError, match=message):
        ExtrapolationMonitor(atoms, criteria=criteria)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxForceSpread(-1.0), "low = -1.0 is not a threshold"),
        (lambda: MaxForceSpread(float("nan")), "not a threshold"),
        (lambda: MaxForceSpread(2.0, 1.0), "high = 1.0 comes before low = 2.0"),
        (lambda: ShortestDistance(0.8, 0.9), "the smaller ones"),
        (lambda: MaxForceSpread(1.0, elements="H"), r"give elements as a tuple, \('H',\)"),
        (lambda: MaxForceSpread(1.0, label="a b"), "no blanks"),
        (lambda: MaxForceSpread(1.0, label="a\udce9"), "no blanks"),
        (lambda: MaxForceSpread("1.0"), "not a threshold"),
        (lambda: MaxForceSpread(1.0, elements=("Hx",)), "'Hx' is neither the symbol"),
        (lambda: MaxForceSpread(1.0, indices=3), r"give indices as a tuple, \(3,\)"),
        (lambda: MaxForceSpread(1.0, indices=(1.5,)), "1.5 is neither the symbol"),
        (lambda: MaxForceSpread(1.0, indices=(True,)), "True is neither the symbol"),
        (lambda: EnergySpreadPerAtom(1.0, elements=("H",)), "belongs to the whole frame"),
    ],
)
def test_senseless_criteria_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (MaxForceSpread(1.0, elements=("Xe",)), "no atom to look at.*misspelled"),
        (MaxForceSpread(1.0, indices=(9,)), "reach beyond the 9 atoms"),
        (RelativeForceSpread(usual={"H": 1.0}), "no usual spread for C, O"),
        (ShortestDistance(usual={"H-H": 1.0}), "no usual distance for C-C, C-H, C-O, H-O"),
        (MeanForceSpread(), "no threshold; give low= to MeanForceSpread"),
    ],
)
def test_what_does_not_fit_the_structure_is_refused(criterion, message):
    with pytest.raises(MonitorError, match=message):
        criterion.read(ETHANOL, prediction(9))


class Shapeless(MaxForceSpread):
    def values(self, atoms, prediction):
        return np.zeros((len(atoms), 3))


def test_values_of_another_shape_are_refused():
    with pytest.raises(MonitorError, match=r"values\(\) of Shapeless has the shape \(9, 3\) for 9"):
        Shapeless(1.0).read(ETHANOL, prediction(9))
    with pytest.raises(NotImplementedError, match=r"Criterion has neither values\(\) nor read"):
        Criterion(1.0).read(ETHANOL, prediction(9))


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ([Criterion(1.0)], "Criterion needs a name for its log column"),
        ([MaxForceSpread(1.0, label="step")], "two columns of the log would be called step"),
        ([MaxForceSpread(1.0, label="a"), MaxForceSpread(1.0, label="a_atom")], "called a_atom"),
        (
            ["max_force_std"],
            r"must hold criteria such as MaxForceSpread\(0\.5\), got 'max_force_std'",
        ),
    ],
)
def test_criteria_that_the_log_could_not_tell_apart_are_refused(criteria, message):
    with pytest.raises(ConfigError, match=message):
        ExtrapolationMonitor(argon(), criteria=criteria)


@pytest.mark.parametrize(
    ("usual", "message"),
    [({"HO": 1.0}, "not a pair of elements"), ({"H-O": -1.0}, "not a distance")],
)
def test_bad_usual_distances_are_refused(usual, message):
    with pytest.raises(ConfigError, match=message):
        ShortestDistance(usual=usual).read(ETHANOL, None)
