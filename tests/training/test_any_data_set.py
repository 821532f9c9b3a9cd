"""Data sets of any mixture of labels: each label is used with its right value, or named, or the set is refused."""

import logging
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import alloy

from neuralil_ase.errors import DataError
from neuralil_ase.evaluation.dataset import frames_from_atoms
from neuralil_ase.evaluation.labels import Keys

NAMES = {
    "energy": ("energy", "REF_energy", "dft_energy", "Etot", "TotEnergy"),
    "forces": ("forces", "REF_forces", "dft_forces", "F", "force"),
    "stress": ("stress", "REF_stress", "dft_stress", "virial", "REF_virial", "virials"),
}


class Given(NamedTuple):
    """One frame: the name that each of its labels goes by (None without it), and whether ASE's calculator holds it."""

    names: dict[str, str | None]
    in_calculator: bool


@st.composite
def data_sets(draw: st.DrawFn) -> list[Given]:
    """Up to six frames; mostly two ways of naming, as of files that were put together, and gaps."""
    by_any_name = {label: st.sampled_from(names) for label, names in NAMES.items()}
    by_ase = by_any_name | {label: st.just(label) for label in ("energy", "forces")}
    way = st.one_of(*[st.fixed_dictionaries(by_ase)] * 4, st.fixed_dictionaries(by_any_name))
    ways = draw(st.lists(way, min_size=1, max_size=2))
    frames = []
    for _ in range(draw(st.integers(1, 6))):
        way = draw(st.sampled_from(ways))
        gaps = draw(st.sets(st.sampled_from(list(NAMES)), max_size=2))
        names = {label: None if label in gaps else way[label] for label in NAMES}
        frames.append(Given(names, draw(st.booleans())))
    return frames


def value(atoms: Atoms, label: str, name: str) -> Any:
    result = atoms.calc.results[label]
    return -result * atoms.get_volume() if "viri" in name else np.copy(result)


def structure(number: int, given: Given) -> Atoms:
    source = alloy(6)[number]
    atoms, results = source.copy(), {}
    for label, name in given.names.items():
        if name == label and given.in_calculator:
            results[label] = value(source, label, name)
        elif name is not None:
            place = atoms.arrays if label == "forces" else atoms.info
            place[name] = value(source, label, name)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


quick = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@quick
@given(data_sets())
def test_nothing_is_dropped_without_a_word(
    caplog: pytest.LogCaptureFixture, given_frames: list[Given]
) -> None:
    data = [structure(k, frame) for k, frame in enumerate(given_frames)]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        try:
            frames = frames_from_atoms(data)
        except DataError as refusal:
            assert_refusal_is_of_use(str(refusal), given_frames)
            return
    said = caplog.text
    kept = [k for k, frame in enumerate(given_frames) if labelled_as_ase_has_it(frame)]
    assert len(frames) == len(kept)
    if len(kept) < len(data):
        assert f"{len(data) - len(kept)} of the {len(data)} frames" in said
    unused: Counter[str] = Counter()
    for k, frame in enumerate(given_frames):
        found = frames[kept.index(k)] if k in kept else None
        for label, name in frame.names.items():
            if name is None:
                continue
            used = None if found is None else getattr(found, label)
            if used is None:
                unused[name] += 1
            else:
                np.testing.assert_allclose(used, alloy(6)[k].calc.results[label], atol=1e-9)
    for name, count in unused.items():
        assert name in said, f"{name} of {count} frames was dropped: {said}"
    for label in ("energy", "forces"):
        lacking = sum(frame.names[label] != label for frame in given_frames)
        if 0 < lacking < len(data):
            assert f"{lacking} of the {len(data)} frames" in said


def labelled_as_ase_has_it(frame: Given) -> bool:
    return frame.names["energy"] == "energy" or frame.names["forces"] == "forces"


def assert_refusal_is_of_use(text: str, given_frames: list[Given]) -> None:
    """It names an entry that is there, or says that there is none to be named."""
    there = {name for frame in given_frames for name in frame.names.values() if name}
    assert any(f"'{name}'" in text for name in there) or "neither energies nor forces" in text


@quick
@given(data_sets(), st.randoms())
def test_named_labels_are_all_found(given_frames: list[Given], random: Any) -> None:
    """Whoever gives every name that occurs gets every energy and force."""
    there = {
        label: sorted({n for frame in given_frames if (n := frame.names[label])}) for label in NAMES
    }
    if not there["energy"] or not there["forces"]:
        return
    names = {label: ",".join(random.sample(there[label], len(there[label]))) for label in there}
    keys = Keys(energy=names["energy"], forces=names["forces"])
    frames = frames_from_atoms([structure(k, f) for k, f in enumerate(given_frames)], keys)
    kept = [
        k
        for k, frame in enumerate(given_frames)
        if frame.names["energy"] is not None or frame.names["forces"] is not None
    ]
    for frame, k in zip(frames, kept, strict=True):
        for label in ("energy", "forces"):
            used = getattr(frame, label)
            assert (used is None) == (given_frames[k].names[label] is None)
            if used is not None:
                np.testing.assert_allclose(used, alloy(6)[k].calc.results[label], atol=1e-9)
