"""Fused kernels from pair vectors to density coefficients and power spectrum, and back: one thread is one atom.

Nothing of the size (pairs, channels) is written to memory. Arrays run over atoms last, so that neighbouring threads
read neighbouring numbers; the slots are those of slots.py, and every loop over them keeps its sums in registers. All is
elementwise arithmetic on blocks of atoms: no gather, no matrix product, no reduction. The gradient of a pair comes from
``jax.vjp`` of the same formula inside the kernel.

Kernels are written in Pallas (its Triton lowering on GPUs, interpreted elsewhere). With ``in_xla`` the same formulas
are left to XLA: a scan over slots, and reductions over gathered rows.

Shapes: vectors (3, K, N), density (elements, channels, N), features (F, N). N is a multiple of BLOCK.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers
from jax import Array
from jax.experimental import pallas as pl
from slots import Slots, forces

from neuralil_ase.engine.derivatives import _feature_gradients
from neuralil_ase.model.config import DescriptorConfig, ModelConfig
from neuralil_ase.model.descriptors import series_of
from neuralil_ase.model.graph import PADDING_DISTANCE, Graph
from neuralil_ase.model.pair_terms import SOFTENING, _symmetric
from neuralil_ase.model.potential import Params
from neuralil_ase.model.screening import COULOMB, DECAYS, WEIGHTS
from neuralil_ase.model.solid_harmonics import _azimuthal, _modified_legendre, _order
from neuralil_ase.model.spectrum import _symmetric_numbers

BLOCK = 64
"""Atoms of a program; a power of two."""
THREADS_OF_WARP = 32
COMPILED = jax.default_backend() == "gpu"
"""Whether kernels are compiled, or else interpreted."""
Values = list[Array]
Sizes = tuple[int, ...]
"""Slots of every element."""


def filled_up(slots: Slots, r_cut: float) -> Slots:
    """With atoms without neighbours at the end, up to a multiple of BLOCK."""
    vectors, reverse, types = (np.asarray(values) for values in slots)
    _, k, n = vectors.shape
    more = -n % BLOCK
    row, column = np.divmod(reverse, n)
    padded = np.pad(vectors, ((0, 0), (0, 0), (0, more)))
    padded[0, :, n:] = PADDING_DISTANCE * r_cut
    own = np.arange(k * (n + more), dtype=np.int32).reshape(k, n + more)
    own[:, :n] = row * (n + more) + column
    return Slots(padded, own, np.pad(types, (0, more)))


# ---- formulas: lists of arrays, one for each number ----


def pair_values(config: DescriptorConfig, x: Array, y: Array, z: Array) -> Values:
    """g_nl(r) Y_lm(r) of all channels, in the order l, n, m."""
    r_squared = x * x + y * y + z * z
    cosine, sine = _azimuthal(x, y, config.n_max)
    legendre = _modified_legendre(z, r_squared, config.n_max)
    radial = iter(_radial_values(config, r_squared))
    found = []
    for order, count in enumerate(config.n_radial):
        harmonics = _order(order, legendre[order], cosine, sine)
        for _ in range(count):
            g = next(radial)
            found += [g * harmonic for harmonic in harmonics]
    return found


def _radial_values(config: DescriptorConfig, r_squared: Array) -> Values:
    series = series_of(config, r_squared.dtype.name)
    s = jnp.minimum(r_squared * (1 / config.r_cut**2), 1)
    envelope = (1 - s) * (1 - s) * (1 - s)
    t = 2 * s - 1
    basis = [envelope, envelope * t]
    for _ in range(2, len(series.coefficients)):
        basis.append(2 * t * basis[-1] - basis[-2])
    return [_sum_of(float(c) * b for c, b in zip(column, basis, strict=True))
            for column in series.coefficients.T]  # fmt: skip


def pair_gradient(
    config: DescriptorConfig, x: Array, y: Array, z: Array, cotangents: Values, repulsion: Values
) -> Values:
    """dE/dr_ij, three numbers, from dE/dc and the constants of :func:`repulsion_energy`, if there are any."""

    def energy(x: Array, y: Array, z: Array) -> Array:
        values = pair_values(config, x, y, z)
        total = _sum_of(c * v for c, v in zip(cotangents, values, strict=True))
        return total + repulsion_energy(x, y, z, *repulsion) if repulsion else total

    value, pull_back = jax.vjp(energy, x, y, z)
    return list(pull_back(jnp.ones_like(value)))


def repulsion_energy(
    x: Array, y: Array, z: Array, factor: Array, inverse: Array, radius: Array
) -> Array:
    """Half of a pair's ZBL energy in eV, as ``model.pair_terms.zbl``; constants of :func:`repulsion_constants`."""
    r = jnp.sqrt(x * x + y * y + z * z + SOFTENING**2)
    terms = zip(WEIGHTS, DECAYS, strict=True)
    screening = _sum_of(w * jnp.exp(-d * inverse * r) for w, d in terms)
    t = jnp.minimum(r / radius, 1)
    return factor / r * screening * (1 - t * t * t * (10 - 15 * t + 6 * t * t))


