"""Whoever a structure is evaluated with, its answer is the same: a real potential, batches drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpserver.engine import Assigner, Engine, Order, Request
from dpserver.frames import Frames
from dpserver.ipi import Forces, Structures
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import scaled

SAME = 1e-12
"""Relative to the largest number of the frame."""

MODEL = {
    "type_map": list(structures.SPECIES),
    "descriptor": {
        "type": "se_e2_a",
        "sel": [20, 40],
        "rcut": 4.0,
        "rcut_smth": 0.5,
        "neuron": [4, 8, 8],
        "axis_neuron": 3,
    },
    "fitting_net": {"neuron": [10, 10]},
}

MESSAGES: Sequence[Sequence[Frames]] = [
    [structures.cubic(1)],
    [structures.cubic(2), structures.cubic(3), structures.cubic(4), structures.cubic(4), structures.cubic(4)],
    [structures.triclinic(5), structures.triclinic(6)],
    [structures.slab(7)],
    [structures.cluster(8), structures.cluster(9), structures.cluster(10)],
    [structures.tiny(11)],
    [structures.molecule(12)],
    [structures.wire(13)],
]
"""The structures of a message have one size; those of different messages differ in size, cell and boundaries."""


@cache
def potential(is_fast: bool) -> Potential:
    made = scaled(Potential(parse(ModelConfig, MODEL), seed=5), structures.cubic())
    if is_fast:
        made.accelerate(threads=2)
    return made


def request(frames: Sequence[Frames]) -> Request:
    sent = Structures(np.stack([f.positions for f in frames]), np.concatenate([f.cell for f in frames]))
    return Request(sent, Assigner(potential(False), Order(("O", "H", "H"), "--species"), "x"))


def answers(engine: Engine, batch: Sequence[int]) -> list[Forces]:
    made = engine.answer([request(MESSAGES[k]) for k in batch])
    assert all(isinstance(answer, Forces) for answer in made)
    return made


@cache
def alone(message: int, is_fast: bool) -> Sequence[Forces]:
    """Each frame of a message by itself."""
    engine = Engine(potential(is_fast))
    return [engine.answer([request([frame])])[0] for frame in MESSAGES[message]]


def assert_same(answer: Forces, message: int, is_fast: bool) -> None:
    expected = alone(message, is_fast)
    assert len(answer.energy) == len(expected)
    for k, frame in enumerate(expected):
        for name in ("energy", "forces", "virial"):
            got, want = getattr(answer, name)[k], getattr(frame, name)[0]
            assert np.abs(got - want).max() <= SAME * np.abs(want).max(), (name, message, k)


@pytest.mark.parametrize("is_fast", [False, True])
@settings(deadline=None, max_examples=40)
@given(
    order=st.permutations(range(len(MESSAGES))),
    cuts=st.lists(st.integers(1, len(MESSAGES) - 1), max_size=3),
    max_atoms=st.sampled_from([1, 30, 100, 10_000]),
)
def test_an_answer_does_not_depend_on_the_company(is_fast, order, cuts, max_atoms):
    engine = Engine(potential(is_fast), max_atoms)
    ends = [0, *sorted(cuts), len(order)]
    for lo, hi in pairwise(ends):
        for message, answer in zip(order[lo:hi], answers(engine, order[lo:hi]), strict=True):
            assert_same(answer, message, is_fast)


@pytest.mark.parametrize("is_fast", [False, True])
@settings(deadline=None, max_examples=10)
@given(batch=st.permutations(range(len(MESSAGES))), max_atoms=st.sampled_from([100, 10_000]))
def test_the_same_batch_has_the_same_bits(is_fast, batch, max_atoms):
    first, second = (answers(Engine(potential(is_fast), max_atoms), batch) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for name in ("energy", "forces", "virial"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
