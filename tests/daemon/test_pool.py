"""How many connections a peer is offered, with peers that accept and ask as i-PI, ASE and others do.

No thread: a turn of the daemon is taken when the test says so, on a clock that moves only when the test moves it.
"""

from __future__ import annotations

import select
from collections.abc import Sequence

import numpy as np
import pytest

from dpserver.daemon.conversation import Conversation
from dpserver.daemon.link import SILENCE_SECONDS, Phase, Services
from dpserver.daemon.pool import GREETING_SECONDS, MAX_CONNECTIONS, MAX_PENDING, QUIET_SECONDS, Pool
from dpserver.ipi import Forces, Limits
from dpserver.transport import Backoff
from tests import structures
from tests.daemon.serving import target
from tests.doubles import PairModel
from tests.peer import EXIT, GETFORCE, NEEDINIT, STATUS, Line, Peer, posdata

FRAME = structures.cubic()
REQUEST = posdata(FRAME.positions, FRAME.cell[0]) + GETFORCE
FORCES = Forces(np.zeros(1), np.zeros((1, FRAME.n_atoms, 3)), np.zeros((1, 3, 3)))


class Daemon:
    """A pool, and the part of the daemon it needs: a clock, a selector, and an engine that answers when told."""

    def __init__(self, peer: Peer, connections: int | None, *, is_once: bool = False) -> None:
        self.peer = peer
        self.now = 1000.0
        self.accepted: list[Line] = []
        self.asked: list[Conversation] = []
        services = Services(
            PairModel(),
            lambda conversation, group: None,
            lambda conversation: None,
            lambda request: self.asked.append(request.peer),
            lambda: self.now,
            Limits(),
            lambda: Backoff(),
            is_once,
        )
        self.pool = Pool(target(peer.endpoint, connections=connections), services)
        self.n_dialled = 0

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.abandon()
        for line in self.accepted:
            line.close()

    def accept(self) -> Line:
        """What the peer does with the next connection."""
        self.accepted.append(self.peer.accept())
        return self.accepted[-1]

    def run(self, seconds: float = 0.0) -> None:
        """Let the time pass, and take turns until nothing happens any more."""
        until = self.now + seconds
        while True:
            if self._turn():
                continue
            deadlines = [d for d in (self.pool.deadline, *(link.deadline for link in self.pool.links)) if d is not None]
            if min(deadlines, default=np.inf) > until:
                self.now = until
                return
            self.now = max(self.now, min(deadlines))

    def _turn(self) -> bool:
        """Whether anything happened."""
        watched = {link: link.watch for link in self.pool.links if link.watch is not None}
        ready = [
            (link, events)
            for link, (sock, events) in watched.items()
            if select.select([sock] if events == 1 else [], [sock] if events == 2 else [], [], 0) != ([], [], [])
        ]
        due = [link for link in self.pool.links if link.deadline is not None and link.deadline <= self.now]
        before = list(self.pool.links)
        for link, events in ready:
            link.on_ready(events)
        for link in due:
            self.n_dialled += link.phase is Phase.WAITING
            link.on_deadline()
        self.pool.tend()
        return bool(ready or due or self.pool.links != before)

    def answer(self) -> None:
        """Answer all who have asked."""
        for conversation in self.asked:
            conversation.deliver(FORCES)
        self.asked.clear()
        for link in self.pool.links:
            link.settle()

    @property
    def n_links(self) -> int:
        return len(self.pool.links)


class Server:
    """Greets whoever connects, one after the other, as i-PI; at most so many.

    Args:
        daemon: that dials it.
        most: connections it accepts.
    """

    def __init__(self, daemon: Daemon, most: int = 1000) -> None:
        self.daemon = daemon
        self.most = most
        self.lines: list[Line] = []
        daemon.peer.listener.setblocking(False)

    def greet(self) -> None:
        """Accept all there are, and have STATUS of each answered before the next is accepted."""
        self.daemon.run()
        while len(self.lines) < self.most:
            try:
                line = self.daemon.accept()
            except BlockingIOError:
                return
            self.lines.append(line)
            self.status([line])

    def status(self, lines: Sequence[Line]) -> None:
        for line in lines:
            line.send(STATUS)
        self.daemon.run()
        for line in lines:
            line.sock.setblocking(False)
            assert len(line.receive(12)) == 12

    def ask(self, *numbers: int) -> None:
        """Ask for forces on these connections, all before any is read, then go on as i-PI does."""
        lines = [self.lines[k] for k in numbers]
        for line in lines:
            line.send(REQUEST)
        self.daemon.run()
        self.daemon.answer()
        for line in lines:
            line.sock.settimeout(1)
            assert line.reply(FRAME.n_atoms).energy == [0.0]
        self.status(lines)


@pytest.fixture
def peer():
    with Peer(backlog=MAX_PENDING) as listening:
        yield listening


@pytest.fixture
def daemon(peer):
    with Daemon(peer, None) as made:
        yield made


