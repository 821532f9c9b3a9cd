"""Second and third derivatives against differences of forces and stresses, and against what symmetry demands."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from systems import CONFIG, STRUCTURES, calculator, ensemble, random_params, structure

from neuralil_ase import NeuralILCalculator, Potential
from neuralil_ase.engine.force_constants import ForceConstants
from neuralil_ase.errors import StructureError
from neuralil_ase.files.published_files import import_published
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig

PERIODIC = [name for name in STRUCTURES if name != "molecule"]
EXAMPLES = Path(__file__).parents[1] / "md_examples"


@lru_cache
def constants(name: str, members: bool = False) -> ForceConstants:
    return calculator().force_constants(structure(name), members=members)


def slopes_of_forces(
    calc: NeuralILCalculator, atoms: Atoms, displacements: np.ndarray
) -> np.ndarray:
    """-dF/dt of atoms that move by t times displacements; two steps, extrapolated: the error falls as h⁴."""
    moved = atoms.copy()

    def slope(step: float) -> np.ndarray:
        ends = []
        for sign in (1, -1):
            moved.positions = atoms.positions + sign * step * displacements
            ends.append(calc.prediction(moved).forces)
        return (ends[0] - ends[1]) / (2 * step)

    h = 2e-4
    return -(4 * slope(h / 2) - slope(h)) / 3


def assert_hessian_is_right(calc: NeuralILCalculator, atoms: Atoms) -> None:
    """All columns of small structures, to 1e-6 of the largest element."""
    hessian = calc.hessian(atoms)
    scale = np.abs(hessian).max()
    assert scale > 1e-4, "there must be something to compare"
    for column, unit in enumerate(np.eye(3 * len(atoms)).reshape(-1, len(atoms), 3)):
        expected = slopes_of_forces(calc, atoms, unit)
        found = hessian.reshape(len(atoms), 3, -1)[:, :, column]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(hessian, hessian.transpose(2, 3, 0, 1), rtol=0, atol=1e-12 * scale)
    assert np.abs(hessian.sum(axis=2)).max() < 1e-12 * scale


@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "one atom"])
def test_hessian_is_the_slope_of_the_forces(name: str) -> None:
    """Cells far smaller than the cutoff, slabs, wires and mixed periodicity among them."""
    assert_hessian_is_right(calculator(), structure(name))


def assert_hessian_is_right_along(calc: NeuralILCalculator, atoms: Atoms, count: int) -> None:
    """Of large structures, where columns are many: along random directions that move all atoms."""
    found = calc.force_constants(atoms)
    scale = np.abs(found.blocks).max()
    for along in np.random.default_rng(0).normal(size=(count, len(atoms), 3)):
        # As long as a column of one atom, so that differences err as little.
        along /= np.abs(along).max()
        expected = slopes_of_forces(calc, atoms, along)
        np.testing.assert_allclose(found.product(along), expected, rtol=0, atol=1e-6 * scale)
    dense = found.hessian().reshape(3 * len(atoms), -1)
    np.testing.assert_allclose(dense, dense.T, rtol=0, atol=1e-12 * scale)
    assert found.translation_residual() < 1e-12 * scale


@pytest.mark.slow  # the example of vibrations takes it at every commit
def test_hessian_of_the_shipped_model_on_an_ion_pair() -> None:
    calc = NeuralILCalculator(dtype="float64", uncertainty="off")
    assert_hessian_is_right(calc, read(EXAMPLES / "ean_pair.extxyz"))


@pytest.mark.slow
@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False)], ids=["cell", "slab"])
def test_hessian_of_the_shipped_model_on_the_liquid(pbc: tuple[bool, bool, bool]) -> None:
    """The cell of 225 atoms, and what it is with two free surfaces."""
    atoms = read(EXAMPLES / "ean_start.extxyz")
    atoms.pbc = pbc
    calc = NeuralILCalculator(dtype="float64", uncertainty="off")
    assert_hessian_is_right_along(calc, atoms, count=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("model_params_neuralil_OPTAX_2B25114.pickle", "ean_dft_50.extxyz"),
        ("EAN_params_committee_1FEB3E08.pkl", "ean_dft_50.extxyz"),
        ("EAN_params_deep_ensemble_8ABE86C9.pkl", "ean_dft_50.extxyz"),
        ("model_nnff1.pickle", "sto_dft_100.extxyz"),
    ],
)
def test_hessian_of_published_models(original: Path, file: str, data: str) -> None:
    """Morse terms and deep ensembles among them, on the first published cell of their elements."""
    calc = NeuralILCalculator(import_published(original / file), dtype="float64", uncertainty="off")
    assert_hessian_is_right_along(calc, read(original / data, 0), count=3)


def potential(**changes: object) -> Potential:
    """Another architecture with random parameters."""
    network = changes.pop("network", CONFIG.network)
    descriptor = changes.pop("descriptor", CONFIG.descriptor)
    config = ModelConfig(descriptor, network, n_members=3, **changes)  # type: ignore[arg-type]
    return Potential(
        config, random_params(config, seed=5), np.zeros(len(config.descriptor.elements))
    )


ARCHITECTURES = {
    "residual": {"network": NetworkConfig("resnet", widths=(8, 4))},
    "one residual layer": {"network": NetworkConfig("resnet", widths=(8,))},
    "deep ensemble": {"network": NetworkConfig("heteroscedastic", widths=(8, 6), head_widths=(4,))},
    "variance head and zbl": {
        "network": NetworkConfig(widths=(8, 4), head_widths=(4,)),
        "pair_term": "zbl",
        "zbl_radii": (2.5,) * 10,
    },
    "shared layers": {"network": NetworkConfig(widths=(8, 4), shared_layers=1)},
    "linear part": {"network": NetworkConfig(widths=(8, 4), linear=True)},
    "no embedding": {"network": NetworkConfig(widths=(8, 4), embed_d=0, activation="gelu")},
    "cross terms": {"descriptor": DescriptorConfig(("C", "H", "N", "O"), 3, 3.0, cross_terms=True)},
    "few coefficients": {"descriptor": DescriptorConfig(("C", "H", "N", "O"), 0, 3.0)},
    "morse": {"pair_term": "morse"},
    "repulsive morse": {"pair_term": "repulsive-morse"},
}


VARIANTS = (
    "residual",  # as the trunk of a deep ensemble
    "one residual layer",
    "shared layers",
    "no embedding",
    "few coefficients",
    "repulsive morse",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in VARIANTS)) for name in ARCHITECTURES],
)
def test_hessian_of_every_architecture(name: str) -> None:
    """One cell in which a pair of atoms meets through several images, and all pairs are in reach of ZBL."""
    calc = NeuralILCalculator(potential(**ARCHITECTURES[name]), dtype="float64")
    assert_hessian_is_right(calc, structure("tiny"))


@pytest.mark.slow
def test_identity_block_hands_the_descriptor_on() -> None:
    """A residual block as wide as its input adds the descriptor itself."""
    descriptor = DescriptorConfig(("N", "O"), 1, 3.0)
    width = descriptor.n_features + 2
    network = NetworkConfig("resnet", widths=(width, width, 4), activation="gelu")
    calc = NeuralILCalculator(potential(descriptor=descriptor, network=network), dtype="float64")
    assert_hessian_is_right(calc, structure("tiny"))


def test_members_are_kept_apart() -> None:
    calc, atoms = calculator(), structure("triclinic")
    together = constants("triclinic", members=True)
    matrices = together.hessian()
    assert matrices.shape == (3, 6, 3, 6, 3)
    np.testing.assert_allclose(matrices.mean(axis=0), constants("triclinic").hessian(), atol=1e-11)
    for index, member in enumerate(calc.members()):
        np.testing.assert_allclose(member.hessian(atoms), matrices[index], atol=1e-11)
    np.testing.assert_allclose(together.mean().blocks, constants("triclinic").blocks, atol=1e-11)
    np.testing.assert_array_equal(together.member(1).hessian(), matrices[1])
    along = np.random.default_rng(0).normal(size=(6, 3))
    products = np.einsum("miajb,jb->mia", matrices, along)
    np.testing.assert_allclose(together.product(along), products, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="take mean"):
        together.sparse()


def test_members_are_calculators_whose_mean_is_the_ensemble() -> None:
    atoms = structure("triclinic")
    prediction = calculator("forces").prediction(atoms)
    members = calculator("forces").members()
    assert len(members) == 3
    for index, member in enumerate(members):
        alone = member.prediction(atoms)
        np.testing.assert_allclose(alone.energy, prediction.member_energies[index], atol=1e-10)
        np.testing.assert_allclose(alone.forces, prediction.member_forces[index], atol=1e-12)
    assert len({member.neighbor_list_builds for member in members}) == 1, "they share one list"


@pytest.mark.parametrize("name", STRUCTURES)
def test_records_hold_every_pair_once_with_its_transpose(name: str) -> None:
    found = constants(name)
    blocks = {}
    for i, j, shift, block in zip(
        found.first, found.second, found.shifts, found.blocks, strict=True
    ):
        blocks[int(i), int(j), *map(int, shift)] = block
    assert len(blocks) == len(found.first)
    for (i, j, *shift), block in blocks.items():
        other = blocks[j, i, *(-s for s in shift)]
        np.testing.assert_allclose(block, other.T, rtol=0, atol=1e-11 * np.abs(found.blocks).max())
    assert found.translation_residual() < 1e-11 * np.abs(found.blocks).max()
    assert found.nbytes > 0


@pytest.mark.parametrize("name", STRUCTURES)
def test_products_and_sparse_matrices_agree_with_the_hessian(name: str) -> None:
    found = constants(name)
    n = found.n_atoms
    along = np.random.default_rng(0).normal(size=(n, 3))
    expected = np.einsum("iajb,jb->ia", found.hessian(), along)
    scale = np.abs(found.blocks).max()
    np.testing.assert_allclose(found.product(along), expected, rtol=0, atol=1e-12 * scale)
    sparse = found.sparse() @ along.ravel()
    np.testing.assert_allclose(sparse, expected.ravel(), rtol=0, atol=1e-12 * scale)
    at_gamma = found.at_wave_vector(np.zeros(3))
    hessian = found.hessian().reshape(3 * n, 3 * n)
    np.testing.assert_allclose(at_gamma, hessian, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", ["triclinic", "tiny", "slab"])
def test_wave_vectors_are_those_of_a_supercell(name: str) -> None:
    """A wave of half a reciprocal vector is a displacement of a doubled cell that alternates in sign."""
    atoms = structure(name)
    doubled = atoms.repeat((2, 1, 1))
    hessian = calculator().hessian(doubled)
    n = len(atoms)
    # Images: sum over the second cell with its sign.
    folded = hessian[:n, :, :n] - hessian[:n, :, n:]
    matrix = constants(name).at_wave_vector(np.array([0.5, 0, 0]))
    np.testing.assert_allclose(matrix, folded.reshape(3 * n, 3 * n), rtol=0, atol=1e-10)
    if name == "triclinic":
        of_members = constants(name, members=True).at_wave_vector(np.array([0.5, 0.2, 0]))
        assert of_members.shape == (3, 3 * n, 3 * n)
        turned = of_members.conj().swapaxes(1, 2)
        np.testing.assert_allclose(of_members, turned, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PERIODIC)
def test_strain_derivatives_are_curvatures_of_the_energy(name: str) -> None:
    """Along a random deformation, rotation included: curvature of the energy, by differences that err as h⁴."""
    atoms, calc = structure(name), calculator()
    # Two of the cells have pairs exactly at the cutoff, where third derivatives jump and differences err as h.
    atoms.set_cell(atoms.cell.array * 1.02, scale_atoms=True)
    by_strain = calc.force_constants(atoms).by_strain
    rng = np.random.default_rng(3)
    strain = rng.normal(size=(3, 3)) / 5
    atoms_at = atoms.copy()

    def energy(t: float) -> float:
        deformation = np.eye(3) + t * strain
        atoms_at.set_cell(atoms.cell.array @ deformation.T)
        atoms_at.positions = atoms.positions @ deformation.T
        return calc.prediction(atoms_at).energy

    def curvature(h: float) -> float:
        return (energy(h) - 2 * energy(0) + energy(-h)) / h**2

    h = 2e-3
    expected = (4 * curvature(h / 2) - curvature(h)) / 3
    found = np.einsum("ab,abcd,cd", strain, by_strain, strain)
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_strain, by_strain.transpose(2, 3, 0, 1), atol=1e-10)


@pytest.mark.parametrize("kind", ["displacements", "strain"])
def test_third_derivatives_are_slopes_of_the_hessian(kind: str) -> None:
    atoms, calc = structure("triclinic"), calculator()
    shape = (6, 3) if kind == "displacements" else (3, 3)
    along = np.random.default_rng(1).normal(size=shape) / 3
    found = calc.force_constants(atoms, **{kind: along})

    def at(t: float) -> ForceConstants:
        moved = atoms.copy()
        if kind == "displacements":
            moved.positions += t * along
        else:
            deformation = (np.eye(3) + t * along).T
            moved.set_cell(atoms.cell.array @ deformation)
            moved.positions = atoms.positions @ deformation
        return calc.force_constants(moved)

    h = 1e-3
    for name in ("hessian", "by_strain"):
        read = (lambda c: c.hessian()) if name == "hessian" else (lambda c: c.by_strain)
        coarse, fine = ((read(at(s)) - read(at(-s))) / (2 * s) for s in (h, h / 2))
        expected = (4 * fine - coarse) / 3
        scale = np.abs(expected).max()
        assert scale > 1
        np.testing.assert_allclose(read(found), expected, rtol=0, atol=1e-6 * scale)


def test_motions_of_another_shape_are_refused() -> None:
    with pytest.raises(StructureError, match=r"displacements have the shape \(5, 3\)"):
        calculator().force_constants(structure("triclinic"), displacements=np.zeros((5, 3)))
    with pytest.raises(StructureError, match=r"strain have the shape \(6,\)"):
        calculator().force_constants(structure("triclinic"), strain=np.zeros(6))


def test_where_atoms_were_put_changes_nothing_but_the_shifts() -> None:
    """Unwrapped atoms, thousands of cells away: the same matrices, and shifts that lead to the same images."""
    atoms = structure("triclinic")
    moved = atoms.copy()
    cells = np.random.default_rng(2).integers(-(10**4), 10**4, size=(6, 3))
    moved.positions += cells @ atoms.cell.array
    found, expected = calculator().force_constants(moved), constants("triclinic")
    np.testing.assert_allclose(found.hessian(), expected.hessian(), rtol=0, atol=1e-6)
    back = found.shifts + cells[found.second] - cells[found.first]
    order = np.lexsort((*back.T, found.second, found.first))
    known = np.lexsort((*expected.shifts.T, expected.second, expected.first))
    np.testing.assert_array_equal(back[order], expected.shifts[known])


def test_an_atom_alone_has_no_curvature() -> None:
    found = calculator().force_constants(Atoms("N"))
    np.testing.assert_array_equal(found.hessian(), np.zeros((1, 3, 1, 3)))
    assert calculator().hessian(Atoms("N2", [[0, 0, 0], [0, 0, 9]])).shape == (2, 3, 2, 3)


def test_float32_is_near() -> None:
    single = NeuralILCalculator(ensemble(), dtype="float32").hessian(structure("triclinic"))
    scale = np.abs(single).max()
    np.testing.assert_allclose(single, constants("triclinic").hessian(), rtol=0, atol=2e-4 * scale)
