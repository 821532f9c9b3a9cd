"""Phonons, vibrations, elasticity, heat flux and error bars against finite differences and against theory."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.optimize import BFGS
from ase.vibrations import Vibrations as AseVibrations
from matplotlib.figure import Figure
from systems import CONFIG, calculator, ensemble, random_params, structure

from neuralil_ase import NeuralILCalculator, Potential
from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError, DataError, StructureError, UncertaintyError
from neuralil_ase.response import (
    ElasticConstants,
    Estimate,
    Phonons,
    elastic_constants,
    equation_of_state,
    green_kubo,
    heat_flux,
    propagate,
    thermal_average,
    vibrations,
)
from neuralil_ase.response.phonons import THZ

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@lru_cache
def calibrated() -> Potential:
    """Error bars are two spreads, whatever the scales of spread and aleatoric deviation together, and of energies."""
    twice, floors = dict.fromkeys("CHNO", 2.0), dict.fromkeys("CHNO", 0.1)
    calibration = Calibration(
        dict.fromkeys("CHNO", 0.5), floors, twice, floors, 1e-8, 0.1, uses_aleatoric=True
    )
    return replace(ensemble(), calibration=calibration)


@lru_cache
def wells() -> NeuralILCalculator:
    """Nearly a pair potential, with a minimum near 2 Å that differs a little from member to member."""
    config = replace(CONFIG, pair_term="morse")
    params = random_params(config, seed=7)
    params["network"]["body"]["denormalizer"]["kernel"] *= 0.01
    softplus = np.array(
        [3.0, 1.0, 0.5]
    )  # a in 2/Å, half the distance at the minimum, and its depth
    embedding = np.log(np.expm1(softplus)) + 0.02 * np.arange(3)[:, None]
    params["pair"]["embedding"] = np.broadcast_to(embedding[:, None], (3, 4, 3)).astype(np.float32)
    return NeuralILCalculator(Potential(config, params, np.zeros(4)), dtype="float64")


@lru_cache
def relaxed(name: str) -> Atoms:
    """At a minimum of the mean potential in a fixed cell."""
    atoms = structure(name)
    atoms.calc = calculator()
    assert BFGS(atoms, logfile=None, maxstep=0.05).run(fmax=1e-7, steps=500)
    atoms.calc = None
    return atoms


@lru_cache
def phonons() -> Phonons:
    return Phonons(relaxed("tiny"), calculator())


def test_bands_are_those_of_a_supercell() -> None:
    """All modes of a 2 × 1 × 2 supercell, by its own Hessian, are those at the four wave vectors that fit into it."""
    q_points = np.array([[x, 0, z] for x in (0, 0.5) for z in (0, 0.5)])
    found = phonons().energies(q_points).value.ravel()
    supercell = Phonons(relaxed("tiny").repeat((2, 1, 2)), calculator())
    expected = supercell.energies(np.zeros((1, 3))).value.ravel()
    squares = [np.sort(np.sign(e) * e**2) for e in (found, expected)]
    np.testing.assert_allclose(squares[0], squares[1], rtol=0, atol=1e-9 * squares[1].max())


@pytest.mark.filterwarnings(
    "ignore:get_frequencies:DeprecationWarning"
)  # as all versions of phonopy have it
def test_bands_agree_with_phonopy(tmp_path: Path) -> None:
    """Finite displacements of our forces in a supercell: 1e-3 THz at every commensurate wave vector."""
    phonopy = pytest.importorskip("phonopy", reason="phonopy is not installed")
    from phonopy.file_IO import parse_FORCE_CONSTANTS
    from phonopy.structure.atoms import PhonopyAtoms

    atoms, size = relaxed("tiny"), (2, 2, 1)
    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(), cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(), masses=atoms.get_masses(),
    )  # fmt: skip
    theirs = phonopy.Phonopy(cell, np.diag(size), primitive_matrix=np.eye(3), is_symmetry=False)
    theirs.generate_displacements(distance=1e-3, is_plusminus=True)
    forces = []
    for displaced in theirs.supercells_with_displacements:
        moved = Atoms(displaced.symbols, cell=displaced.cell, pbc=True)
        moved.set_scaled_positions(displaced.scaled_positions)
        forces.append(calculator().prediction(moved).forces)
    theirs.forces = forces
    theirs.produce_force_constants()
    q_points = np.array([[x, y, 0] for x in (0, 0.5) for y in (0, 0.5)])
    ours = phonons().energies(q_points).value * THZ
    expected = np.array([theirs.get_frequencies(q) for q in q_points])
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)
    for full in (False, True):  # and what is written for it
        phonons().write_force_constants(tmp_path / "FORCE_CONSTANTS", size, full=full)
        theirs.force_constants = parse_FORCE_CONSTANTS(str(tmp_path / "FORCE_CONSTANTS"))
        again = np.array([theirs.get_frequencies(q) for q in q_points])
        np.testing.assert_allclose(ours, again, rtol=0, atol=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_written_force_constants_are_those_of_the_supercell(tmp_path: Path, full: bool) -> None:
    """Read back without phonopy: its order of atoms is ours, first repetition fastest, images of an atom together."""
    size = (2, 1, 2)
    phonons().write_force_constants(tmp_path / "FORCE_CONSTANTS", size, full=full)
    lines = (tmp_path / "FORCE_CONSTANTS").read_text().splitlines()
    rows, columns = map(int, lines[0].split())
    assert (rows, columns) == ((8, 8) if full else (2, 8))
    blocks = np.array([line.split() for k, line in enumerate(lines[1:]) if k % 4], float)
    labels = np.array([line.split() for line in lines[1::4]], int)
    assert set(labels[:, 0]) == (set(range(1, 9)) if full else {1, 5})
    cells = [np.array([a, 0, c]) for c in range(2) for a in range(2)]
    unit = relaxed("tiny")
    supercell = Atoms(
        [symbol for symbol in unit.symbols for _ in cells],
        [position + cell @ unit.cell.array for position in unit.positions for cell in cells],
        cell=unit.cell.array * np.array(size)[:, None], pbc=True,
    )  # fmt: skip
    expected = calculator().hessian(supercell).transpose(0, 2, 1, 3)
    expected = expected if full else expected[[0, 4]]
    np.testing.assert_allclose(blocks.reshape(expected.shape), expected, rtol=0, atol=1e-10)


def test_acoustic_modes_vanish_and_their_residual_is_reported() -> None:
    energies = phonons().energies(np.zeros((1, 3))).value[0]
    assert (np.sort(np.abs(energies))[:3] < 1e-6).all()
    assert 0 <= phonons().acoustic_residual < 1e-10


def test_group_velocities_are_slopes_of_the_bands() -> None:
    crystal, q, h = phonons(), np.array([0.13, 0.21, -0.34]), 1e-4
    reciprocal = 2 * np.pi * crystal.atoms.cell.reciprocal().array
    (found,) = crystal.group_velocities(q)
    for step in np.eye(3):
        ends = crystal.energies(np.array([q + h * step, q - h * step])).value
        slope = (ends[0] - ends[1]) / (2 * h) * units._e / units._hbar * 1e-15  # of ω in 1/fs
        moving = ends[0] > 1e-4
        assert moving.sum() >= 3
        along = found @ (step @ reciprocal)
        np.testing.assert_allclose(along[moving], slope[moving], rtol=2e-4, atol=1e-7)


def test_bands_and_density_of_states_are_ase_records() -> None:
    bands = phonons().bands("GX", npoints=7)
    assert bands.band_structure.energies.shape == (1, 7, 6)
    assert bands.energies.members.shape == (3, 7, 6)
    np.testing.assert_array_equal(bands.band_structure.energies[0], bands.energies.value)
    assert phonons().dos((3, 3, 3)).get_weights().sum() == pytest.approx(6)
    assert len(phonons().member_dos((2, 2, 2))) == 3
    axes = bands.plot(Figure().subplots())
    assert len(axes.collections) == 6, "one shaded band each"


def test_free_energy_of_phonons_is_that_of_their_oscillators() -> None:
    """Of a stable crystal, over a mesh shifted off q = 0; one that a member finds unstable has none."""
    crystal = Phonons(bulk("N", "fcc", a=2.6), wells())
    mesh = np.array([[x, y, z] for x in (0.25, 0.75) for y in (0.25, 0.75) for z in (0.25, 0.75)])
    energies, kt = crystal.energies(mesh).value, units.kB * 300
    expected = (energies / 2 + kt * np.log(1 - np.exp(-energies / kt))).sum() / 8
    found = crystal.helmholtz_energy(300, (2, 2, 2))
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.members.shape == (3,)
    with pytest.raises(StructureError, match="imaginary"):
        Phonons(bulk("N", "fcc", a=2.8), wells()).helmholtz_energy(300, (2, 2, 2))


def test_phonons_of_a_molecule_are_refused() -> None:
    with pytest.raises(StructureError, match="use vibrations"):
        Phonons(structure("molecule"), calculator())


def test_vibrations_agree_with_finite_differences(tmp_path: Path) -> None:
    atoms = relaxed("molecule")
    found = vibrations(atoms, NeuralILCalculator(calibrated(), dtype="float64"))
    moved = atoms.copy()
    moved.calc = calculator()
    by_steps = AseVibrations(moved, delta=1e-3, nfree=4, name=str(tmp_path / "vib"))
    by_steps.run()
    energies = by_steps.get_energies()
    expected = np.sort(energies.real - energies.imag)
    np.testing.assert_allclose(found.energies.value[6:], expected[6:], rtol=0, atol=2e-6)
    of_record = np.sort(found.data.get_energies().real)
    np.testing.assert_allclose(of_record[6:], expected[6:], rtol=0, atol=2e-6)
    assert found.n_rigid == 6
    assert found.internal.value.shape == (len(atoms) * 3 - 6,)
    assert found.energies.members.shape == (3, 3 * len(atoms))
    np.testing.assert_allclose(found.energies.error_bar, 2 * found.energies.std)
    zero_point = found.internal.value.clip(0).sum() / 2
    assert found.zero_point_energy.value == pytest.approx(zero_point)


def test_atoms_that_are_held_do_not_vibrate() -> None:
    found = vibrations(relaxed("molecule"), calculator(), indices=[0, 2])
    assert found.energies.value.shape == (6,)
    assert found.n_rigid == 0
    assert list(found.data.get_indices()) == [0, 2]


def test_free_energy_of_vibrations() -> None:
    """One oscillator, of two atoms in their well: the textbook's formula; compressed twofold, it has none."""
    atoms = Atoms("N2", [[0, 0, 0], [0, 0, 2.0]])
    atoms.calc = wells()
    assert BFGS(atoms, logfile=None).run(fmax=1e-8, steps=100)
    found = vibrations(atoms, wells())
    assert found.n_rigid == 5
    (energy,) = found.internal.value
    kt = units.kB * 300
    expected = energy / 2 + kt * np.log(1 - np.exp(-energy / kt))
    assert found.helmholtz_energy(300).value == pytest.approx(expected, abs=1e-12)
    assert found.helmholtz_energy(0).value == pytest.approx(energy / 2)
    atoms.positions[1, 2] = 2.6  # beyond the inflection point
    with pytest.raises(StructureError, match="imaginary"):
        vibrations(atoms, wells()).helmholtz_energy(300)


