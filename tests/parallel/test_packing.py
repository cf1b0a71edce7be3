from __future__ import annotations

import numpy as np
import pytest

from dpserver.parallel.packing import pack, packed_size, unpack
from dpserver.parallel.shares import Form
from tests import structures
from tests.ranks import Springs


@pytest.mark.parametrize("n_members", [0, 2])
def test_an_answer_comes_back_whole_or_not_at_all(n_members):
    frames = structures.cubic()
    form = Form(frames.types, None, frames.pbc, frames.counts)
    result = Springs(n_members=n_members).evaluate(frames)
    numbers = np.empty(packed_size(form, n_members) + 1)
    pack(result, numbers)
    found = unpack(numbers[:-1], form, n_members)
    for name in ("energy", "forces", "virial", "atom_energy", "frame_idx"):
        np.testing.assert_array_equal(getattr(found, name), getattr(result, name))
    if found.committee is not None and result.committee is not None:
        for name in ("energy", "forces", "virial"):
            np.testing.assert_array_equal(getattr(found.committee, name), getattr(result.committee, name))
    for wrong in (numbers, numbers[:-2]):
        with pytest.raises(ValueError, match=rf"with {n_members} members; {len(wrong)} have come"):
            unpack(wrong, form, n_members)
    with pytest.raises(ValueError, match="with 1 members"):
        unpack(numbers[:-1], form, 1)
