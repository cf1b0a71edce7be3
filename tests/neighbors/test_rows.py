"""Rows for kernels against the lists that vesin makes, which are held against ASE's."""

from __future__ import annotations

from dataclasses import replace

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
    edges = neighbors.build(replace(frame, is_ghost=None), reach)
    mine = np.ones(len(edges), dtype=bool) if frame.is_ghost is None else ~frame.is_ghost[edges.centre]
    found = table(centre, rows.neighbour, original)
    np.testing.assert_array_equal(found, table(edges.centre[mine], edges.neighbour[mine], edges.shift[mine]))
    np.testing.assert_array_equal(np.sort(rows.incoming), np.arange(rows.n_edges))
    ends_at = np.repeat(np.arange(frame.n_atoms), np.diff(rows.incoming_starts))
    np.testing.assert_array_equal(rows.neighbour[rows.incoming], ends_at)
    assert (rows.neighbour.dtype, rows.shift.dtype, rows.incoming.dtype) == (np.int32, np.int32, np.int32)
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


@settings(max_examples=100, deadline=None)
@given(frame=any_frame(), reach=st.floats(0.5, 6.0), seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_ghosts_have_no_edges_of_their_own(frame: Frames, reach: float, seed: int, share: float) -> None:
    assume(_is_apart(frame))
    assume(not np.any(np.abs(neighbors.build(frame, reach + 0.1).distance - reach) < 1e-9))
    is_ghost = np.random.default_rng(seed).random(frame.n_atoms) < share
    check(replace(frame, is_ghost=is_ghost), reach)


@pytest.mark.parametrize("name", CASES)
def test_none_but_ghosts(name: str) -> None:
    assert check(replace(CASES[name], is_ghost=np.ones(CASES[name].n_atoms, dtype=bool)), 6.0) == 0


def _is_apart(frame: Frames) -> bool:
    rows = build_rows(frame, 0.06, 1)
    return not rows.n_edges
