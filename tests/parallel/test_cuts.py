from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dpserver.errors import StructureError
from dpserver.frames import Frames
from dpserver.parallel.balance import Balance
from dpserver.parallel.cuts import Cuts
from tests import structures

FRAME = structures.water((4, 3, 3))


def moved(frame: Frames, far: float, seed: int = 0) -> Frames:
    rng = np.random.default_rng(seed)
    return replace(frame, positions=frame.positions + far * rng.uniform(-1, 1, frame.positions.shape))


def test_a_decomposition_serves_until_atoms_have_moved_by_half_the_skin():
    cuts = Cuts(3.0, 1.0)
    (first,) = cuts.find([FRAME], [3])
    for far in (0.0, 0.1, 0.25):
        assert cuts.find([moved(FRAME, far)], [3])[0] is first
    assert cuts.find([moved(FRAME, 0.9)], [3])[0] is not first
    assert cuts.find([FRAME], [3])[0] is first
    assert cuts.n_built == 2


def test_numbers_of_parts_and_other_atoms_have_their_own():
    cuts = Cuts(3.0, 1.0)
    other = replace(FRAME, types=FRAME.types[::-1].copy())
    found = cuts.find([FRAME, FRAME, other], [2, 3, 2])
    assert [cut.n_parts for cut in found] == [2, 3, 2]
    assert cuts.n_built == 3


def test_beads_in_any_order():
    cuts = Cuts(3.0, 1.0)
    beads = [moved(FRAME, 1.0, seed) for seed in range(5)]
    first = cuts.find(beads, [2] * 5)
    for order in ([4, 3, 2, 1, 0], [2, 0], [1, 4, 3]):
        assert cuts.find([beads[k] for k in order], [2] * len(order)) == [first[k] for k in order]
    assert cuts.n_built == 5


def test_what_is_not_used_is_forgotten():
    cuts = Cuts(3.0, 1.0)
    for seed in range(30):
        cuts.find([moved(FRAME, 2.0, seed)], [2])
    assert sum(len(kind.known) for kind in cuts._kinds.values()) <= 6
    for n in range(2, 30):
        cuts.find([FRAME], [n])
    assert len(cuts._kinds) <= 6


def test_an_absurd_density_is_refused():
    frame = Frames.single(np.arange(12.0).reshape(4, 3), [0] * 4, np.eye(3) * 0.05)
    with pytest.raises(StructureError, match="neighbours an atom"):
        Cuts(3.0, 1.0).find([frame], [2])


def test_unequal_times_move_the_cuts_once():
    cuts = Cuts(3.0, 1.0)
    balance = Balance(cuts)
    (first,) = cuts.find([FRAME], [2])
    for _ in range(20):
        (cut,) = cuts.find([FRAME], [2])
        balance.note(FRAME, cut, cut.n_owned * np.array([1.0, 2.0]))
    assert cut is not first
    assert cut.n_owned[0] > 1.5 * cut.n_owned[1]
    assert cuts.n_built == 2


def test_equal_times_leave_them_where_they_are():
    cuts = Cuts(3.0, 1.0)
    balance = Balance(cuts)
    for _ in range(30):
        (cut,) = cuts.find([FRAME], [2])
        balance.note(FRAME, cut, np.array([1.0, 1.05]))
    assert cuts.n_built == 1
