"""The protocol under peers that may say anything: only a remote error leaves, replies are whole and in order.

`make chaos` plays a hundred thousand of each kind; here is a sample. What must hold after each step is in `bouts.py`,
what a peer may expect to hear in `oracle.py`.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings

from dpserver.errors import RemoteProtocolError
from dpserver.ipi import Forces, ForcesWanted, Limits, Session
from tests.ipi.bouts import (
    LIMITS,
    MANNERS,
    NAMES,
    NUMBERS,
    WORDS,
    Bout,
    play,
    play_mutated,
    recordings,
    shared_posdata,
)
from tests.ipi.oracle import Manner, Rest
from tests.ipi.scripts import BAD_NAMES, BAD_TEXTS, TEXTS, Script, scripts
from tests.peer import EXIT, GETFORCE, STATUS, init, posdata

SEED = 0
N_MUTATED = 1500
N_SCRIPTED = 500


@settings(max_examples=N_SCRIPTED, deadline=None)
@given(scripts())
def test_a_peer_that_knows_the_grammar_and_breaks_it(script: Script):
    play(script.stream, script.cuts, script.delays, script.manner, is_closed=script.is_closed)


def test_mutations_of_what_real_peers_have_said():
    recorded = recordings()
    ends = Counter(play_mutated(SEED, number, recorded).expected.rest for number in range(N_MUTATED))
    assert all(ends[rest] for rest in Rest), ends  # they reach every corner


@pytest.mark.parametrize("number", range(len(recordings())))
def test_a_recording_is_answered_to_its_end_however_it_is_cut(number):
    stream = recordings()[number]
    manner = Manner(LIMITS, is_shared=b"pos" in stream)
    whole = play(stream, [], [], manner)
    assert whole.expected.rest in {Rest.EXIT, Rest.READY}
    assert len(whole.answers) >= 2
    for delays in ([0], [1, 3]):
        crumbs = play(stream, range(7, len(stream), 7), delays, manner, is_closed=False)
        assert crumbs.expected.n_read == len(stream)
        assert crumbs.sent == whole.sent


def some(n_bytes: int) -> bytes:
    """So many bytes, but few."""
    return b"x" * max(0, min(n_bytes, 4000))


WHOLE = posdata(np.ones((3, 3)), np.eye(3)) + GETFORCE
DELIMITED = {
    "a text of INIT": [init(text) + STATUS + WHOLE for text in (*TEXTS, *BAD_TEXTS)],
    "the length of INIT": [b"INIT        " + struct.pack("=ii", 7, n) + some(n) for n in NUMBERS],
    "an atom count": [b"POSDATA     " + bytes(144) + struct.pack("=i", n) + some(24 * n) for n in NUMBERS],
    "an atom count of a batch": [
        init(b"batch_size:6") + b"POSDATA     " + struct.pack("=i", n) + some(6 * (144 + 24 * n)) for n in NUMBERS
    ],
    "a batch": [
        init(b"batch_size:%d" % n) + b"POSDATA     " + struct.pack("=i", 6) + some(n * (144 + 24 * 6)) for n in NUMBERS
    ],
    "a count of shared atoms": [shared_posdata(n, NAMES) + GETFORCE + shared_posdata(n) for n in NUMBERS],
    "another count": [shared_posdata(4, NAMES) + GETFORCE + shared_posdata(n) + GETFORCE for n in NUMBERS],
    "a name": [
        shared_posdata(4, [*NAMES[:k], name, *NAMES[k + 1 :]]) + GETFORCE
        for k in range(6)
        for name in (*BAD_NAMES, NAMES[0], NAMES[5])
    ],
    "a word": [start + word for start in (b"", init(), WHOLE, WHOLE[:-12]) for word in WORDS],
}


@pytest.mark.parametrize("what", DELIMITED)
def test_everything_a_peer_may_choose_is_held_against_its_bounds(what):
    """The oracle knows them too; each byte alone, for a refusal must not come late."""
    ends = Counter()
    for stream in DELIMITED[what]:
        for manner in MANNERS:
            ends[play(stream, [], [], manner).expected.rest] += 1
        play(stream[:300], range(1, min(300, len(stream))), [2], Manner(LIMITS, is_shared=b"pos" in stream))
    assert ends[Rest.REFUSED]
    assert ends[Rest.REFUSED] < ends.total()


@pytest.mark.parametrize("bits", [0x7FF0000000000001, 0xFFF0000000000001, 0x7FF8000000000000, 0x7FEFFFFFFFFFFFFF, 1])
def test_every_float64_is_received_in_silence(bits):
    """Signalling NaNs among them; whether a structure makes sense is not for the protocol to say."""
    number = struct.pack("=Q", bits)
    bout = Bout()
    bout.feed(b"POSDATA     " + number * 18 + struct.pack("=i", 2) + number * 6 + GETFORCE)
    assert bout.is_owed
    bout.answer()
    assert bout.expected.rest is Rest.READY


# ---- memory: what a session holds is bounded by what has come, and by its limits


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """The highest number of bytes that were in use since the beginning."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


SMALL = 64 * 1024

GREEDY = {
    "INIT": b"INIT        " + struct.pack("=ii", 0, Limits().init_bytes),
    "atoms": b"POSDATA     " + bytes(144) + struct.pack("=i", Limits().atoms),
    "batch": init(b"batch_size:%d" % Limits().batch)
    + b"POSDATA     "
    + struct.pack("=i", Limits().atoms // Limits().batch),
}


@pytest.mark.parametrize("name", GREEDY)
def test_an_announcement_takes_no_memory(name):
    with traced() as peak:
        session = Session()
        session.receive_data(GREEDY[name])
        while session.next_event() is not None:
            pass
        for _ in range(100):
            session.receive_data(b"x")
            assert session.next_event() is None
        assert peak() < SMALL


@pytest.mark.parametrize("chunk", [1_000, 100_000, 10_000_000])
def test_a_message_takes_four_times_its_size_at_most(chunk):
    """The buffer, which grows by copying, and the structures; then the answer and its copy in atomic units."""
    n_atoms = 40_000
    message = posdata(np.zeros((n_atoms, 3)), np.eye(3)) + GETFORCE
    with traced() as peak:
        session = Session(Limits(atoms=n_atoms))
        for at in range(0, len(message), chunk):
            session.receive_data(message[at : at + chunk])
            event = session.next_event()
        assert isinstance(event, ForcesWanted)
        x = event.structures.positions
        session.send(Forces(np.zeros(1), x, np.zeros((1, 3, 3))))
        assert session.next_event() is None
        session.data_to_send()
        assert peak() < 4 * len(message) + SMALL


@pytest.mark.parametrize(
    "talk",
    [
        STATUS,
        GETFORCE,
        EXIT,
        b"\0" * 500,
        b"GET / HTTP/1.1\r\n",
        init(b"x" * 65_536),
        posdata(np.ones((9, 3)), np.eye(3)),
    ],
)
@pytest.mark.parametrize("start", [b"", init(), posdata(np.ones((9, 3)), np.eye(3))])
def test_a_peer_that_talks_on_and_on_takes_no_memory(start, talk):
    """Ten million bytes and more, whether or not we are owed silence."""
    with traced() as peak:
        session = Session()
        try:
            session.receive_data(start)
            for _ in range(10_000_000 // len(talk) if len(talk) > 50_000 else 20_000):
                while session.next_event() is not None:
                    pass
                session.receive_data(talk)
                session.data_to_send()
        except RemoteProtocolError:
            session.receive_data(talk)
            assert session.next_event() is None
        assert peak() < 4 * len(talk) + SMALL
