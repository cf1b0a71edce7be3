"""Which requests become the next batch. No tensors, no threads, no clock but the one it is given.

All that is waiting becomes one batch, as soon as one of these holds:

- nobody else is expected: every connection that can have work is waiting;
- the batch is full;
- the window has passed since the last arrival.

A connection is expected when it asked in one of the last three batches of its group, that is of its simulation, and
the group is among those that wait, or shared its last batch with one that does. A surplus connection, an optimisation
that pauses or a simulation that has lost step is therefore soon expected no more, until it asks again.

The window is ten times the mean gap between the requests of a wave, but no longer than waiting is worth: a tenth of
the time that the evaluation of what is waiting takes, and two milliseconds at most. Where even one mean gap is longer
than that, there is no window.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from dpserver.engine.budget import Budget
from dpserver.engine.pace import Cost, Gaps

WORTH = 0.1
"""Share of an evaluation's time that waiting for company may take."""

PATIENCE = 10
"""Mean gaps between the requests of a wave after which the next one, if any, is late."""

MAX_WINDOW = 2e-3
"""s: the longest wait, and the longest gap between two requests of the same wave."""

RECENT = 3
"""Batches of its group that a connection may stay away from before it is expected no more."""


class Work(Protocol):
    """What the scheduler has to know of a request."""

    @property
    def n_frames(self) -> int:
        """Structures it asks for."""

    @property
    def n_atoms(self) -> int:
        """Atoms of all of them."""

    @property
    def peer(self) -> Hashable:
        """Connection it came on."""


W = TypeVar("W", bound=Work)


@dataclass(eq=False)
class _Peer(Generic[W]):
    """A connection.

    Attributes:
        group: its simulation.
        last: number of the group's batch that it last took part in, or could have for the first time.
        waiting: its requests.
    """

    group: _Group[W]
    last: int
    waiting: set[W] = field(default_factory=set)


@dataclass(eq=False)
class _Group(Generic[W]):
    """The connections of one simulation.

    Attributes:
        name: that its connections give.
        peers: all that live.
        missing: those that are expected and not waiting.
        queue: requests in the order of their arrival.
        company: the groups of its last batch.
        n_batches: batches it took part in.
        received: atoms it was given lately; only differences between groups count.
    """

    name: Hashable
    peers: set[_Peer[W]] = field(default_factory=set)
    missing: set[_Peer[W]] = field(default_factory=set)
    queue: OrderedDict[W, None] = field(default_factory=OrderedDict)
    company: Sequence[_Group[W]] = ()
    n_batches: int = 0
    received: int = 0

    def look_ahead(self) -> None:
        """After a batch: who is expected for the next?"""
        self.missing = {p for p in self.peers if not p.waiting and self.n_batches - p.last < RECENT}


