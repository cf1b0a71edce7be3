"""Extended XYZ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpserver.errors import DataError
from dpserver.train.data import fingerprint, read_system, template
from tests.train.datasets import CELL, WATER, XYZ, xyz

STRESSED = """1
Lattice="2 0 0 0 3 0 0 0 4" Properties=species:S:1:pos:R:3 energy=1.0 {}
O 0.0 0.0 0.0
"""
STRESS = 'stress="1 6 5 6 2 4 5 4 3"'


def test_xyz_of_different_sizes(tmp_path: Path) -> None:
    found = read_system(xyz(tmp_path, XYZ), WATER)
    np.testing.assert_array_equal(found.counts, [3, 2])
    np.testing.assert_array_equal(found.frames.types, [0, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.frames.pbc, [[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(found.frames.cell, [CELL, np.zeros((3, 3))])
    np.testing.assert_array_equal(found.energy, [-3.5, -1.25])
    assert found.forces is not None
    np.testing.assert_array_equal(found.forces[[0, 4]], [[0.1, 0.2, 0.3], [-1.0, 0.0, 0.0]])
    assert found.virial is None
    assert template([found]) is None


def test_xyz_virial_of_stress(tmp_path: Path) -> None:
    found = read_system(xyz(tmp_path, STRESSED.format(STRESS)), WATER)
    assert found.virial is not None
    np.testing.assert_allclose(found.virial, [[[-24.0, -144, -120], [-144, -48, -96], [-120, -96, -72]]], rtol=1e-14)


def test_xyz_virial_before_stress(tmp_path: Path) -> None:
    found = read_system(xyz(tmp_path, STRESSED.format(STRESS + ' virial="7 1 2 1 8 3 2 3 9"')), WATER)
    assert found.virial is not None
    np.testing.assert_array_equal(found.virial, [[[7.0, 1, 2], [1, 8, 3], [2, 3, 9]]])


def test_xyz_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 2 frames have energy"):
        read_system(xyz(tmp_path, XYZ.replace("energy=-1.25", "")), WATER)
    with pytest.raises(DataError, match="has neither energy nor forces nor another label"):
        read_system(xyz(tmp_path, "1\nProperties=species:S:1:pos:R:3\nO 0 0 0\n"), WATER)
    with pytest.raises(DataError, match="species O is not among the model's: H"):
        read_system(xyz(tmp_path, XYZ), ("H",))
    with pytest.raises(DataError, match="forces of frame 1: expected finite numbers"):
        read_system(xyz(tmp_path, XYZ.replace("-1.0 0.0 0.0", "nan 0.0 0.0")), WATER)


@pytest.mark.parametrize("text", ["", "hello\n", "3\nenergy=1\nO 0 0 0\n", "x\ny\nz\n"])
def test_what_is_no_xyz(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"data\.xyz (is not an extended XYZ file|holds no frame)"):
        read_system(xyz(tmp_path, text), WATER)


LABELLED = """2
Lattice="9 0 0 0 8 0 0 0 7" {columns} energy=1 dipole="1 2 3" polarizability="1 2 3 2 4 5 3 5 6" fparam="7 8"
O 0 0 0  1 2 3  0.5  4 5  9 8 7
H 1 0 0  3 2 1  1.5  6 7  6 5 4
"""
COLUMNS = "Properties=species:S:1:pos:R:3:force:R:3:atom_ener:R:1:aparam:R:2:atomic_dipole:R:3"


def test_xyz_of_all_kinds(tmp_path: Path) -> None:
    found = read_system(xyz(tmp_path, LABELLED.format(columns=COLUMNS)), WATER)
    assert found.labels.keys() == {"energy", "forces", "atom_energy", "dipole", "atom_dipole", "polar"}
    np.testing.assert_array_equal(found.forces, [[1, 2, 3], [3, 2, 1]])
    np.testing.assert_array_equal(found.atom_energy, [0.5, 1.5])
    np.testing.assert_array_equal(found.dipole, [[1, 2, 3]])
    np.testing.assert_array_equal(found.atom_dipole, [[9, 8, 7], [6, 5, 4]])
    np.testing.assert_array_equal(found.polar, [[[1, 2, 3], [2, 4, 5], [3, 5, 6]]])
    np.testing.assert_array_equal(found.frames.fparam, [[7, 8]])
    np.testing.assert_array_equal(found.frames.aparam, [[4, 5], [6, 7]])


def test_xyz_of_our_names(tmp_path: Path) -> None:
    columns = COLUMNS.replace("atomic_", "atom_").replace("atom_ener", "atom_energy").replace("force:", "forces:")
    text = LABELLED.format(columns=columns).replace("polarizability", "polar")
    first = read_system(xyz(tmp_path, LABELLED.format(columns=COLUMNS)), WATER)
    assert fingerprint([read_system(xyz(tmp_path, text), WATER)]) == fingerprint([first])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("1 2 3 2 4 5 3 5 6", "1 2 3", r"frame 0: polar: expected 1 × 3 × 3 numbers, got int64 of shape \(3,\)"),
        (
            "atom_ener:R:1:aparam:R:2",
            "aparam:R:1:atom_ener:R:2",
            "frame 0: atom_energy: expected 2 numbers, got float64",
        ),
        ('fparam="7 8"', "fparam=seven", "frame 0: fparam: expected 1 numbers, got <U5"),
    ],
)
def test_xyz_labels_of_another_shape(tmp_path: Path, old: str, new: str, expected: str) -> None:
    text = LABELLED.format(columns=COLUMNS)
    assert old in text
    with pytest.raises(DataError, match=expected):
        read_system(xyz(tmp_path, text.replace(old, new)), WATER)


def test_structures_that_no_model_can_answer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"frame 1: the position of atom 1 must be finite .*nan.*; remove the frame$"):
        read_system(xyz(tmp_path, XYZ.replace("H 0.0 0.0 0.7", "H 0.0 0.0 nan")), WATER)
    with pytest.raises(DataError, match=r"frame 1: the cell is singular: .*; if the system is open, .* pbc=\"F F F\""):
        read_system(xyz(tmp_path, XYZ.replace('pbc="F F F"', 'pbc="T T T"')), WATER)
