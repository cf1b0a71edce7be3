"""What the daemon has done so far: told by its threads, read by the log, the status socket and Prometheus."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

from dpserver import __version__
from dpserver.engine.scheduler import Work
from dpserver.errors import DeviceError, DPServerError, ProtocolError, StructureError
from dpserver.monitor.figures import Figures, Totals, compare
from dpserver.monitor.histogram import FRAMES, SECONDS, Histogram
from dpserver.monitor.waves import Part, WaveWatch, cost_of_a_batch, find_waves, is_worth_a_word

RECENT_SECONDS = 10
"""What `recent` in a snapshot looks back on."""

N_BATCHES = 200
"""Batches whose size and time are remembered."""


class Phase(Enum):
    """Where the daemon stands as a whole."""

    LOADING = "loading the model"
    SERVING = "serving"
    STOPPING = "stopping"
    DEVICE_LOST = "device lost"


class Kind(Enum):
    """Why something was refused."""

    STRUCTURE = "structure"  # not finite, overlapping, of an unknown species, or without a finite answer
    PROTOCOL = "protocol"  # the peer broke the rules
    DEVICE = "device"  # it does not fit into memory
    INTERNAL = "internal"  # a bug

    @classmethod
    def of(cls, error: BaseException) -> Kind:
        """Tell the kind of an error."""
        kinds: dict[type[DPServerError], Kind] = {
            StructureError: cls.STRUCTURE,
            ProtocolError: cls.PROTOCOL,
            DeviceError: cls.DEVICE,
        }
        return next((kind for of, kind in kinds.items() if isinstance(error, of)), cls.INTERNAL)


@dataclass(eq=False)
class _Endpoint:
    """One endpoint, which is one simulation; counts since the daemon was started."""

    open: int = 0
    opened: int = 0
    closed: int = 0
    reconnects: int = 0
    requests: int = 0
    frames: int = 0
    refused: int = 0
    watch: WaveWatch = field(default_factory=WaveWatch)
    is_advised: bool = False


@dataclass(eq=False)
class _Peer:
    """One connection, and when it asked for what it has not been answered; twice, while an answer is written."""

    endpoint: _Endpoint
    asked: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Batch:
    """What is being computed: structures and first arrival of each simulation in it."""

    started: float
    n_requests: int
    n_atoms: int
    frames: Counter[_Endpoint]
    arrived: dict[_Endpoint, float]


class Meter:
    """Counts, and measures where the time goes.

    Time is split in three: a batch is with the compute thread; none is, and the talking thread is at work (on the
    wire); neither, and the peers have the word. For that the meter is told of every turn of the talking thread.

    A call takes about a microsecond and does no I/O; any thread may make it.

    Args:
        clock: seconds, monotonic.

    Attributes:
        phase: of the daemon.
        about: what a snapshot says besides: `model` and `device`, their names.
        memory: how to learn the bytes in use on the device, from any thread.
        ranks: how many ranks there are and how they were last used, in words; None where there is this one alone.
        wake: makes the talking thread turn once, from any thread; None while there is no such thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.phase = Phase.LOADING
        self.about: dict[str, str | None] = {"model": None, "device": None}
        self.memory: Callable[[], int] | None = None
        self.ranks: Callable[[], str] | None = None
        self.wake: Callable[[], None] | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._created = self._since = clock()
        self._is_awake = False
        self._totals = Totals(time=self._since)
        self._batch: _Batch | None = None
        self._largest_of_tick = self._largest_of_line = 0
        self._ticks: deque[tuple[Totals, int]] = deque([(self._totals.copy(), 0)], maxlen=RECENT_SECONDS + 1)
        self._batches: deque[tuple[int, float]] = deque(maxlen=N_BATCHES)
        self._endpoints: dict[Hashable, _Endpoint] = {}
        self._peers: dict[Hashable, _Peer] = {}
        self._refused: Counter[Kind] = Counter()
        self._frames = Histogram(FRAMES)
        self._queue, self._evaluation, self._reply = Histogram(SECONDS), Histogram(SECONDS), Histogram(SECONDS)

    # Told by the talking thread: its own turns.

    def awake(self) -> None:
        """There is something to do."""
        with self._lock:
            self._account()
            self._is_awake = True
            self._totals.turns += 1

    def asleep(self) -> None:
        """From here on it is for others to act: peers, deadlines, the compute thread."""
        with self._lock:
            self._account()
            self._is_awake = False

    # Told of connections. A group is a simulation, whose endpoint its `str` names.

    def expect(self, group: Hashable) -> None:
        """There is an endpoint, whether anybody listens there or not."""
        with self._lock:
            self._endpoint(group)

    def opened(self, group: Hashable, peer: Hashable) -> None:
        """A connection to an endpoint was made; one that takes the place of one that was closed is a reconnect."""
        with self._lock:
            endpoint = self._endpoint(group)
            if not endpoint.open:
                endpoint.watch, endpoint.is_advised = WaveWatch(), False
            endpoint.open += 1
            endpoint.opened += 1
            self._peers[peer] = _Peer(endpoint)
            if endpoint.closed > endpoint.reconnects:
                endpoint.reconnects += 1

    def closed(self, peer: Hashable) -> None:
        """A connection has ended; what it has asked for is not waited for any more."""
        with self._lock:
            endpoint = self._peers.pop(peer).endpoint
            endpoint.open -= 1
            endpoint.closed += 1

    def refused(self, group: Hashable, kind: Kind, n_frames: int = 1) -> None:
        """So many structures were refused, or a message that made none was."""
        with self._lock:
            self._refused[kind] += n_frames
            self._endpoint(group).refused += n_frames

    # Told of work, in the order of a request's life.

    def asked(self, work: Work) -> None:
        """A request has come."""
        with self._lock:
            peer = self._peers[work.peer]
            peer.asked.append(self._clock())
            peer.endpoint.requests += 1
            self._totals.requests += 1

    def started(self, works: Sequence[Work]) -> None:
        """A batch was handed to the compute thread."""
        with self._lock:
            now = self._account()
            frames: Counter[_Endpoint] = Counter()
            arrived: dict[_Endpoint, float] = {}
            n_atoms = 0
            for work in works:
                peer = self._peers[work.peer]
                asked = peer.asked[-1]
                self._queue.observe(now - asked)
                frames[peer.endpoint] += work.n_frames
                if asked < arrived.get(peer.endpoint, math.inf):
                    arrived[peer.endpoint] = asked
                n_atoms += work.n_atoms
            self._batch = _Batch(now, len(works), n_atoms, frames, arrived)

    def evaluated(self, seconds: float) -> None:
        """The batch has come back; its evaluation took so long."""
        with self._lock:
            now = self._account()
            batch, self._batch = self._batch, None
            if batch is None:
                return
            n_frames = batch.frames.total()
            self._totals.batches += 1
            self._totals.frames += n_frames
            self._totals.atoms += batch.n_atoms
            self._totals.evaluating += seconds
            self._frames.observe(n_frames)
            self._evaluation.observe(seconds)
            self._batches.append((batch.n_atoms, seconds))
            for endpoint, count in batch.frames.items():
                endpoint.frames += count
                endpoint.watch.add(count, batch.arrived[endpoint], now)
            self._largest_of_line = max(self._largest_of_line, n_frames)
            self._largest_of_tick = max(self._largest_of_tick, n_frames)
            if now - self._ticks[-1][0].time >= 1:
                self._ticks.append((self._totals.copy(), self._largest_of_tick))
                self._largest_of_tick = 0

    def replied(self, work: Work, received: int, sent: int) -> None:
        """An answer was given to the connection of a request.

        Args:
            work: the request.
            received: bytes that came on the connection since the last answer.
            sent: bytes that went.
        """
        with self._lock:
            self._totals.replies += 1
            self._totals.received += received
            self._totals.sent += sent
            peer = self._peers[work.peer]
            self._reply.observe(self._clock() - peer.asked.pop(0))

    # Asked by those who show it.

    @property
    def turns(self) -> int:
        """How often the talking thread has been awake."""
        return self._totals.turns

    @property
    def n_connections(self) -> int:
        """How many are open."""
        return len(self._peers)

    @property
    def is_busy(self) -> bool:
        """Whether a batch is computed or waits for it."""
        with self._lock:
            return self._batch is not None or any(peer.asked for peer in self._peers.values())

    def totals(self) -> Totals:
        """Give the sums of now."""
        with self._lock:
            self._account()
            return self._totals.copy()

    def take_largest_batch(self) -> int:
        """Give the structures of the largest batch since this was last asked."""
        with self._lock:
            largest, self._largest_of_line = self._largest_of_line, 0
            return largest

    def take_advice(self) -> list[str]:
        """Give what a user should know of the way his simulations are sent; each only once while its peer stays."""
        with self._lock:
            suspects = [(g, e, e.watch.parts(), e.open) for g, e in self._endpoints.items() if not e.is_advised]
            batches = list(self._batches)
        advice = []
        for group, endpoint, parts, n_open in suspects:
            waves = find_waves(parts, n_open)
            if waves is None or not is_worth_a_word(waves, cost := cost_of_a_batch(batches)):
                continue
            endpoint.is_advised = True
            advice.append(
                f"{group}: the {waves.n_frames} structures of a step come in parts in {waves.split:.0%} of the steps, "
                f"which costs {1e3 * waves.extra * cost:.2g} of {1e3 * waves.period:.2g} ms a step; if the peer is "
                "i-PI, set <latency> to 1e-3 in its <ffsocket>"
            )
        return advice

    def snapshot(self) -> dict[str, Any]:
        """Give everything as values that JSON has names for."""
        with self._lock:
            now = self._account()
            totals = self._totals.copy()
            recent = self._recent(now)
            batch = self._batch
            endpoints = [(g, replace(e), e.watch.parts()) for g, e in self._endpoints.items()]
            histograms = {
                "batch_frames": self._frames.snapshot(),
                "queue_seconds": self._queue.snapshot(),
                "evaluation_seconds": self._evaluation.snapshot(),
                "reply_seconds": self._reply.snapshot(),
            }
            refused = {kind.value: self._refused[kind] for kind in Kind}
            n_asked = sum(len(peer.asked) for peer in self._peers.values())
            n_waiting = max(0, n_asked - (0 if batch is None else batch.n_requests))
        return {
            "pid": os.getpid(),
            "version": __version__,
            **self.about,
            "ranks": None if self.ranks is None else self.ranks(),
            "phase": self.phase.value,
            "uptime_seconds": now - self._created,
            "requests_waiting": n_waiting,
            "batch_running_seconds": now - batch.started if batch is not None else None,
            "memory_bytes": None if self.memory is None else self.memory(),
            "recent": recent.as_dict(),
            "totals": {name: value for name, value in asdict(totals).items() if name != "time"},
            "refused": refused,
            "endpoints": [_describe(*endpoint) for endpoint in endpoints],
            "histograms": histograms,
        }

    def _endpoint(self, group: Hashable) -> _Endpoint:
        endpoint = self._endpoints.get(group)
        if endpoint is None:
            endpoint = self._endpoints[group] = _Endpoint()
        return endpoint

    def _account(self) -> float:
        """Put the time since the last call where it belongs, and return the present."""
        now = self._clock()
        elapsed = now - self._since
        if self._batch is not None:
            self._totals.computing += elapsed
        elif self._is_awake:
            self._totals.wire += elapsed
        else:
            self._totals.waiting += elapsed
        self._totals.time = self._since = now
        return now

    def _recent(self, now: float) -> Figures:
        """Compare with the tick before the last ten seconds, or with the oldest there is."""
        ticks = list(self._ticks)
        while len(ticks) > 1 and ticks[1][0].time <= now - RECENT_SECONDS:
            del ticks[0]
        largest = max([self._largest_of_tick, *(size for _, size in ticks[1:])])
        return compare(ticks[0][0], self._totals, largest)


def _describe(group: Hashable, endpoint: _Endpoint, parts: Sequence[Part]) -> dict[str, Any]:
    """Give what a snapshot says of an endpoint."""
    waves = find_waves(parts, endpoint.open)
    return {
        "endpoint": str(group),
        "connections": endpoint.open,
        "connected": endpoint.opened,
        "reconnects": endpoint.reconnects,
        "requests": endpoint.requests,
        "evaluations": endpoint.frames,
        "refused": endpoint.refused,
        "wave_frames": None if waves is None else waves.n_frames,
        "waves_split": None if waves is None else waves.split,
    }
