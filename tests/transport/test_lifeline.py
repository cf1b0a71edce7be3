from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dpserver.errors import DeviceError
from dpserver.transport import lifeline
from dpserver.transport.lifeline import Address, Hub, Line

PATIENCE = 10.0


class Ends:
    """Rank 0 and two others in one process, and what they are told."""

    def __init__(self) -> None:
        self.lost: queue.Queue[tuple[int, str]] = queue.Queue()
        self.stops: queue.Queue[None] = queue.Queue()
        self.codes: list[queue.Queue[int | None]] = [queue.Queue(), queue.Queue()]
        self.hub = Hub(2, is_one_node=True)
        self.lines = [Line(rank) for rank in (1, 2)]
        accepting = threading.Thread(target=self.hub.accept, args=({1, 2},))
        accepting.start()
        for line in self.lines:
            assert line.call(self.hub.address) is None
        accepting.join(PATIENCE)
        self.hub.watch(lambda rank, why: self.lost.put((rank, why)), lambda: self.stops.put(None))
        for line, codes in zip(self.lines, self.codes, strict=True):
            line.watch(codes.put)

    def cut(self, k: int) -> None:
        """As the system does when a process ends."""
        self.lines[k]._connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def ends() -> Iterator[Ends]:
    with met() as found:
        yield found


@contextmanager
def met() -> Iterator[Ends]:
    found = Ends()
    yield found
    found.hub.close()
    for line in found.lines:
        line.close()
        line._connection.close()
    for connection in found.hub._lines.values():
        connection.close()


def test_a_rank_that_is_gone_is_noticed(ends):
    ends.cut(1)
    assert ends.lost.get(timeout=PATIENCE) == (2, "has gone without a word")


def test_and_why_if_it_is_said(ends):
    ends.lines[0].died("was killed by signal 9")
    assert ends.lost.get(timeout=PATIENCE) == (1, "was killed by signal 9")


def test_a_rank_passes_on_that_it_was_asked_to_stop(ends):
    ends.lines[1].ask_to_stop()
    ends.lines[1].ask_to_stop()
    for _ in range(2):
        ends.stops.get(timeout=PATIENCE)
    assert ends.lost.empty()


def test_who_leaves_in_good_order_is_not_missed(ends):
    ends.lines[0].close()
    ends.cut(1)
    assert ends.lost.get(timeout=PATIENCE)[0] == 2
    assert ends.lost.empty()


def test_rank_0_ends_all_with_its_code(ends, monkeypatch):
    monkeypatch.setattr(lifeline, "_SECONDS_TO_LEAVE", 0.1)
    ends.hub.end(3)
    assert [codes.get(timeout=PATIENCE) for codes in ends.codes] == [3, 3]


def test_rank_0_is_missed(ends):
    for connection in ends.hub._lines.values():
        connection.shutdown(socket.SHUT_RDWR)
    assert [codes.get(timeout=PATIENCE) for codes in ends.codes] == [None, None]


def test_strangers_are_turned_away():
    hub = Hub(1, is_one_node=True)
    accepting = threading.Thread(target=hub.accept, args=({1},))
    accepting.start()
    stranger, friend = Line(1), Line(1)
    assert stranger.call(Address(hub.address.host, hub.address.port, b"x" * 16)) is None
    assert friend.call(hub.address) is None
    accepting.join(PATIENCE)
    assert not accepting.is_alive()
    assert stranger._connection.recv(1) == b""
    for connection in (*hub._lines.values(), stranger._connection, friend._connection):
        connection.close()


@pytest.mark.parametrize("said", [None, b"", b"x"])
def test_a_stranger_that_says_too_little_keeps_nobody_out(monkeypatch, said):
    """One that leaves at once, as who looks for open ports does, and ones that stay and do not say who they are."""
    monkeypatch.setattr(lifeline, "_SECONDS_FOR_HELLO", 0.05)
    hub = Hub(1, is_one_node=True)
    stranger = socket.create_connection((hub.address.host, hub.address.port))
    if said is None:
        stranger.close()
    else:
        stranger.sendall(said)
    friend = Line(1)
    assert friend.call(hub.address) is None
    hub.accept({1})
    assert set(hub._lines) == {1}
    for connection in (*hub._lines.values(), stranger, friend._connection):
        connection.close()


def test_who_cannot_reach_rank_0_says_why(monkeypatch):
    line = Line(4)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        assert "refused" in str(line.call(Address("127.0.0.1", port, b"x" * 16)))
    line._connection.close()


def test_a_rank_that_does_not_call_is_named(monkeypatch):
    monkeypatch.setattr(lifeline, "_SECONDS", 0.05)
    hub = Hub(2, is_one_node=True)
    with pytest.raises(DeviceError, match=r"ranks \[1, 2\] have not called rank 0 within 0.05 s"):
        hub.accept({1, 2})
    hub._server.close()
