"""Hypothesis strategies: a peer that knows the grammar of the protocol, keeps it mostly, and breaks it well."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.ipi.bouts import LIMITS, MANNERS, NAMES, NUMBERS, WORDS, shared_posdata
from tests.ipi.oracle import Manner
from tests.peer import EXIT, GETFORCE, STATUS, init

NEXT = {"new": ["status", "init", "posdata"], "ready": ["status", "posdata", "posdata"], "have": ["getforce", "status"]}
"""What a peer that keeps the rules says next; EXIT is said last."""

ANY = ["status", "init", "posdata", "getforce", "exit", "garbage"]

TEXTS = [
    *(
        b"",
        b"\0",
        b" template : w.xyz , ",
        b"species: O H H",
        b"batch_size:2",
        b" a : b , , batch_size:3",
        b"batch_size:6",
    ),
    *(b"batch_size:1, batch_size: 2", b"{batch_size : 4}", b"batch_size:05", b":,::,x"),
]
BAD_TEXTS = [
    *(b"batch_size:0", b"batch_size:7", b"batch_size:-1", b"batch_size:", b"batch_size:2.0", b"batch_size: 1e3"),
    *(b"batch_size:9999999999", b"batch_size:1_0", "batch_size:٣".encode(), "batch_size:²".encode(), b"\xff\xfe"),
]

BAD_NAMES = [b"", b".", b"/etc/passwd", b"../x", b"x" * 256, b"a\0b", b"\xff", "é".encode(), b"x" * 255]

finite = st.floats(-1e3, 1e3)
counts = st.integers(1, 5) | st.sampled_from([LIMITS.atoms // LIMITS.batch, LIMITS.atoms])
cell_numbers = st.binary(min_size=8, max_size=8) | finite.map(lambda x: struct.pack("=d", x))


@dataclass(frozen=True)
class Script:
    """What a peer says, where the bytes are cut, and how many pieces each answer takes."""

    manner: Manner
    stream: bytes
    cuts: list[int]
    delays: list[int]
    is_closed: bool


@st.composite
def posdatas(draw: st.DrawFn, batch_size: int, is_broken: bool) -> bytes:
    """Positions in the layout of a batch, or with another count, or cut off."""
    n_atoms = min(draw(counts), LIMITS.atoms // batch_size)
    announced = draw(st.sampled_from(NUMBERS)) if is_broken else n_atoms
    number, cell_number = draw(cell_numbers), draw(cell_numbers)
    cells, positions = cell_number * 18 * batch_size, number * 3 * n_atoms * batch_size
    count = struct.pack("=i", announced)
    body = cells + count + positions if batch_size == 1 else count + cells + positions
    return b"POSDATA     " + body[: draw(st.integers(0, len(body))) if is_broken and draw(st.booleans()) else None]


@st.composite
def shared_posdatas(draw: st.DrawFn, is_first: bool, is_broken: bool) -> bytes:
    """Structures in shared memory, of four atoms, or with other names, or cut off."""
    if not is_broken:
        return shared_posdata(4, NAMES if is_first else ())
    names = draw(st.lists(st.sampled_from(BAD_NAMES) | st.sampled_from(NAMES), min_size=5, max_size=7))
    message = shared_posdata(draw(st.sampled_from([4, 5, *NUMBERS])), names)
    return message[: draw(st.integers(12, len(message))) if draw(st.booleans()) else None]


@st.composite
def inits(draw: st.DrawFn, is_broken: bool) -> bytes:
    """INIT, or one with a length or a text that is none."""
    if not is_broken:
        return init(draw(st.sampled_from(TEXTS)), draw(st.integers(-(2**31), 2**31 - 1)))
    if draw(st.booleans()):
        return init(draw(st.sampled_from(BAD_TEXTS)))
    return b"INIT        " + struct.pack("=ii", 0, draw(st.sampled_from(NUMBERS))) + draw(st.binary(max_size=40))


garbage = st.sampled_from(WORDS) | st.binary(max_size=30) | st.just(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """A session of up to ten messages; about every sixth is out of turn or broken."""
    manner = draw(st.sampled_from(MANNERS))
    state, batch_size, parts = "new", 1, []
    shared: list[bytes] = []
    for _ in range(draw(st.integers(0, 10))):
        dice = draw(st.integers(0, 15))
        kind = draw(st.sampled_from(ANY if dice == 0 else NEXT[state]))
        is_broken = dice in {1, 2}
        match kind:
            case "status":
                parts.append(STATUS)
            case "init":
                parts.append(draw(inits(is_broken)))
                tail = parts[-1].rpartition(b"batch_size")[2].strip(b" :}").lstrip(b"0")
                batch_size = int(tail) if tail in {b"2", b"3", b"4", b"6"} else 1
                state = "ready"
            case "posdata":
                if manner.is_shared:
                    shared.append(draw(shared_posdatas(not shared, is_broken)))
                    parts.append(shared[-1])
                else:
                    parts.append(draw(posdatas(batch_size, is_broken)))
                state = "have"
            case "getforce":
                parts.append(GETFORCE)
                state = "ready"
            case "exit":
                parts.append(EXIT)
            case _:
                parts.append(draw(garbage))
    if draw(st.booleans()):
        parts.append(EXIT)
    stream = b"".join(parts)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return Script(manner, stream, cuts, draw(st.lists(st.integers(0, 3), max_size=3)), draw(st.booleans()))
