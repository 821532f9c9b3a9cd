"""A published committee with the softplus Morse term in plain NumPy, from the formulas alone.

Nothing of the package is used: the power spectrum is the double sum over neighbours with Legendre
polynomials, the radial functions come from their definition with spherical Bessel functions.
"""

from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import eval_legendre, expit, spherical_jn

Tree = dict[str, Any]


def energies(params: Tree, positions: np.ndarray, types: np.ndarray, n_max: int, r_cut: float):
    """Energies in eV of all members for a cluster; ``params`` as published, below "neuralil"."""
    features = power_spectrum(positions, types, len(params["embed"]["embedding"][0]), n_max, r_cut)
    members = len(params["embed"]["embedding"])
    return np.array(
        [
            _member_energy(_member(params, k), features, positions, types, r_cut)
            for k in range(members)
        ]
    )


def power_spectrum(
    positions: np.ndarray, types: np.ndarray, n_elements: int, n_max: int, r_cut: float
) -> np.ndarray:
    """Σ_{j∈a} Σ_{k∈b} (2l+1)/(4π) P_l(cos θ_jk) g_nl(r_j) g_nl(r_k), element pairs outermost."""
    rows = []
    for i, center in enumerate(positions):
        others = np.delete(positions, i, axis=0) - center
        distance = np.linalg.norm(others, axis=1)
        near = distance < r_cut
        kinds, r = np.delete(types, i)[near], distance[near]
        unit = others[near] / r[:, None]
        cosines = np.clip(unit @ unit.T, -1, 1)
        row = []
        for a, b in zip(*np.triu_indices(n_elements), strict=True):
            for order in range(n_max + 1):
                angular = (2 * order + 1) / (4 * np.pi) * eval_legendre(order, cosines)
                for g in radial(r, order, n_max, r_cut):
                    row.append((g * (kinds == a)) @ angular @ (g * (kinds == b)))
        rows.append(row)
    return np.array(rows)


def radial(r: np.ndarray, order: int, n_max: int, r_cut: float) -> list[np.ndarray]:
    u = _zeros(order, n_max - order + 2)
    j_next = spherical_jn(order + 1, u)
    f = []
    for n in range(n_max - order + 1):
        norm = np.sqrt(2 / (u[n] ** 2 + u[n + 1] ** 2) / r_cut**3)
        first = u[n + 1] / j_next[n] * spherical_jn(order, u[n] * r / r_cut)
        second = u[n] / j_next[n + 1] * spherical_jn(order, u[n + 1] * r / r_cut)
        f.append(norm * (first - second))
    g, d = [f[0]], 1.0
    for k in range(1, len(f)):
        e = u[k - 1] ** 2 * u[k + 1] ** 2
        e /= (u[k - 1] ** 2 + u[k] ** 2) * (u[k] ** 2 + u[k + 1] ** 2)
        d, previous = 1 - e / d, d
        g.append((f[k] + np.sqrt(e / previous) * g[-1]) / np.sqrt(d))
    return g


def _zeros(order: int, count: int) -> np.ndarray:
    grid = np.arange(0.5 + order, 60, 0.1)
    values = spherical_jn(order, grid)
    places = np.flatnonzero(values[:-1] * values[1:] < 0)[:count]
    find = lambda k: brentq(lambda x: spherical_jn(order, x), grid[k], grid[k + 1], xtol=1e-15)  # noqa: E731
    return np.array([find(k) for k in places])


def _member(tree: Tree, k: int) -> Tree:
    return {
        key: _member(value, k) if isinstance(value, dict) else np.asarray(value[k], float)
        for key, value in tree.items()
    }


def _member_energy(
    p: Tree, features: np.ndarray, positions: np.ndarray, types: np.ndarray, r_cut: float
) -> float:
    x = np.concatenate([features, p["embed"]["embedding"][types]], axis=1)
    for name in sorted(p["core_model"]):
        x = _residual(p["core_model"][name], x)
    network = (x @ p["denormalizer"]["kernel"] + p["denormalizer"]["bias"]).sum()
    return network + _morse(p["morse"], positions, types, r_cut)


def _residual(p: Tree, x: np.ndarray) -> np.ndarray:
    def dense(k: int, value: np.ndarray) -> np.ndarray:
        return value @ p[f"Dense_{k}"]["kernel"] + p[f"Dense_{k}"]["bias"]

    def norm(k: int, value: np.ndarray) -> np.ndarray:
        if value.shape[1] == 1:
            return value
        mean, var = value.mean(axis=1, keepdims=True), value.var(axis=1, keepdims=True)
        scaled = (value - mean) / np.sqrt(var + 1e-6)
        return scaled * p[f"LayerNorm_{k}"]["scale"] + p[f"LayerNorm_{k}"]["bias"]

    h = _swish(norm(0, dense(0, x)))
    h = _swish(norm(1, dense(1, h)))
    return _swish(norm(2, dense(2, h)) + norm(3, dense(3, x)))


def _swish(x: np.ndarray) -> np.ndarray:
    return x * expit(x)


def _morse(p: Tree, positions: np.ndarray, types: np.ndarray, r_cut: float) -> float:
    a, b, d = np.logaddexp(0, p["embed"]["embedding"][types]).T
    start = 0.5 * (1 + expit(p["switch_param"].item())) * r_cut
    total = 0.0
    for i in range(len(types)):
        for j in range(len(types)):
            r = np.linalg.norm(positions[j] - positions[i])
            if i == j or r >= r_cut:
                continue
            shift = 0.25 * np.log(a[i] * d[i] / (a[j] * d[j])) + (a[i] * b[i] - a[j] * b[j]) / 2
            x = np.exp(-a[i] * ((a[j] * r + shift) / (a[i] + a[j]) - b[i]))
            t = (r**2 - start**2) / (r_cut**2 - start**2)
            rising, falling = (np.exp(-1 / u) if u > 0 else 0.0 for u in (t, 1 - t))
            total += 0.5 * (1 - rising / (rising + falling)) * d[i] * x * (x - 2)
    return total
