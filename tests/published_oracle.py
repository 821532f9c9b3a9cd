"""The five published models in plain NumPy and SciPy, from the formulas alone; nothing of the package is used.

The power spectrum is the double sum over neighbours with Legendre polynomials, the radial functions come from their
definition with spherical Bessel functions, and forces are complex-step derivatives, exact to rounding. Where the
original's own results lie beside the repository, tests/test_parity.py compares these formulas with them.

    python tests/published_oracle.py

writes tests/data/parity.npz: structures and parameters drawn here, and what these formulas make of them. A clone
without the original's results has this file to compare with.
"""

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import spherical_jn

Tree = dict[str, Any]
FILE = Path(__file__).parent / "data" / "parity.npz"
STEP = 1e-30  # imaginary displacement in Å
KINDS = {  # model_name, model_version; what NEURALIL's papers call single, committee and deep ensemble
    "single": ("NeuralIL+Morse", "0.4"),
    "slab": ("NNFF1", "0.3"),
    "committee_morse": ("PlainEnsemble", "0.1"),
    "committee": ("PlainEnsemble", "0.2"),
    "deep": ("DeepEnsemble", "0.2"),
}


# ---- descriptor ----


def environments(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, r_cut: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each atom, neighbours' indices and the vectors to them in Å, by trying all images nearby."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0) if pbc.any() else np.ones(3)
    reach = np.ceil(r_cut / heights + 1) * pbc  # atoms may lie one cell outside
    ranges = [np.arange(-n, n + 1) for n in reach.astype(int)]
    shifts = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3) @ cell
    found = []
    for i, center in enumerate(positions):
        vectors = positions[None] + shifts[:, None] - center  # (images, N, 3)
        square = np.sum(vectors**2, axis=-1).real
        near = square < r_cut**2
        near[~shifts.any(axis=1), i] = False
        found.append((np.nonzero(near)[1], vectors[near]))
    return found


def power_spectrum(
    found: list[tuple[np.ndarray, np.ndarray]],
    types: np.ndarray,
    n_elements: int,
    n_max: int,
    r_cut: float,
) -> np.ndarray:
    """Σ_{j∈a} Σ_{k∈b} (2l+1)/(4π) P_l(cos θ_jk) g_nl(r_j) g_nl(r_k), (N, pairs of elements, channels)."""
    first, second = np.triu_indices(n_elements)
    lengths = [np.sqrt(np.sum(vectors**2, axis=1)) for _, vectors in found]
    r = np.concatenate(lengths)
    ends = np.cumsum([len(part) for part in lengths])[:-1]
    splits = [np.split(radial(r, order, n_max, r_cut), ends, axis=1) for order in range(n_max + 1)]
    rows = []
    for i, (indices, vectors) in enumerate(found):
        unit = vectors / lengths[i][:, None]
        cosines = unit @ unit.T
        belongs = types[indices] == np.arange(n_elements)[:, None]
        row = []
        for order, g in enumerate(splits):
            legendre = np.polynomial.legendre.legval(cosines, np.eye(n_max + 1)[order])
            angular = (2 * order + 1) / (4 * np.pi) * legendre
            sums = g[i] * belongs[:, None]  # (elements, n, neighbours)
            row.append(np.sum((sums @ angular)[first] * sums[second], axis=-1))
        rows.append(np.concatenate(row, axis=1))
    return np.array(rows)


def radial(r: np.ndarray, order: int, n_max: int, r_cut: float) -> np.ndarray:
    """g_nl(r) for n = 0 … n_max - l, orthonormal on [0, r_cut] with weight r²: (n, len(r))."""
    u = zeros(order, n_max - order + 2)
    j = bessel(order, u[:, None] * r / r_cut)
    j_next = spherical_jn(order + 1, u)
    g: list[np.ndarray] = []
    d = 1.0
    for n in range(n_max - order + 1):
        norm = np.sqrt(2 / (u[n] ** 2 + u[n + 1] ** 2) / r_cut**3)
        f = norm * (u[n + 1] / j_next[n] * j[n] - u[n] / j_next[n + 1] * j[n + 1])
        if n:
            e = u[n - 1] ** 2 * u[n + 1] ** 2
            e /= (u[n - 1] ** 2 + u[n] ** 2) * (u[n] ** 2 + u[n + 1] ** 2)
            f, d = f + np.sqrt(e / d) * g[-1], 1 - e / d
        g.append(f / np.sqrt(d))
    return np.array(g)


