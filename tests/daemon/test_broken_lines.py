"""No peer's misfortune or malice disturbs the others; `make chaos` does the same for longer."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest

from dpserver.frames import ForceResult, Frames
from tests import structures
from tests.daemon.broken import ask, break_lines, check, play_mutated_line
from tests.daemon.serving import serving, target
from tests.doubles import PairModel
from tests.ipi.bouts import recordings
from tests.patience import PATIENCE
from tests.peer import GETFORCE, NEEDINIT, READY, STATUS, Line, Peer, init, posdata, read_reply, reply_size

SEED = 0
FRAME = structures.cubic()


@pytest.mark.parametrize("address", ["unix", 0])
def test_lines_that_break_at_any_byte(address):
    with Peer(address) as bad, Peer() as good, serving(PairModel(), target(bad.endpoint), target(good.endpoint)):
        with good.accept() as line:
            break_lines(SEED, bad, line, 50)
        with bad.accept() as line:
            ask(line, FRAME)


def test_several_connections_that_break_at_once():
    with Peer() as bad, Peer() as good:
        targets = target(bad.endpoint, connections=4), target(good.endpoint, connections=2)
        with serving(PairModel(), *targets), good.accept() as line, good.accept() as other:
            for seed in range(10):
                lines = [bad.accept() for _ in range(4)]
                for k, broken in enumerate(lines):
                    frame = structures.cubic(seed)
                    message = posdata(frame.positions, frame.cell[0]) + GETFORCE
                    broken.send(message[: random.Random(seed + k).choice([len(message), 5, 300])])
                for k, broken in enumerate(lines):
                    broken.close()
                    ask((line, other)[k % 2], structures.cubic(seed + k))


def test_mutated_sessions_over_a_real_socket():
    recorded = recordings()
    with (
        Peer() as bad,
        Peer() as good,
        serving(PairModel(), target(bad.endpoint), target(good.endpoint)),
        good.accept() as line,
    ):
        for number in range(60):
            play_mutated_line(SEED, number, recorded, bad)
            if number % 4 == 0:
                ask(line, structures.cubic(number))


BANNERS = [
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"220 mail.example.org ESMTP\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    b"\0" * 100_000,
]


@pytest.mark.parametrize("banner", BANNERS)
def test_another_service_at_the_address_is_refused_and_disturbs_nobody(banner, caplog):
    with (
        Peer(0) as wrong,
        Peer() as good,
        serving(PairModel(), target(wrong.endpoint), target(good.endpoint)),
        good.accept() as line,
        wrong.accept() as service,
    ):
        service.send(banner)
        assert service.is_closed()
        ask(line, FRAME)
    assert f"{wrong.endpoint}: refused: expected the header" in caplog.text
    assert "is it an i-PI socket that listens at this address?" in caplog.text


class Springs(PairModel):
    """Harmonic around the origin: quick for any number of atoms."""

    def evaluate(self, frames: Frames) -> ForceResult:
        self.batches.append(frames.n_frames)
        n_frames, zero = frames.n_frames, np.zeros(frames.n_atoms)
        return ForceResult(np.zeros(n_frames), -frames.positions, np.zeros((n_frames, 3, 3)), zero, frames.frame_idx)


@pytest.mark.parametrize("address", ["unix", 0])
def test_a_peer_that_does_not_read_its_reply_stalls_nobody(address):
    """Its reply is more than the system takes; it stays where it is until the peer reads on."""
    n = 399_999
    big = np.random.default_rng(0).uniform(0, 1000, (n, 3))
    small = big[:30]
    with (
        Peer(address) as deaf,
        Peer() as good,
        serving(Springs(), target(deaf.endpoint), target(good.endpoint)),
        deaf.accept() as silent,
        good.accept() as line,
    ):
        silent.send(posdata(big, np.zeros((3, 3))), GETFORCE, STATUS)
        first = silent.receive(12 + 8)  # its answer is under way
        for _ in range(20):
            np.testing.assert_allclose(line.ask(small, np.zeros((3, 3))).forces[0], -small, rtol=1e-12)
        reply = read_reply(first + silent.receive(reply_size(n) - len(first)))
        np.testing.assert_allclose(reply.forces[0], -big, rtol=1e-12)
        assert silent.receive(12) == READY


def test_a_peer_that_asks_and_asks_and_does_not_listen_is_not_read_either():
    """What it is owed stays small: the daemon reads on when it has been heard."""
    with (
        Peer() as deaf,
        Peer() as good,
        serving(PairModel(), target(deaf.endpoint), target(good.endpoint)),
        deaf.accept() as asking,
        good.accept() as line,
    ):
        n_sent = 0
        asking.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while n_sent < 100_000_000:
                n_sent += asking.sock.send(STATUS * 1000)
        assert n_sent < 100_000_000
        ask(line, FRAME)
        asking.sock.settimeout(PATIENCE)
        n_answers = n_sent // 12
        assert asking.receive(12 * n_answers) == NEEDINIT * n_answers


def drip(line: Line, data: bytes) -> None:
    for k in range(len(data)):
        line.send(data[k : k + 1])


def test_a_peer_that_says_one_byte_at_a_time_is_served_and_holds_nobody_up():
    message = posdata(FRAME.positions, FRAME.cell[0]) + GETFORCE
    with (
        Peer(0) as slow,
        Peer() as good,
        serving(PairModel(), target(slow.endpoint), target(good.endpoint)),
        slow.accept() as dripping,
        good.accept() as line,
    ):
        drip(dripping, STATUS)
        assert dripping.receive(12) == NEEDINIT
        drip(dripping, init(b"species: O H H"))
        for at in range(0, len(message), 50):
            drip(dripping, message[at : at + 50])
            ask(line, structures.cubic(at))
        check(dripping.reply(FRAME.n_atoms), FRAME)
