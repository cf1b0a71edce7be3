from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpserver.errors import LocalProtocolError, RemoteProtocolError
from dpserver.ipi import Extras, Forces, ForcesWanted, Initialised, Limits, PeerLeft, Session, State
from dpserver.ipi.session import MAX_PENDING_BYTES, STATUS_ANSWER, TRANSITIONS
from tests import peer

CELL = np.diag([10.0, 11.0, 12.0])
RNG = np.random.default_rng(1)
X = RNG.normal(size=(4, 3))


def answer(event: ForcesWanted) -> Forces:
    """Forces that tell which structure they belong to."""
    x = event.structures.positions
    return Forces(x.sum(axis=(1, 2)), -2 * x, event.structures.cell.copy())


class Engine:
    """A session whose structures are answered after so many further chunks."""

    def __init__(self, delay: int = 0, limits: Limits | None = None) -> None:
        self.session = Session(limits)
        self.events: list[object] = []
        self.sent = b""
        self.delay = delay
        self.due: tuple[int, Forces] | None = None

    def feed(self, data: bytes) -> None:
        self.session.receive_data(data)
        self.advance()
        if self.due is not None:
            if self.due[0] <= 0:
                self.finish()
            else:
                self.due = self.due[0] - 1, self.due[1]

    def finish(self) -> None:
        """Bring the forces that are due."""
        while self.due is not None and self.session.state is State.COMPUTING:
            forces = self.due[1]
            self.due = None
            self.session.send(forces)
            self.advance()
            if self.delay:
                return

    def advance(self) -> None:
        while (event := self.session.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, ForcesWanted):
                self.due = self.delay, answer(event)
        self.sent += b"".join(bytes(b) for b in self.session.data_to_send())


def replies(raw: bytes, n_frames: int = 1) -> list[bytes | peer.Reply]:
    """Cut what we sent into headers and replies."""
    found: list[bytes | peer.Reply] = []
    while raw:
        if raw.startswith(peer.FORCEREADY):
            reply = peer.read_reply(raw, n_frames)
            found.append(reply)
            raw = raw[reply.size :]
        else:
            found.append(raw[:12])
            raw = raw[12:]
    return found


def test_every_state_answers_status_or_rests():
    assert set(TRANSITIONS) == set(State)
    for state, row in TRANSITIONS.items():
        assert (peer.STATUS.decode().strip() in {m.value for m in row}) == (state in STATUS_ANSWER)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_classic_order(delay):
    engine = Engine(delay)
    for message in [
        *(peer.STATUS, peer.init(b" template : w.xyz , ", bead=3), peer.STATUS),
        *(peer.posdata(X, CELL), peer.STATUS, peer.GETFORCE, peer.STATUS),
        *(peer.posdata(2 * X, CELL), peer.STATUS, peer.GETFORCE, peer.STATUS),
    ]:
        engine.feed(message)
    while engine.due is not None:
        engine.finish()
    got = replies(engine.sent)
    headers = [r for r in got if isinstance(r, bytes)]
    assert headers == [peer.NEEDINIT, peer.READY, peer.HAVEDATA, peer.READY, peer.HAVEDATA, peer.READY]
    forces = [r.forces[0] for r in got if isinstance(r, peer.Reply)]
    np.testing.assert_allclose(forces, [-2 * X, -4 * X], rtol=1e-14)
    assert engine.events[0] == Initialised(3, {"template": "w.xyz"}, 1)


@pytest.mark.parametrize("delay", [0, 2])
def test_consolidated_order(delay):
    engine = Engine(delay)
    engine.feed(peer.STATUS)
    engine.feed(peer.init())
    engine.feed(peer.STATUS)
    for scale in (1, 2, 3):
        engine.feed(peer.posdata(scale * X, CELL) + peer.GETFORCE)
        while engine.due is not None:
            engine.finish()
        engine.feed(peer.STATUS)
    got = replies(engine.sent)
    assert [r for r in got if isinstance(r, bytes)] == [peer.NEEDINIT, *[peer.READY] * 4]
    np.testing.assert_allclose(
        [r.forces[0] for r in got if isinstance(r, peer.Reply)], [-2 * X, -4 * X, -6 * X], rtol=1e-14
    )


