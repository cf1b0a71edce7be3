"""sGDML models served by their own package, against the formula in plain loops."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpserver
from dpserver.errors import ConfigError, DeviceError, ModelFileError, StructureError
from dpserver.frames import Frames
from dpserver.models import checkpoint
from dpserver.models.gdml import GDMLModel, describe
from dpserver.models.gdml_file import ENERGIES, LENGTHS, recognises
from dpserver.units import BOHR, HARTREE, KCAL_PER_MOL
from tests import structures
from tests.models import gdml_models

pytestmark = pytest.mark.skipif(find_spec("sgdml") is None, reason="needs the package sgdml")

STEP = 1e-4
TYPES = [0, 1, 1]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gdml_models.write(tmp_path_factory.mktemp("model") / "water.npz")


@pytest.fixture(scope="module")
def model(file: Path) -> GDMLModel:
    return GDMLModel(file)


def molecules() -> Frames:
    """Three molecules, moved and turned."""
    rng = np.random.default_rng(8)
    found = [x @ structures.rotation(rng) + rng.normal(scale=5, size=3) for x in gdml_models.geometries()[:3]]
    return Frames.concatenate(Frames.single(x, TYPES) for x in found)


def test_what_it_says_of_itself(model: GDMLModel) -> None:
    x = gdml_models.geometries()
    bonds = np.linalg.norm(x[:, 1:] - x[:, :1], axis=-1)
    between = np.linalg.norm(x[:, 1] - x[:, 2], axis=-1)
    assert (model.species, model.template, model.can_cut) == (("O", "H"), ("O", "H", "H"), False)
    expected = [[np.inf, bonds.min()], [bonds.min(), between.min()]]
    np.testing.assert_allclose(model.min_distance, expected, rtol=1e-12)
    assert model.rcut == pytest.approx(between.max())
    assert model.evaluated_by() == [f"sgdml {model.version}"]
    model.warm_up()


def test_numbers_of_the_formula(model: GDMLModel) -> None:
    frames = molecules()
    before = frames.positions.copy()
    result = model.evaluate(frames)
    np.testing.assert_allclose(result.energy, [gdml_models.energy(f.positions) for f in frames], rtol=1e-12)
    assert np.ptp(result.energy) > 0.01
    for k, frame in enumerate(frames):
        x, forces = frame.positions, np.zeros((3, 3))
        for step in np.eye(9).reshape(9, 3, 3) * STEP:
            forces += (gdml_models.energy(x - step) - gdml_models.energy(x + step)) / (2 * STEP) * (step / STEP)
        np.testing.assert_allclose(result.forces[3 * k : 3 * k + 3], forces, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(frames.positions, before)
    np.testing.assert_array_equal(result.frame_idx, frames.frame_idx)
    assert np.isnan(result.atom_energy).all()


def test_virial_is_the_strain_derivative(model: GDMLModel) -> None:
    frame = molecules()[1]
    virial = model.evaluate(frame).virial[0]
    assert np.abs(virial).max() > 0.05
    np.testing.assert_array_equal(virial, virial.T)
    for strain in np.eye(9).reshape(9, 3, 3):
        up, down = (model.evaluate(structures.strained(frame, sign * STEP * strain)).energy[0] for sign in (1, -1))
        assert (down - up) / (2 * STEP) == pytest.approx(float((virial * strain).sum()), abs=1e-6)


def test_batch_equals_loop_and_none(model: GDMLModel) -> None:
    frames = molecules()
    together = model.evaluate(frames)
    for k, frame in enumerate(frames):
        alone = model.evaluate(frame)
        np.testing.assert_array_equal(alone.forces, together.forces[3 * k : 3 * k + 3])
        np.testing.assert_array_equal(alone.virial[0], together.virial[k])
        assert alone.energy[0] == together.energy[k]
    empty = model.evaluate(frames.part(0, 0))
    assert (empty.energy.shape, empty.forces.shape, empty.virial.shape) == ((0,), (0, 3), (0, 3, 3))


def test_like_atoms_may_change_places(model: GDMLModel) -> None:
    frame = molecules()[0]
    turned = Frames.single(frame.positions[[0, 2, 1]], TYPES)
    one, two = model.evaluate(frame), model.evaluate(turned)
    np.testing.assert_allclose(two.energy, one.energy, rtol=1e-14)
    np.testing.assert_allclose(two.forces[[0, 2, 1]], one.forces, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("r_unit", "length"),
    [("Ang", 1.0), (" Angstrom", 1.0), ("au", BOHR), ("Bohr", BOHR), ("nm", 10.0)],
)
@pytest.mark.parametrize(
    ("e_unit", "unit"),
    [("kcal/mol", KCAL_PER_MOL), ("kJ / mol", KCAL_PER_MOL / 4.184), ("Hartree", HARTREE), ("meV", 1e-3)],
)
def test_units_are_converted_once(
    r_unit: str, length: float, e_unit: str, unit: float, file: Path, model: GDMLModel, tmp_path: Path
) -> None:
    """The same model written in another unit answers the same, and knows the same distances."""
    other = GDMLModel(
        gdml_models.write(tmp_path / "other.npz", length=length, energy=unit, r_unit=r_unit, e_unit=e_unit)
    )
    mine, theirs = model.evaluate(molecules()), other.evaluate(molecules())
    for name in ("energy", "forces", "virial"):
        np.testing.assert_allclose(getattr(theirs, name), getattr(mine, name), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(other.min_distance, model.min_distance, rtol=1e-12)


def test_units_that_are_known() -> None:
    assert set(LENGTHS.values()) == {1.0, BOHR, 10.0}
    assert set(ENERGIES) >= {"ev", "kcal/mol", "kj/mol", "hartree", "ha", "au"}


# --- cells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, True, False)])
def test_a_cell_that_is_large_enough_changes_nothing(pbc: tuple[bool, bool, bool], model: GDMLModel) -> None:
    """Also where it has cut the molecule, along oblique vectors."""
    frames = molecules()
    cell = np.where(np.array(pbc)[:, None], 6.0 * structures.SHEAR, 0.0)
    periodic = Frames.concatenate(Frames.single(f.positions, TYPES, cell, pbc) for f in frames)
    wrapped = structures.wrapped(periodic, np.random.default_rng(3))
    assert np.abs(wrapped.positions - periodic.positions).max() > 5
    expected, result = model.evaluate(frames), model.evaluate(wrapped)
    np.testing.assert_allclose(result.energy, expected.energy, rtol=1e-12)
    np.testing.assert_allclose(result.forces, expected.forces, rtol=0, atol=1e-10)
    np.testing.assert_allclose(result.virial, expected.virial, rtol=0, atol=1e-10)


def test_a_cell_that_is_too_small_is_refused(model: GDMLModel) -> None:
    frame = Frames.single(gdml_models.MOLECULE, TYPES, 2.9 * np.eye(3))
    with pytest.raises(StructureError, match=r"the periodic cell is 2\.900 Å wide, and the molecule 1\."):
        model.evaluate(frame)


def test_a_lattice_in_the_file(model: GDMLModel, tmp_path: Path) -> None:
    """Large, as an extended XYZ file has one for an open structure; and that of a crystal."""
    large = GDMLModel(gdml_models.write(tmp_path / "large.npz", lattice=50.0 * np.eye(3)))
    np.testing.assert_array_equal(large.evaluate(molecules()).energy, model.evaluate(molecules()).energy)
    small = GDMLModel(gdml_models.write(tmp_path / "small.npz", lattice=2.0 * np.eye(3)))
    with pytest.raises(StructureError, match=r"the cell of its training structures is 2\.000 Å wide"):
        small.evaluate(molecules())
    assert describe(tmp_path / "large.npz")["cell"] == " in a cell 50.000 Å wide"


# --- what has no answer ----------------------------------------------------------------------------------------------


def single(**changes: Any) -> Frames:
    return replace(Frames.single(gdml_models.MOLECULE, TYPES), **changes)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (structures.cluster(), r"12 atoms; this sGDML model knows one molecule of 3, in the order O H H"),
        (single(types=np.array([1, 0, 1])), r"atom 0 is H; this sGDML model knows the order O H H"),
        (single(is_ghost=np.array([False, False, True])), "a part of a structure was given"),
        (single(fparam=np.ones((1, 2))), "takes no parameters fparam"),
        (single(positions=gdml_models.MOLECULE[[1, 0, 2]]), r"atoms 1 \(H\) and 2 \(H\) are 0\.9.* order"),
        (single(positions=gdml_models.MOLECULE * 2), r"atoms 0 \(O\) and 1 \(H\) are 1\.9\d\d Å apart"),
        (single(positions=gdml_models.MOLECULE * 1e-3), r"atoms . and . are .* apart"),
    ],
    ids=["number", "order", "ghosts", "parameters", "swapped", "far", "overlap"],
)
def test_structures_that_are_refused(frames: Frames, message: str, model: GDMLModel) -> None:
    with pytest.raises(StructureError, match=message):
        model.evaluate(frames)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_load_finds_out_by_itself(file: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.write_bytes(file.read_bytes())
    for path in (file, renamed):
        assert isinstance(dpserver.load(path), GDMLModel)
    assert isinstance(dpserver.load(file, device="cpu"), GDMLModel)
    with pytest.raises(ConfigError, match="precision 'mixed' has no meaning with the backend sgdml"):
        dpserver.load(file, precision="mixed")
    with pytest.raises(DeviceError, match="an sGDML model is evaluated on the CPU"):
        dpserver.load(file, device="cuda")
    with pytest.raises(ModelFileError, match="is an sGDML model, which dpserver serves"):
        checkpoint.read(file)


def test_nothing_is_left_behind(file: Path) -> None:
    """The package makes its coloured logger everybody's, and would start processes for itself."""
    before = threading.active_count()
    for name in [name for name in sys.modules if name.partition(".")[0] == "sgdml"]:
        del sys.modules[name]
    GDMLModel(file).evaluate(molecules())
    assert logging.getLoggerClass() is logging.Logger
    assert multiprocessing.active_children() == []
    assert threading.active_count() == before


@pytest.mark.parametrize("missing", ["sgdml", "psutil"])
def test_without_the_package(missing: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sgdml"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    said = r"pip install 'dpserver\[gdml\]'" if missing == "sgdml" else "sgdml package lacks the package psutil"
    with pytest.raises(ConfigError, match=said):
        GDMLModel(file)
    assert describe(file)["template"] == ["O", "H", "H"]


def test_other_files_are_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("PK nothing")
    assert not recognises(tmp_path / "text")
    assert not recognises(tmp_path / "missing.npz")
    assert not recognises(tmp_path)
