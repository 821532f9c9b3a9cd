"""Contacts that are in no frame: what the linear part adds there, and that no member falls."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.neighborlist import build_neighbor_list, natural_cutoffs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components

from neuralil_ase.engine.neighbors import shortest_distances
from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms, pairs_of, read_frames
from neuralil_ase.evaluation.evaluate import predict_frames
from neuralil_ase.model.potential import flatten, unflatten
from neuralil_ase.samples.batches import Sample
from neuralil_ase.samples.contacts import Contact, contact_rows, contacts_of
from neuralil_ase.samples.equations import Choice, Equations, Sums, Unknowns
from neuralil_ase.samples.least_squares import LinearFit
from neuralil_ase.samples.linear import Linear, what_is_left, with_linear
from neuralil_ase.training.loop import Trainer
from neuralil_ase.training.prepare import Task, prepare
from neuralil_ase.training.settings import TrainingSettings

Distances = list[tuple[tuple[str, str], float]]
EXAMPLES = Path(__file__).parents[2] / "md_examples"
SMALL = TrainingSettings(
    members=4, widths=(4,), head_widths=(), r_cut=3.5, n_max=3, epochs=1, linear="none"
)


def task_of(frames: list[Frame]) -> Task:
    return prepare(SMALL.with_frames(len(frames)), frames, [])


@pytest.fixture(scope="module")
def clusters() -> list[Frame]:
    """One or two ion pairs of ethylammonium nitrate."""
    frames = read_frames([EXAMPLES / "ean_gfn1" / "ean_gfn1.extxyz.xz"])
    return [frame for frame in frames if len(frame.symbols) <= 30]


@pytest.fixture(scope="module")
def task(clusters: list[Frame]) -> Task:
    return task_of(clusters[::2])


def of_contacts(task: Task, is_whole: bool | None = None) -> list[Contact]:
    """Contacts of this kind, or all of them."""
    found = contacts_of(task.packer, task.train)
    return [c for c in found if is_whole is None or (len(c.moved) > 1) == is_whole]


def distances(contact: Contact) -> tuple[tuple[str, str], np.ndarray]:
    """The elements and the distances, before and after, of the two atoms that came into contact."""
    before, after, moved = contact.before, contact.after, int(contact.moved[0])
    differs = (before.frame.positions != after.frame.positions).any(axis=1)
    assert np.flatnonzero(differs).tolist() == [moved]
    pairs = [pairs_of(s.frame, s.types, 3.5) for s in (before, after)]
    own = [np.flatnonzero(p.centers == moved) for p in pairs]
    step = before.frame.positions[moved] - after.frame.positions[moved]
    # The partner keeps its direction, and comes nearer by the length of the step.
    for k in own[1]:
        far = pairs[1].vectors[k] - step
        same = np.abs(pairs[0].vectors[own[0]] - far).max(axis=1) < 1e-9
        if same.any() and np.linalg.norm(np.cross(far, step)) < 1e-6:
            partner = pairs[1].neighbors[k]
            symbols = sorted(after.frame.symbols[[moved, partner]])
            lengths = np.linalg.norm([far, pairs[1].vectors[k]], axis=1)
            return (str(symbols[0]), str(symbols[1])), lengths
    raise AssertionError("no partner")


def test_atoms_that_are_no_neighbours_come_into_contact(task: Task) -> None:
    """One atom moves, to between half and 1.25 times the shortest distance of its element and the partner's."""
    elements = task.config.descriptor.elements
    known = [(pairs_of(s.frame, s.types, 3.5), s.types) for s in task.train]
    shortest = shortest_distances(known, len(elements))
    met: dict[tuple[str, str], list[np.ndarray]] = {}
    for contact in of_contacts(task, is_whole=False):
        pair, lengths = distances(contact)
        met.setdefault(pair, []).append(lengths / shortest[tuple(map(elements.index, pair))])
    assert len(met) >= 8
    for pair, ratios in met.items():
        before, after = np.transpose(ratios)
        halfway = (1 + 3.5 / shortest[tuple(map(elements.index, pair))]) / 2
        assert before.min() >= min(1.5, halfway) - 1e-9
        assert after.min() >= 0.5
        assert after.max() <= 1.25
    assert np.ptp(np.concatenate([np.array(r)[:, 1] for r in met.values()])) > 0.6


