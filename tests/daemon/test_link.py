"""The pauses of a link, on a clock that stands still."""

from __future__ import annotations

import numpy as np
import pytest

from dpserver.daemon.conversation import End
from dpserver.daemon.link import LINGER_SECONDS, SILENCE_SECONDS, STOP_SECONDS, Link, Phase, Services
from dpserver.ipi import Forces, Limits
from dpserver.transport import Backoff
from tests import structures
from tests.daemon.serving import target
from tests.doubles import PairModel
from tests.patience import PATIENCE
from tests.peer import EXIT, STATUS, Line, Peer, init, posdata


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ignore(*_: object) -> None:
    pass


def make(peer: Peer, clock: Clock, *, is_once: bool = False) -> Link:
    services = Services(PairModel(), ignore, ignore, ignore, clock, Limits(), Backoff, is_once)
    return Link(target(peer.endpoint), 1, services)


def connect(link: Link, peer: Peer, clock: Clock) -> Line:
    clock.now = link.deadline
    link.on_deadline()
    assert link.phase is Phase.SERVING
    assert link.deadline == clock.now + SILENCE_SECONDS
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
        assert link.watch is None
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


FRAME = structures.cubic()
POSITIONS = posdata(FRAME.positions, FRAME.cell[0])


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_a_peer_that_stays_silent_is_wondered_at_once(clock, caplog):
    with Peer() as peer:
        link = make(peer, clock)
        for _ in range(2):  # once a connection
            with connect(link, peer, clock) as line:
                clock.now = link.deadline
                link.on_deadline()
                assert link.phase is Phase.SERVING
                assert link.deadline is None
                hear(link, line, STATUS)
                assert link.deadline is None
                hear(link, line, EXIT)
    wondered = f"{peer.endpoint}: connected, but the peer has said nothing for 30 s; does an MD code listen there?"
    assert complaints(caplog) == [wondered, wondered]


@pytest.mark.parametrize("word", [STATUS, STATUS[:3]])
def test_a_peer_that_has_said_a_word_may_be_silent(clock, caplog, word):
    with Peer() as peer:
        link = make(peer, clock)
        with connect(link, peer, clock) as line:
            hear(link, line, word)
            assert link.deadline is None
            link.abandon()
    assert complaints(caplog) == []


def test_asked_to_stop_a_peer_that_is_owed_forces_has_a_while_to_take_them(clock, caplog):
    with Peer() as peer:
        link = make(peer, clock)
        with connect(link, peer, clock) as line:
            clock.now += SILENCE_SECONDS / 2
            hear(link, line, POSITIONS)
            link.stop()
            assert link.deadline is None  # as long as we take to compute them
            n_atoms = structures.cubic().n_atoms
            link.conversation.deliver(Forces(np.zeros(1), np.zeros((1, n_atoms, 3)), np.zeros((1, 3, 3))))
            link.settle()
            for _ in range(2):
                link.stop()
                assert link.deadline == clock.now + STOP_SECONDS
            clock.now = link.deadline
            link.on_deadline()
        assert link.phase is Phase.DONE
    (complaint,) = complaints(caplog)
    assert complaint.startswith(f"{peer.endpoint}: lost: did not take its answer within 10 s; served 1 evaluation")


def test_what_keeps_a_peer_from_being_reached_is_said_once(clock, caplog, tmp_path):
    (tmp_path / "file").touch()
    services = Services(PairModel(), ignore, ignore, ignore, clock, Limits(), Backoff, is_once=False)
    link = Link(target(f"unix:{tmp_path}/file/socket"), 1, services)
    for _ in range(3):
        clock.now = link.deadline
        link.on_deadline()
    link.abandon()
    (complaint,) = complaints(caplog)
    assert complaint == f"unix:{tmp_path}/file/socket: cannot be reached: Not a directory; trying on"


@pytest.mark.parametrize("cut", [5, 12, 100, len(POSITIONS)])
def test_a_peer_that_dies_before_its_answer_is_lost_and_not_refused(clock, caplog, cut):
    with Peer() as peer:
        link = make(peer, clock, is_once=True)
        with connect(link, peer, clock) as line:
            hear(link, line, POSITIONS[:cut])
        link.on_ready(1)
        assert link.last_end is End.LOST
        assert link.phase is Phase.DONE
    (complaint,) = complaints(caplog)
    assert complaint.startswith(f"{peer.endpoint}: lost: closed the connection ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"speces: O H H", "'speces'; known are aparam, batch_size, fparam, species, template; did you mean species?"),
        (
            b"Template: w.xyz, verbosity: 1",
            "'Template', 'verbosity'; known are aparam, batch_size, fparam, species, template; did you mean template?",
        ),
        (b"verbosity: 1", "'verbosity'; known are aparam, batch_size, fparam, species, template"),
    ],
)
def test_parameters_of_the_peer_that_are_not_ours_are_told_with_those_that_are(clock, caplog, text, told):
    with Peer() as peer:
        link = make(peer, clock)
        with connect(link, peer, clock) as line:
            hear(link, line, init(text))
            link.abandon()
    assert complaints(caplog) == [f"{peer.endpoint}: INIT parameters without a meaning here: {told}"]
