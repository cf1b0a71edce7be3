from __future__ import annotations

import select
import socket

import pytest

from dpserver.transport import Attempt, Backoff, Connection
from dpserver.transport.endpoint import Address, parse_endpoint
from tests.patience import PATIENCE
from tests.peer import Peer


def finish(attempt: Attempt) -> Connection | None:
    """Advance as a selector would."""
    connection = attempt.advance()
    while connection is None and not attempt.has_failed:
        assert select.select([], [attempt.socket], [], PATIENCE)[1]
        connection = attempt.advance()
    return connection


@pytest.mark.parametrize("address", ["unix", 0])
def test_a_peer_that_listens_is_reached(address):
    with Peer(address) as peer:
        connection = finish(Attempt(parse_endpoint(peer.endpoint)[0].resolve()))
        assert connection is not None
        with peer.accept() as line:
            connection.send([b"hello"])
            assert line.receive(5) == b"hello"
        connection.close()


@pytest.mark.parametrize("address", ["unix", 0])
def test_nobody_is_an_attempt_that_failed_with_a_reason(address):
    with Peer(address) as peer:
        addresses = parse_endpoint(peer.endpoint)[0].resolve()
    attempt = Attempt(addresses)
    assert finish(attempt) is None
    assert attempt.error in {"Connection refused", "No such file or directory"}


def test_every_address_is_tried():
    with Peer(0) as peer:
        dead = Address(socket.AF_UNIX, "/tmp/ipi_dpserver_test_nobody_here")
        odd = Address(socket.AF_INET6, ("not an address", 1))
        connection = finish(Attempt([dead, odd, *parse_endpoint(peer.endpoint)[0].resolve()]))
        assert connection is not None
        connection.close()


def test_a_full_backlog_is_a_refusal_that_does_not_block():
    with Peer(backlog=0) as peer:
        addresses = parse_endpoint(peer.endpoint)[0].resolve()
        held = []
        while (connection := finish(Attempt(addresses))) is not None:
            held.append(connection)
            assert len(held) < 5
        for connection in held:
            connection.close()


def test_an_attempt_can_be_given_up():
    with Peer(0) as peer:
        attempt = Attempt(parse_endpoint(peer.endpoint)[0].resolve())
        attempt.advance()
        attempt.cancel()
        assert attempt.has_failed
        attempt.cancel()


def test_a_socket_connected_to_itself_is_nobody():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    own = sock.getsockname()
    sock.connect(own)  # what dialling a free port from that very port amounts to
    attempt = Attempt([])
    attempt.socket = sock
    assert attempt.advance() is None
    assert attempt.has_failed


def test_pauses_are_short_while_nobody_listens():
    backoff = Backoff()
    waits = [backoff.after_nobody() for _ in range(1000)]
    assert waits == sorted(waits)
    assert waits[0] == backoff.shortest_wait
    assert waits[-1] == backoff.longest_wait < 0.2


@pytest.mark.parametrize("is_refusal", [True, False])
def test_pauses_double_after_failures_and_success_forgives(is_refusal):
    backoff = Backoff()
    waits = [backoff.after_failure(is_refusal=is_refusal) for _ in range(1000)]
    assert waits[:3] == [0.15, 0.3, 0.6]
    assert waits[-1] == (backoff.longest_penalty if is_refusal else backoff.longest_futile)
    backoff.after_nobody()
    assert backoff.after_failure(is_refusal=is_refusal) == waits[-1]
    assert backoff.after_success() == backoff.shortest_wait
    assert backoff.after_failure(is_refusal=is_refusal) == 0.15