def test_status_and_getforce_wait_while_we_compute():
    session = Session()
    session.receive_data(peer.posdata(X, CELL) + peer.STATUS)
    event = session.next_event()
    assert isinstance(event, ForcesWanted)
    session.receive_data(peer.GETFORCE)
    assert session.next_event() is None
    assert session.data_to_send() == []
    session.send(answer(event))
    assert session.data_to_send() == []
    assert session.next_event() is None
    sent = b"".join(bytes(b) for b in session.data_to_send())
    assert sent.startswith(peer.HAVEDATA + peer.FORCEREADY)
    assert session.state is State.READY


def test_a_reply_is_one_list_of_buffers_and_is_given_once():
    engine = Session()
    engine.receive_data(peer.posdata(X, CELL) + peer.GETFORCE)
    event = engine.next_event()
    assert isinstance(event, ForcesWanted)
    engine.send(answer(event))
    assert engine.next_event() is None
    assert len(engine.data_to_send()) == 3
    assert engine.data_to_send() == []


def test_native_batch():
    engine = Engine()
    x = RNG.normal(size=(3, 4, 3))
    engine.feed(peer.STATUS + peer.init(b" template : w.xyz , , batch_size:3") + peer.STATUS)
    engine.feed(peer.batched_posdata(x, [CELL] * 3) + peer.GETFORCE + peer.STATUS)
    assert isinstance(engine.events[0], Initialised)
    assert engine.events[0].batch_size == 3
    got = replies(engine.sent, n_frames=3)
    assert isinstance(got[2], peer.Reply)
    np.testing.assert_allclose(got[2].forces, -2 * x, rtol=1e-14)
    assert got[3] == peer.READY


@pytest.mark.parametrize(
    ("before", "message", "complaint"),
    [
        (peer.STATUS, peer.GETFORCE, "sent GETFORCE while we were waiting for INIT"),
        (peer.init(), peer.GETFORCE, "sent GETFORCE while we were waiting for POSDATA"),
        (peer.init(), peer.init(), "sent INIT while we were waiting for POSDATA"),
        (peer.STATUS, b"POSTDATA    ", "expected the header"),
        (peer.STATUS, peer.init(b"batch_size:0"), "batch_size:0; expected 1"),
        (peer.STATUS, peer.init(b"\xff"), "not UTF-8"),
    ],
)
def test_what_may_not_be_said_ends_the_session(before, message, complaint):
    session = Session()
    session.receive_data(before)
    session.next_event()
    session.receive_data(message + peer.STATUS)
    with pytest.raises(RemoteProtocolError, match=complaint):
        session.next_event()
    assert session.state is State.OVER
    session.receive_data(peer.STATUS)
    assert session.next_event() is None
    assert session.data_to_send() == []


@pytest.mark.parametrize("message", [peer.posdata(X, CELL), peer.init()])
def test_getforce_is_the_only_way_on_once_forces_are_there(message):
    session = Session()
    session.receive_data(peer.posdata(X, CELL) + message)
    event = session.next_event()
    assert isinstance(event, ForcesWanted)
    session.send(answer(event))
    with pytest.raises(RemoteProtocolError, match="while we were waiting for GETFORCE"):
        session.next_event()


def test_a_peer_cannot_fill_our_memory_while_we_compute():
    session = Session()
    session.receive_data(peer.posdata(X, CELL))
    session.next_event()
    session.receive_data(b"x" * MAX_PENDING_BYTES)
    with pytest.raises(RemoteProtocolError, match=f"more than {MAX_PENDING_BYTES} bytes while it had to wait"):
        session.receive_data(b"x")


def test_a_peer_cannot_announce_more_than_the_limits():
    session = Session(Limits(atoms=3))
    session.receive_data(peer.posdata(X, CELL)[: 12 + 144 + 4])
    with pytest.raises(RemoteProtocolError, match="announces 4 atoms"):
        session.next_event()