class Scheduler(Generic[W]):
    """Collects requests and gives them away in batches.

    When more is waiting than a batch holds, the group that has been given the fewest atoms goes next, again and again;
    a group that comes anew starts level with the others. So each has its share, however much another asks for, and
    every request has its turn. Requests of one group, and so of one peer, stay in order.

    Args:
        budget: bounds of a batch.
        clock: seconds, monotonic.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float]) -> None:
        self._max_frames, self._max_atoms = budget.frames, budget.atoms
        self._clock = clock
        self._peers: dict[Hashable, _Peer[W]] = {}
        self._groups: dict[Hashable, _Group[W]] = {}
        self._waiting: OrderedDict[W, float] = OrderedDict()  # and when it came
        self._n_frames = self._n_atoms = 0  # of all that is waiting
        self._level = 0  # what the group that went last had received
        self._is_computing = False
        self._cost, self._gaps = Cost(), Gaps()
        self._last_arrival = self._free_since = clock()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, peer: Hashable, group: Hashable) -> None:
        """A connection can have work from now on.

        Args:
            peer: the connection.
            group: its simulation: all connections to one endpoint.
        """
        home = self._groups.setdefault(group, _Group(group))
        self._peers[peer] = member = _Peer(home, home.n_batches)
        home.peers.add(member)
        home.missing.add(member)

    def leave(self, peer: Hashable) -> None:
        """A connection has gone, and what it asked for is forgotten; one that never joined, or left before, may go."""
        member = self._peers.pop(peer, None)
        if member is None:
            return
        group = member.group
        for work in member.waiting:
            self._forget(work, group)
        group.peers.discard(member)
        group.missing.discard(member)
        if not group.peers:
            group.company = ()
            del self._groups[group.name]

    def add(self, work: W) -> None:
        """Queue a request of a connection that has joined."""
        now = self._clock()
        if (self._waiting or self._is_computing) and now - self._last_arrival <= MAX_WINDOW:
            self._gaps.add(now - self._last_arrival)
        self._last_arrival = now
        member = self._peers[work.peer]
        group = member.group
        if not group.queue:
            group.received = max(group.received, self._level)
        group.queue[work] = None
        group.missing.discard(member)
        member.waiting.add(work)
        self._waiting[work] = now
        self._n_frames += work.n_frames
        self._n_atoms += work.n_atoms

    def delay(self) -> float | None:
        """Seconds until `take` has something to give; None while nothing is waiting."""
        if not self._waiting:
            return None
        is_full = self._n_frames >= self._max_frames or self._n_atoms >= self._max_atoms
        if is_full or not self._is_anybody_expected():
            return 0.0
        return max(0.0, self._deadline() - self._clock())

    def take(self) -> list[W]:
        """Give the next batch away; empty when there is none yet."""
        if self.delay() != 0.0:
            return []
        works = self._share()
        groups = {self._peers[work.peer].group: None for work in works}
        for group in groups:
            group.n_batches += 1
            group.company = tuple(groups)
        for work in works:
            member = self._peers[work.peer]
            member.last = member.group.n_batches
            member.waiting.discard(work)
            self._forget(work, member.group)
        for group in groups:
            group.look_ahead()
        self._is_computing = True
        return works

    def done(self, works: Sequence[W], seconds: float) -> None:
        """Learn from a batch that was evaluated.

        Args:
            works: as they were taken.
            seconds: how long the evaluation took.
        """
        self._is_computing, self._free_since = False, self._clock()
        self._cost.add(sum(work.n_atoms for work in works), seconds)

    def at_most(self) -> float | None:
        """How many seconds the evaluation of all that is waiting may take; None before there was one to tell."""
        return self._cost.at_most(self._n_atoms)

    def limit(self, atoms: int) -> None:
        """Set the most atoms of a batch from now on."""
        self._max_atoms = atoms

    def _is_anybody_expected(self) -> bool:
        """Whether a connection that is not waiting probably will soon."""
        waiting = (group for group in self._groups.values() if group.queue)
        return any(near.missing for group in waiting for near in (group, *group.company))

    def _deadline(self) -> float:
        """When to wait no longer.

        All the waits for one batch together may last as long as its evaluation, the device being idle meanwhile.
        """
        cost, gap = self._cost.seconds(self._n_atoms), self._gaps.mean
        worth = 0.0 if cost is None else min(WORTH * cost, MAX_WINDOW)
        if cost is None or gap is None or gap > worth:
            return self._last_arrival
        idle_since = max(self._free_since, next(iter(self._waiting.values())))
        return min(self._last_arrival + min(PATIENCE * gap, worth), idle_since + cost)

    def _share(self) -> list[W]:
        """Choose the requests of a batch, at least one."""
        if self._n_frames <= self._max_frames and self._n_atoms <= self._max_atoms:
            self._level = 0
            for group in self._groups.values():
                group.received = 0
            return list(self._waiting)
        works: list[W] = []
        frames = atoms = 0
        queues = [(group, iter(group.queue)) for group in self._groups.values() if group.queue]
        heads = [(group.received, k, next(queue)) for k, (group, queue) in enumerate(queues)]
        heapq.heapify(heads)
        while heads:
            self._level, k, work = heads[0]
            frames, atoms = frames + work.n_frames, atoms + work.n_atoms
            if works and (frames > self._max_frames or atoms > self._max_atoms):
                break
            works.append(work)
            group, queue = queues[k]
            group.received += work.n_atoms
            if (behind := next(queue, None)) is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (group.received, k, behind))
        return works

    def _forget(self, work: W, group: _Group[W]) -> None:
        """Take a request off the queues."""
        del self._waiting[work]
        del group.queue[work]
        self._n_frames -= work.n_frames
        self._n_atoms -= work.n_atoms
