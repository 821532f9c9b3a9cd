"""The pair style in LAMMPS against the ASE calculator."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.lammps import Prism
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from lammps_runs import (
    dumped,
    in_box,
    liquid,
    needs_lammps,
    output,
    saved,
    setup_text,
    shipped,
    thermo,
)
from systems import STRUCTURES, ensemble, random_atoms, structure

from neuralil_ase import NeuralILCalculator, load_potential
from neuralil_ase.files.published_files import import_published
from neuralil_ase.model.config import DescriptorConfig, ModelConfig, NetworkConfig
from neuralil_ase.prediction import VOIGT
from neuralil_ase.response.elasticity import elastic_constants
from neuralil_ase.response.heat import heat_flux

BAR = 6.241509074460763e-7  # eV/Å³
pytestmark = needs_lammps

DUMP = """
compute pe all pe/atom
compute stress all stress/atom NULL virial
compute nine all centroid/stress/atom NULL virial
fix u all pair 1 neuralil energies_std 1 forces_std 1
dump d all custom 1 out.dump id fx fy fz c_pe c_stress[*] c_nine[*] f_u[*]
dump_modify d sort id format float %20.15g
run 0
"""


def assert_same(atoms: Atoms, model: Path, found: np.ndarray, spreads: bool = True) -> None:
    """Energies, forces, stresses and spreads of the ASE calculator."""
    atoms = atoms.copy()
    level = "forces" if spreads else "off"
    atoms.calc = NeuralILCalculator(model, dtype="float64", uncertainty=level)
    expected = atoms.calc.prediction(atoms)
    prism = Prism(atoms.cell.array, pbc=atoms.pbc)
    scale = np.abs(expected.forces).max() + 1
    turned = prism.vector_to_lammps(expected.forces)
    np.testing.assert_allclose(found[:, :3], turned, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(found[:, 3], expected.energies, rtol=0, atol=1e-10 * scale)
    if spreads:
        np.testing.assert_allclose(found[:, 19], expected.energies_std, rtol=0, atol=1e-10 * scale)
        np.testing.assert_allclose(found[:, 20], expected.forces_std, rtol=0, atol=1e-10 * scale)
    if atoms.pbc.all():
        virials = found[:, 4:10] * BAR / atoms.get_volume()
        voigt = expected.stresses[:, [0, 1, 2, 5, 4, 3]]
        full = np.array([[[x, xy, xz], [xy, y, yz], [xz, yz, z]] for x, y, z, xy, xz, yz in voigt])
        tensors = prism.rot_mat.T @ full @ prism.rot_mat
        rotated = np.array(
            [(t[0, 0], t[1, 1], t[2, 2], t[0, 1], t[0, 2], t[1, 2]) for t in tensors]
        )
        # LAMMPS's own constant of pressure differs from today's by 1e-7.
        np.testing.assert_allclose(
            virials, rotated, rtol=0, atol=3e-7 * np.abs(rotated).max() + 1e-12
        )
    six, nine = found[:, 4:10].sum(axis=0), found[:, 10:19].sum(axis=0)
    limit = 1e-9 * np.abs(six).max() + 1e-9
    np.testing.assert_allclose(nine[:6], six, rtol=0, atol=limit)
    np.testing.assert_allclose(nine[6:], six[3:], rtol=0, atol=limit)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [(name, 2) for name in STRUCTURES if name != "mixed"] + [("triclinic", 1), ("one atom", 4)],
)
def test_small_structures(name: str, ranks: int, tmp_path: Path, environment) -> None:
    """Cells thinner than the cutoff, slabs, molecules, one atom; ranks without atoms."""
    atoms, model = in_box(structure(name)), saved(ensemble(), tmp_path)
    output(setup_text(atoms, model) + DUMP, tmp_path, environment, ranks)
    assert_same(atoms, model, dumped(tmp_path))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_liquid_with_the_shipped_model(ranks: int, tmp_path: Path, environment) -> None:
    model, atoms = shipped(tmp_path), liquid()
    output(setup_text(atoms, model) + DUMP, tmp_path, environment, ranks)
    assert_same(atoms, model, dumped(tmp_path))


def test_nuclei_that_repel_each_other(tmp_path: Path, environment) -> None:
    """At 0.5 Å the ZBL term of the shipped model is the largest part."""
    model = shipped(tmp_path)
    atoms = in_box(Atoms("NOH", [[0, 0, 0], [0.5, 0, 0], [0.6, 0.7, 0.1]]))
    output(setup_text(atoms, model) + DUMP, tmp_path, environment)
    found = dumped(tmp_path)
    assert np.abs(found[:, :3]).max() > 100
    assert_same(atoms, model, found)


def test_activations_and_orders_that_the_core_has(tmp_path: Path, environment) -> None:
    for activation, n_max in (("tanh", 1), ("silu", 5)):
        config = ModelConfig(
            DescriptorConfig(("C", "H", "N", "O"), n_max=n_max, r_cut=3.0),
            NetworkConfig("core", widths=(8, 4), activation=activation),
            n_members=3,
        )
        atoms, model = in_box(structure("triclinic")), saved(ensemble(config), tmp_path)
        output(setup_text(atoms, model) + DUMP, tmp_path, environment)
        assert_same(atoms, model, dumped(tmp_path))


PUBLISHED = {
    "model_params_neuralil_OPTAX_2B25114.pickle": "ean_dft_50.extxyz",
    "EAN_params_committee_1FEB3E08.pkl": "ean_dft_50.extxyz",
    "EAN_params_deep_ensemble_8ABE86C9.pkl": "ean_dft_50.extxyz",
    "model_nnff1.pickle": "sto_dft_100.extxyz",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_potentials(name: str, original: Path, tmp_path: Path, environment) -> None:
    """The liquid, and cells of SrTiO3 with the Morse terms of their potential."""
    potential = import_published(original / name)
    model, atoms = saved(potential, tmp_path), read(original / PUBLISHED[name], 0)
    spreads = potential.n_members > 1
    text = DUMP if spreads else DUMP.replace("f_u[*]", "").replace("fix u", "# fix u")
    output(setup_text(atoms, model) + text, tmp_path, environment, 2)
    assert_same(atoms, model, dumped(tmp_path), spreads)


def test_single_precision_agrees_to_rounding(tmp_path: Path, environment) -> None:
    model, atoms = shipped(tmp_path), liquid()
    output(setup_text(atoms, model, extra="") + DUMP, tmp_path, environment, 2)
    expected = NeuralILCalculator(model, uncertainty="forces").prediction(atoms)
    found = dumped(tmp_path)
    turned = Prism(atoms.cell.array).vector_to_lammps(expected.forces)
    np.testing.assert_allclose(found[:, :3], turned, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[:, 3], expected.energies, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[:, 20], expected.forces_std, rtol=0, atol=1e-4)


@pytest.mark.parametrize("uses_aleatoric", [True, False])
@pytest.mark.parametrize("exponent", [0.6, None])
def test_error_bars_are_those_of_the_calibration(
    exponent: float | None, uses_aleatoric: bool, tmp_path: Path, environment
) -> None:
    """Also above the spread from which on that of the spread alone counts, with and without an exponent."""
    potential, atoms = load_potential(shipped(tmp_path)), liquid()
    record = potential.calibration
    quantiles = {element: {"0.99": 0.03} for element in potential.elements}  # exceeded by many
    exponents = {} if exponent is None else dict.fromkeys(potential.elements, exponent)
    only = {} if uses_aleatoric else {"force_scale_of_spread": {}, "force_floor_of_spread": {}}
    record = replace(
        record,
        uses_aleatoric=uses_aleatoric,
        force_exponent=exponents,
        force_std_quantiles=quantiles,
        **only,
    )
    model = saved(replace(potential, calibration=record), tmp_path)
    bars = """