def stress_at(atoms: Atoms, strain: np.ndarray, relax: bool) -> np.ndarray:
    strained = atoms.copy()
    strained.set_cell(atoms.cell.array @ (np.eye(3) + strain).T, scale_atoms=True)
    strained.calc = wells()
    if relax:
        assert BFGS(strained, logfile=None).run(fmax=1e-8, steps=200)
    return strained.get_stress()


@pytest.mark.parametrize("relax", [False, True], ids=["clamped", "relaxed"])
def test_elastic_constants_are_slopes_of_the_stress(relax: bool) -> None:
    """A strain fit, under whatever stress there is, to 0.1 % of the largest constant."""
    # Zincblende: its ions answer to a shear by moving off the points of their lattices.
    atoms, h = bulk("NO", "zincblende", a=4.6), 2e-4
    found = elastic_constants(atoms, wells())
    matrix = (found.relaxed if relax else found.clamped).value
    atol = 1e-3 * np.abs(matrix).max()
    for column, (a, b) in enumerate(VOIGT):
        strain = np.zeros((3, 3))
        strain[a, b] += h / 2
        strain[b, a] += h / 2
        slope = (stress_at(atoms, strain, relax) - stress_at(atoms, -strain, relax)) / (2 * h)
        np.testing.assert_allclose(matrix[:, column], slope, rtol=0, atol=atol)
    assert np.abs(found.clamped.value - found.relaxed.value).max() > 5 * atol
    assert found.relaxed.members.shape == (3, 6, 6)
    assert 0 <= found.share_of_stable_members <= 1


