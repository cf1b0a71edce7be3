"""Scheduling on a clock that stands still, and simulations of whole runs on one that jumps from event to event."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpserver.engine import Budget, Scheduler
from dpserver.engine.scheduler import MAX_WINDOW, PATIENCE, RECENT, WORTH


@dataclass(frozen=True, eq=False)
class Job:
    n_frames: int = 1
    n_atoms: int = 10
    peer: Hashable = "peer"
    number: int = 0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(clock: Clock, n_peers: int = 1, budget: Budget | None = None) -> Scheduler[Job]:
    """Peers 0, 1, … of one group."""
    scheduler: Scheduler[Job] = Scheduler(budget or Budget(), clock)
    for peer in range(n_peers):
        scheduler.join(peer, "group")
    return scheduler


def teach(
    scheduler: Scheduler[Job], clock: Clock, *, seconds: float = 0.1, gap: float = 1e-4, n_peers: int = 4
) -> None:
    """One wave that nobody waited for: its first request alone, the others while it was computed, then those."""
    jobs = [Job(peer=peer) for peer in range(n_peers)]
    scheduler.add(jobs[0])
    assert scheduler.take() == jobs[:1]
    for job in jobs[1:]:
        clock.now += gap
        scheduler.add(job)
    clock.now += seconds
    scheduler.done(jobs[:1], seconds)
    assert scheduler.take() == jobs[1:]
    clock.now += seconds
    scheduler.done(jobs[1:], seconds)


# --- what fires a batch ------------------------------------------------------------------------------------------


def test_nothing_waits_nothing_goes(clock):
    scheduler = make(clock, 2)
    assert scheduler.delay() is None
    assert scheduler.take() == []
    assert len(scheduler) == 0


def test_the_first_request_of_all_waits_for_nobody(clock):
    scheduler = make(clock, 2)
    job = Job(peer=0)
    scheduler.add(job)
    assert scheduler.delay() == 0.0
    assert scheduler.take() == [job]


def test_with_all_that_can_ask_the_batch_goes_at_once_in_the_order_of_arrival(clock):
    scheduler = make(clock, 4)
    teach(scheduler, clock)
    jobs = [Job(peer=peer) for peer in (2, 0, 3, 1)]
    for job in jobs[:3]:
        scheduler.add(job)
        assert scheduler.delay() > 0
        assert scheduler.take() == []
    scheduler.add(jobs[3])
    assert len(scheduler) == 4
    assert scheduler.delay() == 0.0
    assert scheduler.take() == jobs
    assert len(scheduler) == 0


def test_who_does_not_come_is_waited_for_one_window_after_the_last_arrival(clock):
    scheduler = make(clock, 4)
    teach(scheduler, clock, gap=1e-4)
    scheduler.add(Job(peer=0))
    first = scheduler.delay()
    assert first == pytest.approx(PATIENCE * 1e-4)
    clock.now += 1e-4
    assert scheduler.delay() == pytest.approx((PATIENCE - 1) * 1e-4)
    scheduler.add(Job(peer=1))
    second = scheduler.delay()
    assert second == pytest.approx(PATIENCE * 1e-4)
    clock.now += second + 1e-9
    assert len(scheduler.take()) == 2


def test_one_peer_is_never_made_to_wait(clock):
    scheduler = make(clock, 1)
    for _ in range(10):
        scheduler.add(job := Job(peer=0))
        assert scheduler.take() == [job]
        clock.now += 1.0
        scheduler.done([job], 1.0)


def test_the_others_may_leave(clock):
    scheduler = make(clock, 4)
    teach(scheduler, clock)
    scheduler.add(Job(peer=0))
    for peer in (1, 2, 3):
        assert scheduler.delay() > 0
        scheduler.leave(peer)
    assert scheduler.delay() == 0.0


@pytest.mark.parametrize("budget", [Budget(frames=3), Budget(atoms=30)])
def test_a_full_batch_waits_for_nobody(clock, budget):
    scheduler = make(clock, 9, budget)
    teach(scheduler, clock)
    for peer in range(3):
        assert scheduler.delay() != 0.0
        scheduler.add(Job(peer=peer))
    assert len(scheduler.take()) == 3


def test_the_window_is_a_small_part_of_the_evaluation(clock):
    """A wave whose gaps are longer than that is not worth waiting for."""
    for seconds in (1e-6, 1e-4, 1e-3, 1e-2, 1.0):
        scheduler = make(clock, 4)
        teach(scheduler, clock, seconds=seconds, gap=1e-4)
        scheduler.add(Job(peer=0))
        worth = WORTH * seconds
        assert scheduler.delay() == pytest.approx(min(worth, PATIENCE * 1e-4) if worth > 1e-4 else 0.0)
        clock.now += 1.0


def test_the_window_has_an_end(clock):
    scheduler = make(clock, 4)
    teach(scheduler, clock, seconds=100.0, gap=0.9 * MAX_WINDOW)
    scheduler.add(Job(peer=0))
    assert scheduler.delay() == pytest.approx(MAX_WINDOW)


def test_what_comes_later_than_the_longest_window_is_another_wave(clock):
    scheduler = make(clock, 4)
    teach(scheduler, clock, seconds=100.0, gap=1.1 * MAX_WINDOW)
    scheduler.add(Job(peer=0))
    assert scheduler.delay() == 0.0


def test_a_trickle_is_not_waited_for_longer_than_the_evaluation_takes(clock):
    scheduler = make(clock, 200)
    teach(scheduler, clock, seconds=2e-3, gap=1e-4, n_peers=200)
    start = clock.now
    for peer in range(200):
        clock.now += 1e-4
        scheduler.add(Job(peer=peer))
        if (batch := scheduler.take()) != []:
            break
    assert len(batch) == 21
    assert clock.now - start == pytest.approx(2.1e-3)


def test_what_waited_while_the_device_was_busy_does_not_cut_the_wave_that_comes_now(clock):
    scheduler = make(clock, 4)
    teach(scheduler, clock, seconds=0.01)
    scheduler.add(early := Job(peer=0))
    clock.now += MAX_WINDOW
    assert scheduler.take() == [early]
    scheduler.add(Job(peer=1))
    clock.now += 0.02
    scheduler.add(Job(peer=2))
    scheduler.done([early], 0.01)
    assert scheduler.delay() > 0


def test_who_comes_late_does_not_make_the_window_longer(clock):
    scheduler = make(clock, 4)
    teach(scheduler, clock, seconds=1.0, gap=1e-4)
    for _ in range(2):
        clock.now += 1.0
        scheduler.add(Job(peer=0))
        assert scheduler.delay() == pytest.approx(PATIENCE * 1e-4)
        clock.now += PATIENCE * 1e-4
        batch = scheduler.take()
        clock.now += 0.1
        scheduler.add(Job(peer=1))
        scheduler.done(batch, 1.0)
        clock.now += 1.0
        scheduler.done(scheduler.take(), 1.0)


# --- peers that stay away ----------------------------------------------------------------------------------------


def waits(scheduler: Scheduler[Job], clock: Clock, peers: list[Hashable]) -> bool:
    """A wave of these peers, and whether it has to wait for others."""
    jobs = [Job(peer=peer) for peer in peers]
    for job in jobs:
        clock.now += 1e-4
        scheduler.add(job)
    has_to_wait = scheduler.delay() > 0
    if has_to_wait:
        clock.now += MAX_WINDOW
    assert scheduler.take() == jobs
    clock.now += 0.1
    scheduler.done(jobs, 0.1)
    return has_to_wait


def test_a_connection_that_is_not_used_is_soon_not_expected(clock):
    scheduler = make(clock, 4)
    scheduler.join("surplus", "group")
    teach(scheduler, clock)  # two batches
    assert [waits(scheduler, clock, [0, 1, 2, 3]) for _ in range(5)] == [True] + [False] * 4
    scheduler.join("late", "group")
    assert [waits(scheduler, clock, [0, 1, 2, 3]) for _ in range(5)] == [True] * RECENT + [False] * (5 - RECENT)


def test_a_connection_that_asks_again_is_expected_again(clock):
    scheduler = make(clock, 4)
    teach(scheduler, clock)
    assert [waits(scheduler, clock, [0, 1, 2]) for _ in range(5)] == [True] * RECENT + [False] * (5 - RECENT)
    assert not waits(scheduler, clock, [0, 1, 2, 3])
    assert waits(scheduler, clock, [0, 1, 2])


def test_the_halves_of_a_wave_that_was_split_are_still_expected_together(clock):
    scheduler = make(clock, 4)
    teach(scheduler, clock)
    assert waits(scheduler, clock, [0, 1])
    assert waits(scheduler, clock, [2, 3])
    assert not waits(scheduler, clock, [0, 1, 2, 3])


def test_a_simulation_that_pauses_is_waited_for_once(clock):
    scheduler = make(clock, 4)
    scheduler.join("other", "optimisation")
    teach(scheduler, clock)
    assert not waits(scheduler, clock, [0, 1, 2, 3, "other"])
    assert [waits(scheduler, clock, [0, 1, 2, 3]) for _ in range(5)] == [True, False, False, False, False]


def test_simulations_that_never_meet_do_not_wait_for_each_other(clock):
    scheduler = make(clock, 4)
    scheduler.join("other", "optimisation")
    teach(scheduler, clock)
    for _ in range(5):
        assert not waits(scheduler, clock, [0, 1, 2, 3])
        assert not waits(scheduler, clock, ["other"])


def test_simulations_that_have_met_wait_for_each_other(clock):
    scheduler: Scheduler[Job] = Scheduler(Budget(), clock)
    for peer in range(4):
        scheduler.join(peer, f"simulation {peer}")
    teach(scheduler, clock)  # 1, 2 and 3 have met
    assert waits(scheduler, clock, [1, 2])
    assert not waits(scheduler, clock, [0])
    assert not waits(scheduler, clock, [2, 1])


def test_all_may_leave_and_others_are_expected_from_the_start(clock):
    scheduler = make(clock, 2)
    teach(scheduler, clock, n_peers=2)
    for peer in (0, 1, 1):
        scheduler.leave(peer)
    assert scheduler.delay() is None
    for peer in ("a", "b"):
        scheduler.join(peer, "group")
    assert waits(scheduler, clock, ["a"])
    assert not waits(scheduler, clock, ["a", "b"])


# --- what is forgotten -------------------------------------------------------------------------------------------


def test_what_a_peer_that_has_gone_asked_for_is_forgotten(clock):
    scheduler = make(clock, 3)
    gone, stays = [Job(peer=0), Job(peer=0)], Job(peer=1)
    for job in (gone[0], stays, gone[1]):
        scheduler.add(job)
    scheduler.leave(0)
    assert scheduler.take() == [stays]
    scheduler.leave(1)
    scheduler.done([stays], 1.0)


# --- shares ------------------------------------------------------------------------------------------------------


def test_when_not_all_fits_groups_share_the_batch(clock):
    scheduler: Scheduler[Job] = Scheduler(Budget(atoms=100), clock)
    for peer, group in [("a", "greedy"), ("b", "greedy"), ("c", "modest"), ("d", "big")]:
        scheduler.join(peer, group)
    for number in range(20):
        scheduler.add(Job(peer="ab"[number % 2], number=number))
    for number in range(3):
        scheduler.add(Job(peer="c", number=number))
        scheduler.add(Job(peer="d", number=number, n_atoms=30))
    batches = []
    while batch := scheduler.take():
        batches.append(batch)
    first = Counter({peer: sum(job.n_atoms for job in batches[0] if job.peer in peer) for peer in ("ab", "c", "d")})
    assert first == {"ab": 40, "c": 30, "d": 30}
    assert [sum(job.n_atoms for job in batch) for batch in batches] == [100, 100, 100, 20]
    for peer in "abcd":
        numbers = [job.number for batch in batches for job in batch if job.peer == peer]
        assert numbers == sorted(numbers)


def test_who_comes_anew_has_no_arrears_to_claim(clock):
    scheduler: Scheduler[Job] = Scheduler(Budget(atoms=100), clock)
    for group in ("old", "new"):
        scheduler.join(group, group)
    for _ in range(50):
        scheduler.add(Job(peer="old"))
    for _ in range(3):
        assert len(scheduler.take()) == 10
    for _ in range(20):
        scheduler.add(Job(peer="new"))
    assert Counter(job.peer for job in scheduler.take()) == {"old": 5, "new": 5}


@pytest.mark.parametrize(("budget", "sizes"), [(Budget(frames=2), [2, 2, 1]), (Budget(atoms=1), [1] * 5)])
def test_a_budget_cuts_the_queue_and_something_always_goes(clock, budget, sizes):
    scheduler = make(clock, 1, budget)
    for number in range(5):
        scheduler.add(Job(peer=0, number=number))
    batches = []
    while batch := scheduler.take():
        batches.append(batch)
    assert [len(batch) for batch in batches] == sizes
    assert [job.number for batch in batches for job in batch] == list(range(5))


def test_the_budget_may_shrink(clock):
    scheduler = make(clock)
    for number in range(6):
        scheduler.add(Job(peer=0, number=number))
    scheduler.limit(20)
    assert len(scheduler.take()) == 2


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 99))
PEERS = [("a", 0), ("a", 1), ("b", 0), ("c", 0), ("c", 1), ("c", 2)]  # group and number


@given(
    arrivals=st.lists(st.tuples(st.sampled_from(PEERS), SIZES), max_size=40),
    budget=st.builds(Budget, st.integers(1, 20), st.integers(1, 300)),
    turns=st.lists(st.sampled_from(["add", "add", "take", "wait", "leave"]), max_size=80),
)
def test_nothing_is_lost_doubled_or_overtaken(arrivals, budget, turns):
    clock = Clock()
    scheduler: Scheduler[Job] = Scheduler(budget, clock)
    for peer in PEERS:
        scheduler.join(peer, peer[0])
    jobs = [Job(n_frames, n_atoms, peer, k) for k, (peer, (n_frames, n_atoms)) in enumerate(arrivals)]
    todo, waiting, taken = list(jobs), [], []
    for turn in [*turns, *["add"] * len(jobs), *["wait", "take"] * len(jobs)]:
        if turn == "add" and todo:
            waiting.append(todo.pop(0))
            scheduler.add(waiting[-1])
        elif turn == "wait":
            clock.now += 1e-3
        elif turn == "leave" and waiting:
            peer = waiting[0].peer
            scheduler.leave(peer)
            waiting = [job for job in waiting if job.peer != peer]
            scheduler.join(peer, peer[0])
        elif turn == "take":
            batch = scheduler.take()
            if len(batch) > 1:
                assert sum(job.n_frames for job in batch) <= budget.frames
                assert sum(job.n_atoms for job in batch) <= budget.atoms
            if batch:
                clock.now += 0.01
                scheduler.done(batch, 0.01)
            for group in "abc":  # the oldest of each group go first
                mine = [job for job in batch if job.peer[0] == group]
                assert mine == [job for job in waiting if job.peer[0] == group][: len(mine)]
            waiting = [job for job in waiting if job not in batch]
            taken += batch
        assert len(scheduler) == len(waiting)
    assert waiting == []
    assert len(taken) == len(set(taken))


@given(
    loads=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=12), min_size=1, max_size=5),
    ahead=st.integers(0, 5),
    atoms=st.integers(1, 200),
    frames=st.integers(1, 10),
)
def test_nobody_starves_beside_others_that_always_want_more(loads, ahead, atoms, frames):
    """While a request waits, no other group is given more than its own group, but for one request of each.

    Every batch takes something, so that the number of batches is bounded too.
    """
    scheduler: Scheduler[Job] = Scheduler(Budget(frames, atoms), Clock())
    largest = max(itertools.chain(*loads))
    supply = [itertools.cycle(sizes) for sizes in loads]
    for group, _ in enumerate(loads):
        scheduler.join(group, group)
        for _ in range(12):
            scheduler.add(Job(1, next(supply[group]), group))
    for _ in range(ahead):
        for job in scheduler.take():
            scheduler.add(Job(1, next(supply[job.peer]), job.peer))
    scheduler.join("victim", "victim")
    own = [Job(1, 50, "victim", number) for number in range(3)]
    for job in own:
        scheduler.add(job)
    given_to: Counter[Hashable] = Counter()
    n_batches = 0
    while own[-1] not in (batch := scheduler.take()):
        assert batch
        n_batches += 1
        for job in batch:
            given_to[job.peer] += job.n_atoms
            if job.peer != "victim":
                scheduler.add(Job(1, next(supply[job.peer]), job.peer))
        for group in range(len(loads)):
            assert given_to[group] <= given_to["victim"] + largest
    assert n_batches <= 3 + len(loads) * (150 + largest)


# --- whole runs --------------------------------------------------------------------------------------------------


@dataclass
class Device:
    """Takes fixed + per_atom · n_atoms seconds."""

    fixed: float
    per_atom: float

    def seconds(self, n_atoms: int) -> float:
        return self.fixed + self.per_atom * n_atoms


class Simulation:
    """Peers, a device and a scheduler on one clock, from event to event.

    Args:
        device: costs of a batch.
        budget: of the scheduler.
    """

    def __init__(self, device: Device, budget: Budget | None = None) -> None:
        self.clock = Clock()
        self.device = device
        self.scheduler: Scheduler[Job] = Scheduler(budget or Budget(), self.clock)
        self.batches: list[list[Job]] = []
        self.idle = 0.0  # time that something waited and nothing was computed
        self.n_vain = 0  # windows at whose end nobody had come
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._is_busy = False
        self._answered: dict[Job, Callable[[], None]] = {}

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.clock.now + seconds, next(self._order), what))

    def ask(self, job: Job, answered: Callable[[], None]) -> None:
        self._answered[job] = answered
        self.scheduler.add(job)

    def run(self, n_batches: int) -> None:
        while len(self.batches) < n_batches:
            if not self._is_busy and (batch := self.scheduler.take()):
                self._start(batch)
                continue
            delay = None if self._is_busy else self.scheduler.delay()
            before = self.clock.now
            if delay is not None and (not self._events or before + delay < self._events[0][0]):
                self.clock.now += delay + 1e-9
                self.n_vain += 1
            else:
                self.clock.now, _, event = heapq.heappop(self._events)
                event()
            if delay is not None:
                self.idle += self.clock.now - before

    def _start(self, batch: list[Job]) -> None:
        seconds = self.device.seconds(sum(job.n_atoms for job in batch))
        self._is_busy = True
        self.at(seconds, lambda: self._finish(batch, seconds))

    def _finish(self, batch: list[Job], seconds: float) -> None:
        self._is_busy = False
        self.batches.append(batch)
        self.scheduler.done(batch, seconds)
        for job in batch:
            self._answered.pop(job)()


class IPI:
    """Deals its beads over its connections, each wave in as many parts as `parts` says, and waits for all of a part.

    Args:
        simulation: to take part in.
        name: of its group.
        n_beads: connections, and requests of a wave.
        gap: mean time between two sends, s; drawn evenly between a fifth and nine fifths of it.
        think: from the last answer of a wave to the first request of the next.
        parts: sizes of the parts of each wave.
    """

    def __init__(
        self,
        simulation: Simulation,
        name: str = "i-pi",
        n_beads: int = 32,
        gap: float = 1e-4,
        think: float = 5e-3,
        parts: Iterator[list[int]] | None = None,
        n_atoms: int = 192,
    ) -> None:
        self.simulation, self.name, self.n_beads, self.gap, self.think = simulation, name, n_beads, gap, think
        self.n_atoms = n_atoms
        self.is_stalled = False
        self._parts = parts or itertools.repeat([n_beads])
        self._rng = np.random.default_rng(7)
        self._todo: list[range] = []
        self._open = 0
        for bead in range(n_beads):
            simulation.scheduler.join((name, bead), name)
        simulation.at(think, self._wave)

    def _wave(self) -> None:
        if self.is_stalled:
            return
        ends = np.cumsum([0, *next(self._parts)])
        self._todo = [range(lo, hi) for lo, hi in itertools.pairwise(ends)]
        self._send()

    def _send(self) -> None:
        beads, self._todo = self._todo[0], self._todo[1:]
        self._open = len(beads)
        time = 0.0
        for bead in beads:
            self.simulation.at(time, lambda bead=bead: self._ask(bead))
            time += self.gap * self._rng.uniform(0.2, 1.8)

    def _ask(self, bead: int) -> None:
        self.simulation.ask(Job(1, self.n_atoms, (self.name, bead)), self._answer)

    def _answer(self) -> None:
        self._open -= 1
        if not self._open:
            self.simulation.at(self.gap if self._todo else self.think, self._send if self._todo else self._wave)


def sizes(simulation: Simulation) -> list[int]:
    return [len(batch) for batch in simulation.batches]


GPU = Device(5e-3, 3e-6)  # one bead 5.6 ms, 32 beads 23 ms
CPU = Device(1e-4, 3e-4)  # 60 ms, 1.8 s
NONE = Device(1e-5, 2e-9)  # 10 µs, 22 µs


@pytest.mark.parametrize("device", [GPU, CPU])
def test_a_wave_of_jittered_arrivals_is_one_batch(device):
    simulation = Simulation(device)
    IPI(simulation)
    simulation.run(40)
    assert sizes(simulation)[:2] == [1, 31]
    assert sizes(simulation)[2:] == [32] * 38


def test_a_model_that_costs_nothing_loses_nothing_to_waiting():
    simulation = Simulation(NONE)
    IPI(simulation)
    simulation.run(600)
    assert simulation.idle == 0.0


def test_the_parts_of_a_wave_that_i_pi_splits_cost_a_short_window_and_whole_waves_stay_whole():
    rng = np.random.default_rng(3)

    def parts() -> Iterator[list[int]]:
        while True:
            yield [32] if rng.random() < 0.8 else [(a := int(rng.integers(1, 32))), 32 - a]

    simulation = Simulation(GPU)
    IPI(simulation, parts=parts())
    simulation.run(300)
    counts = Counter(sizes(simulation)[2:])
    n_waves = sum(sizes(simulation)[2:]) // 32
    assert counts[32] > 0.75 * n_waves
    # Nobody else's doing: every other batch has its counterpart, for the scheduler never splits a part.
    rest = [size for size in sizes(simulation)[2:] if size != 32]
    assert all(a + b == 32 for a, b in zip(rest[::2], rest[1::2], strict=False))


def test_a_wave_that_is_always_split_costs_a_window_each_time():
    simulation = Simulation(GPU)
    IPI(simulation, parts=itertools.repeat([8, 24]))
    simulation.run(200)
    assert sizes(simulation)[3:] == [8, 24] * 98 + [8]
    gaps = 30 + 2 * PATIENCE  # of a wave, and of the windows after its parts
    assert simulation.idle / 100 == pytest.approx(gaps * 1e-4, rel=0.05)


def test_a_stalled_simulation_costs_the_others_one_window():
    simulation = Simulation(GPU)
    IPI(simulation, "a", think=5e-3)
    b = IPI(simulation, "b", think=5.05e-3)
    simulation.run(50)
    assert sizes(simulation)[-40:] == [64] * 40  # they have fallen into step
    b.is_stalled, before = True, simulation.n_vain
    simulation.run(101)
    assert sizes(simulation)[-50:] == [32] * 50
    assert simulation.n_vain == before + 1


def test_connections_that_are_not_used_cost_a_few_windows():
    simulation = Simulation(GPU)
    IPI(simulation)
    for spare in range(8):
        simulation.scheduler.join(spare, "i-pi")
    simulation.run(50)
    assert sizes(simulation)[2:] == [32] * 48
    assert simulation.n_vain <= RECENT


def test_simulations_of_all_kinds_get_on_together():
    """Two path integrals of different pace, sixteen replicas and an optimisation; everyone goes on."""
    simulation = Simulation(GPU, Budget(atoms=16 * 192))
    IPI(simulation, "a")
    IPI(simulation, "b", think=1e-2, gap=2e-4)
    IPI(simulation, "replicas", n_beads=16, n_atoms=400, think=1e-3)
    IPI(simulation, "optimisation", n_beads=1, n_atoms=1000, think=2e-2)
    simulation.run(400)
    atoms: Counter[str] = Counter()
    for batch in simulation.batches:
        for job in batch:
            atoms[job.peer[0]] += job.n_atoms
    assert simulation.idle < 0.02 * (simulation.clock.now - 100.0)
    third = (sum(atoms.values()) - atoms["optimisation"]) / 3
    for name in ("a", "b", "replicas"):
        assert atoms[name] == pytest.approx(third, rel=0.25)
    # The optimisation wants least, and is computed in the next batch or the one after it.
    turns = [k for k, batch in enumerate(simulation.batches) if any(job.peer[0] == "optimisation" for job in batch)]
    assert max(np.diff(turns)) * (GPU.seconds(16 * 192)) < 2e-2 + 3.5 * GPU.seconds(16 * 192)