fix b all pair 1 neuralil forces_error_bar 1
dump d all custom 1 out.dump id f_b
dump_modify d sort id format float %20.15g
run 0
"""
    output(setup_text(atoms, model) + bars, tmp_path, environment, 2)
    calculator = NeuralILCalculator(model, dtype="float64", uncertainty="forces")
    expected = calculator.prediction(atoms).forces_error_bar
    np.testing.assert_allclose(dumped(tmp_path)[:, 0], expected, rtol=1e-9)


def test_units_real_are_metal_in_other_units(tmp_path: Path, environment) -> None:
    atoms, model = in_box(structure("triclinic")), saved(ensemble(), tmp_path)
    found = {}
    for unit_style in ("metal", "real"):
        output(setup_text(atoms, model, unit_style) + DUMP, tmp_path, environment)
        found[unit_style] = dumped(tmp_path)
    for columns in (slice(0, 4), slice(19, 21)):
        np.testing.assert_allclose(
            found["real"][:, columns], 23.060549 * found["metal"][:, columns], rtol=1e-7, atol=1e-9
        )


def test_forces_and_virial_are_derivatives_by_the_oracles_of_lammps(
    tmp_path: Path, environment
) -> None:
    atoms, model = in_box(structure("triclinic")), saved(ensemble(), tmp_path)
    oracles = """