def bessel(order: int, x: np.ndarray) -> np.ndarray:
    """j_l(x); for tiny imaginary parts its first two Taylor terms, which are exact to rounding."""
    value = spherical_jn(order, x.real)
    if not np.iscomplexobj(x):
        return value
    return value + 1j * x.imag * spherical_jn(order, x.real, derivative=True)


@cache
def zeros(order: int, count: int) -> np.ndarray:
    """The first positive zeros of the spherical Bessel function."""
    grid = np.arange(0.5 + order, 60, 0.1)
    values = spherical_jn(order, grid)
    places = np.flatnonzero(values[:-1] * values[1:] < 0)[:count]
    found = [
        brentq(lambda x: spherical_jn(order, x), grid[k], grid[k + 1], xtol=1e-15) for k in places
    ]
    return np.array(found)


# ---- networks ----


def swish(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(x))


def dense(p: Tree, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0)


def norm(p: Tree, x: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=1, keepdims=True)
    variance = (x**2).mean(axis=1, keepdims=True) - mean**2
    return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def core(p: Tree, x: np.ndarray) -> np.ndarray:
    """Inlet, stages with layer normalisation, outlet; or Dense_0, Dense_1, … in their place."""
    if "Inlet" not in p:
        names = sorted((name for name in p if name.startswith("Dense")), key=lambda n: int(n[6:]))
    else:
        stages = sorted((name for name in p if name.startswith("Stage")), key=lambda n: int(n[6:]))
        names = ["Inlet", *stages, "Outlet"]
    x = swish(dense(p[names[0]], x))
    for k, name in enumerate(names[1:-1]):
        x = swish(norm(p[f"LayerNorm_{k}"], dense(p[name], x)))
    return swish(dense(p[names[-1]], x))


def residual(p: Tree, x: np.ndarray) -> np.ndarray:
    """A chain of residual blocks."""
    for name in sorted(p):
        block = p[name]
        h = swish(norm(block["LayerNorm_0"], dense(block["Dense_0"], x)))
        h = swish(norm(block["LayerNorm_1"], dense(block["Dense_1"], h)))
        h, s = dense(block["Dense_2"], h), dense(block["Dense_3"], x)
        if h.shape[1] > 1:
            h, s = norm(block["LayerNorm_2"], h), norm(block["LayerNorm_3"], s)
        x = swish(h + s)
    return x


def network(p: Tree, x: np.ndarray) -> np.ndarray:
    """Atomic energies, and for deep ensembles σ²_E and σ²_F: (N, 1 or 3)."""
    if "feature_extractor" in p:
        features = residual(p["feature_extractor"], x)
        found = [
            dense(p[f"{head}_denormalizer"], residual(p[f"{head}_head"], features))
            for head in ("energy", "sigma2e", "sigma2f")
        ]
        return np.concatenate([found[0], softplus(found[1]), softplus(found[2])], axis=1)
    body = core if "LayerNorm_0" in p["core_model"] else residual
    return dense(p["denormalizer"], body(p["core_model"], x))


# ---- pair terms ----


def morse(
    p: Tree,
    found: list[tuple[np.ndarray, np.ndarray]],
    types: np.ndarray,
    r_cut: float,
    repulsive: bool,
) -> np.ndarray:
    """Atomic energies of the Morse term, eV, (N,)."""
    values = p["embed"]["embedding"][types]
    a, b, d = (0.01 + values**2 if repulsive else softplus(values)).T
    start = (1 + 1 / (1 + np.exp(-p["switch_param"].item()))) / 2 * r_cut
    energies = []
    for i, (j, vectors) in enumerate(found):
        square = np.sum(vectors**2, axis=1)
        r = np.sqrt(square)
        shift = np.log(a[i] * d[i] / (a[j] * d[j])) / 4 + (a[i] * b[i] - a[j] * b[j]) / 2
        distance = (a[j] * r + shift) / (a[i] + a[j])
        if repulsive:
            phi = d[i] * np.exp(-2 * a[i] * (2 * distance - b[i]))
        else:
            x = np.exp(-a[i] * (distance - b[i]))
            phi = d[i] * x * (x - 2)
        t = (square - start**2) / (r_cut**2 - start**2)
        rising, falling = step(t), step(1 - t)
        energies.append(0.5 * np.sum((1 - rising / (rising + falling)) * phi))
    return np.array(energies)


def step(t: np.ndarray) -> np.ndarray:
    """exp(-1/t) for t > 0, else 0."""
    inside = t.real > 0
    return np.where(inside, np.exp(-1 / np.where(inside, t, 1)), 0)


