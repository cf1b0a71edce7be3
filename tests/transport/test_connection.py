from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from dpserver.transport import Connection
from dpserver.transport.connection import CHUNK_BYTES, CHUNKS_PER_TURN
from tests.patience import PATIENCE
from tests.peer import Line, Peer


def wait(connection: Connection, *, to_write: bool = False) -> None:
    socks = [connection.socket]
    assert any(select.select([] if to_write else socks, socks if to_write else [], [], PATIENCE))


def received(connection: Connection) -> list[bytes]:
    return [bytes(chunk) for chunk in connection.receive()]


@pytest.fixture(params=["unix", "inet"])
def pair(request) -> Iterator[tuple[Connection, Line]]:
    with Peer("unix" if request.param == "unix" else 0) as peer:
        sock = socket.socket(peer.listener.family)
        sock.connect(peer.listener.getsockname())
        connection = Connection(sock)
        with peer.accept() as line:
            yield connection, line
        connection.close()


def test_nothing_has_come(pair):
    assert received(pair[0]) == []


def test_all_that_has_come_is_read(pair):
    connection, line = pair
    line.send(b"one", b"two")
    wait(connection)
    assert b"".join(received(connection)) == b"onetwo"


def test_the_end_of_the_stream_is_an_empty_chunk(pair):
    connection, line = pair
    line.send(b"last")
    line.close()
    data = b""
    while True:
        wait(connection)
        chunks = received(connection)
        data += b"".join(chunks)
        if chunks[-1] == b"":
            break
    assert data == b"last"


def test_a_reset_is_an_end_of_the_stream(pair):
    connection, line = pair
    connection.send([b"unread"])
    line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    line.close()
    wait(connection)
    assert received(connection)[-1] == b""
    connection.send([b"into the void"])
    connection.send([b"again"])
    assert not connection.has_unsent


def test_one_turn_is_bounded(pair):
    connection, line = pair
    total = 2 * CHUNK_BYTES * CHUNKS_PER_TURN
    line.sock.setblocking(False)
    sent = got = 0
    while got < total:
        if sent < total:
            with contextlib.suppress(BlockingIOError):
                sent += line.sock.send(bytes(min(1 << 20, total - sent)))
        chunks = received(connection)
        assert len(chunks) <= CHUNKS_PER_TURN
        assert all(chunks)
        got += sum(map(len, chunks))
    assert sent == total


def test_buffers_go_out_in_order_in_one_call(pair, monkeypatch):
    connection, line = pair
    connection.send([b"FORCEREADY  ", memoryview(bytearray(b"forces")), b"tail"])
    assert not connection.has_unsent
    assert line.receive(22) == b"FORCEREADY  forcestail"


def test_what_the_peer_does_not_take_yet_is_kept_and_sent_later(pair):
    connection, line = pair
    pieces = [bytes([k]) * (1 << 18) for k in range(64)]
    connection.send(pieces[:32])
    connection.send(pieces[32:])
    assert connection.has_unsent
    got = b""
    while len(got) < 64 << 18:
        got += line.receive(1 << 16)
        connection.flush()
    assert got == b"".join(pieces)
    assert not connection.has_unsent


def test_thousands_of_small_buffers_go_out(pair):
    connection, line = pair
    connection.send([b"x"] * 5000)
    assert line.receive(5000) == b"x" * 5000


def test_finishing_lets_the_peer_see_an_orderly_end_whatever_it_still_sends(pair):
    connection, line = pair
    line.send(b"unread")
    connection.finish()
    line.send(b"and more")
    assert line.is_closed()
    assert not connection.discard()
    line.close()
    wait(connection)
    while not connection.discard():
        wait(connection)