def between(sample: Sample, molecules: np.ndarray) -> Distances:
    """Distances between atoms of different molecules by their elements; no cell."""
    i, j = np.nonzero(molecules[:, None] < molecules)
    lengths = np.linalg.norm(sample.frame.positions[i] - sample.frame.positions[j], axis=1)
    ends = np.sort(sample.frame.symbols[np.array([i, j])], axis=0)
    return [((str(a), str(b)), r) for (a, b), r in zip(ends.T, lengths, strict=True)]


def molecules_of(frame: Frame) -> np.ndarray:
    """An oracle of its own: natural cutoffs of ASE."""
    atoms = Atoms(frame.symbols, positions=frame.positions)
    graph = build_neighbor_list(
        atoms, natural_cutoffs(atoms, 1.25), skin=0.0, self_interaction=False
    )
    return np.asarray(connected_components(graph.get_connectivity_matrix())[1])


def test_molecules_come_into_contact_as_a_whole(task: Task) -> None:
    """The closest atoms of two molecules have 0.5 to 0.9 times the shortest distance in the data; all bonds stay."""
    shortest: dict[tuple[str, str], float] = {}
    for sample in task.train:
        for pair, length in between(sample, molecules_of(sample.frame)):
            if length < 3.5:
                shortest[pair] = min(length, shortest.get(pair, np.inf))
    ratios = []
    found = of_contacts(task, is_whole=True)
    for contact in found:
        molecules = molecules_of(contact.before.frame)
        assert set(np.flatnonzero(molecules == molecules[contact.moved[0]])) == {*contact.moved}
        steps = contact.after.frame.positions - contact.before.frame.positions
        assert not np.delete(steps, contact.moved, axis=0).any()
        assert np.ptp(steps[contact.moved], axis=0).max() < 1e-12
        met = between(contact.after, molecules)
        ratios.append(min(r / shortest[pair] for pair, r in met if pair in shortest))
    assert len(ratios) > 100
    assert min(ratios) >= 0.45  # atoms that were beyond the cutoff before may come closer
    assert np.quantile(ratios, 0.02) >= 0.5 - 1e-9
    assert max(ratios) <= 0.9 + 1e-9
    assert np.ptp(ratios) > 0.35


def test_metals_have_no_molecules() -> None:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(4):
        atoms = bulk("Cu", cubic=True) * (2, 2, 2)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = EMT()
        atoms.get_forces()
        frames += frames_from_atoms([atoms])
    found = of_contacts(task_of(frames))
    assert found
    assert all(len(contact.moved) == 1 for contact in found)


