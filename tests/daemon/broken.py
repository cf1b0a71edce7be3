"""Peers that break their line at any byte of what is said, in either direction, in every way a line can break."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Sequence

import numpy as np

from dpserver.frames import Frames
from tests import structures
from tests.doubles import PairModel
from tests.ipi.bouts import mutated
from tests.peer import (
    GETFORCE,
    HAVEDATA,
    NEEDINIT,
    READY,
    STATUS,
    Line,
    Peer,
    Reply,
    batched_posdata,
    init,
    posdata,
)
from tests.proxy import reset

BATCH = 3
N_BYTES = 4000
"""About what a conversation below says and hears."""


class Broken(Exception):
    """The line is cut here."""


class Fragile(Line):
    """Breaks after so many bytes have gone in both directions.

    Args:
        sock: accepted.
        n_bytes: sent and received together.
    """

    def __init__(self, sock: socket.socket, n_bytes: int) -> None:
        super().__init__(sock)
        self.n_left = n_bytes

    def send(self, *messages: bytes) -> None:
        data = b"".join(messages)
        super().send(data[: self.n_left])
        self.spend(len(data))

    def receive(self, n_bytes: int) -> bytes:
        data = super().receive(min(n_bytes, self.n_left))
        self.spend(n_bytes)
        return data

    def spend(self, n_bytes: int) -> None:
        self.n_left -= n_bytes
        if self.n_left < 0:
            raise Broken


def check(reply: Reply, *frames: Frames) -> None:
    """Hold an answer against the model."""
    for k, frame in enumerate(frames):
        expected = PairModel().evaluate(frame)
        np.testing.assert_allclose(reply.energy[k], expected.energy[0], rtol=1e-12)
        np.testing.assert_allclose(reply.forces[k], expected.forces, rtol=0, atol=1e-12)
        np.testing.assert_allclose(reply.virial[k], expected.virial[0], rtol=0, atol=1e-12)


def ask(line: Line, frame: Frames) -> None:
    """One exchange, checked."""
    check(line.ask(frame.positions, frame.cell[0]), frame)


def talk_classic(line: Line, seed: int) -> None:
    """STATUS before every word, as ASE and i-PI before 3.2."""
    line.handshake()
    while True:
        frame = structures.tiny(seed)
        line.send(posdata(frame.positions, frame.cell[0]))
        assert line.status() == HAVEDATA
        line.send(GETFORCE)
        check(line.reply(frame.n_atoms), frame)
        assert line.status() == READY
        seed += 1


def talk_consolidated(line: Line, seed: int) -> None:
    """Positions and GETFORCE in one piece."""
    line.handshake(b" ")
    while True:
        ask(line, structures.tiny(seed))
        seed += 1


def talk_in_batches(line: Line, seed: int) -> None:
    """Several structures in a message, the last one twice."""
    assert line.status() == NEEDINIT
    line.send(init(b"batch_size:%d" % BATCH), STATUS)
    assert line.receive(12) == READY
    while True:
        frames = [structures.tiny(seed), *[structures.tiny(seed + 1)] * (BATCH - 1)]
        line.send(batched_posdata([f.positions for f in frames], [f.cell[0] for f in frames]), GETFORCE)
        check(line.reply(3, BATCH), *frames)
        seed += 2


TALKS: list[Callable[[Line, int], None]] = [talk_classic, talk_consolidated, talk_in_batches]


def half_close(sock: socket.socket) -> None:
    """Say that nothing more will come, and listen to the end."""
    with sock:
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass


WAYS: list[Callable[[socket.socket], None]] = [socket.socket.close, reset, half_close]


def break_line(rng: random.Random, peer: Peer) -> str:
    """Accept a connection of the daemon, talk, and break the line; what came until then was right."""
    talk, way, n_bytes = rng.choice(TALKS), rng.choice(WAYS), rng.randrange(N_BYTES)
    sock, _ = peer.listener.accept()
    try:
        talk(Fragile(sock, n_bytes), rng.randrange(1000))
    except Broken:
        pass
    finally:
        way(sock)
    return f"{talk.__name__} for {n_bytes} bytes, then {way.__name__}"


def break_lines(seed: int, bad: Peer, good: Line, n_lines: int) -> None:
    """Break so many lines; a peer that keeps the rules is answered all the while."""
    rng = random.Random(seed)
    for number in range(n_lines):
        try:
            how = break_line(rng, bad)
            if number % 4 == 0:
                ask(good, structures.cubic(number))
        except BaseException as error:
            error.add_note(f"line {number} of seed {seed}")
            raise
        assert how


def play_mutated_line(seed: int, number: int, recorded: Sequence[bytes], bad: Peer) -> None:
    """Say what no peer would, all at once, and listen until the daemon has nothing to say."""
    with bad.accept() as line:
        line.send(mutated(random.Random(f"{seed}:{number}"), recorded))
        line.sock.shutdown(1)
        while line.sock.recv(1 << 16):
            pass
