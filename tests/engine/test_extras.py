"""What i-PI is told of a committee, read back as i-PI reads it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dpserver.engine.extras import _encode_lists, encode_extras
from dpserver.frames import Frames
from dpserver.units import BOHR, HARTREE
from tests import structures
from tests.doubles import PairModel
from tests.engine.committees import PairCommittee

KEYS = {"committee_pot", "committee_force", "committee_virial", "max_force_deviation"}


def strict(text: bytes) -> Any:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_members_in_atomic_units() -> None:
    frames = [structures.cubic(seed) for seed in (1, 2)]
    model = PairCommittee()
    extras = encode_extras(model.evaluate(Frames.concatenate(frames)))
    assert len(extras) == 2
    for frame, text in zip(frames, extras, strict=True):
        found = strict(text)
        assert set(found) == KEYS
        alone = [member.evaluate(frame) for member in model.members]
        np.testing.assert_allclose(found["committee_pot"], [r.energy[0] / HARTREE for r in alone], rtol=1e-14)
        forces = [r.forces.ravel() / HARTREE * BOHR for r in alone]
        np.testing.assert_allclose(found["committee_force"], forces, rtol=0, atol=6e-13)
        np.testing.assert_allclose(found["committee_virial"], [r.virial.ravel() / HARTREE for r in alone], rtol=1e-12)
        spread = np.linalg.norm(np.array(forces).std(axis=0).reshape(-1, 3), axis=1).max()
        assert found["max_force_deviation"] == pytest.approx(spread, rel=1e-12)
        assert spread > 1e-4, "the members are too much alike to test anything"


def test_shapes_are_those_that_ffcommittee_takes_apart() -> None:
    """It adds up the lists of its force fields: one entry for each member, however long."""
    (text,) = encode_extras(PairCommittee().evaluate(structures.cubic()))
    found = strict(text)
    assert [len(found[key]) for key in ("committee_pot", "committee_force", "committee_virial")] == [3, 3, 3]
    assert {len(row) for row in found["committee_force"]} == {3 * 24}
    assert {len(row) for row in found["committee_virial"]} == {9}


def test_a_single_model_has_nothing_to_add() -> None:
    assert encode_extras(PairModel().evaluate(structures.cubic())) == []


@given(
    arrays.arrays(
        np.float64, st.tuples(st.just(2), st.just(3), st.integers(1, 7)), elements=st.floats(-9.5, 9.5, width=64)
    )
)
def test_any_force_is_read_again(values: np.ndarray) -> None:
    found = [strict(text) for text in _encode_lists(values)]
    np.testing.assert_allclose(found, values, rtol=0, atol=6e-13)


@pytest.mark.parametrize("value", [9.4999999999996, -9.5, 0.0, -0.0, 5e-13, -4e-13, 0.9999999999999, 9.50000001, -1e5])
def test_awkward_numbers(value: float) -> None:
    (text,) = _encode_lists(np.array([[[value, 1.0]]]))
    assert strict(text) == [[pytest.approx(value, abs=6e-13), 1.0]]