def test_averages_of_an_isotropic_solid_coincide() -> None:
    """With C44 = (C11 - C12) / 2 Voigt's and Reuss's averages are the constants themselves."""
    c11, c12 = 3.0, 1.0
    c = np.diag([c11 - c12] * 3 + [(c11 - c12) / 2] * 3)
    c[:3, :3] += c12
    estimate = Estimate(c, np.array([c, -c]), "eV/Å³")
    found = ElasticConstants(estimate, estimate)
    for average in ("voigt", "reuss", "hill"):
        np.testing.assert_allclose(found.moduli(average).value, [(c11 + 2 * c12) / 3, 1.0])
    np.testing.assert_allclose(found.bulk_modulus.members, np.array([1, -1]) * (c11 + 2 * c12) / 3)
    assert found.shear_modulus.value == pytest.approx(1.0)
    assert found.is_stable
    assert found.share_of_stable_members == 0.5


def test_elastic_constants_need_a_cell_and_relaxed_ions() -> None:
    with pytest.raises(StructureError, match="cell with a volume"):
        elastic_constants(structure("molecule"), calculator())
    with pytest.warns(UserWarning, match="ions are not relaxed"):
        elastic_constants(structure("tiny"), calculator())


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore:Covariance"
)  # of ASE's fit, where there is no minimum
def test_equation_of_state_has_the_bulk_modulus_of_the_elastic_constants() -> None:
    """Of a face-centred crystal of one atom, at the volume where the pressure vanishes."""
    lengths = np.linspace(2.4, 3.4, 51)
    energies = [wells().prediction(bulk("N", "fcc", a=length)).energy for length in lengths]
    minimum = np.flatnonzero(np.diff(np.sign(np.diff(energies))) > 0)[0] + 1
    atoms = bulk("N", "fcc", a=lengths[minimum])
    found = equation_of_state(atoms, wells(), strains=np.linspace(-0.04, 0.04, 9))
    ratio = (found.volume.value / atoms.cell.volume) ** (1 / 3)
    atoms.set_cell(atoms.cell * ratio, scale_atoms=True)
    c = elastic_constants(atoms, wells()).clamped.value
    assert found.bulk_modulus.value == pytest.approx(c[:3, :3].sum() / 9, rel=0.02)
    assert found.energies.members.shape == (3, 9)
    assert found.volume.std > 0
    with pytest.raises(StructureError, match="minimum"):
        equation_of_state(atoms, wells(), strains=np.linspace(0.05, 0.06, 5))