fix force all numdiff 1 1e-4
fix virial all numdiff/virial 1 1e-4
dump d all custom 1 out.dump id fx fy fz f_force[*]
dump_modify d sort id format float %20.15g
thermo_style custom step pxx pyy pzz pyz pxz pxy f_virial[*]
thermo_modify format float %20.15g
run 0
"""
    printed = output(setup_text(atoms, model) + oracles, tmp_path, environment, 2)
    found = dumped(tmp_path)
    np.testing.assert_allclose(found[:, :3], found[:, 3:], atol=1e-4 * np.abs(found).max())
    pressures, numeric = thermo(printed)[0, 1:7], thermo(printed)[0, 7:13]
    np.testing.assert_allclose(pressures, numeric, atol=1e-4 * np.abs(numeric).max())


@pytest.mark.filterwarnings(
    "ignore:the ions are not relaxed"
)  # the atoms lie at random, only clamped ions are asked for
def test_elastic_constants_by_differences_of_lammps(tmp_path: Path, environment) -> None:
    """compute born/matrix is the second derivative by Lagrangian strain; ours is dσ/dε, of a box under stress."""
    atoms = random_atoms(5, "CHNOCH", np.diag([4.5, 5.0, 5.5]), (True, True, True))
    text = """
compute virial all pressure NULL virial
compute born all born/matrix numdiff 1e-4 virial
thermo_style custom step vol c_born[*]
thermo_modify format float %20.15g
run 0
"""
    model = saved(ensemble(), tmp_path)
    volume, *entries = thermo(output(setup_text(atoms, model) + text, tmp_path, environment))[0, 1:]
    born, upper = np.zeros((6, 6)), np.triu_indices(6, 1)
    born[np.diag_indices(6)], born[upper] = entries[:6], entries[6:]
    born += np.triu(born, 1).T
    atoms.calc = NeuralILCalculator(model, dtype="float64")
    ours = elastic_constants(atoms, atoms.calc).clamped.value
    stress, d = atoms.get_stress(voigt=False), np.eye(3)
    change = (
        sum(
            np.einsum(k, d, stress)
            for k in ("ik,jl->ijkl", "jk,il->ijkl", "il,jk->ijkl", "jl,ik->ijkl")
        )
        / 2
    )
    change = change - np.einsum("kl,ij->ijkl", d, stress)
    i, j = np.array(VOIGT)
    expected = ours - change[i[:, None], j[:, None], i, j]
    np.testing.assert_allclose(born / volume, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("ranks", [1, 2])
def test_heat_flux(ranks: int, tmp_path: Path, environment) -> None:
    """compute heat/flux with nine components; six would be wrong for a many-body potential."""
    atoms, potential = in_box(structure("triclinic")), ensemble()
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(5))
    model = saved(potential, tmp_path)
    text = """
compute ke all ke/atom
compute pe all pe/atom
compute nine all centroid/stress/atom NULL virial
compute six all stress/atom NULL virial
compute flux all heat/flux ke pe nine
compute wrong all heat/flux ke pe six
thermo_style custom step c_flux[*] c_wrong[*]
thermo_modify format float %20.15g
run 0
"""
    row = thermo(output(setup_text(atoms, model) + text, tmp_path, environment, ranks))[0, 1:]
    expected = heat_flux(atoms, NeuralILCalculator(model, dtype="float64"))
    prism = Prism(atoms.cell.array)
    flux, convective, wrong = row[:3], row[3:6], row[6:9]
    reference = dict(zip(potential.elements, potential.energy_reference, strict=True))
    offset = sum(reference[a.symbol] * a.momentum / a.mass for a in atoms) * units.fs
    scale = 1e3  # fs in a ps
    turned = scale * prism.vector_to_lammps(expected.virial)
    # masses and constants of nature in LAMMPS have five digits or so
    np.testing.assert_allclose(flux - convective, turned, atol=1e-5 * np.abs(turned).max())
    np.testing.assert_allclose(
        convective, scale * prism.vector_to_lammps(expected.convective + offset), rtol=1e-4
    )
    assert np.abs(wrong - flux).max() > 0.01 * np.abs(turned).max()
