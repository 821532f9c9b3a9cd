"""Fits the linear part of the energy by least squares.

Energies, forces and stresses are linear in the weights, and the best weights are the solution of one system of
equations, as in SNAP (Thompson et al., J. Comput. Phys. 285, 316 (2015)). A linear function of smooth invariants
changes little outside the data, where a network may give any value.

The labels determine the weights only in part. Each member gets its own weights, drawn from their posterior distribution
(Bayesian linear regression). The members therefore agree where the data determine the energy, and differ elsewhere.
Weights that all members share would hide how uncertain the linear part is far from the data.

Where atoms or molecules come into contact as in no frame, no member may fall (``contacts``).
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.linalg import cho_solve

from neuralil_ase.progress import Progress
from neuralil_ase.samples.batches import Packer, Sample, Targets
from neuralil_ase.samples.contacts import TOLERANCE, contact_rows
from neuralil_ase.samples.equations import Choice, Equations, Sums, Unknowns, equations_of
from neuralil_ase.samples.linear import Linear

FOLDS = 5
"""Groups of frames for the cross-validation that chooses the weight of energies and the penalty."""
FEWEST = 3
"""Smallest number of frames for a fit."""
ENERGY_WEIGHTS = tuple(10.0**k for k in range(2, 7))
"""Weights to try for a squared error of energies, in (eV/atom)², against one of a force component, in (eV/Å)²."""
PENALTIES = (1e-4, 1e-2, 1.0, 1e2, 1e4)
"""Penalties to try for the sum of the squared weights, with features whose largest variance is 1."""
MOST_FRAMES = 500
"""Largest number of frames for the fit, spread over the data. Few numbers are fitted, and more frames change little."""
MOST_UNKNOWNS = 3000
"""Largest number of unknowns. All sums of a fit of this size need 3 GB."""
BEFORE_NETWORKS: Mapping[str, tuple[float, ...]] = {"all": (100.0,), "half": (1e4, np.inf)}
"""Factors for the penalty of the linear part if networks then learn the rest from many frames, by the setting
``linear``. The networks make up for the accuracy that a larger penalty costs, and the largest errors become smaller
(NOTEBOOK, "A linear part"). With 100 in liquids of molecules, ions of one charge attract each other at distances that
no data have; networks are the other half there (NOTEBOOK, "Half of the members")."""
logger = logging.getLogger(__name__)


class LinearFit:
    """The equations for the linear part. Samples can be added later.

    A cross-validation of the first samples chooses the weight of energies against forces and the penalty of large
    weights: the pair with the smallest product of the root mean square errors of energies and forces. Stresses count as
    much as the forces of their frame.

    Parameters
    ----------
    packer, samples
        The first samples. Their descriptors determine how the unknowns are scaled.
    alone
        Elements whose isolated atoms are known. They get no bias: the linear part of an isolated atom is 0.
    progress
        Show a progress bar.
    """

    def __init__(
        self,
        packer: Packer,
        samples: Sequence[Sample],
        alone: Sequence[int] = (),
        progress: bool = False,
    ) -> None:
        self._best: tuple[Choice, float] | None = None
        self._contacts, self._rises = np.zeros((0, 0)), np.zeros(0)
        if len(samples) < FEWEST:
            return
        self._unknowns = Unknowns.of(packer, samples, alone)
        if self._unknowns.size > MOST_UNKNOWNS:
            logger.info(
                "no linear part: %d unknowns are more than %d", self._unknowns.size, MOST_UNKNOWNS
            )
            return
        self._sums = Equations.empty(self._unknowns.size)
        self._begin(packer, samples, progress)

    def add(self, packer: Packer, samples: Sequence[Sample]) -> None:
        """Add the labels of more samples."""
        if self._best is not None:
            self._sums = self._sums.plus(equations_of(packer, self._unknowns, samples))

    def raise_contacts(
        self, packer: Packer, samples: Sequence[Sample], progress: bool = False
    ) -> None:
        """Let no member fall where atoms or molecules of these samples come into contact as in none of them.

        The solutions change in what the labels leave open (``contacts``), each by itself.
        """
        if self._best is not None:
            found = contact_rows(packer, self._unknowns, samples, progress)
            self._contacts, self._rises = found

    def solve(
        self, n_members: int, seed: int, more_penalties: Sequence[float] = (1.0,)
    ) -> Linear | None:
        """The linear part.

        Parameters
        ----------
        n_members, seed
            Number of members, and the seed of their deviations.
        more_penalties
            Factors for the penalty with which the mean is computed; members take them in turn. The deviations from the
            mean are drawn with the penalty that predicts best, so that they do not become too small where the labels
            say little. Members with an infinite factor have no linear part: all their weights are 0.

        Returns
        -------
        Linear or None
            One linear part for each member. The mean over members with the same penalty is the least-squares solution,
            but for what :meth:`raise_contacts` changes.
            None if no linear part predicts held-out frames better than none at all, if there were too few frames at
            first, or if the equations of many elements become too large.
        """
        if self._best is None:
            return None
        choice, variance = self._best
        solutions = np.zeros((n_members, self._unknowns.size))
        for k, more in enumerate(more_penalties[:n_members]):
            if np.isfinite(more):
                group = solutions[k :: len(more_penalties)]
                group[:] = self._sums.draw(choice, variance, len(group), (seed, k), more)
                if len(self._contacts) and variance > 0:
                    weight = variance / TOLERANCE**2
                    group[:] = self._sums.at_least(
                        choice.penalised(more), group, self._contacts, self._rises, weight
                    )
        return self._unknowns.linear(solutions)

    def _begin(self, packer: Packer, samples: Sequence[Sample], progress: bool) -> None:
        """Make the equations, and choose by cross-validation."""
        folds = []
        n_folds = min(FOLDS, len(samples))
        with Progress(n_folds, "group", "linear fit", progress) as bar:
            for k in range(n_folds):
                folds.append(equations_of(packer, self._unknowns, samples[k::n_folds]))
                self._sums = self._sums.plus(folds[-1])
                bar.update(k + 1)
        others = [self._sums.plus(fold, -1.0) for fold in folds]
        best, score = _best_choice(others, folds, self._unknowns.n_elements)
        is_better = score < _score([np.zeros(self._unknowns.size)] * n_folds, folds)
        self._best = (best, _variance(best, others, folds)) if is_better else None


def some_labelled(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with labels; if there are more than ``MOST_FRAMES``, only every second, third … of them."""
    labelled = [sample for sample in samples if _has_labels(sample.targets)]
    return labelled[:: max(1, -(-len(labelled) // MOST_FRAMES))]


def _has_labels(targets: Targets) -> bool:
    return any(np.isfinite(values).all() for values in (targets.energy, targets.forces))


def _error(kind: str, solutions: Sequence[np.ndarray], folds: Sequence[Equations]) -> float | None:
    """Root mean square error of one kind of label, each fold by its own solution; None if there are no labels."""
    sums: list[Sums] = [getattr(fold, kind) for fold in folds]
    count = sum(s.total_weight for s in sums)
    if not count:
        return None
    squares = sum(s.squared_error(x) for s, x in zip(sums, solutions, strict=True))
    return float(np.sqrt(max(squares, 0.0) / count))


def _score(solutions: Sequence[np.ndarray], folds: Sequence[Equations]) -> float:
    """Product of the root mean square errors of energies and forces, as far as there are labels."""
    errors = [_error(kind, solutions, folds) for kind in ("energies", "forces")]
    return float(np.prod([error for error in errors if error is not None]))


def _variance(choice: Choice, others: Sequence[Equations], folds: Sequence[Equations]) -> float:
    """Variance of labels of weight 1 around a linear function.

    With this variance, the sum of the held-out squared errors is as large as the posterior predicts. The prediction for
    a label with row a is the variance times 1 + aᵀ A⁻¹ a, where A is the matrix of the other folds.
    """
    squares = expected = 0.0
    for rest, fold in zip(others, folds, strict=True):
        sums = fold.sums(choice)
        squares += sums.squared_error(rest.solve(choice))
        expected += sums.total_weight
        expected += float(
            np.trace(cho_solve((choice.root(rest.sums(choice).gram), False), sums.gram))
        )
    return max(squares, 0.0) / expected


def _best_choice(
    others: Sequence[Equations], folds: Sequence[Equations], n_elements: int
) -> tuple[Choice, float]:
    """The choice with the smallest score, and this score. The two numbers are varied in turn, twice."""
    scores: dict[Choice, float] = {}
    best = Choice(ENERGY_WEIGHTS[2], PENALTIES[2], n_elements)
    for field, values in 2 * (("penalty", PENALTIES), ("energy_weight", ENERGY_WEIGHTS)):
        tried = [Choice(**(best._asdict() | {field: value})) for value in values]
        for choice in tried:
            if choice not in scores:
                scores[choice] = _score([rest.solve(choice) for rest in others], folds)
        best = min(tried, key=scores.__getitem__)
    return best, scores[best]
