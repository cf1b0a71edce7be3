"""Rows for kernels against the lists that vesin makes, which are held against ASE's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dpserver import neighbors
from dpserver.frames import Frames
from dpserver.neighbors.rows import build_rows
from tests import structures
from tests.neighbors.test_lists import CASES, any_frame, table


def check(frame: Frames, reach: float) -> int:
    """Compare with vesin, and rows with what they promise; return the number of edges."""
    n_species = 2
    rows = build_rows(frame, reach, n_species)
    row = np.repeat(np.arange(frame.n_atoms * n_species), np.diff(rows.starts))
    centre, species = row // n_species, row % n_species
    np.testing.assert_array_equal(frame.types[rows.neighbour], species)
    shift = rows.shifts[rows.shift]
    original = shift - rows.wraps[rows.neighbour] + rows.wraps[centre]
    edges = neighbors.build(frame, reach)
    found = table(centre, rows.neighbour, original)
    np.testing.assert_array_equal(found, table(edges.centre, edges.neighbour, edges.shift))
    np.testing.assert_array_equal(rows.reverse[rows.reverse], np.arange(rows.n_edges))
    np.testing.assert_array_equal(rows.neighbour[rows.reverse], centre)
    np.testing.assert_array_equal(shift[rows.reverse], -shift)
    assert (rows.neighbour.dtype, rows.shift.dtype, rows.reverse.dtype) == (np.int32, np.int32, np.int32)
    return rows.n_edges


@pytest.mark.parametrize("reach", [0.5, 3.0, 6.0])
@pytest.mark.parametrize("name", CASES)
def test_same_edges_as_vesin(name: str, reach: float) -> None:
    check(CASES[name], reach)


@pytest.mark.parametrize("name", CASES)
def test_atoms_many_cells_away(name: str) -> None:
    far = structures.wrapped(CASES[name], np.random.default_rng(5), far=50)
    assert check(far, 4.0) == check(CASES[name], 4.0)


def test_a_large_frame_and_a_dense_one() -> None:
    """Many bins; and more pairs than there is room for at first."""
    assert check(structures.water((7, 6, 5)), 3.0) > 5000
    assert check(structures.tiny(), 13.0) > 64 * 3 * 2


@settings(max_examples=150, deadline=None)
@given(frame=any_frame(), reach=st.floats(0.5, 6.0))
def test_same_edges_as_vesin_for_any_frame(frame: Frames, reach: float) -> None:
    distances = neighbors.build(frame, reach + 0.1).distance if _is_apart(frame) else np.zeros(1)
    assume(not np.any(np.abs(distances - reach) < 1e-9))  # either answer would be right
    assume(not np.any(distances < 0.06))
    check(frame, reach)


def _is_apart(frame: Frames) -> bool:
    rows = build_rows(frame, 0.06, 1)
    return not rows.n_edges
