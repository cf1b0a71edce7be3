"""Atoms in bins: each atom in one, ghosts last, and none within reach too many bins away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba")

from dpserver.neighbors.grid import Grid, find_bin, integers
from tests import structures
from tests.neighbors.test_lists import CASES


@pytest.mark.parametrize("name", CASES)
def test_each_atom_is_in_one_bin_and_in_the_cell(name: str) -> None:
    frame = structures.wrapped(CASES[name], np.random.default_rng(0))
    is_ghost = np.arange(frame.n_atoms) % 3 == 1
    grid = Grid.build(replace(frame, is_ghost=is_ghost), 3.0)
    np.testing.assert_array_equal(np.sort(grid.order), np.arange(frame.n_atoms))
    assert (grid.bounds[0], grid.bounds[-1], len(grid.ends)) == (0, frame.n_atoms, grid.n_bins.prod())
    for low, end, high in zip(grid.bounds[:-1], grid.ends, grid.bounds[1:], strict=True):
        assert not is_ghost[grid.order[low:end]].any()
        assert is_ghost[grid.order[end:high]].all()
    back = frame.positions - grid.wraps @ frame.cell[0]
    np.testing.assert_array_equal(grid.positions, back[grid.order])
    if frame.pbc[0].all():
        fractional = back @ np.linalg.inv(frame.cell[0])
        assert np.all((fractional > -1e-9) & (fractional < 1 + 1e-9))


def test_bins_beyond_a_face_are_those_of_an_image() -> None:
    frame = structures.water((3, 2, 2), structures.SHEAR, (True, True, False))
    grid = Grid.build(frame, 3.0)
    places = np.stack(np.unravel_index(np.arange(grid.n_bins.prod()), grid.n_bins), axis=1)
    for a in range(len(places)):
        for offset in integers(grid.n_around):
            there = places[a] + offset
            image = there // grid.n_bins
            found, image_of, is_inside = find_bin(a, offset, grid.table)
            assert is_inside == (image[2] == 0)
            if is_inside:
                np.testing.assert_array_equal(places[found], there - image * grid.n_bins)
                np.testing.assert_array_equal(grid.images[image_of], image)


def test_density() -> None:
    frame = structures.water((6, 6, 6))
    real = frame.n_atoms / np.linalg.det(frame.cell[0])
    assert Grid.build(frame, 6.0).density() == pytest.approx(real, rel=0.4)
    alone = structures.water((6, 6, 6), None, (False, False, False))
    assert Grid.build(alone, 6.0).density() == pytest.approx(real, rel=0.4)