def test_one_connection_until_it_is_greeted(daemon):
    daemon.run(20)
    assert daemon.n_links == daemon.n_dialled == 1


def test_one_bead_has_one_spare_connection_and_no_more(daemon):
    server = Server(daemon)
    server.greet()
    assert len(server.lines) == 2
    for _ in range(50):
        server.ask(0)
        server.greet()
        daemon.run(1)
    assert daemon.n_dialled == 2
    assert [link.was_asked for link in daemon.pool.links] == [True, False]


@pytest.mark.parametrize("n_beads", [2, 3, 8, 13, 32])
def test_the_pool_doubles_until_some_are_spare(daemon, n_beads):
    """Waves as of i-PI >= 3.2: it asks all it can before it reads any answer."""
    server = Server(daemon)
    server.greet()
    for _ in range(20):
        todo = n_beads
        while todo:  # a wave in portions of what there is
            n = min(todo, len(server.lines))
            server.ask(*range(n))
            server.greet()
            todo -= n
    used = sum(link.was_asked for link in daemon.pool.links)
    assert used == n_beads
    assert n_beads < daemon.n_links <= 2 * n_beads
    assert daemon.n_dialled == daemon.n_links == len(server.lines)


def test_a_wave_in_two_parts_is_no_reason_to_stop(daemon):
    server = Server(daemon)
    server.greet()
    server.ask(0)
    server.ask(1)
    server.greet()
    assert len(server.lines) == 2
    server.ask(0, 1)
    server.greet()
    assert len(server.lines) == 4


def test_no_more_connections_than_the_peer_lets_wait_are_dialled_at_a_time(daemon):
    server = Server(daemon)
    server.greet()
    for n in (2, 4, 8):
        server.ask(*range(n))
        server.greet()
    assert len(server.lines) == 16
    server.ask(*range(16))
    daemon.run(60)
    assert sum(link.is_pending for link in daemon.pool.links) == MAX_PENDING
    server.greet()
    assert len(server.lines) == 32


def test_a_peer_that_asks_one_at_a_time_needs_no_more_however_it_picks(daemon):
    """As i-PI 2.6, whose beads wait for one another."""
    server = Server(daemon)
    server.greet()
    for k in range(100):
        server.ask(k % 2)
        server.greet()
    assert daemon.n_links == 2


def test_a_peer_that_falls_silent_after_using_each_once_is_offered_more(daemon):
    """As i-PI with `matching lock`, which does not use a connection for a second bead."""
    server = Server(daemon)
    server.greet()
    server.ask(0)
    server.ask(1)
    daemon.run(QUIET_SECONDS / 2)
    server.greet()
    assert len(server.lines) == 2
    daemon.run(QUIET_SECONDS)
    server.greet()
    server.ask(2, 3)
    daemon.run(QUIET_SECONDS)
    server.greet()
    assert len(server.lines) == 8
    for _ in range(3):
        daemon.run(QUIET_SECONDS)  # some are spare now
    server.greet()
    assert len(server.lines) == 8


def test_a_peer_that_waits_for_its_forces_is_not_silent(daemon):
    server = Server(daemon)
    server.greet()
    server.ask(0)
    server.lines[1].send(REQUEST)
    daemon.run(60)
    assert daemon.n_links == 2


def test_there_is_an_end(daemon, monkeypatch):
    monkeypatch.setattr("dpserver.daemon.pool.MAX_CONNECTIONS", 12)
    assert MAX_CONNECTIONS == 1024
    server = Server(daemon)
    server.greet()
    for _ in range(6):
        server.ask(*range(len(server.lines)))
        server.greet()
        daemon.run(QUIET_SECONDS)
    assert len(server.lines) == daemon.n_links == 12


def test_a_peer_that_accepts_one_connection_is_not_disturbed(daemon, caplog):
    """As ASE: the spare stays in its backlog, and goes with the listener."""
    server = Server(daemon, most=1)
    server.greet()
    for _ in range(50):
        server.ask(0)
        daemon.run(SILENCE_SECONDS)
    assert daemon.n_links == daemon.n_dialled == 2
    daemon.peer.listener.close()
    server.lines[0].close()
    daemon.run()
    assert daemon.n_links == 1
    assert [r for r in caplog.records if r.levelname == "WARNING"] == []


def test_the_next_peer_at_the_same_place_starts_with_one():
    with Peer() as peer:
        place, first = peer.address, Daemon(peer, None)
        server = Server(first)
        server.greet()
        for n in (2, 4):
            server.ask(*range(n))
            server.greet()
        assert len(server.lines) == 8
    with first as daemon:
        for line in server.lines:
            line.send(EXIT)
        daemon.run(0.5)
        assert daemon.n_links == 1
        with Peer(place) as daemon.peer:
            daemon.run(0.2)
            again = Server(daemon)
            again.greet()
            assert len(again.lines) == 2
            again.ask(0, 1)
            again.greet()
            assert len(again.lines) == 4


