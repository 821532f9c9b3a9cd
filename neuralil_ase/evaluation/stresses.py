"""Checks that stresses belong to their frames and have the assumed unit and sign.

Energies and forces imply the stress: forces and stress are derivatives of one energy. The check fits a small potential
to energies and forces alone, in a second. This potential is linear in its coefficients (pairs, and squares of densities
around atoms). Its stresses are crude, but they have the right sign and size wherever the potential describes the forces
of frames that it was not fitted to.
"""

import logging
from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from ase import units
from scipy.stats import spearmanr

from neuralil_ase.evaluation.dataset import Frame, elements_of, pairs_of, types_of
from neuralil_ase.prediction import to_voigt

logger = logging.getLogger(__name__)
RADIUS, N_PAIR, N_DENSITY = 5.0, 10, 4
MOST_FRAMES, MOST_PAIRS = 40, 600_000
FEWEST_FRAMES = 6
TRUSTED = 0.7
"""Fraction of the variance of held-out forces that the small potential must explain; else no check is made."""
SAME = 0.9
"""Correlation that stresses by the potentials of both halves must have. In small cells forces may determine none."""
AGREES, UNRELATED = 0.5, 0.3
"""Correlations of stresses: above the larger value, stresses belong to the frames; below the smaller, they do not."""
ENOUGH = 12
"""With fewer frames, a small correlation may be chance."""
TOLERATED = 5.0
"""Up to this ratio of sizes, a difference may come from the crude comparison alone."""


class _Design(NamedTuple):
    """What each coefficient contributes to the labels of one frame."""

    energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray


