"""Ranks that meet while they evaluate: what they exchange, and that none waits for one that has failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpserver.errors import AbandonedError, DeviceError, StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.parallel.meeting import Meeting, MeetingLostError, evaluate
from dpserver.parts import add_up
from tests import structures
from tests.patience import PATIENCE
from tests.ranks import World, patience


def meet(members: list[int], job: Callable[[Meeting], Any], size: int = 0) -> dict[int, Any]:
    """What each member finds, or the error that it meets."""
    world, over, found = World(size or max(members) + 1), threading.Event(), {}

    def work(rank: int) -> None:
        meeting = Meeting(world.group(rank), members, patience(over.is_set))
        try:
            found[rank] = job(meeting)
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    is_stuck = any(thread.is_alive() for thread in threads)
    over.set()
    assert not is_stuck, "some wait for ever"
    assert not any(world.boxes.values()), "messages were left"
    return found


class Failing:
    """A model that adds something up a few times, or fails before."""

    def __init__(self, meeting: Meeting, n: int, failure: tuple[int, Exception] | None) -> None:
        self.meeting, self.n, self.failure = meeting, n, failure

    def evaluate(self, frames: Frames) -> ForceResult:
        values = np.ones(3)
        for k in range(self.n + 1):
            if self.failure is not None and self.failure[0] == k:
                raise self.failure[1]
            if k < self.n:
                add_up(self.meeting, values)
        return ForceResult(values, values, values, values, frames.frame_idx)


@pytest.mark.parametrize("members", [[0], [0, 1], [1, 3, 2]])
def test_members_add_up(members):
    def job(meeting: Meeting) -> tuple[int, np.ndarray]:
        large = np.full(5000, 1.0 + meeting.number)
        add_up(meeting, large)
        meeting.close(is_good=True)
        meeting.close(is_good=True)  # once is enough
        return meeting.number, large

    for rank, (number, values) in meet(members, job, 5).items():
        assert members[number] == rank
        np.testing.assert_array_equal(values, sum(range(1, len(members) + 1)))


@given(
    size=st.integers(1, 4),
    n=st.integers(0, 3),
    failures=st.dictionaries(st.integers(0, 3), st.integers(0, 3), max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_whoever_fails_wherever_all_go_on_afterwards(size, n, failures):
    """Each evaluation ends for all; those that have not failed have an answer, or know that another has."""
    failures = {rank: (min(at, n), StructureError(f"rank {rank}")) for rank, at in failures.items() if rank < size}

    def job(meeting: Meeting) -> ForceResult:
        model = Failing(meeting, n, failures.get(meeting.number))
        return evaluate(model, structures.atom, meeting)

    first = min((at for at, _ in failures.values()), default=n + 1)
    for rank, found in meet(list(range(size)), job).items():
        if rank in failures and failures[rank][0] == first:
            assert str(found) == f"rank {rank}"
        elif first < n:
            assert isinstance(found, AbandonedError)
        elif rank not in failures:
            np.testing.assert_array_equal(found.energy, float(size) ** n)


def test_after_the_end_nothing_is_exchanged():
    def job(meeting: Meeting) -> None:
        meeting.close(is_good=True)
        add_up(meeting, np.ones(1))

    assert all(isinstance(error, AbandonedError) for error in meet([0, 1], job).values())


def test_who_is_at_another_place_is_noticed():
    def job(meeting: Meeting) -> ForceResult:
        return evaluate(Failing(meeting, 1 + meeting.number, None), structures.atom, meeting)

    for error in meet([0, 1], job).values():
        assert isinstance(error, MeetingLostError)
        assert "at different places: [1, 0]" in str(error) or "at different places: [0, 1]" in str(error)


def test_a_rank_that_is_gone_is_no_refusal():
    world = World(2)

    def check() -> None:
        raise DeviceError("rank 1 was killed")

    meeting = Meeting(world.group(0), [0, 1], replace(patience(), check=check))
    with pytest.raises(MeetingLostError, match="rank 1 was killed") as caught:
        evaluate(Failing(meeting, 1, None), structures.atom, meeting)
    assert isinstance(caught.value.cause, DeviceError)


def test_who_cannot_even_make_its_share_tells_the_others():
    def job(meeting: Meeting) -> ForceResult:
        def share() -> Frames:
            if meeting.number == 1:
                raise MemoryError("no room")
            return structures.atom()

        return evaluate(Failing(meeting, 1, None), share, meeting)

    found = meet([0, 1, 2], job)
    assert isinstance(found.pop(1), MemoryError)
    assert all(isinstance(error, AbandonedError) for error in found.values())


@pytest.mark.parametrize("n", [0, 1])
def test_interrupted_it_says_nothing_more(n):
    """Neither in the middle of an exchange nor at the end: who has not heard the others out is out of step."""
    world = World(2)

    def check() -> None:
        raise KeyboardInterrupt

    meeting = Meeting(world.group(0), [0, 1], replace(patience(), check=check))
    with pytest.raises(KeyboardInterrupt):
        evaluate(Failing(meeting, n, None), structures.atom, meeting)
    assert isinstance(meeting.failure, KeyboardInterrupt)
    n_messages = world.n_messages
    meeting.close(is_good=False)
    with pytest.raises(AbandonedError):
        add_up(meeting, np.ones(1))
    assert world.n_messages == n_messages == 1


def test_waiting_is_no_work():
    seconds = iter(range(100))

    def job(meeting: Meeting) -> float:
        meeting._patience = replace(meeting._patience, clock=lambda: float(next(seconds)))
        add_up(meeting, np.ones(1))
        meeting.close(is_good=True)
        return meeting.waited

    assert meet([0], job) == {0: 2.0}