# ---- everything ----


def member(tree: Tree, k: int) -> Tree:
    """Parameters of one member of an ensemble, in float64."""
    return {
        key: member(value, k) if isinstance(value, dict) else np.asarray(value[k], float)
        for key, value in tree.items()
    }


def outputs(
    kind: str, members: list[Tree], structure: dict[str, np.ndarray], n_max: int, r_cut: float
) -> np.ndarray:
    """All outputs of every member and atom, Morse term included: (M, N, 1 or 3)."""
    types = structure["types"]
    found = environments(structure["positions"], structure["cell"], structure["pbc"], r_cut)
    n_elements = len(members[0]["embed"]["embedding"])
    features = power_spectrum(found, types, n_elements, n_max, r_cut).reshape(len(types), -1)
    results = []
    for p in members:
        x = np.concatenate([features, p["embed"]["embedding"][types]], axis=1)
        results.append(network(p, x))
        if "morse" in p:
            results[-1][:, 0] += morse(p["morse"], found, types, r_cut, repulsive=kind == "single")
    return np.array(results)


def force(
    kind: str,
    members: list[Tree],
    structure: dict[str, np.ndarray],
    n_max: int,
    r_cut: float,
    atom: int,
    axis: int,
) -> np.ndarray:
    """One component of a force in eV/Å, of every member: -Im E(x + ih) / h, (M,)."""
    moved = structure | {"positions": structure["positions"].astype(complex)}
    moved["positions"][atom, axis] += 1j * STEP
    return -outputs(kind, members, moved, n_max, r_cut)[..., 0].sum(axis=1).imag / STEP


# ---- the file ----


def drawn_parameters(kind: str, rng: np.random.Generator, n_elements: int, n_in: int) -> Tree:
    """Random parameters in the published layout; ensembles have two members."""
    lead = () if kind in ("single", "slab") else (2,)

    def array(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.normal(size=lead + shape)).astype(np.float32)

    def dense(a: int, b: int, has_bias: bool = True) -> Tree:
        kernel = {"kernel": array(a, b, scale=a**-0.5)}
        return kernel | ({"bias": array(b, scale=0.1)} if has_bias else {})

    def norm(width: int) -> Tree:
        return {"scale": 1 + array(width, scale=0.1), "bias": array(width, scale=0.1)}

    def block(n: int, a: int, b: int) -> Tree:
        norms: Tree = {f"LayerNorm_{k}": norm(a if k < 2 else b) for k in range(4 if b > 1 else 2)}
        sizes = [(n, a), (a, a), (a, b), (n, b)]
        return norms | {f"Dense_{k}": dense(*size) for k, size in enumerate(sizes)}

    def chain(n: int, *widths: int) -> Tree:
        pairs = enumerate(itertools.pairwise(widths), start=1)
        inputs = [n, *widths[1:]]
        return {f"ResNetDense_{k}_{a}_to_{b}": block(inputs[k - 1], a, b) for k, (a, b) in pairs}

    tree: Tree = {"embed": {"embedding": array(n_elements, 2)}}
    if kind == "deep":
        tree["feature_extractor"] = chain(n_in, *WIDTHS[kind])
        for head in ("energy", "sigma2e", "sigma2f"):
            tree[f"{head}_head"] = chain(WIDTHS[kind][-1], WIDTHS[kind][-1], 1)
            tree[f"{head}_denormalizer"] = dense(1, 1, has_bias=head == "energy")
        return tree
    if lead:
        tree["core_model"] = chain(n_in, *WIDTHS[kind], 1)
    else:
        sizes = list(zip([n_in, *WIDTHS[kind]], [*WIDTHS[kind], 1], strict=True))
        names = [f"Dense_{k}" for k in range(len(sizes))]
        if kind == "single":
            names = ["Inlet", *(f"Stage_{k}" for k in range(1, len(sizes) - 1)), "Outlet"]
        biased = [kind == "single" or k in (0, len(sizes) - 1) for k in range(len(sizes))]
        layers = zip(names, sizes, biased, strict=True)
        tree["core_model"] = {name: dense(*size, has_bias) for name, size, has_bias in layers}
        tree["core_model"] |= {
            f"LayerNorm_{k}": norm(width) for k, width in enumerate(WIDTHS[kind][1:])
        }
    tree["denormalizer"] = dense(1, 1)
    if kind in ("single", "committee_morse"):
        tree["morse"] = {"embed": {"embedding": array(n_elements, 3)}, "switch_param": array(1, 1)}
    return tree


