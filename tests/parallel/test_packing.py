from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dpserver.frames import Responses
from dpserver.parallel.packing import Contents, pack, packed_size, unpack
from dpserver.parallel.shares import Form
from tests import structures
from tests.ranks import Springs


@pytest.mark.parametrize("n_members", [0, 2])
def test_an_answer_comes_back_whole_or_not_at_all(n_members):
    frames = structures.cubic()
    form = Form(frames.types, None, frames.pbc, frames.counts)
    result = Springs(n_members=n_members).evaluate(frames)
    contents = Contents.of(result)
    assert contents == (n_members, 0)
    numbers = np.empty(packed_size(form, contents) + 1)
    pack(result, numbers)
    found = unpack(numbers[:-1], form, contents)
    for name in ("energy", "forces", "virial", "atom_energy", "frame_idx"):
        np.testing.assert_array_equal(getattr(found, name), getattr(result, name))
    if found.committee is not None and result.committee is not None:
        for name in ("energy", "forces", "virial"):
            np.testing.assert_array_equal(getattr(found.committee, name), getattr(result.committee, name))
    for wrong in (numbers, numbers[:-2]):
        with pytest.raises(ValueError, match=rf"with {n_members} members; {len(wrong)} have come"):
            unpack(wrong, form, contents)
    with pytest.raises(ValueError, match="with 1 members"):
        unpack(numbers[:-1], form, Contents(1))


@pytest.mark.parametrize("n_members", [0, 2])
@pytest.mark.parametrize(
    "kinds", [("dipole",), ("polar",), ("dipole", "born_charges"), ("dipole", "polar", "born_charges")]
)
def test_what_other_models_say_comes_along(n_members, kinds):
    frames = structures.cubic()
    form = Form(frames.types, None, frames.pbc, frames.counts)
    rng = np.random.default_rng(0)
    shapes = {"dipole": (1, 3), "polar": (1, 3, 3), "born_charges": (frames.n_atoms, 3, 3)}
    given = Responses(**{name: rng.normal(size=shapes[name]) for name in kinds})
    result = replace(Springs(n_members=n_members).evaluate(frames), responses=given)
    contents = Contents.of(result)
    numbers = np.empty(packed_size(form, contents))
    pack(result, numbers)
    found = unpack(numbers, form, contents)
    assert Contents.of(found) == contents
    np.testing.assert_array_equal(found.forces, result.forces)
    for name in shapes:
        np.testing.assert_array_equal(getattr(found.responses, name), getattr(given, name))
