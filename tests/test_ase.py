"""The in-process calculator of ASE against the potential it holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ase = pytest.importorskip("ase")

from ase.calculators.calculator import PropertyNotImplementedError  # noqa: E402

from dpserver.ase import DPCalculator  # noqa: E402
from dpserver.errors import ConfigError, ModelFileError, StructureError  # noqa: E402
from dpserver.frames import Frames  # noqa: E402
from dpserver.models import checkpoint  # noqa: E402
from dpserver.models.potential import Potential  # noqa: E402
from tests import structures  # noqa: E402
from tests.models.committees import committee  # noqa: E402
from tests.models.test_fitting import parametrised, with_parameters  # noqa: E402
from tests.models.test_se_e2_a import make  # noqa: E402
from tests.models.test_tensors import make as make_tensors  # noqa: E402

STRAIN = 1e-5


@pytest.fixture(scope="module")
def potential() -> Potential:
    return make()


def to_atoms(frames: Frames) -> ase.Atoms:
    symbols = [structures.SPECIES[t] for t in frames.types]
    return ase.Atoms(symbols, frames.positions, cell=frames.cell[0], pbc=frames.pbc[0])


@pytest.mark.parametrize("name", ["cubic", "triclinic", "slab", "wire", "cluster", "molecule"])
def test_is_the_potential(potential: Potential, name: str) -> None:
    frames = getattr(structures, name)()
    expected = potential.evaluate(frames)
    atoms = to_atoms(frames)
    atoms.calc = DPCalculator(potential)
    assert atoms.get_potential_energy() == expected.energy[0]
    assert atoms.get_potential_energy(force_consistent=True) == expected.energy[0]
    np.testing.assert_array_equal(atoms.get_potential_energies(), expected.atom_energy)
    np.testing.assert_array_equal(atoms.get_forces(), expected.forces)


@pytest.mark.parametrize("name", ["cubic", "triclinic"])
def test_stress_is_the_derivative_by_strain(potential: Potential, name: str) -> None:
    atoms = to_atoms(getattr(structures, name)())
    atoms.calc = DPCalculator(potential)
    voigt = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    for component, (i, j) in zip(atoms.get_stress(), voigt, strict=True):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * STRAIN / 2
            strain[j, i] += sign * STRAIN / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell @ strain, scale_atoms=True)
            strained.calc = atoms.calc
            energies.append(strained.get_potential_energy())
        slope = (energies[0] - energies[1]) / (2 * STRAIN) / atoms.get_volume()
        assert component == pytest.approx(slope, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["slab", "cluster"])
def test_open_directions_have_no_stress(potential: Potential, name: str) -> None:
    atoms = to_atoms(getattr(structures, name)())
    atoms.calc = DPCalculator(potential)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_lattice_vector_of_an_open_direction_does_not_count(potential: Potential) -> None:
    frames = structures.slab()
    bare, boxed = to_atoms(frames), to_atoms(frames)
    boxed.cell[2] = [1.0, 2.0, 4.0]
    bare.calc = boxed.calc = DPCalculator(potential)
    np.testing.assert_array_equal(bare.get_forces(), boxed.get_forces())


def test_result_follows_the_atoms(potential: Potential) -> None:
    """Whatever is changed between two questions, the answer is that to the second one."""
    atoms = to_atoms(structures.cubic())
    calc = atoms.calc = DPCalculator(potential)
    seen = {atoms.get_potential_energy()}
    atoms.positions[0] += 0.05
    seen.add(atoms.get_potential_energy())
    atoms.set_cell(atoms.cell * 1.02)
    seen.add(atoms.get_potential_energy())
    atoms.pbc = [True, True, False]
    seen.add(atoms.get_potential_energy())
    atoms.symbols[1] = "O"
    seen.add(atoms.get_potential_energy())
    assert len(seen) == 5
    other = to_atoms(structures.molecule())
    other.calc = calc
    assert other.get_forces().shape == (3, 3)


def test_unknown_species(potential: Potential) -> None:
    atoms = to_atoms(structures.molecule())
    atoms.symbols[0] = "S"
    atoms.calc = DPCalculator(potential)
    with pytest.raises(StructureError, match=r"knows the species O, H; the atoms hold S"):
        atoms.get_potential_energy()


def test_refused_structure_leaves_no_old_answer(potential: Potential) -> None:
    atoms = to_atoms(structures.cubic())
    atoms.calc = DPCalculator(potential)
    atoms.get_potential_energy()
    atoms.positions[4] = np.nan
    for _ in range(2):
        with pytest.raises(StructureError, match="atom 4 is not finite"):
            atoms.get_potential_energy()


def test_model_file(potential: Potential, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    checkpoint.save(path, potential)
    atoms = to_atoms(structures.cubic())
    atoms.calc = DPCalculator(path, device="cpu")
    assert atoms.get_potential_energy() == pytest.approx(potential.evaluate(structures.cubic()).energy[0], rel=1e-14)
    assert DPCalculator(path, precision="single").potential.precision == "single"
    with pytest.raises(ModelFileError, match="does not exist"):
        DPCalculator(tmp_path / "none.pt")


def test_a_committee_answers_with_its_mean_and_keeps_what_the_members_say() -> None:
    model, frames, atoms = committee(), structures.cubic(), to_atoms(structures.cubic())
    atoms.calc = DPCalculator(model)
    expected = model.evaluate(frames)
    assert expected.committee is not None
    assert atoms.calc.committee is None
    np.testing.assert_array_equal(atoms.get_forces(), expected.forces)
    np.testing.assert_array_equal(atoms.calc.committee.forces, expected.committee.forces)
    assert set(atoms.calc.results) == {"energy", "free_energy", "energies", "forces", "stress"}
    atoms.calc = DPCalculator(model.members[0])
    atoms.get_forces()
    assert atoms.calc.committee is None


def test_parameters_of_the_calculator_and_of_the_atoms() -> None:
    potential = parametrised(numb_fparam=2, numb_aparam=1)
    frames = with_parameters(structures.cubic(), 2, 1)
    assert frames.fparam is not None
    assert frames.aparam is not None
    atoms = to_atoms(frames)
    atoms.calc = DPCalculator(potential, fparam=[9.0, 9.0], aparam=frames.aparam)
    other = atoms.get_potential_energy()
    atoms.info["fparam"] = frames.fparam[0]  # nothing has moved, and yet it is another energy
    assert atoms.get_potential_energy() == pytest.approx(potential.evaluate(frames).energy[0], rel=1e-12)
    assert abs(atoms.get_potential_energy() - other) > 1e-3
    atoms.arrays["aparam"] = frames.aparam + 1
    expected = potential.evaluate(replace(frames, aparam=frames.aparam + 1))
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-12)
    with pytest.raises(StructureError, match="the model takes no parameters fparam, but 1 are given"):
        DPCalculator(make(), fparam=1.0).calculate(to_atoms(frames))


def test_the_dipole(tmp_path: Path) -> None:
    dipole = make_tensors(type="dipole")
    checkpoint.save(tmp_path / "d.pt", dipole)
    frames = structures.cubic()
    atoms = to_atoms(frames)
    for given in (dipole, tmp_path / "d.pt"):
        atoms.calc = DPCalculator(make(), dipole=given)
        np.testing.assert_allclose(atoms.get_dipole_moment(), dipole.evaluate(frames).total[0], rtol=1e-12)
    atoms.calc = DPCalculator(make())
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()
    with pytest.raises(ConfigError, match="is one of the kind polar"):
        DPCalculator(make(), dipole=make_tensors(type="polar"))


def test_parameters_that_only_one_of_energy_and_dipole_takes() -> None:
    dipole, frames = make_tensors(type="dipole", numb_fparam=1, default_fparam=[0.5]), structures.cubic()
    atoms = to_atoms(frames)
    atoms.calc = DPCalculator(make(), dipole=dipole, fparam=[0.4])
    expected = dipole.evaluate(replace(frames, fparam=np.array([[0.4]]))).total[0]
    np.testing.assert_allclose(atoms.get_dipole_moment(), expected, rtol=1e-12)
    assert atoms.get_potential_energy() == pytest.approx(make().evaluate(frames).energy[0], rel=1e-12)
