"""Whether pairs can have come in unseen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba")

from dpserver.frames import Frames
from dpserver.neighbors.motion import Snapshot
from tests import structures

RCUT, SKIN = 3.0, 0.8


def compare(snapshot: Snapshot, frame: Frames, limit: float = np.inf) -> tuple[bool, float]:
    return snapshot.compare(frame, RCUT, RCUT + SKIN, limit)


@pytest.mark.parametrize("make", [structures.triclinic, structures.slab, structures.wire, structures.cluster])
def test_half_of_the_skin(make) -> None:
    frame = make()
    snapshot, step = Snapshot.take(frame), np.zeros((frame.n_atoms, 3))
    for far, holds in ((0.0, True), (SKIN / 2 - 1e-6, True), (SKIN / 2 + 1e-6, False)):
        step[3] = far * np.array([0.6, 0.0, 0.8])
        found = compare(snapshot, structures.moved(frame, step))
        assert found == (holds, pytest.approx(far**2))


def test_what_moves_with_the_cell_has_not_moved() -> None:
    frame = structures.triclinic()
    shear = 0.6 * np.eye(3, k=1)
    holds, moved = compare(Snapshot.take(frame), structures.strained(frame, shear))
    assert (holds, moved) == (False, pytest.approx(0.0, abs=1e-24))  # but pairs have come in
    assert compare(Snapshot.take(frame), structures.strained(frame, 0.02 * np.diag([1, -1, 2])))[0]


def test_a_cell_shrinks_by_as_much_as_the_skin() -> None:
    frame = structures.cubic()
    for strain, holds in ((0.999, True), (1.001, False)):
        shrunk = structures.strained(frame, -strain * SKIN / (RCUT + SKIN) * np.eye(3))
        assert compare(Snapshot.take(frame), shrunk)[0] is holds


def test_beyond_the_limit_nobody_looks_further() -> None:
    frame = structures.cubic()
    assert compare(Snapshot.take(frame), structures.moved(frame, np.full((24, 3), 2.0)), limit=1.0) == (False, np.inf)
    assert compare(Snapshot.take(frame), structures.moved(frame, np.full((24, 3), np.nan))) == (False, np.inf)


def test_it_is_a_copy() -> None:
    frame = structures.cubic()
    snapshot = Snapshot.take(frame)
    frame.positions[0] += 1.0
    frame.cell[0] *= 0.5
    assert not compare(snapshot, frame)[0]
    assert compare(snapshot, replace(frame, positions=snapshot.positions, cell=snapshot.cell[None])) == (True, 0.0)