@pytest.mark.parametrize(
    ("last", "leaves"),
    [
        (b"", PeerLeft(True, "closed the connection while we were waiting for INIT")),
        (peer.init(), PeerLeft(True, "closed the connection while we were waiting for POSDATA")),
        (peer.EXIT, PeerLeft(True, "said EXIT")),
        (peer.init() + peer.EXIT + b"whatever", PeerLeft(True, "said EXIT")),
    ],
)
def test_a_peer_that_is_owed_nothing_leaves_cleanly(last, leaves):
    engine = Engine()
    engine.feed(last)
    engine.feed(b"")
    assert engine.events[-1] == leaves
    assert engine.session.state is State.OVER
    assert engine.session.next_event() is None


@pytest.mark.parametrize(
    ("last", "leaves"),
    [
        (b"", PeerLeft(False, "closed the connection while we were computing forces")),
        (peer.GETFORCE, PeerLeft(False, "closed the connection while we were computing forces")),
        (peer.GETFORCE + peer.EXIT, PeerLeft(True, "said EXIT")),
    ],
)
def test_a_peer_that_leaves_while_we_compute_is_noticed_at_once(last, leaves):
    session = Session()
    session.receive_data(peer.posdata(X, CELL) + last)
    assert isinstance(session.next_event(), ForcesWanted)
    session.receive_data(b"")
    assert session.next_event() == leaves
    with pytest.raises(LocalProtocolError):
        session.send(Forces(np.zeros(1), np.zeros((1, 4, 3)), np.zeros((1, 3, 3))))


def test_a_peer_that_leaves_before_it_asked_for_its_forces_is_lost():
    engine = Engine()
    engine.feed(peer.posdata(X, CELL))
    engine.feed(b"")
    assert engine.events[-1] == PeerLeft(False, "closed the connection while we were waiting for GETFORCE")


@pytest.mark.parametrize("message", [peer.STATUS, peer.init(b"abc"), peer.posdata(X, CELL)])
def test_a_peer_that_leaves_within_a_message_is_lost_and_its_bytes_are_counted(message):
    for cut in range(1, len(message)):
        session = Session()
        session.receive_data(message[:cut])
        session.receive_data(b"")
        event = session.next_event()
        assert isinstance(event, PeerLeft)
        assert not event.is_clean
        name = "header" if cut < 12 else message[:12].decode().strip()
        assert re.fullmatch(rf"closed the connection in the middle of a {name}: {cut} of \d+ bytes came", event.reason)
        assert session.state is State.OVER
        assert session.next_event() is None


def test_garbage_is_refused_although_the_peer_has_left():
    session = Session()
    session.receive_data(b"GET / HTTP/1.1")
    session.receive_data(b"")
    with pytest.raises(RemoteProtocolError, match="expected the header"):
        session.next_event()


@pytest.mark.parametrize(
    "wrong",
    [
        {"energy": np.zeros(2)},
        {"energy": np.array([np.nan])},
        {"forces": np.zeros((1, 3, 3))},
        {"forces": np.full((1, 4, 3), np.inf)},
        {"virial": np.zeros((3, 3))},
        {"extras": [b"a", b"b"]},
    ],
)
def test_no_wrong_answer_gets_out(wrong):
    session = Session()
    session.receive_data(peer.posdata(X, CELL) + peer.GETFORCE)
    event = session.next_event()
    assert isinstance(event, ForcesWanted)
    good = {"energy": np.zeros(1), "forces": np.zeros((1, 4, 3)), "virial": np.zeros((1, 3, 3))}
    with pytest.raises(LocalProtocolError):
        session.send(Forces(**{**good, **wrong}))
    assert session.state is State.COMPUTING
    session.send(Forces(**good))
    assert session.next_event() is None
    assert session.state is State.READY


def test_forces_that_nobody_asked_for_are_our_bug():
    with pytest.raises(LocalProtocolError, match="waiting for INIT"):
        Session().send(Forces(np.zeros(1), np.zeros((1, 4, 3)), np.zeros((1, 3, 3))))


