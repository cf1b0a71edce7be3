"""Detail files that DeePMD-kit's own cannot be an example for: frames of different composition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpserver.errors import ConfigError, DataError
from dpserver.train.data import join, read_system
from dpserver.train.details import DetailFiles
from dpserver.train.report import Comparison
from tests.train.datasets import WATER, system, write_mixed


def test_places_without_an_atom_have_no_line(tmp_path: Path) -> None:
    written = write_mixed(tmp_path / "a", 5, [([0, 1, 2, 3], [0, 1, 1, 1]), ([1, 4], [1, 0])])
    found = read_system(tmp_path / "a", WATER)
    files = DetailFiles(tmp_path / "x")
    files.write(Comparison(found, found.labels))
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "x.e_peratom.out")[:, 0], found.energy / np.array([4, 2]))
    forces = np.loadtxt(tmp_path / "x.f.out")
    np.testing.assert_array_equal(forces[:, :3], np.concatenate([frame["force"] for frame in written]))


def test_dipoles_of_frames_that_have_different_numbers_of_them(tmp_path: Path) -> None:
    made = join([system(1, 3), system(1, 4)])
    dipoles = {"dipole": np.ones((2, 3)), "atom_dipole": np.ones((7, 3))}
    labelled = replace(made, energy=None, forces=None, **dipoles)
    comparison = Comparison(labelled, dipoles, selected=(1,))
    DetailFiles(tmp_path / "x").write(comparison)
    assert np.loadtxt(tmp_path / "x.out").shape == (2, 6)
    with pytest.raises(DataError, match=r"made, made: atom_dipole of frames with \[1, 2\] atoms fit no one table"):
        DetailFiles(tmp_path / "y", atomic=True).write(comparison)


@pytest.mark.parametrize("prefix", ["nowhere/x", "."])
def test_where_no_file_can_be(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ConfigError, match="expected the beginning of a file name in an existing folder"):
        DetailFiles(tmp_path / prefix if prefix != "." else Path("/"))