def test_the_teacher_rises_where_molecules_come_into_contact(task: Task) -> None:
    """What the linear part is asked for is so, by GFN1-xTB, which labelled the data."""
    tblite = pytest.importorskip("tblite.ase", reason="needs the extra data")
    found = of_contacts(task, is_whole=True)
    for contact in found[:: len(found) // 12]:
        energies = []
        for frame in (contact.before.frame, contact.after.frame):
            atoms = Atoms(frame.symbols, positions=frame.positions)
            atoms.calc = tblite.TBLite(method="GFN1-xTB", verbosity=0)
            energies.append(atoms.get_potential_energy())
        assert energies[1] > energies[0]


def test_contacts_are_the_same_each_time(task: Task) -> None:
    for one, other in zip(of_contacts(task), of_contacts(task), strict=True):
        np.testing.assert_array_equal(one.after.frame.positions, other.after.frame.positions)


def rises(task: Task, linear: Linear, found: list[Contact]) -> np.ndarray:
    """How the linear part changes, by the potential: shape (members, contacts), in eV."""
    trainer = Trainer(task)
    whole = with_linear(trainer.potential(trainer.start().state.params), linear)
    silent = {k: v if "/linear/" in k else 0 * v for k, v in flatten(whole.params).items()}
    config = replace(whole.config, pair_term="none", zbl_radii=())
    potential = replace(whole, config=config, params=unflatten(silent))
    before, after = (
        np.array([p.member_energies for p in predict_frames(potential, [s.frame for s in samples])])
        for samples in ([c.before for c in found], [c.after for c in found])
    )
    return (after - before).T


def test_rows_are_changes_of_the_energy(task: Task) -> None:
    unknowns = Unknowns.of(task.packer, task.train, ())
    solutions = np.random.default_rng(0).normal(0, 0.01, (4, unknowns.size))
    rows, asked = contact_rows(task.packer, unknowns, task.train)
    assert set(asked) == {4.0, 1.0}
    expected = rises(task, unknowns.linear(solutions), of_contacts(task))
    np.testing.assert_allclose(solutions @ rows.T, expected, rtol=1e-3, atol=1e-3)


def test_no_member_falls_where_atoms_come_into_contact(task: Task, clusters: list[Frame]) -> None:
    """On other frames than those of the fit. The errors of the labels stay the same."""
    found = of_contacts(task_of(clusters[1::2]))
    fit = LinearFit(task.packer, task.train)
    free = fit.solve(4, 0, (100.0,))
    fit.raise_contacts(task.packer, task.train)
    raised = fit.solve(4, 0, (100.0,))
    assert free is not None
    assert raised is not None
    for is_whole in (False, True):
        of_kind = [contact for contact in found if (len(contact.moved) > 1) == is_whole]
        falls = [(rises(task, linear, of_kind) < 0).mean() for linear in (free, raised)]
        assert falls[0] > 0.02
        assert falls[1] < 0.25 * falls[0]
    errors = [
        np.concatenate(
            [
                s.targets.forces.ravel()
                for s in what_is_left(task.packer, linear.of_member(0), task.train)
            ]
        ).std()
        for linear in (free, raised)
    ]
    assert errors[1] < 1.05 * errors[0]


def test_frames_without_contacts_change_nothing(task: Task) -> None:
    """Isolated atoms: no atom has another inside the cutoff."""
    fit = LinearFit(task.packer, task.train)
    before = fit.solve(2, 0)
    fit.raise_contacts(task.packer, [one_atom(task, element) for element in (0, 1, 1)])
    after = fit.solve(2, 0)
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(before.weights, after.weights)


def one_atom(task: Task, element: int) -> Sample:
    sample = task.train[0]
    frame = replace(
        sample.frame,
        symbols=np.array([task.config.descriptor.elements[element]]),
        positions=np.zeros((1, 3)),
    )
    return replace(sample, frame=frame, types=np.array([element]), pairs=None, arrays=None)


def test_rows_that_are_large_and_equal_are_solved() -> None:
    """Rounding errors of their products are larger than the inverse of the weight."""
    rng = np.random.default_rng(0)
    rows = 1e6 * np.repeat(rng.normal(size=(3, 5)), 40, axis=0)
    found = Equations.empty(5).at_least(
        Choice(1.0, 1e-4, 1), np.zeros((2, 5)), rows, np.full(120, 4.0), 1e6
    )
    assert np.isfinite(found).all()
    assert (rows @ found.T > 3.9).all()


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6), st.floats(0.01, 100), st.lists(st.floats(-2, 2), min_size=7, max_size=7)
)
def test_the_bounded_solution_is_the_minimum(seed: int, weight: float, given: list[float]) -> None:
    """Against a general minimiser."""
    bounds = np.array(given)
    rng = np.random.default_rng(seed)
    labels, rows, start = rng.normal(size=(9, 5)), rng.normal(size=(7, 5)), rng.normal(size=(2, 5))
    empty = Equations.empty(5)
    equations = replace(empty, forces=Sums.of(labels, rng.normal(size=9), np.ones(9)))
    choice = Choice(1.0, 0.1, 1)
    found = equations.at_least(choice, start, rows, bounds, weight)
    matrix = choice.matrix(equations.sums(choice).gram)
    for x0, x in zip(start, found, strict=True):

        def cost(x: np.ndarray, x0: np.ndarray = x0) -> float:
            short = np.maximum(0, bounds - rows @ x)
            return float((x - x0) @ matrix @ (x - x0) + weight * (short**2).sum())

        least = minimize(cost, x0, method="BFGS", options={"gtol": 1e-9}).fun
        assert cost(x) <= least + 1e-6 * (1 + least)
