"""Structures that are too large for the memory, evaluated in parts."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from dpserver.engine import ForceModel
from dpserver.engine.runner import Runner
from dpserver.errors import StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.models import accelerated, atomic, memory
from dpserver.models.potential import Potential
from dpserver.parallel.domain import Decomposition
from dpserver.parallel.pieces import Pieces
from tests import structures
from tests.contract import EvaluationContract
from tests.models import committees, test_se_e2_a
from tests.parallel.test_domain import CASES, assert_equal


class Small:
    """A model with memory for some centres."""

    can_cut = True

    def __init__(self, model: Potential, most: int) -> None:
        self.model, self.most = model, most
        self.species, self.rcut, self.template = model.species, model.rcut, model.template
        self.min_distance = model.min_distance
        self.asked: list[int] = []

    def evaluate(self, frames: Frames) -> ForceResult:
        n = int((~frames.is_ghost).sum()) if frames.is_ghost is not None else frames.n_atoms
        self.asked.append(n)
        if n > self.most:
            raise MemoryError("no room")
        return self.model.evaluate(frames)


class TestContract(EvaluationContract):
    """With memory for every structure by itself and for no more than two of the larger ones together."""

    def potential(self) -> ForceModel:
        return Pieces(test_se_e2_a.make())

    def frames(self) -> Frames:
        return test_se_e2_a.every_cell()


@pytest.fixture(scope="module")
def model() -> Potential:
    found = committees.member(3)
    found.accelerate(1, 1e-12)
    return found


def test_what_fits_is_evaluated_as_it_is(model: Potential) -> None:
    small = Small(model, 1000)
    frame = CASES["cubic"]
    np.testing.assert_array_equal(Pieces(small).evaluate(frame).forces, model.evaluate(frame).forces)
    assert small.asked == [81]


LARGE = {
    "triclinic": structures.water((5, 4, 3), structures.SHEAR),
    "droplet": CASES["droplet"],
    "vacuum": structures.supercell(structures.supercell(CASES["vacuum"], 0), 1),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_does_not_is_halved_until_it_does(name: str, model: Potential, caplog: pytest.LogCaptureFixture) -> None:
    frame = LARGE[name]
    small = Small(deepcopy(model), frame.n_atoms // 3)
    pieces = Pieces(small)
    with caplog.at_level(logging.WARNING):
        result = pieces.evaluate(frame)
    assert_equal(result, model.evaluate(frame))
    assert pieces.most_centres is not None
    assert frame.n_atoms / 5 < pieces.most_centres <= frame.n_atoms / 2
    assert all(record.message.endswith("one after the other") for record in caplog.records)
    assert "are more than the memory holds (no room); evaluated in parts of" in caplog.text
    tried = len(small.asked)
    caplog.clear()
    moved = structures.moved(frame, np.full(frame.positions.shape, 0.1))
    assert_equal(pieces.evaluate(moved), model.evaluate(moved))
    assert max(small.asked[tried:]) <= small.most
    assert not caplog.records


def test_a_rank_cuts_its_part_once_more(model: Potential) -> None:
    frame = structures.water((5, 5, 5))
    cut = Decomposition.build(frame, 2, model.rcut)
    small = Small(deepcopy(model), 80)
    pieces = Pieces(small)
    results: list[Any] = [pieces.evaluate(cut.local(frame, k)) for k in range(2)]
    assert_equal(cut.total(results), model.evaluate(frame))
    assert len(small.asked) > 6


def test_several_structures_are_the_runners_to_cut(model: Potential) -> None:
    frame = structures.water((4, 4, 4))
    small = Small(deepcopy(model), 150)
    with pytest.raises(MemoryError, match="no room"):
        Pieces(small).evaluate(Frames.concatenate([frame, frame]))
    outcomes = Runner(Pieces(small)).run([frame, structures.cubic(), frame])
    for outcome, expected in zip(outcomes, [frame, structures.cubic(), frame], strict=True):
        assert isinstance(outcome, ForceResult)
        assert_equal(outcome, model.evaluate(expected))


def test_other_errors_are_passed_on(model: Potential) -> None:
    frame = structures.water((4, 4, 4))
    frame.positions[100] = frame.positions[3] + 0.01
    for most in (1000, 100):
        with pytest.raises(StructureError, match=r"atoms (100 and 3|3 and 100) are .* apart"):
            Pieces(Small(deepcopy(model), most)).evaluate(frame)
    frame.positions[100] = np.nan
    pieces = Pieces(Small(model, 100))
    pieces.most_centres = 100
    with pytest.raises(StructureError, match="position of atom 100 is not finite"):
        pieces.evaluate(frame)


def test_what_cannot_be_cut_is_not(model: Potential) -> None:
    small = Small(model, 100)
    small.can_cut = False
    with pytest.raises(MemoryError, match="no room"):
        Pieces(small).evaluate(structures.water((4, 4, 4)))
    assert small.asked == [192]


def test_a_committee_in_parts() -> None:
    committee, frame = committees.committee(), structures.water((4, 4, 4))
    pieces = Pieces(committee)
    pieces.most_centres = 100
    result, expected = pieces.evaluate(frame), committee.evaluate(frame)
    assert_equal(result, expected)
    np.testing.assert_allclose(result.committee.forces, expected.committee.forces, rtol=0, atol=1e-11)


def test_the_kernels_say_when_their_lists_do_not_fit(model: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = structures.water((5, 5, 5))
    expected = model.evaluate(frame)
    fresh = deepcopy(model)
    monkeypatch.setattr(accelerated, "memory_left", lambda: 600_000)
    with pytest.raises(MemoryError, match=r"375 atoms have more than .* too many for one neighbour list"):
        fresh.evaluate(frame)
    pieces = Pieces(deepcopy(model))
    assert_equal(pieces.evaluate(frame), expected)
    assert pieces.most_centres == 187


def test_so_does_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = committees.member(3)
    frame = structures.water((4, 4, 4))
    expected = plain.evaluate(frame)
    monkeypatch.setattr(atomic, "_MANY_EDGES", 1000)
    monkeypatch.setattr(memory, "memory_left", lambda: 1_500_000)
    with pytest.raises(
        MemoryError, match=r"evaluating 192 atoms with \d+ neighbours takes about .* GB of memory are left"
    ):
        plain.evaluate(frame)
    assert_equal(Pieces(plain).evaluate(frame), expected)