def test_heat_flux_is_the_slope_of_the_barycentre_of_the_energy() -> None:
    """J = d/dt Σ r_i E_i along the trajectory, by differences that err as h⁴."""
    atoms = structure("molecule")
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)))
    calc = calculator()
    found = heat_flux(atoms, calc)
    velocities = atoms.get_velocities()
    accelerations = calc.prediction(atoms).forces / atoms.get_masses()[:, None]

    def barycentre(t: float) -> np.ndarray:
        moved = atoms.copy()
        moved.positions += t * velocities + t**2 / 2 * accelerations
        moved.set_velocities(velocities + t * accelerations)
        return heat_flux(moved, calc).energies @ moved.positions

    def slope(h: float) -> np.ndarray:
        return (barycentre(h) - barycentre(-h)) / (2 * h) * units.fs

    expected = (4 * slope(0.001) - slope(0.002)) / 3
    np.testing.assert_allclose(found.total, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert np.abs(found.virial).max() > 0.1 * np.abs(found.total).max(), "both parts must matter"
    np.testing.assert_allclose(found.convective + found.virial, found.total)


def test_virials_at_neighbours_add_up_to_the_stress() -> None:
    atoms = structure("triclinic")
    energies, virials = calculator().neighbor_virials(atoms)
    prediction = calculator().prediction(atoms)
    total = virials.sum(axis=0) / atoms.cell.volume
    np.testing.assert_allclose(total, total.T, rtol=0, atol=1e-13)
    voigt = [total[pair] for pair in VOIGT]
    np.testing.assert_allclose(voigt, prediction.stress, rtol=0, atol=1e-13)
    reference = dict(zip("CHNO", ensemble().energy_reference, strict=True))
    offsets = [reference[symbol] for symbol in atoms.symbols]
    np.testing.assert_allclose(energies + offsets, prediction.energies, rtol=0, atol=1e-12)


def test_heat_flux_needs_momenta_and_a_model() -> None:
    atoms = structure("molecule")
    with pytest.raises(StructureError, match="no momenta"):
        heat_flux(atoms, calculator())
    with pytest.raises(StructureError, match="NeuralIL model"):
        heat_flux(atoms)


def test_green_kubo_of_a_flux_that_forgets_exponentially() -> None:
    """⟨J(0) · J(t)⟩ = 3 exp(-t/τ) has the integral 3 τ."""
    rng, tau = np.random.default_rng(0), 20.0
    decay = np.exp(-1 / tau)
    noise = rng.normal(size=(200_000, 3)) * np.sqrt(1 - decay**2)
    fluxes = noise.copy()
    for k in range(1, len(noise)):
        fluxes[k] += decay * fluxes[k - 1]
    times, kappa = green_kubo(fluxes, step=1.0, volume=1000.0, temperature=300.0)
    expected = tau / (1000 * units.kB * 300**2) * units._e * 1e25
    assert times[100] == 100
    assert kappa[100] == pytest.approx(expected, rel=0.05)
    with pytest.raises(DataError, match="four or more"):
        green_kubo(fluxes[:3], 1.0, 1.0, 300.0)


def test_propagation_of_a_linear_quantity_is_the_direct_formula() -> None:
    """An energy difference at fixed geometries: value and members as the prediction has them."""
    calc = NeuralILCalculator(calibrated(), dtype="float64")
    first, second = structure("triclinic"), structure("triclinic")
    second.rattle(0.05, seed=2)

    def difference(images: list[Atoms]) -> float:
        return images[1].get_potential_energy() - images[0].get_potential_energy()

    found = propagate(difference, [first, second], calc, unit="eV", progress=False)
    a, b = (calculator().prediction(atoms) for atoms in (first, second))
    expected = np.asarray(b.member_energies) - np.asarray(a.member_energies)
    np.testing.assert_allclose(found.members, expected, rtol=0, atol=1e-10)
    assert found.value == pytest.approx(expected.mean(), abs=1e-10)
    assert found.std == pytest.approx(expected.std(ddof=1), abs=1e-10)
    assert found.error_bar == pytest.approx(2 * found.std)
    assert "±" in str(found)
    assert str(found).endswith("eV")
    forces = propagate(lambda x: x.get_forces(), first, calc, progress=False)
    np.testing.assert_allclose(forces.error_bar, 2 * forces.std)
    assert first.calc is None, "what is passed in stays as it was"


def test_estimates_say_what_they_lack() -> None:
    atoms = structure("molecule")
    found = propagate(lambda x: x.get_potential_energy(), atoms, calculator(), progress=False)
    with pytest.raises(UncertaintyError, match="not calibrated"):
        _ = found.error_bar
    with pytest.raises(UncertaintyError, match="one member"):
        _ = Estimate(1.0, np.array([1.0]), "eV").std
    shapes = iter([1, 2, 2, 2])
    with pytest.raises(ConfigError, match="different shapes"):
        propagate(lambda x: np.zeros(next(shapes)), atoms, calculator(), progress=False)


def harmonic_run(constants: np.ndarray, n: int = 100_000) -> tuple[np.ndarray, np.ndarray]:
    """x² of a harmonic oscillator at 300 K, and the energies of members with other spring constants."""
    kt = units.kB * 300
    x2 = np.random.default_rng(0).normal(size=n) ** 2 * kt / constants.mean()
    return x2, np.outer(x2, constants / 2)


def test_reweighting_finds_what_every_member_would_average() -> None:
    """⟨x²⟩ = kT/k for each: the direct estimate exactly, the cumulant to first order."""
    constants = np.array([0.95, 1.0, 1.05])
    x2, energies = harmonic_run(constants)
    found = thermal_average(x2, [], ensemble(), 300, unit="Å²", member_energies=energies)
    kt, sampled = units.kB * 300, found.direct.value
    np.testing.assert_allclose(found.direct.members / sampled, 1 / constants, rtol=0.01)
    np.testing.assert_allclose(found.cumulant.members / sampled, 2 - constants, rtol=0.01)
    assert found.method == "direct"
    assert found.estimate is found.direct
    assert found.effective_frames.min() > 0.95 * len(x2)
    assert found.statistical_error == pytest.approx(np.sqrt(2 / len(x2)) * kt, rel=0.3)
    assert sampled == pytest.approx(kt, abs=5 * found.statistical_error)


def test_reweighting_warns_where_few_frames_carry_it() -> None:
    x2, energies = harmonic_run(np.array([0.1, 1.0, 1.9]), n=500)
    energies *= np.random.default_rng(1).normal(size=energies.shape) * 1000
    with pytest.warns(UserWarning, match="too few to be trusted"):
        found = thermal_average(x2, [], ensemble(), 300, member_energies=energies)
    assert found.method == "cumulant"
    assert found.estimate is found.cumulant


def test_calibration_scales_members_before_they_reweigh() -> None:
    x2, energies = harmonic_run(np.array([0.99, 1.0, 1.01]))
    plain = thermal_average(x2, [], ensemble(), 300, member_energies=energies)
    scaled = thermal_average(x2, [], calibrated(), 300, member_energies=energies)
    assert scaled.cumulant.std == pytest.approx(2 * plain.cumulant.std)
    assert scaled.cumulant.error_bar == scaled.cumulant.std


def test_averages_from_frames_and_their_errors() -> None:
    frames = [structure("molecule") for _ in range(6)]
    for seed, frame in enumerate(frames):
        frame.rattle(0.01, seed=seed)
    found = thermal_average(lambda a: a.get_distance(0, 1), frames, ensemble(), 1e6, unit="Å")
    assert found.direct.members.shape == (3,)
    with pytest.raises(DataError, match="do not belong together"):
        thermal_average(np.zeros(3), frames, ensemble(), 300)
    with pytest.raises(DataError, match="must be positive"):
        thermal_average(np.zeros(6), frames, ensemble(), 0)
    with pytest.raises(UncertaintyError, match="one member"):
        thermal_average(np.zeros(6), frames, ensemble().member(0), 300)


@pytest.mark.slow
def test_a_reweighted_average_is_that_of_an_explicit_run_with_the_member() -> None:
    """Metropolis sampling of two atoms in their well: one run of the mean, reweighted, and one run of each member."""
    temperature = 600.0
    distances = np.linspace(1.4, 2.95, 400)
    pairs = [Atoms("N2", [[0, 0, 0], [0, 0, d]]) for d in distances]
    energies = np.array([np.asarray(wells().prediction(pair).member_energies) for pair in pairs])

    def run(potential: np.ndarray, seed: int) -> np.ndarray:
        rng, here, visited = np.random.default_rng(seed), 150, []
        for _ in range(200_000):
            there = here + rng.integers(-25, 26)
            if 0 <= there < len(distances):
                rise = (potential[there] - potential[here]) / (units.kB * temperature)
                here = there if np.log(rng.random()) < -rise else here
            visited.append(here)
        return np.array(visited)

    of_mean = run(energies.mean(axis=1), 0)
    found = thermal_average(
        distances[of_mean], [], wells().potential, temperature, member_energies=energies[of_mean]
    )
    explicit = np.array([distances[run(energies[:, m], m + 1)].mean() for m in range(3)])
    tolerance = 6 * found.statistical_error
    np.testing.assert_allclose(found.direct.members, explicit, rtol=0, atol=tolerance)
    spread = explicit.std(ddof=1)
    assert spread > 3 * found.statistical_error, "there must be something to find"
    assert found.cumulant.std == pytest.approx(spread, rel=0.5)
