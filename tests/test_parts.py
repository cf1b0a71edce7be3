"""Sums over parts that are threads: those of one array, and the same bits for all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpserver.frames import Frames
from dpserver.parts import Wholes, add_up, gather
from tests import structures
from tests.meetings import Seat, together


@pytest.mark.parametrize("shape", [(0,), (1,), (5, 3), (4097,), (11, 13, 60)])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_arrays_are_added_up(count, shape):
    given_ = np.random.default_rng(0).normal(size=(count, *shape))

    def job(seat: Seat):
        mine = given_[seat.number].copy()
        add_up(seat, mine)
        return mine

    found = together(count, job)
    np.testing.assert_allclose(found[0], given_.sum(axis=0), rtol=1e-13, atol=1e-14)
    assert all(np.array_equal(found[0], other) for other in found)


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=4), n_columns=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_rows_are_put_one_after_the_other(counts, n_columns):
    rows = [np.random.default_rng(k).normal(size=(n, n_columns)) for k, n in enumerate(counts)]
    found = together(len(counts), lambda seat: gather(seat, rows[seat.number]))
    for k, (every, first) in enumerate(found):
        np.testing.assert_array_equal(every, np.concatenate(rows))
        np.testing.assert_array_equal(every[first : first + counts[k]], rows[k])


def test_wholes_go_with_their_frames():
    seat = together(1, lambda seat: seat)[0]
    wholes = Wholes(np.eye(3)[None] * 9, np.ones((1, 3), dtype=bool), np.array([40]), seat)
    part, other = structures.molecule(), structures.cubic()
    mine = Frames(part.positions, part.types, part.cell, part.pbc, part.frame_idx, wholes=wholes)
    joined = Frames.concatenate([other, mine, other])
    assert joined.wholes is not None
    assert joined.wholes.is_part.tolist() == [False, True, False]
    assert joined.wholes.counts.tolist() == [0, 40, 0]
    assert joined[1].wholes is not None
    np.testing.assert_array_equal(joined[1].wholes.cell, wholes.cell)
    assert joined[1].wholes.pbc.all()
    assert joined.part(0, 1).wholes is not None
    assert not joined.part(0, 1).wholes.is_part.any()
    assert Frames.concatenate([other, other]).wholes is None
