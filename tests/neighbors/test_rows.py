"""Rows for kernels against the lists that vesin makes, which are held against ASE's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dpserver import neighbors
from dpserver.frames import Frames
from dpserver.jit import jit
from dpserver.kernels.threads import Threads
from dpserver.neighbors import rows
from dpserver.neighbors.rows import build_rows
from dpserver.neighbors.selection import HAS_VECTORS, LANES, find_in_vectors, find_plainly
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
    """Many bins; and many images of few atoms."""
    assert check(structures.water((7, 6, 5)), 3.0) > 5000
    assert check(structures.tiny(), 13.0) > 64 * 3 * 2


@pytest.mark.parametrize("n_threads", [2, 3])
@pytest.mark.parametrize("ghosts", [False, True])
def test_the_same_rows_for_any_number_of_threads(n_threads: int, ghosts: bool) -> None:
    frame = structures.water((12, 6, 6))
    frame = replace(frame, is_ghost=frame.positions[:, 0] > frame.positions[:, 0].mean()) if ghosts else frame
    assert frame.n_atoms > 1000
    alone, together = build_rows(frame, 4.5, 2), build_rows(frame, 4.5, 2, workers=Threads(n_threads))
    for name in vars(alone):
        np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))


def test_the_same_rows_for_fewer_parts_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = structures.water((12, 6, 6))
    alone = build_rows(frame, 4.5, 2)
    monkeypatch.setattr(rows, "_MOST_PARTS", 2)
    together = build_rows(frame, 4.5, 2, workers=Threads(3))
    np.testing.assert_array_equal(together.incoming, alone.incoming)
    np.testing.assert_array_equal(together.incoming_starts, alone.incoming_starts)


def test_room_grows_where_atoms_are_crowded() -> None:
    """One dense cluster in a wide cell: one piece of the work has nearly all edges."""
    rng = np.random.default_rng(3)
    positions = np.concatenate([rng.uniform(0, 60, (700, 3)), 30 + rng.uniform(0, 3.0, (300, 3))])
    frame = Frames.single(positions, rng.integers(0, 2, 1000), 60 * np.eye(3))
    assert check(frame, 5.0) > 300 * 250


def test_more_edges_than_there_is_memory_for() -> None:
    frame = structures.water((5, 5, 5))
    n_edges = build_rows(frame, 6.0, 2).n_edges
    assert build_rows(frame, 6.0, 2, max_edges=n_edges).n_edges == n_edges
    with pytest.raises(MemoryError, match=rf"{frame.n_atoms} atoms have more than {n_edges - 1} neighbours within 6 Å"):
        build_rows(frame, 6.0, 2, max_edges=n_edges - 1)


@pytest.mark.parametrize("but", [-1, 11])
@pytest.mark.parametrize(("first", "end"), [(0, 0), (3, 4), (0, 8), (5, 22), (2, 40)])
def test_runs_by_vectors_and_plainly(first: int, end: int, but: int) -> None:
    """Both ways find the same, after what was there before, and what a comparison of numpy says."""
    x, y, z = np.random.default_rng(end).uniform(0, 3, (3, 40 + LANES))
    atoms = np.arange(100, 140 + LANES, dtype=np.int32)
    is_near = (x - 1.0 + 0.2) ** 2 + (y - 1.5 - 0.1) ** 2 + (z - 0.5) ** 2 < 1.0
    expected = [q for q in range(first, end) if is_near[q] and q != but]
    ways: list[Any] = [_plainly, _in_vectors] if HAS_VECTORS else [_plainly]
    for way in ways:
        found, images = (np.full(45 + LANES, -5, dtype=np.int32) for _ in range(2))
        n = way(x, y, z, atoms, first, end, but, found, images)
        np.testing.assert_array_equal(found[:n], [-5] * 4 + [100 + q for q in expected])
        np.testing.assert_array_equal(images[4:n], 7)


@jit
def _plainly(x, y, z, atoms, first, end, but, found, images):  # type: ignore[no-untyped-def]
    return find_plainly(x, y, z, atoms, 1.0, 1.5, 0.5, 0.2, -0.1, 0.0, 1.0, first, end, but, 7, found, images, 4)


@jit
def _in_vectors(x, y, z, atoms, first, end, but, found, images):  # type: ignore[no-untyped-def]
    return find_in_vectors(x, y, z, atoms, 1.0, 1.5, 0.5, 0.2, -0.1, 0.0, 1.0, first, end, but, 7, found, images, 4)


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