@pytest.mark.parametrize(
    ("extras", "text", "is_sent"),
    [
        (Extras.AUTO, b" ", True),
        (Extras.AUTO, b"\0", False),
        (Extras.AUTO, b"Initializing", False),
        (Extras.AUTO, None, False),
        (Extras.ON, b"\0", True),
        (Extras.ON, None, True),
        (Extras.OFF, b" ", False),
    ],
)
def test_extras_go_to_those_who_read_them(extras, text, is_sent):
    session = Session(extras=extras)
    session.receive_data((b"" if text is None else peer.init(text)) + peer.posdata(X, CELL) + peer.GETFORCE)
    while not isinstance(event := session.next_event(), ForcesWanted):
        assert event is not None
    assert session.has_extras is is_sent
    session.send(replace(answer(event), extras=[b'{"a": 1}']))
    session.next_event()
    reply = peer.read_reply(b"".join(map(bytes, session.data_to_send())))
    assert reply.extras == [b'{"a": 1}' if is_sent else b" "]


# ---- sequences of events, cut anywhere

EXCHANGES = st.lists(
    st.tuples(st.sampled_from(["classic", "consolidated", "status"]), st.integers(1, 5), st.integers(0, 2**31)),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(
    exchanges=EXCHANGES,
    has_init=st.booleans(),
    batch_size=st.integers(1, 3),
    delay=st.integers(0, 4),
    data=st.data(),
)
def test_any_legal_conversation_cut_anywhere_gets_the_same_answers(exchanges, has_init, batch_size, delay, data):
    stream, expected = b"", []
    if has_init:
        stream += peer.STATUS + peer.init(b" a : b , , batch_size:%d" % batch_size)
        expected.append(peer.NEEDINIT)
    n_frames = batch_size if has_init else 1
    idle = peer.READY if has_init or (exchanges and exchanges[0][0] != "status") else peer.NEEDINIT
    for order, n_atoms, seed in exchanges:
        x = np.random.default_rng(seed).normal(size=(n_frames, n_atoms, 3))
        message = peer.posdata(x[0], CELL) if n_frames == 1 else peer.batched_posdata(x, [CELL] * n_frames)
        if order == "status":
            stream += peer.STATUS
            expected.append(idle)
        else:
            idle = peer.READY
            stream += message + (peer.STATUS if order == "classic" else b"") + peer.GETFORCE
            expected += ([peer.HAVEDATA] if order == "classic" else []) + [-2 * x]
    stream += peer.EXIT
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    engine = Engine(delay)
    for start, stop in pairwise([0, *cuts, len(stream)]):
        while engine.due is not None and engine.session.state is State.COMPUTING:
            engine.finish()
        if start < stop:
            engine.feed(stream[start:stop])
    while engine.due is not None:
        engine.finish()
    got = replies(engine.sent, n_frames)
    assert len(got) == len(expected)
    for mine, wanted in zip(got, expected, strict=True):
        if isinstance(mine, peer.Reply):
            np.testing.assert_allclose(mine.forces, wanted, rtol=1e-14)
        else:
            assert mine == wanted
    assert engine.events[-1] == PeerLeft(True, "said EXIT")


@settings(max_examples=300, deadline=None)
@given(
    start=st.sampled_from(
        [b"", peer.STATUS, peer.init(), peer.init(b"batch_size:2"), peer.posdata(X, CELL), b"POSDATA     "]
    ),
    chunks=st.lists(st.binary(max_size=60) | st.sampled_from([peer.STATUS, peer.GETFORCE, peer.EXIT]), max_size=6),
)
def test_garbage_ends_in_a_remote_error_or_not_at_all(start, chunks):
    engine = Engine(limits=Limits(atoms=1000, batch=10, init_bytes=100))
    with contextlib.suppress(RemoteProtocolError):
        for chunk in filter(None, [start, *chunks]):
            engine.feed(chunk)
        engine.feed(b"")
    assert engine.session.state is State.OVER or engine.due is not None
