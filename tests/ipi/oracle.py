"""What an engine must say to a stream of bytes: the protocol read by recursive descent, from the wire's description.

It shares nothing with the session but the constants of units: no table, no buffer, no state between calls. The whole
stream is read again from its first byte, so that how it was cut cannot matter.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from dpserver.ipi import Extras, Forces, Limits, PeerLeft, SharedStructures
from dpserver.units import BOHR, HARTREE, HARTREE_PER_BOHR

Floats = NDArray[np.float64]
SEPARATORS = "\0 \t\r\n{}"
NAME = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class Rest(Enum):
    """Where the engine stands after the last byte that could be read."""

    NEW = "no INIT has come"
    READY = "for positions"
    COMPUTING = "an answer is missing"
    HAVE_FORCES = "for GETFORCE"
    EXIT = "the peer said EXIT"
    REFUSED = "the peer broke a rule"


@dataclass(frozen=True)
class Manner:
    """What an engine knows of its peer beforehand.

    Attributes:
        limits: of its numbers.
        is_shared: its structures lie in shared memory.
        extras: whether it is sent any.
    """

    limits: Limits
    is_shared: bool = False
    extras: Extras = Extras.AUTO


@dataclass(eq=False)
class Told:
    """How an engine answers.

    Attributes:
        replies: all that it says.
        parameters: of INIT, None without.
        batch_size: structures in a message.
        wanted: positions (n_frames, n_atoms, 3) and cells (n_frames, 3, 3) of each message, Å, or where they lie.
        rest: where it stands in the end.
        n_read: bytes of whole messages.
    """

    replies: bytes = b""
    parameters: dict[str, str] | None = None
    batch_size: int = 1
    wanted: list[tuple[Floats, Floats] | SharedStructures] = field(default_factory=list)
    rest: Rest = Rest.NEW
    n_read: int = 0


class _TooShort(Exception):
    """The bytes end before the message does."""


class _Refused(Exception):
    """What came may not come here."""


def told(stream: bytes, answers: Sequence[Forces], manner: Manner) -> Told:
    """Read a stream of which so many messages have been answered."""
    reading = _Reading(stream, answers, manner)
    try:
        reading.conversation()
    except _TooShort:
        pass
    except _Refused:
        reading.told.rest = Rest.REFUSED
    return reading.told


def leaves_cleanly(stream: bytes, now: Told) -> bool:
    """Whether a peer that closes after this stream leaves nothing unsaid and is owed nothing."""
    unread = stream[now.n_read :]
    if now.rest is Rest.COMPUTING:
        return unread.endswith(b"EXIT        ")
    return now.rest in {Rest.NEW, Rest.READY} and not unread


def is_left(event: object, stream: bytes, now: Told) -> bool:
    """Whether an event is the right one for a peer that has closed its side."""
    return isinstance(event, PeerLeft) and event.is_clean == leaves_cleanly(stream, now)


class _Reading:
    def __init__(self, stream: bytes, answers: Sequence[Forces], manner: Manner) -> None:
        self.stream = stream
        self.at = 0
        self.answers = iter(answers)
        self.manner = manner
        self.limits = manner.limits
        self.has_extras = manner.extras is Extras.ON
        self.told = Told()

    def take(self, n_bytes: int) -> bytes:
        if self.at + n_bytes > len(self.stream):
            raise _TooShort
        self.at += n_bytes
        return self.stream[self.at - n_bytes : self.at]

    def number(self, least: int, most: int) -> int:
        value = int.from_bytes(self.take(4), "little" if struct.pack("=h", 1)[0] else "big", signed=True)
        if not least <= value <= most:
            raise _Refused
        return value

    def word(self, *expected: bytes) -> bytes:
        word = self.take(12)
        for name in expected:
            if word == name + b" " * (12 - len(name)):
                return name
        raise _Refused

    def rests(self, rest: Rest) -> None:
        self.told.rest, self.told.n_read = rest, self.at

    def says(self, *parts: bytes) -> None:
        self.told.replies += b"".join(parts)

    def conversation(self) -> None:
        while True:
            is_new = self.told.rest is Rest.NEW
            match self.word(b"STATUS", b"POSDATA", b"EXIT", *([b"INIT"] if is_new else [])):
                case b"STATUS":
                    self.says(b"NEEDINIT    " if is_new else b"READY       ")
                    self.rests(self.told.rest)
                case b"INIT":
                    self.init()
                    self.rests(Rest.READY)
                case b"POSDATA":
                    self.structures()
                    self.rests(Rest.COMPUTING)
                    if (answer := next(self.answers, None)) is None:
                        return
                    self.rests(Rest.HAVE_FORCES)
                    if self.fetching(answer) == b"EXIT":
                        self.rests(Rest.EXIT)
                        return
                    self.rests(Rest.READY)
                case b"EXIT":
                    self.rests(Rest.EXIT)
                    return

    def init(self) -> None:
        self.take(4)
        raw = self.take(self.number(0, self.limits.init_bytes))
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise _Refused from None
        pairs = [item.split(":", 1) for item in text.strip(SEPARATORS).split(",") if ":" in item]
        parameters = {key.strip(): value.strip() for key, value in pairs if key.strip()}
        size = parameters.get("batch_size", "1")
        if not re.fullmatch("[0-9]{1,9}", size) or not 0 < int(size) <= self.limits.batch:
            raise _Refused
        self.told.parameters, self.told.batch_size = parameters, int(size)
        if self.manner.extras is Extras.AUTO and raw[:1] == b" ":
            self.has_extras = not raw.strip() or b":" in raw

    def structures(self) -> None:
        n_frames = self.told.batch_size
        most = self.limits.atoms // n_frames
        if self.manner.is_shared:
            self.segments(n_frames, self.number(1, most))
            return
        if re.match(rb"....([\x08-\xff])\0\0\0", self.stream[self.at :], re.DOTALL):
            name = self.stream[self.at + 8 :][: self.stream[self.at + 4]]
            if len(name) == self.stream[self.at + 4] and NAME.fullmatch(name):
                raise _Refused  # the peer takes us for one that shares its memory
        if n_frames == 1:
            cells = self.take(144)
            n_atoms = self.number(1, most)
        else:
            n_atoms = self.number(1, most)
            cells = self.take(144 * n_frames)
        x = np.frombuffer(self.take(24 * n_frames * n_atoms)).reshape(n_frames, n_atoms, 3)
        h = [np.frombuffer(cells[144 * k : 144 * k + 72]).reshape(3, 3).T for k in range(n_frames)]
        with np.errstate(invalid="ignore"):
            self.told.wanted.append((x * BOHR, np.array(h) * BOHR))

    def segments(self, n_frames: int, n_atoms: int) -> None:
        before = self.told.wanted
        if before:
            first = before[0]
            assert isinstance(first, SharedStructures)
            if n_atoms != first.n_atoms:
                raise _Refused
            self.told.wanted.append(first)
            return
        names = [self.take(self.number(1, 255)) for _ in range(6)]
        if not all(map(NAME.fullmatch, names)) or len(set(names)) < 6:
            raise _Refused
        texts = dict(zip(("pos", "h", "ih", "pot", "force", "vir"), (n.decode() for n in names), strict=True))
        self.told.wanted.append(SharedStructures(n_frames, n_atoms, texts))

    def fetching(self, answer: Forces) -> bytes:
        while True:
            match self.word(b"STATUS", b"GETFORCE", b"EXIT"):
                case b"STATUS":
                    self.says(b"HAVEDATA    ")
                    self.rests(Rest.HAVE_FORCES)
                case b"GETFORCE":
                    self.says(*self.forces(answer))
                    return b"GETFORCE"
                case _:
                    return b"EXIT"

    def forces(self, answer: Forces) -> list[bytes]:
        n_frames, n_atoms, _ = answer.forces.shape
        parts = [b"FORCEREADY  "]
        if not self.manner.is_shared:
            parts += [struct.pack("=d", e / HARTREE) for e in answer.energy]
            parts.append(struct.pack("=i", n_atoms))
            parts += [struct.pack("=d", f / HARTREE_PER_BOHR) for f in answer.forces.ravel()]
            for w in answer.virial:
                parts += [struct.pack("=d", (w[i, j] + w[j, i]) / (2 * HARTREE)) for i in range(3) for j in range(3)]
        for extra in (self.has_extras and answer.extras) or [b""] * n_frames:
            parts.append(struct.pack("=i", len(extra) or 1) + (extra or b" "))
        return parts
