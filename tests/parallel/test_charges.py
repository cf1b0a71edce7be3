"""Charges of structures in parts: ranks that are threads, and what they say against one that has the whole."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpserver.frames import Frames
from dpserver.parallel.meeting import Meeting
from dpserver.parallel.plan import Decompose, Plan, Sizes, Speeds
from tests import structures
from tests.parallel.charged import BATCHES, OPEN, ChargedSprings, agree
from tests.parallel.test_ranked import moved
from tests.ranks import ranked


@pytest.mark.parametrize(
    ("n_ranks", "method", "way"),
    [
        (1, "auto", Decompose.SPACE),
        (2, "pme", Decompose.SPACE),
        (3, "ewald", Decompose.SPACE),
        (4, "auto", Decompose.SPACE),
        (4, "pme", Decompose.AUTO),
        (2, "auto", Decompose.BEADS),
    ],
)
def test_ranks_say_what_one_says(n_ranks, method, way):
    model = ChargedSprings(method=method)
    with ranked(model, n_ranks, lambda rank, file: ChargedSprings(method=method), decompose=way) as found:
        found.warm_up()
        for name, frames in BATCHES.items():
            for step in range(3):
                now = moved(frames, step) if step else frames
                agree(found.evaluate(now), model.evaluate(now))
            if name == "one" and way is Decompose.SPACE and n_ranks > 1:
                assert f"in {n_ranks} parts" in found.choice


@given(
    n_ranks=st.integers(2, 4),
    way=st.sampled_from([Decompose.SPACE, Decompose.AUTO]),
    batches=st.lists(
        st.lists(
            st.tuples(st.booleans(), st.sampled_from([(1, 1, 1), (2, 1, 1), (2, 2, 1)]), st.integers(0, 7)),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=4,
    ),
    method=st.sampled_from(["ewald", "pme"]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_batches_in_any_order(n_ranks, way, batches, method):
    """Neutral and charged ones, open and in a cell, cut or not, some of them over some of the ranks."""
    given_ = {"method": method, "accuracy": 1e-3}
    model = ChargedSprings(2.5, **given_)
    with ranked(model, n_ranks, lambda rank, file: ChargedSprings(2.5, **given_), decompose=way) as found:
        for batch in batches:
            parts = []
            for is_open, n, seed in batch:
                water = structures.water(n, structures.SHEAR, OPEN if is_open else (True, True, True), seed)
                keep = slice(seed % 3, None)
                parts.append(Frames.single(water.positions[keep], water.types[keep], water.cell[0], water.pbc[0]))
            frames = Frames.concatenate(parts)
            agree(found.evaluate(frames), model.evaluate(frames))


def test_groups_of_ranks_meet_by_themselves():
    """Four structures over two groups of two ranks; and one that is too small for its group among them."""
    model, ways = ChargedSprings(), []
    frames = Frames.concatenate([structures.water((3, 2, 2), seed=k) for k in range(3)] + [structures.atom(1)])

    def in_groups(sizes, n_ranks, speeds, decompose):
        ways.append(sizes.counts)
        return Plan(((0, 1), (2, 3), (0, 1), (2, 3)), 1.0)

    with (
        pytest.MonkeyPatch.context() as patch,
        ranked(model, 4, lambda rank, file: ChargedSprings()) as found,
    ):
        patch.setattr("dpserver.parallel.ranked.choose", in_groups)
        for step in range(2):
            now = moved(frames, step) if step else frames
            agree(found.evaluate(now), model.evaluate(now))
    assert ways


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_all_ranks_warm_up_where_charges_have_to_add_up(n_ranks):
    seen: list[int] = []

    def count(frames: Frames) -> None:
        seen.append(frames.n_atoms if frames.is_ghost is None else int((~frames.is_ghost).sum()))

    models = [ChargedSprings(total_charge=0.0, late=count) for _ in range(n_ranks)]
    with ranked(models[0], n_ranks, lambda rank, file: models[rank]) as found:
        found.warm_up()
        assert seen == [2] * n_ranks
        agree(found.evaluate(BATCHES["one"]), models[0].evaluate(BATCHES["one"]))


def test_structures_that_are_too_small_for_a_cut_are_dealt_out():
    """Of atoms on two ranks each rank has as many, where neither can have a part."""
    models = [ChargedSprings() for _ in range(2)]
    atoms = Frames.concatenate(structures.atom(k % 2) for k in range(6))
    with ranked(models[0], 2, lambda rank, file: models[rank], decompose=Decompose.SPACE) as found:
        agree(found.evaluate(atoms), ChargedSprings().evaluate(atoms))
        assert [model.n_evaluations for model in models] == [1, 1]
        assert found.choice == "whole structures over 2 ranks"
        big = structures.water((4, 3, 3))
        found.evaluate(Frames.concatenate([big, structures.atom(0)]))
        assert found.choice == "groups of 1 to 2 ranks for each structure, 2 ranks in all"


def test_time_spent_waiting_is_not_that_of_a_part(monkeypatch):
    """It is what meeting costs, which the next plan takes into account."""
    frames, seen, close = structures.water((4, 3, 3)), [], Meeting.close

    def wait_long(meeting: Meeting, *, is_good: bool) -> None:
        close(meeting, is_good=is_good)
        meeting.waited = 1e4 * (1 + meeting.number)

    monkeypatch.setattr(Meeting, "close", wait_long)
    with ranked(ChargedSprings(), 2, lambda rank, file: ChargedSprings(), decompose=Decompose.SPACE) as found:
        monkeypatch.setattr(found._balance, "note", lambda frame, cut, seconds: seen.append(seconds))
        speeds = found._experience.speeds
        for k in range(4):
            assert speeds.greeting < 1e-3, k
            found.evaluate(frames)
        assert speeds.greeting == pytest.approx(1e4)
        found._decompose = Decompose.AUTO
        found.evaluate(structures.water((4, 4, 3)))
        assert found.choice == "whole structures over 1 rank"
    for seconds in seen[:2]:
        assert seconds == pytest.approx([-1e4, -2e4], rel=0.1)


def test_parts_that_meet_are_tried_again(monkeypatch):
    """Slow meetings are no reason for ever: what was slow may be over, and a measurement costs a few evaluations."""
    monkeypatch.setattr("dpserver.parallel.ranked.choose", by_greeting)
    monkeypatch.setattr("dpserver.parallel.experience.Usual.note", lambda usual, seconds: 1.0)
    atoms, parts = structures.water((2, 1, 1)), []
    with ranked(ChargedSprings(), 2, lambda rank, file: ChargedSprings()) as found:
        for _ in range(125):
            found.evaluate(atoms)
            parts.append("parts" in found.choice)
    assert parts == [True] * 3 + [False] * 97 + [True] * 10 + [False] * 15


def by_greeting(sizes: Sizes, n_ranks: int, speeds: Speeds, decompose: Decompose) -> Plan:
    """In parts, unless it is known that they take long to meet."""
    ranks = (0,) if speeds.greeting > 0.5 else tuple(range(n_ranks))
    return Plan((ranks,) * len(sizes.counts), 1.0)