WIDTHS = {
    "single": (12, 10, 8),
    "slab": (12, 10, 8),
    "committee_morse": (10, 8, 6),
    "committee": (10, 8, 6),
    "deep": (10, 8, 6),
}
MATTER: dict[str, tuple[list[str], int, float]] = {
    kind: (["O", "Sr", "Ti"], 5, 5.5)
    if kind in ("slab", "committee_morse")
    else (["C", "H", "N", "O"], 4, 3.5)
    for kind in KINDS
}
"""Elements, n_max, r_cut in Å, as published."""


def drawn_structures(rng: np.random.Generator, n_elements: int) -> dict[str, np.ndarray]:
    """Twelve atoms as a cluster, in a small skewed cell, and as a slab of two periodic directions."""
    grid = np.stack(np.meshgrid(range(3), range(2), range(2), indexing="ij"), -1).reshape(-1, 3)
    positions = 1.7 * grid + rng.uniform(-0.25, 0.25, (3, 12, 3))
    skewed = np.array([[5.2, 0.0, 0.0], [0.9, 3.5, 0.0], [-0.6, 0.4, 3.7]])
    pbc = np.array([[False] * 3, [True] * 3, [True, True, False]])
    types = np.array([rng.permutation(np.arange(12) % n_elements) for _ in range(3)])
    cell = np.array([np.zeros((3, 3)), skewed, skewed])
    return {"positions": positions, "cell": cell, "pbc": pbc, "types": types}


def flat(tree: Tree, path: str = "") -> dict[str, np.ndarray]:
    """Parameters by their slash-separated names."""
    found: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        found |= flat(value, f"{path}{key}/") if isinstance(value, dict) else {path + key: value}
    return found


def nested(arrays: dict[str, np.ndarray]) -> Tree:
    """The opposite of :func:`flat`."""
    tree: Tree = {}
    for name, array in arrays.items():
        *folders, leaf = name.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = array
    return tree


def members(kind: str, tree: Tree) -> list[Tree]:
    """Parameters of all members; a single potential is one."""
    if kind in ("single", "slab"):
        tree = nested({name: array[None] for name, array in flat(tree).items()})
    return [member(tree, k) for k in range(len(tree["embed"]["embedding"]))]


def computed(
    kind: str, tree: Tree, structures: dict[str, np.ndarray], n_max: int, r_cut: float
) -> dict[str, np.ndarray]:
    """What the model makes of all structures; names as in the original's files of results."""
    singles = [
        {key: array[c] for key, array in structures.items()}
        for c in range(len(structures["positions"]))
    ]
    all_members = members(kind, tree)
    found = np.array([outputs(kind, all_members, s, n_max, r_cut) for s in singles])
    forces = [  # (configurations, N, 3, M)
        [
            [force(kind, all_members, s, n_max, r_cut, atom, axis) for axis in range(3)]
            for atom in range(len(s["types"]))
        ]
        for s in singles
    ]
    result = {
        "atomic_energies_f64": found[..., 0],
        "energies_f64": found[..., 0].sum(axis=-1),
        "forces_f64": np.moveaxis(forces, -1, 1),
    }
    if kind in ("single", "slab"):  # the others have the same descriptors
        n_elements = len(tree["embed"]["embedding"])
        spectra = [
            power_spectrum(
                environments(s["positions"], s["cell"], s["pbc"], r_cut), s["types"], n_elements, n_max, r_cut
            )
            for s in singles
        ]  # fmt: skip
        result["descriptors_f64"] = np.array(spectra)
    if kind == "deep":
        result |= {"sigma2_e_f64": found[..., 1].sum(axis=-1), "sigma2_f_f64": found[..., 2]}
    return result


def main() -> None:
    content: dict[str, np.ndarray] = {}
    for seed, kind in enumerate(KINDS):
        rng = np.random.default_rng(seed)
        elements, n_max, r_cut = MATTER[kind]
        n = len(elements)
        n_in = n * (n + 1) // 2 * (n_max + 1) * (n_max + 2) // 2 + 2
        tree = drawn_parameters(kind, rng, n, n_in)
        structures = drawn_structures(rng, n)
        results = structures | computed(kind, tree, structures, n_max, r_cut)
        content |= {f"{kind}/{name}": array for name, array in results.items()}
        content |= {f"{kind}/params/{name}": array for name, array in flat(tree).items()}
    np.savez_compressed(FILE, **content)


if __name__ == "__main__":
    main()
