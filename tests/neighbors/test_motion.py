"""Whether pairs can have come in unseen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dpserver.frames import Frames
from dpserver.neighbors.motion import Sightings, Snapshot
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


KINDS = (structures.triclinic, structures.slab, structures.wire, structures.cluster, structures.molecule)


@pytest.mark.parametrize("make", KINDS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), strain=st.floats(0, 0.3), moves=st.floats(0, 0.8))
def test_a_first_look_promises_no_less_than_a_second_one_finds(make, seed: int, strain: float, moves: float) -> None:
    """A frame against many snapshots: whatever holds may hold, and some atom has moved no further than the farthest."""
    rng, frame, sightings, limit = np.random.default_rng(seed), make(), Sightings(), 1.5 * SKIN

    def changed() -> Frames:
        deformed = structures.strained(frame, rng.uniform(0, strain) * rng.uniform(-1, 1, (3, 3)))
        step = rng.uniform(0, moves) * rng.uniform(-1, 1, frame.positions.shape)
        return structures.moved(deformed, step)

    snapshots = [Snapshot.take(changed()) for _ in range(12)]
    for place, snapshot in enumerate(snapshots):
        sightings.put(snapshot, place)
    snapshots[5] = Snapshot.take(frame)
    sightings.put(snapshots[5], 5)
    sightings.keep([0, *range(2, 12)])
    del snapshots[1]
    later = changed()
    least, may_hold = sightings.compare(later, RCUT, RCUT + SKIN, limit)
    assert len(least) == len(may_hold) == len(snapshots)
    for k, snapshot in enumerate(snapshots):
        holds, moved = compare(snapshot, later, limit)
        assert may_hold[k] or not holds
        assert least[k] <= moved * (1 + 1e-9) + 1e-20
        if frame.n_atoms <= 8 and np.isfinite(moved):
            assert least[k] == pytest.approx(moved, abs=1e-20)


def test_a_first_look_sees_that_all_has_moved_with_the_cell_and_that_it_has_shrunk_too_far() -> None:
    sightings, frame = Sightings(), structures.triclinic()
    sightings.put(Snapshot.take(frame), 0)
    for strain, expected in ((0.0, True), (0.9, True), (1.1, False)):
        shrunk = structures.strained(frame, np.diag([-strain * SKIN / (RCUT + SKIN), 0.02, 0.0]))
        moved, may_hold = sightings.compare(shrunk, RCUT, RCUT + SKIN, 1.0)
        assert may_hold.tolist() == [expected]
        assert moved == pytest.approx(0.0, abs=1e-20)
    far = structures.moved(frame, np.full(frame.positions.shape, 1.0))
    assert np.isinf(sightings.compare(far, RCUT, RCUT + SKIN, 1.0)[0]).all()
    no_number = structures.moved(frame, np.full(frame.positions.shape, np.nan))
    assert not sightings.compare(no_number, RCUT, RCUT + SKIN, 1.0)[1].any()