def check_stresses(frames: Sequence[Frame]) -> str | None:
    """Warn if the stresses do not fit the energies and forces; returns the text of the warning."""
    known = [f for f in frames if f.stress is not None and f.forces is not None and f.volume]
    if len(known) < FEWEST_FRAMES:
        return None
    chosen = _affordable(known[:: -(-len(known) // MOST_FRAMES)])
    implied = implied_stresses(chosen)
    if implied is None:
        return None
    labels = np.array([frame.stress for frame in chosen])
    volume = float(np.median([frame.volume for frame in chosen]))
    said = verdict(labels, implied, volume, any(frame.energy is not None for frame in chosen))
    if said:
        logger.warning("%s", said)
    return said


def verdict(
    labels: np.ndarray, implied: np.ndarray, volume: float, with_energies: bool = True
) -> str | None:
    """What is wrong with labels, given the stresses that they should resemble; None if nothing is wrong.

    Parameters
    ----------
    labels, implied
        In eV/Å³, shape (frames, 6).
    volume
        Typical volume of the cells in Å³.
    with_energies
        Whether energies took part. The size of stresses that follow from forces alone is less sure.
    """
    known, tolerated = ("energies and forces", 1.0) if with_energies else ("forces", 2.0)
    tolerated *= TOLERATED
    given, expected = _varying(labels), _varying(implied)
    if np.ptp(given) == 0 or np.ptp(expected) == 0:
        return None
    correlation = _correlation(given, expected)
    ratio = float(np.sqrt(np.mean(given**2) / np.mean(expected**2)))
    if abs(correlation) < UNRELATED and len(labels) >= ENOUGH:
        return (
            f"the stresses do not fit {known} (correlation {correlation:.2f}): usually they belong to "
            "other frames. Train without them (stress_weight 0) or find out where they come from"
        )
    if abs(correlation) < AGREES:
        return None
    wrong = []
    order = _order(labels, implied, np.sign(correlation))
    if order:
        wrong.append(
            f"seem to end with {order} instead of yz xz xy (write them in this order, or train without them: "
            "stress_weight 0)"
        )
    if correlation < 0:
        wrong.append(
            f"have the opposite sign of what {known} imply (usually they are positive under compression: give "
            "stress_sign -1)"
        )
    if not 1 / tolerated < ratio < tolerated:
        wrong.append(f"are {ratio:.3g} times as large as what {known} imply{_unit(ratio, volume)}")
    return f"the stresses {' and '.join(wrong)}" if wrong else None


def implied_stresses(frames: Sequence[Frame]) -> np.ndarray | None:
    """Stresses in eV/Å³, shape (frames, 6), of a small potential fitted to other frames; None if it is too poor."""
    elements = elements_of(frames)
    designs = [_design(frame, elements) for frame in frames]
    stresses = np.zeros((2, len(frames), 6))
    left = total = 0.0
    for fold in (0, 1):
        fitted = _fit(
            [(f, d) for k, (f, d) in enumerate(zip(frames, designs, strict=True)) if k % 2 != fold]
        )
        stresses[fold] = [design.stress @ fitted for design in designs]
        for k in range(fold, len(frames), 2):
            forces = np.asarray(frames[k].forces)
            left += float(((designs[k].forces @ fitted - forces.reshape(-1)) ** 2).sum())
            total += float((forces**2).sum())
    if total == 0 or 1 - left / total < TRUSTED:
        return None
    first, second = (_varying(of_half) for of_half in stresses)
    if np.ptp(first) == 0 or np.ptp(second) == 0 or np.corrcoef(first, second)[0, 1] < SAME:
        return None
    return stresses[np.arange(len(frames)) % 2, np.arange(len(frames))]


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of values or of ranks, the larger one: values suffer from outliers, ranks from many values near 0."""
    both = (float(np.corrcoef(first, second)[0, 1]), float(spearmanr(first, second).statistic))
    return max(both, key=abs)


def _order(labels: np.ndarray, implied: np.ndarray, sign: float) -> str | None:
    """The order of the shear components, if it is clearly not yz xz xy; else None."""
    names, expected = ("yz", "xz", "xy"), implied[:, 3:].reshape(-1)
    if np.ptp(expected) == 0 or np.ptp(labels[:, 3:]) == 0 or len(labels) < ENOUGH:
        return None
    found = {
        order: sign * _correlation(labels[:, 3:][:, order].reshape(-1), expected)
        for order in permutations(range(3))
    }
    best = max(found, key=lambda order: found[order])
    if found[best] < AGREES or found[(0, 1, 2)] > AGREES:
        return None
    return " ".join(names[best.index(k)] for k in range(3))


def _affordable(frames: Sequence[Frame]) -> list[Frame]:
    chosen, pairs = [], 0
    for frame in frames:
        chosen.append(frame)
        density = len(frame.symbols) / (frame.volume or 1.0)
        pairs += int(len(frame.symbols) * density * 4.2 * RADIUS**3)
        if pairs > MOST_PAIRS and len(chosen) >= FEWEST_FRAMES:
            break
    return chosen


def _varying(stresses: np.ndarray) -> np.ndarray:
    """Components without the mean pressure, which a crude potential describes worst."""
    centred = stresses.copy()
    centred[:, :3] -= stresses[:, :3].mean()
    return centred.reshape(-1)


def _unit(ratio: float, volume: float) -> str:
    factors = {
        "GPa: give stress_unit GPa": 1 / units.GPa,
        "kB: give stress_unit kB": 10 / units.GPa,
        "eV, as virials are: give virial_key": volume,
    }
    name = min(factors, key=lambda n: abs(np.log(factors[n] / ratio)))
    if abs(np.log(factors[name] / ratio)) > np.log(3):
        return "; in what unit are they?"
    return f" (as if they were in {name})"


def _fit(parts: Sequence[tuple[Frame, _Design]]) -> np.ndarray:
    """Ridge regression on forces, and on energies per atom up to one constant per element."""
    forces = np.concatenate([design.forces for _, design in parts])
    labels = np.concatenate([np.asarray(frame.forces).reshape(-1) for frame, _ in parts])
    with_energy = [(f, d) for f, d in parts if f.energy is not None]
    rows, values = [forces], [labels]
    if len(with_energy) > 2:
        sizes = np.array([len(f.symbols) for f, _ in with_energy])
        per_atom = np.array([d.energy for _, d in with_energy]) / sizes[:, None]
        energies = np.array([f.energy for f, _ in with_energy], float) / sizes
        kinds = sorted({str(s) for f, _ in with_energy for s in f.symbols})
        counts = np.array([[np.mean(f.symbols == s) for s in kinds] for f, _ in with_energy])
        keep = np.eye(len(sizes)) - counts @ np.linalg.pinv(counts)
        weight = 10 * np.sqrt(len(labels) / len(sizes) / 30)
        rows.append(weight * keep @ per_atom)
        values.append(weight * keep @ energies)
    matrix, target = np.concatenate(rows), np.concatenate(values)
    scale = np.maximum(np.sqrt((matrix**2).mean(axis=0)), 1e-12)
    normal = (matrix / scale).T @ (matrix / scale) / len(matrix)
    right = (matrix / scale).T @ target / len(matrix)
    return np.linalg.solve(normal + 1e-6 * np.eye(len(scale)), right) / scale


def _design(frame: Frame, elements: tuple[str, ...]) -> _Design:
    types = types_of(frame, elements)
    vectors, i, j = pairs_of(frame, types, RADIUS)
    r = np.linalg.norm(vectors, axis=1)
    n, n_atoms = len(elements), len(types)
    value, slope = _basis(r, N_PAIR)
    low, high = np.minimum(types[i], types[j]), np.maximum(types[i], types[j])
    kinds = [(a, b) for a in range(n) for b in range(a, n)]
    energies, slopes = [], []  # of every coefficient, and dE/dr of every pair
    for a, b in kinds:
        chosen = ((low == a) & (high == b))[:, None]
        energies.append(0.5 * (value * chosen).sum(axis=0))
        slopes.append(0.5 * slope * chosen)
    value, slope = _basis(r, N_DENSITY)
    density = np.stack([np.bincount(i, v, n_atoms) for v in value.T], axis=1)
    for k in range(N_DENSITY):
        for l in range(k, N_DENSITY):  # noqa: E741  # as in the formula s_k s_l
            product = density[:, k] * density[:, l]
            energies.append(np.bincount(types, product, n))
            of_pair = slope[:, k] * density[i, l] + density[i, k] * slope[:, l]
            slopes.append(of_pair[:, None] * (types[i][:, None] == np.arange(n)))
    gradient = np.concatenate(slopes, axis=1) / np.maximum(r, 1e-9)[:, None]
    forces = np.zeros((n_atoms, 3, gradient.shape[1]))
    stress = np.zeros((6, gradient.shape[1]))
    for c in range(gradient.shape[1]):
        along = gradient[:, c, None] * vectors
        for x in range(3):
            forces[:, x, c] = np.bincount(i, along[:, x], n_atoms) - np.bincount(
                j, along[:, x], n_atoms
            )
        stress[:, c] = to_voigt(vectors.T @ along) / (frame.volume or 1.0)
    return _Design(np.concatenate(energies), forces.reshape(3 * n_atoms, -1), stress)


def _basis(r: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(1 - r/R)² T_k(2r/R - 1) and its derivative by r, shape (P, count)."""
    x = 2 * r / RADIUS - 1
    polynomials = np.polynomial.chebyshev.chebvander(x, count - 1)
    derivatives = np.stack(
        [np.polynomial.Chebyshev.basis(k).deriv()(x) if k else 0 * x for k in range(count)], axis=1
    )
    envelope = (1 - r / RADIUS)[:, None]
    return (
        envelope**2 * polynomials,
        envelope**2 * derivatives * 2 / RADIUS - 2 / RADIUS * envelope * polynomials,
    )