def repulsion_constants(config: ModelConfig, types: Array) -> Array:
    """½ e² z_i z_j, 1 / screening length and radius for every atom i and element of j: shape (3, elements, N)."""
    z = np.array([atomic_numbers[symbol] for symbol in config.descriptor.elements], float)
    factor = 0.5 * COULOMB * z[:, None] * z
    inverse = (z[:, None] ** 0.23 + z**0.23) / 0.46850
    table = np.stack([factor, inverse, _symmetric(config.zbl_radii, len(z))])
    return jnp.asarray(table, jnp.float32)[:, :, types]


def _sum_of(terms: Any) -> Array:
    first, *others = terms
    for term in others:
        first = first + term
    return first


# ---- kernels ----


def _call(kernel: Callable[..., None], grid: tuple[int, ...], out: Any) -> Any:
    """A Pallas call on whole arrays; interpreted where there is no GPU."""
    if not COMPILED:
        return pl.pallas_call(kernel, grid=grid, out_shape=out, interpret=True)
    return pl.pallas_call(kernel, grid=grid, out_shape=out, compiler_params=_compiler_params())


def _compiler_params() -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=max(BLOCK // THREADS_OF_WARP, 1), num_stages=1)


def _here() -> Any:
    """The atoms of this program."""
    return pl.ds(pl.program_id(0) * BLOCK, BLOCK)


def _element_loop(bounds: Any, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """Over the slots of this program's element."""
    element = pl.program_id(1)
    return jax.lax.fori_loop(bounds[element], bounds[element + 1], body, start)


def density_coefficients(config: ModelConfig, sizes: Sizes, slots: Slots) -> tuple[Array, Array]:
    """c_{a,nlm}, shape (elements, channels, N), and energies of the pair term, (elements, N)."""
    n_elements, n_channels = len(config.descriptor.elements), _n_channels(config.descriptor)
    n = slots.types.shape[0]
    is_repelled = config.pair_term == "zbl"

    def kernel(bounds: Any, constants: Any, vectors: Any, density: Any, energy: Any) -> None:
        atoms, element = _here(), pl.program_id(1)
        repulsion = [constants[k, element, atoms] for k in range(3)] if is_repelled else []

        def add(k: Any, sums: Values) -> Values:
            x, y, z = (vectors[axis, k, atoms] for axis in range(3))
            values = pair_values(config.descriptor, x, y, z)
            values += [repulsion_energy(x, y, z, *repulsion)] if is_repelled else [sums[-1]]
            return [s + v for s, v in zip(sums, values, strict=True)]

        zeros = [jnp.zeros(BLOCK, jnp.float32) for _ in range(n_channels + 1)]
        *sums, pair = _element_loop(bounds, add, zeros)
        for channel, value in enumerate(sums):
            density[element, channel, atoms] = value
        energy[element, atoms] = pair

    shapes = [(n_elements, n_channels, n), (n_elements, n)]
    call = _call(kernel, (n // BLOCK, n_elements), [_floats(shape) for shape in shapes])
    return call(_bounds(sizes), _constants(config, slots.types), slots.vectors)


def pull_back_density(config: ModelConfig, sizes: Sizes, slots: Slots, cotangents: Array) -> Array:
    """dE/dr_ij, shape (3, K, N), from dE/dc, shape (elements, channels, N); that of the pair term is added."""
    is_repelled = config.pair_term == "zbl"

    def kernel(bounds: Any, constants: Any, vectors: Any, cotangents: Any, gradient: Any) -> None:
        atoms, element = _here(), pl.program_id(1)
        repulsion = [constants[k, element, atoms] for k in range(3)] if is_repelled else []
        here = [cotangents[element, k, atoms] for k in range(_n_channels(config.descriptor))]

        def one(k: Any, nothing: Any) -> Any:
            x, y, z = (vectors[axis, k, atoms] for axis in range(3))
            found = pair_gradient(config.descriptor, x, y, z, here, repulsion)
            for axis, value in enumerate(found):
                gradient[axis, k, atoms] = value
            return nothing

        _element_loop(bounds, one, 0)

    n_elements, n = len(config.descriptor.elements), slots.types.shape[0]
    call = _call(kernel, (n // BLOCK, n_elements), _floats(slots.vectors.shape))
    return call(_bounds(sizes), _constants(config, slots.types), slots.vectors, cotangents)


class Rows(NamedTuple):
    """The rows (l, element, n) of density coefficients that are multiplied with each other, ordered so; (rows,) each.

    Attributes
    ----------
    element, channel, width
        Where the 2l+1 numbers of a row are.
    first, last
        The rows of its l.
    feature
        Number of its square among the features; products with the rows behind it follow.
    """

    element: Array
    channel: Array
    width: Array
    first: Array
    last: Array
    feature: Array


def _rows(config: DescriptorConfig) -> Rows:
    assert config.cross_terms, "kernels of the plain spectrum are not written"
    found: list[tuple[int, ...]] = []
    channel = feature = 0
    for order, count in enumerate(config.n_radial):
        width, first, last = 2 * order + 1, len(found), len(found) + count * len(config.elements)
        for row in range(first, last):
            element, n = divmod(row - first, count)
            found.append((element, channel + n * width, width, first, last, feature))
            feature += last - row
        channel += count * width
    return Rows(*jnp.asarray(np.array(found, np.int32).T))


def power_spectrum(config: DescriptorConfig, density: Array) -> Array:
    """Features, shape (F, N), of density coefficients, (elements, channels, N)."""

    def kernel(*refs: Any) -> None:
        rows, (density, features) = Rows(*refs[:6]), refs[6:]
        atoms, p = _here(), pl.program_id(1)

        def store(q: Any, nothing: Any) -> Any:
            def add(m: Any, total: Array) -> Array:
                one = density[rows.element[p], rows.channel[p] + m, atoms]
                return total + one * density[rows.element[q], rows.channel[q] + m, atoms]

            zero = jnp.zeros(BLOCK, jnp.float32)
            total = jax.lax.fori_loop(0, rows.width[p], add, zero)
            features[rows.feature[p] + q - p, atoms] = total
            return nothing

        jax.lax.fori_loop(p, rows.last[p], store, 0)

    n, rows = density.shape[2], _rows(config)
    grid = n // BLOCK, len(rows.element)
    return _call(kernel, grid, _floats((config.n_features, n)))(*rows, density)


def pull_back_spectrum(config: DescriptorConfig, density: Array, cotangents: Array) -> Array:
    """dE/dc, shape (elements, channels, N), from dE/dp, shape (F, N)."""

    def kernel(*refs: Any) -> None:
        rows, (density, cotangents, found) = Rows(*refs[:6]), refs[6:]
        atoms, p = _here(), pl.program_id(1)

        def store(m: Any, nothing: Any) -> Any:
            def add(q: Any, total: Array) -> Array:
                low, high = jnp.minimum(p, q), jnp.maximum(p, q)
                slope = cotangents[rows.feature[low] + high - low, atoms]
                return total + slope * density[rows.element[q], rows.channel[q] + m, atoms]

            # The square of the row counts twice.
            own = density[rows.element[p], rows.channel[p] + m, atoms]
            own *= cotangents[rows.feature[p], atoms]
            total = jax.lax.fori_loop(rows.first[p], rows.last[p], add, own)
            found[rows.element[p], rows.channel[p] + m, atoms] = total
            return nothing

        jax.lax.fori_loop(0, rows.width[p], store, 0)

    n, rows = density.shape[2], _rows(config)
    grid = n // BLOCK, len(rows.element)
    return _call(kernel, grid, _floats(density.shape))(*rows, density, cotangents)


def _bounds(sizes: Sizes) -> Array:
    """First slot of every element, and K at the end."""
    return jnp.asarray(np.concatenate([[0], np.cumsum(sizes)]), jnp.int32)


def _n_channels(config: DescriptorConfig) -> int:
    return sum(count * (2 * order + 1) for order, count in enumerate(config.n_radial))


def _floats(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _constants(config: ModelConfig, types: Any) -> Array:
    if config.pair_term == "zbl":
        return repulsion_constants(config, jnp.asarray(types))
    assert config.pair_term == "none", "pair terms with parameters are not written as kernels"
    return jnp.zeros((3, len(config.descriptor.elements), len(types)), jnp.float32)


# ---- the same, left to XLA ----


def density_in_xla(config: ModelConfig, sizes: Sizes, slots: Slots) -> tuple[Array, Array]:
    """:func:`density_coefficients` by a scan over slots."""
    constants, by_slot = _constants(config, slots.types), jnp.asarray(slots.vectors).swapaxes(0, 1)
    found = []
    for element, (first, last) in enumerate(_ranges(sizes)):

        def add(sums: Values, vector: Array, element: int = element) -> tuple[Values, None]:
            values = pair_values(config.descriptor, *vector)
            values.append(repulsion_energy(*vector, *constants[:, element]))
            return [s + v for s, v in zip(sums, values, strict=True)], None

        zeros = [jnp.zeros_like(by_slot[0, 0])] * (_n_channels(config.descriptor) + 1)
        found.append(jax.lax.scan(add, zeros, by_slot[first:last])[0])
    sums = jnp.stack([jnp.stack(values) for values in found])
    return sums[:, :-1], sums[:, -1]


def pull_back_density_in_xla(
    config: ModelConfig, sizes: Sizes, slots: Slots, cotangents: Array
) -> Array:
    """:func:`pull_back_density` as one elementwise function of all slots."""
    constants, vectors = _constants(config, slots.types), jnp.asarray(slots.vectors)
    parts = []
    for element, (first, last) in enumerate(_ranges(sizes)):
        here, repulsion = list(cotangents[element]), list(constants[:, element])
        x, y, z = vectors[:, first:last]
        found = pair_gradient(config.descriptor, x, y, z, here, repulsion)
        parts.append(jnp.stack(found))
    return jnp.concatenate(parts, axis=1)


def power_spectrum_in_xla(config: DescriptorConfig, density: Array) -> Array:
    """:func:`power_spectrum` by reductions over gathered rows."""
    features = []
    for rows in _rows_of_orders(config, density):
        p, q = np.triu_indices(len(rows))
        features.append((rows[p] * rows[q]).sum(axis=1))
    return jnp.concatenate(features)


def pull_back_spectrum_in_xla(config: DescriptorConfig, density: Array, cotangents: Array) -> Array:
    """:func:`pull_back_spectrum` by reductions over gathered slopes."""
    parts, first = [], 0
    for rows in _rows_of_orders(config, density):
        count = len(rows)
        slopes = cotangents[first : first + count * (count + 1) // 2][_symmetric_numbers(count)]
        slopes *= jnp.asarray(1 + np.eye(count), density.dtype)[:, :, None]
        first += count * (count + 1) // 2
        moved = (slopes[:, :, None] * rows).sum(axis=1)
        parts.append(moved.reshape(len(config.elements), -1, density.shape[2]))
    return jnp.concatenate(parts, axis=1)


def _rows_of_orders(config: DescriptorConfig, density: Array) -> Iterator[Array]:
    """For every l the rows (element, n), shape (rows, 2l+1, N)."""
    first = 0
    for order, count in enumerate(config.n_radial):
        width = 2 * order + 1
        block = density[:, first : first + count * width]
        yield block.reshape(len(config.elements) * count, width, density.shape[2])
        first += count * width


def _ranges(sizes: Sizes) -> list[tuple[int, int]]:
    return list(pairwise(np.concatenate([[0], np.cumsum(sizes)]).tolist()))


# ---- all together ----


class Parts(NamedTuple):
    """The four functions between pair vectors and features, there and back."""

    density: Callable[..., tuple[Array, Array]]
    spectrum: Callable[..., Array]
    pull_back_spectrum: Callable[..., Array]
    pull_back_density: Callable[..., Array]


PALLAS = Parts(density_coefficients, power_spectrum, pull_back_spectrum, pull_back_density)
IN_XLA = Parts(
    density_in_xla, power_spectrum_in_xla, pull_back_spectrum_in_xla, pull_back_density_in_xla
)


def energies_and_forces(
    config: ModelConfig, sizes: Sizes, parts: Parts, params: Params, slots: Slots
) -> tuple[Array, Array, Array]:
    """Outputs (M, N, outputs), forces of the mean, (N, 3), and the symmetrised virial of the mean, (6,)."""
    density, pair = parts.density(config, sizes, slots)
    features = parts.spectrum(config.descriptor, density)
    outputs, cotangents = network(config, params, features, slots.types)
    by_density = parts.pull_back_spectrum(config.descriptor, density, cotangents)
    gradient = parts.pull_back_density(config, sizes, slots, by_density)
    outputs = outputs.at[..., 0].add(pair.sum(axis=0))
    return outputs, forces(gradient, slots), virial(gradient, slots)


def network(
    config: ModelConfig, params: Params, features: Array, types: Any
) -> tuple[Array, Array]:
    """Outputs of all members, (M, N, outputs), and the slope of their mean by features, (F, N)."""
    graph = Graph(features, features, features, types)
    outputs, cotangents = _feature_gradients(config, False, params, features.T, graph)
    return outputs, cotangents[0].T


def virial(gradient: Array, slots: Slots) -> Array:
    """dE/dε in eV, Voigt order."""
    products = jnp.einsum("akn,bkn->ab", jnp.asarray(slots.vectors), gradient)
    x, y = np.array([[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])
    return (products[x, y] + products[y, x]) / 2
