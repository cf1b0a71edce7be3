"""The pauses of a link, on a clock that stands still."""

from __future__ import annotations

import pytest

from dpserver.daemon.link import LINGER_SECONDS, Link, Phase, Services
from dpserver.ipi import Limits
from dpserver.transport import Backoff
from tests.daemon.serving import target
from tests.doubles import PairModel
from tests.peer import EXIT, PATIENCE, Line, Peer


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(peer: Peer, clock: Clock, *, is_once: bool = False) -> Link:
    services = Services(PairModel(), lambda conversation, request: None, clock, Limits(), Backoff, is_once)
    return Link(target(peer.endpoint), 1, services)


def connect(link: Link, peer: Peer, clock: Clock) -> Line:
    clock.now = link.deadline
    link.on_deadline()
    assert link.phase is Phase.SERVING
    assert link.deadline is None
    return peer.accept()


def hear(link: Link, line: Line, *messages: bytes) -> None:
    """Have the link read what the peer sends; a unix socket has it at once."""
    line.send(*messages)
    link.on_ready(1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_while_nobody_listens_the_pauses_stay_short(clock):
    with Peer() as peer:
        link = make(peer, clock)
    for _ in range(50):
        clock.now = link.deadline
        link.on_deadline()
        assert link.phase is Phase.WAITING
        assert 0.019 < link.deadline - clock.now < 0.151
    link.abandon()
    assert link.phase is Phase.DONE


def test_a_peer_that_is_always_refused_is_dialled_less_and_less(clock):
    pauses = []
    with Peer() as peer:
        link = make(peer, clock)
        for _ in range(10):
            with connect(link, peer, clock) as line:
                hear(link, line, b"garbage, and more garbage")
                assert link.phase is Phase.CLOSING
                assert link.deadline == clock.now + LINGER_SECONDS
                assert line.is_closed()
            link.on_ready(1)
            assert link.phase is Phase.WAITING
            pauses.append(round(link.deadline - clock.now, 6))
    assert pauses == [0.15, 0.3, 0.6, 1.2, 2.4, 4.8, 9.6, 10.0, 10.0, 10.0]


def test_a_peer_that_does_not_notice_is_left_after_a_while(clock):
    with Peer() as peer:
        link = make(peer, clock)
        with connect(link, peer, clock) as line:
            hear(link, line, b"garbage, and more garbage")
            link.on_ready(1)
            assert link.phase is Phase.CLOSING
            clock.now = link.deadline
            link.on_deadline()
            assert link.phase is Phase.WAITING


def test_a_peer_that_asks_for_nothing_is_dialled_every_second_at_most(clock):
    pauses = []
    with Peer() as peer:
        link = make(peer, clock)
        for _ in range(6):
            connect(link, peer, clock).close()
            link.on_ready(1)
            pauses.append(round(link.deadline - clock.now, 6))
    assert pauses == [0.15, 0.3, 0.6, 1.0, 1.0, 1.0]


def test_once_is_once(clock):
    with Peer() as peer:
        link = make(peer, clock, is_once=True)
        with connect(link, peer, clock) as line:
            hear(link, line, EXIT)
        assert link.phase is Phase.DONE
        assert link.watchable is None
        assert link.deadline is None


def test_an_address_that_stays_silent_is_given_up(clock, monkeypatch):
    """As of a machine behind a firewall: the attempt is neither refused nor done."""
    from dpserver.transport import dialer

    class Silent(dialer.Attempt):
        def _start(self, address):
            super()._start(address)
            return dialer.errno.EINPROGRESS

    monkeypatch.setattr("dpserver.daemon.link.Attempt", Silent)
    with Peer() as peer:
        link = make(peer, clock)
        clock.now = link.deadline
        link.on_deadline()
        assert link.phase is Phase.DIALLING
        assert link.deadline == clock.now + dialer.ATTEMPT_SECONDS
        clock.now = link.deadline
        link.on_deadline()
        assert link.phase is Phase.WAITING
        assert PATIENCE > link.deadline - clock.now > 0
