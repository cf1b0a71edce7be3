from __future__ import annotations

import queue
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dpserver.errors import DeviceError
from dpserver.transport import lifeline
from dpserver.transport.lifeline import Address, Hub, Line
from tests.patience import PATIENCE


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


def test_one_that_drips_keeps_nobody_waiting(monkeypatch):
    """It is given no more time for being at it, and meanwhile the others are taken."""
    monkeypatch.setattr(lifeline, "_SECONDS", 5.0)
    hub = Hub(2, is_one_node=True)
    where = (hub.address.host, hub.address.port)
    is_over = threading.Event()

    def drip() -> None:
        with socket.create_connection(where) as stranger:
            while not is_over.wait(0.02):
                try:
                    stranger.sendall(b"x")
                except OSError:
                    return

    dripping = threading.Thread(target=drip)
    dripping.start()
    friends = [Line(1), Line(2)]
    accepting = threading.Thread(target=hub.accept, args=({1, 2},))
    accepting.start()
    for friend in friends:
        assert friend.call(hub.address) is None
    accepting.join(PATIENCE)
    assert set(hub._lines) == {1, 2}
    is_over.set()
    dripping.join(PATIENCE)
    for connection in (*hub._lines.values(), *(friend._connection for friend in friends)):
        connection.close()


def test_a_slow_stranger_is_turned_away_in_time(monkeypatch):
    monkeypatch.setattr(lifeline, "_SECONDS_FOR_HELLO", 0.05)
    hub = Hub(1, is_one_node=True)
    accepting = threading.Thread(target=hub.accept, args=({1},))
    accepting.start()
    with socket.create_connection((hub.address.host, hub.address.port)) as stranger:
        stranger.settimeout(PATIENCE)
        stranger.sendall(b"xx")
        assert stranger.recv(1) == b""
    assert accepting.is_alive()
    friend = Line(1)
    assert friend.call(hub.address) is None
    accepting.join(PATIENCE)
    for connection in (*hub._lines.values(), friend._connection):
        connection.close()


def test_a_crowd_of_strangers_is_bounded(monkeypatch):
    monkeypatch.setattr(lifeline, "_MOST_STRANGERS", 3)
    hub = Hub(1, is_one_node=True)
    crowd = [socket.create_connection((hub.address.host, hub.address.port)) for _ in range(6)]
    friend = Line(1)
    accepting = threading.Thread(target=hub.accept, args=({1},))
    accepting.start()
    crowd[0].settimeout(PATIENCE)
    assert crowd[0].recv(1) == b""  # the first has to make room
    assert friend.call(hub.address) is None
    accepting.join(PATIENCE)
    assert set(hub._lines) == {1}
    for connection in (*hub._lines.values(), friend._connection, *crowd):
        connection.close()


def test_one_that_makes_room_while_it_speaks(monkeypatch):
    """A call that makes it go comes together with its first byte, and before it."""
    monkeypatch.setattr(lifeline, "_MOST_STRANGERS", 1)
    hub = Hub(1, is_one_node=True)
    strangers = [socket.create_connection((hub.address.host, hub.address.port)) for _ in range(2)]
    friend = Line(1)
    batches = []

    class Together(selectors.DefaultSelector):
        def select(self, timeout=None):
            if len(self.get_map()) == 3 and not batches:  # where calls come in, and both strangers
                strangers[0].sendall(b"x")
                assert friend.call(hub.address) is None
                while len(found := super().select(PATIENCE)) == 1:
                    pass
                batches.append(sorted(found, key=lambda event: event[0].data is not None))
                return batches[0]
            return super().select(timeout)

    monkeypatch.setattr(selectors, "DefaultSelector", Together)
    hub.accept({1})
    assert [key.data is None for key, _ in batches[0]] == [True, False]
    assert set(hub._lines) == {1}
    for connection in (*hub._lines.values(), friend._connection, *strangers):
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