def test_a_peer_that_stops_listening_after_the_first_is_dialled_no_more(daemon):
    """As codes that close the listening socket when they have what they need."""
    daemon.run()
    line = daemon.accept()
    daemon.peer.listener.close()
    line.send(STATUS)
    daemon.run(10)
    assert line.receive(12) == NEEDINIT
    for _ in range(10):
        line.send(REQUEST)
        daemon.run(10)
        daemon.answer()
        line.reply(FRAME.n_atoms)
    assert daemon.n_dialled == 2
    assert daemon.n_links == 1


def test_a_peer_that_turns_the_surplus_away_is_dialled_no_more(daemon):
    server = Server(daemon)
    server.greet()
    server.lines.pop().close()
    for _ in range(20):
        server.ask(0)
        daemon.run(10)
    assert daemon.n_dialled == 2
    assert daemon.n_links == 1


def test_a_peer_that_accepts_the_next_when_the_first_has_left_finds_one_alive(daemon):
    server = Server(daemon, most=1)
    server.greet()
    for _ in range(3):
        server.ask(0)
        server.lines.pop().close()
        daemon.run(1)
        server.greet()
        assert len(server.lines) == 1
    server.ask(0)
    assert daemon.n_links == 2


def test_a_refused_connection_is_made_again_and_is_no_reason_to_grow(daemon):
    server = Server(daemon)
    server.greet()
    server.ask(0, 1)
    server.greet()
    server.ask(0, 1, 2)
    server.lines[3].send(b"garbage, and more garbage")
    daemon.run()
    assert server.lines.pop().is_closed()
    daemon.run(QUIET_SECONDS)
    assert [link.phase for link in daemon.pool.links].count(Phase.SERVING) == 3
    daemon.run(5)
    server.greet()
    assert len(server.lines) == daemon.n_links == 4


def test_a_used_connection_that_the_peer_has_dropped_is_offered_again_when_it_is_missed(daemon):
    server = Server(daemon)
    server.greet()
    server.ask(0, 1)
    server.greet()
    server.ask(0, 1, 2, 3)
    server.greet()
    for line in server.lines[3:]:
        line.close()
    del server.lines[3:]
    daemon.run(1)
    assert daemon.n_links == 3
    # Those that were dropped unused were not wanted.
    server.ask(0, 1, 2)
    server.greet()
    assert daemon.n_links == 3


def test_a_number_is_kept(peer):
    with Daemon(peer, 6) as daemon:
        server = Server(daemon)
        server.greet()
        assert len(server.lines) == daemon.n_links == 6
        for _ in range(10):
            server.ask(*range(6))
            daemon.run(QUIET_SECONDS)
        server.lines.pop(2).close()
        daemon.run(1)
        server.greet()
        assert len(server.lines) == daemon.n_links == 6


def test_a_number_is_opened_although_the_peer_speaks_to_nobody_before_it_has_all(peer):
    peer.listener.setblocking(False)
    with Daemon(peer, 7) as daemon:
        daemon.run(GREETING_SECONDS / 2)
        for _ in range(MAX_PENDING):
            daemon.accept()
        with pytest.raises(BlockingIOError):
            daemon.accept()
        for _ in range(3):
            daemon.run(GREETING_SECONDS)
            daemon.accept()
        daemon.run(60)
        assert daemon.n_links == daemon.n_dialled == 7


@pytest.mark.parametrize("connections", [None, 1, 8])
def test_while_nobody_listens_one_connection_alone_dials(connections):
    with Peer() as place:
        pass
    with Daemon(place, connections) as daemon:
        daemon.run(60)
        assert daemon.n_links == 1
        assert daemon.n_dialled < 60 * 8


@pytest.mark.parametrize("connections", [None, 3])
def test_once_is_over_when_the_first_has_left(peer, connections):
    with Daemon(peer, connections, is_once=True) as daemon:
        server = Server(daemon)
        server.greet()
        server.ask(0, 1)
        server.lines[0].send(EXIT)
        daemon.run()
        assert not daemon.pool.is_done
        for line in server.lines[1:]:
            line.close()
        daemon.run()
        assert daemon.pool.is_done
        assert not daemon.pool.was_refused
        daemon.run(60)
        assert daemon.pool.is_done


def test_once_does_not_wait_for_a_spare_that_nobody_accepts(peer):
    with Daemon(peer, None, is_once=True) as daemon:
        server = Server(daemon, most=1)
        server.greet()
        server.ask(0)
        assert daemon.n_links == 2
        server.lines[0].send(EXIT)
        daemon.run()
        assert daemon.pool.is_done


def test_asked_to_stop_it_leaves_all(daemon):
    server = Server(daemon, most=2)
    server.greet()
    server.ask(0, 1)
    daemon.run()
    assert daemon.n_links == 4
    daemon.pool.stop()
    daemon.run()
    for line in server.lines:
        line.sock.settimeout(1)
        assert line.is_closed()
        line.close()
    daemon.run()
    assert daemon.pool.is_done
