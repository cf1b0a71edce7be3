"""One session against a peer that may say anything, with every step held against the oracle."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
import pytest

from dpserver.errors import LocalProtocolError, RemoteProtocolError
from dpserver.ipi import (
    Extras,
    Forces,
    ForcesWanted,
    Initialised,
    Limits,
    Segment,
    Session,
    SharedForcesWanted,
    SharedStructures,
    State,
)
from dpserver.ipi.session import MAX_PENDING_BYTES
from tests.ipi.oracle import Manner, Rest, Told, is_left, told
from tests.peer import EXIT, GETFORCE, STATUS, batched_posdata, init, posdata

SESSIONS = Path(__file__).parents[1] / "data" / "sessions"
LIMITS = Limits(atoms=40, batch=6, init_bytes=120)
PLAIN = Manner(LIMITS)
MANNERS = [Manner(LIMITS, is_shared, extras) for is_shared in (False, True) for extras in Extras]

STATES = {
    Rest.NEW: State.NEED_INIT,
    Rest.READY: State.READY,
    Rest.COMPUTING: State.COMPUTING,
    Rest.HAVE_FORCES: State.HAVE_FORCES,
    Rest.EXIT: State.OVER,
    Rest.REFUSED: State.OVER,
}


def largest_message(limits: Limits) -> int:
    """Bytes of the largest message that a peer may send."""
    return max(20 + limits.init_bytes, 16 + 144 * limits.batch + 24 * limits.atoms)


class Bout:
    """A session, its owner, and the oracle.

    Args:
        manner: what the session knows of its peer.
    """

    def __init__(self, manner: Manner = PLAIN) -> None:
        self.session = Session(manner.limits, is_shared=manner.is_shared, extras=manner.extras)
        self.manner = manner
        self.stream = b""
        self.sent = b""
        self.answers: list[Forces] = []
        self.n_wanted = 0
        self.expected = Told()
        self.is_over = False
        self.longest_chunk = 0

    @property
    def is_owed(self) -> bool:
        """Whether the peer waits for forces."""
        return not self.is_over and self.n_wanted > len(self.answers)

    def feed(self, chunk: bytes) -> None:
        """The peer says something."""
        self.stream += chunk
        self.longest_chunk = max(self.longest_chunk, len(chunk))
        if not self.is_flood(chunk):
            self.session.receive_data(chunk)
            if not self.is_over:
                self.go_on()
        self.check()

    def answer(self) -> None:
        """The owner brings the forces of the last structures."""
        wanted = self.expected.wanted[-1]
        shape = wanted.shape(Segment.POSITIONS) if isinstance(wanted, SharedStructures) else wanted[0].shape
        self.answers.append(forces(len(self.answers), *shape[:2]))
        self.session.send(self.answers[-1])
        self.go_on()
        self.check()

    def close(self) -> None:
        """The peer closes its side."""
        if not self.is_flood(b""):
            self.session.receive_data(b"")
            if not self.is_over:
                event = self.session.next_event()
                assert is_left(event, self.stream, self.expected), event
                self.is_over = True
        self.check()

    def is_flood(self, chunk: bytes) -> bool:
        """Whether the peer has said too much while it had to wait: then it is refused when it is next heard."""
        if not self.is_owed or len(self.stream) - self.expected.n_read <= MAX_PENDING_BYTES:
            return False
        with pytest.raises(RemoteProtocolError, match="while it had to wait"):
            self.session.receive_data(chunk)
        self.is_over = True
        return True

    def go_on(self) -> None:
        """Take the events that the last step has brought about, or the refusal."""
        before, self.expected = self.expected, told(self.stream, self.answers, self.manner)
        events: list[object] = []
        is_refused = False
        try:
            while (event := self.session.next_event()) is not None:
                events.append(event)
        except RemoteProtocolError:
            is_refused = True
        assert is_refused == (self.expected.rest is Rest.REFUSED)
        self.check_events(events, before)
        sent = b"".join(bytes(b) for b in self.session.data_to_send())
        # A session that is refused says nothing more, not even what it owed for the messages before.
        assert sent == (b"" if is_refused else self.expected.replies[len(self.sent) :])
        self.sent += sent
        self.is_over = self.expected.rest in {Rest.REFUSED, Rest.EXIT}

    def check_events(self, events: Sequence[object], before: Told) -> None:
        """INIT, structures and EXIT, each once and in their order."""
        left = list(events)
        if self.expected.parameters is not None and before.parameters is None:
            event = left.pop(0)
            assert isinstance(event, Initialised)
            assert (event.parameters, event.batch_size) == (self.expected.parameters, self.expected.batch_size)
        for wanted in self.expected.wanted[self.n_wanted :]:
            event = left.pop(0)
            self.n_wanted += 1
            if isinstance(wanted, SharedStructures):
                assert event == SharedForcesWanted(wanted)
                continue
            assert isinstance(event, ForcesWanted)
            positions, cell = wanted
            np.testing.assert_array_equal(event.structures.positions, positions)
            np.testing.assert_array_equal(event.structures.cell, cell)
        if self.expected.rest is Rest.EXIT:
            assert is_left(left.pop(0), b"", Told())
        assert not left

    def check(self) -> None:
        """What holds after every step."""
        state = State.OVER if self.is_over else STATES[self.expected.rest]
        assert self.session.state is state
        held = len(self.session._buffer)
        if self.is_over:
            assert held == 0 or self.expected.rest is Rest.EXIT
            assert self.session.next_event() is None
            assert self.session.data_to_send() == []
            with pytest.raises(LocalProtocolError):
                self.session.send(forces(0, 1, 1))
        elif state is State.COMPUTING:
            assert held <= max(MAX_PENDING_BYTES, largest_message(self.manner.limits) + self.longest_chunk)
        else:
            assert held < largest_message(self.manner.limits)


def forces(number: int, n_frames: int, n_atoms: int) -> Forces:
    """An answer that tells which one it is; two of three have extras."""
    shape = (n_frames, n_atoms, 3)
    base = number + 1 + np.arange(n_frames * n_atoms * 3, dtype=float).reshape(shape)
    extras = [b'{"a": 1}', b"", b"\0"] * n_frames if number % 3 < 2 else []
    return Forces(base[:, 0, 0] / 7, np.sin(base), base[:, 0, :, None] * [1.0, 2.0, 5.0], extras[:n_frames])


def play(
    stream: bytes, cuts: Sequence[int], delays: Sequence[int], manner: Manner = PLAIN, *, is_closed: bool = True
) -> Bout:
    """Feed a stream cut at the given places; each answer comes so many pieces after it was asked for."""
    bout = Bout(manner)
    patience = cycle(delays or [0])
    wait = next(patience)
    for start, stop in pairwise([0, *cuts, len(stream)]):
        if start == stop:
            continue
        bout.feed(stream[start:stop])
        while bout.is_owed and wait <= 0:
            bout.answer()
            wait = next(patience)
        wait -= bout.is_owed
    while not is_closed and bout.is_owed:
        bout.answer()
    if is_closed:
        bout.close()
    return bout


# ---- raw mutation

NAMES = [b"ipi_shm_12_7_" + kind for kind in (b"pos", b"h", b"ih", b"pot", b"force", b"vir")]

NUMBERS = [0, 1, -1, 2, 3, 4, 6, 7, 13, 40, 41, 120, 121, 4096, 65536, 10_000_000, 2**31 - 1, -(2**31)]
WORDS = [
    STATUS,
    GETFORCE,
    EXIT,
    b"POSDATA     ",
    b"INIT        ",
    b"status      ",
    b"STATUS\0\0\0\0\0\0",
    b" STATUS     ",
]


def shared_posdata(n_atoms: int, names: Sequence[bytes] = ()) -> bytes:
    """Structures in shared memory; their places are named once."""
    named = b"".join(struct.pack("=i", len(name)) + name for name in names)
    return b"POSDATA     " + struct.pack("=i", n_atoms) + named


def recordings(folder: Path = SESSIONS) -> list[bytes]:
    """What real peers have said, and what ours says."""
    x = np.arange(12.0).reshape(4, 3)
    ours = [
        STATUS + init(b"species: O H H") + STATUS + (posdata(x, np.eye(3)) + STATUS + GETFORCE + STATUS) * 3 + EXIT,
        (posdata(x, np.zeros((3, 3))) + GETFORCE) * 4,
        STATUS + init(b"batch_size:2") + (batched_posdata([x, x], [np.eye(3)] * 2) + GETFORCE) * 2 + EXIT,
        STATUS
        + init(b" ")
        + (shared_posdata(4, NAMES) + GETFORCE)
        + (shared_posdata(4) + STATUS + GETFORCE) * 3
        + EXIT,
        init(b" batch_size:3 ") + (shared_posdata(9, NAMES) + GETFORCE) + (shared_posdata(9) + GETFORCE) * 3 + EXIT,
    ]
    return ours + [path.read_bytes() for path in sorted(folder.glob("*.bin"))]


def mutated(rng: random.Random, recorded: Sequence[bytes]) -> bytes:
    """One of the recordings with up to five wounds; one in ten is whole."""
    data = bytearray(rng.choice(recorded))
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 2, 3, 4, 5])):
        _wound(rng, data, recorded)
    return bytes(data)


def _wound(rng: random.Random, data: bytearray, recorded: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    stop = min(len(data), at + rng.choice([1, 4, 8, 12, 24, rng.randrange(300)]))
    match rng.randrange(9):
        case 0 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 12, 40]))
        case 2:
            del data[at:stop]
        case 3:
            data[at:at] = data[at:stop]
        case 4:
            data[at : at + 4] = struct.pack("=i", rng.choice(NUMBERS))
        case 5:
            data[at:stop] = rng.choice(WORDS)
        case 6:
            other = rng.choice(recorded)
            data[at:] = other[rng.randrange(len(other)) :]
        case 7:
            del data[at:]
        case _:
            _break_message(rng, data)


def _break_message(rng: random.Random, data: bytearray) -> None:
    """Hit what decides: the number behind a header, or the header itself."""
    word = rng.choice([b"INIT", b"POSDATA", b"GETFORCE", b"STATUS"])
    places = [k for k in range(len(data)) if data.startswith(word, k)]
    if places:
        at = rng.choice(places) + rng.choice([0, 12, 16, 12 + 144])
        data[at : at + (12 if rng.random() < 0.3 else 4)] = (
            rng.choice(WORDS) if rng.random() < 0.3 else struct.pack("=i", rng.choice(NUMBERS))
        )


def cuts(rng: random.Random, length: int) -> list[int]:
    """Where a stream is cut: not at all, in a few places, or into crumbs."""
    match rng.randrange(4):
        case 0:
            return []
        case 1 if length:
            width = rng.choice([1, 2, 3, 5, 7, 11, 12, 13]) if length < 300 else rng.randrange(40, 400)
            return list(range(width, length, width))
        case _:
            return sorted(rng.randrange(length + 1) for _ in range(rng.randrange(9)))


def play_mutated(seed: int, number: int, recorded: Sequence[bytes]) -> Bout:
    """The session of a number; what fails is reproduced by its seed and number alone."""
    rng = random.Random(f"{seed}:{number}")
    stream = mutated(rng, recorded)
    delays = [rng.randrange(4) for _ in range(rng.randrange(4))]
    # Most are heard in the manner in which they were recorded.
    is_shared = rng.random() < 0.1 or (b"pos" in stream and rng.random() < 0.9)
    manner = Manner(LIMITS, is_shared, rng.choice(list(Extras)))
    try:
        return play(stream, cuts(rng, len(stream)), delays, manner, is_closed=rng.random() < 0.8)
    except BaseException as error:
        error.add_note(f"in play_mutated(seed={seed}, number={number})")
        raise
