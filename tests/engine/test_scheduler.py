from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpserver.engine import Budget, Scheduler


@dataclass(frozen=True, eq=False)
class Job:
    n_frames: int = 1
    n_atoms: int = 10
    peer: int = 0
    number: int = 0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_all_that_is_waiting_becomes_one_batch_in_order():
    scheduler: Scheduler[Job] = Scheduler(Budget(), Clock())
    jobs = [Job(number=k) for k in range(5)]
    for job in jobs:
        scheduler.add(job)
    assert len(scheduler) == 5
    assert scheduler.delay() == 0.0
    assert scheduler.take() == jobs
    assert scheduler.take() == []
    assert scheduler.delay() is None


@pytest.mark.parametrize(
    ("budget", "sizes"), [(Budget(frames=2), [2, 2, 1]), (Budget(atoms=35), [3, 2]), (Budget(atoms=1), [1] * 5)]
)
def test_a_budget_cuts_the_queue_and_something_always_goes(budget, sizes):
    scheduler: Scheduler[Job] = Scheduler(budget, Clock())
    for k in range(5):
        scheduler.add(Job(number=k))
    batches = []
    while batch := scheduler.take():
        batches.append(batch)
    assert [len(b) for b in batches] == sizes
    assert [job.number for b in batches for job in b] == list(range(5))


def test_a_window_waits_for_more_unless_the_batch_is_full():
    clock = Clock()
    scheduler: Scheduler[Job] = Scheduler(Budget(frames=2, window=0.5), clock)
    scheduler.add(Job())
    clock.now += 0.375
    assert scheduler.delay() == 0.125
    assert scheduler.take() == []
    clock.now += 0.125
    assert len(scheduler.take()) == 1
    for _ in range(3):
        scheduler.add(Job())
    assert len(scheduler.take()) == 2
    assert scheduler.take() == []


def test_a_request_is_forgotten_when_its_peer_has_gone():
    scheduler: Scheduler[Job] = Scheduler(Budget(), Clock())
    first, second = Job(), Job()
    scheduler.add(first)
    scheduler.add(second)
    scheduler.cancel(first)
    scheduler.cancel(Job())
    assert scheduler.take() == [second]


@given(
    jobs=st.lists(st.builds(Job, st.integers(1, 9), st.integers(1, 99), st.integers(0, 3)), max_size=30),
    budget=st.builds(Budget, st.integers(1, 20), st.integers(1, 300)),
    turns=st.lists(st.booleans(), max_size=60),
)
def test_nothing_is_lost_doubled_or_overtaken(jobs, budget, turns):
    scheduler: Scheduler[Job] = Scheduler(budget, Clock())
    todo, taken = list(jobs), []
    for is_arrival in [*turns, *[True] * len(jobs), *[False] * len(jobs)]:
        if is_arrival and todo:
            scheduler.add(todo.pop(0))
        else:
            batch = scheduler.take()
            if len(batch) > 1:
                assert sum(j.n_frames for j in batch) <= budget.frames
                assert sum(j.n_atoms for j in batch) <= budget.atoms
            taken += batch
    assert taken == jobs
