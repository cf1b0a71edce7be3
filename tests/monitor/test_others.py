"""What a daemon says of others at the same endpoint."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from dpserver.monitor import others
from dpserver.monitor.others import warn_of_others
from dpserver.transport import parse_endpoint
from dpserver.transport.control import ControlServer
from dpserver.transport.endpoint import Address


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    found = tmp_path / "dpserver"
    found.mkdir(mode=0o700)
    monkeypatch.setattr("dpserver.transport.control.directories", lambda: [found])
    return found


def told(*endpoints: str, pid: int = 7) -> bytes:
    """What a daemon that dials these says of itself."""
    answer = {"pid": pid, "model": "a.pt", "endpoints": [{"endpoint": endpoint} for endpoint in endpoints]}
    return json.dumps(answer).encode()


def warned(folder: Path, caplog: pytest.LogCaptureFixture, answers: dict[str, bytes], ours: Sequence[str]) -> list[str]:
    """What is said of daemons with these process numbers and answers by one that is about to dial."""
    endpoints = [parse_endpoint(text)[0] for text in ours]
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        for name, answer in answers.items():
            stack.enter_context(ControlServer(folder / name, lambda answer=answer: answer))
        warn_of_others({str(endpoint): endpoint.resolve() for endpoint in endpoints})
    return [record.message for record in caplog.records if "dials it too" in record.message]


def test_only_those_at_the_same_endpoint_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And neither this process itself, nor one that says something else."""
    ours = told("unix:/tmp/ipi_a", "unix:/tmp/ipi_b")
    answers = {"7": ours, str(os.getpid()): ours, "8": told(pid=8), "9": b'["nothing"]'}
    (message,) = warned(folder, caplog, answers, ["unix:a", "inet:localhost:31415"])
    assert message.startswith("unix:/tmp/ipi_a: dpserver 7, with the model a.pt, dials it too (dpserver status)")


def test_a_daemon_that_has_died_is_not_named_and_its_socket_removed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "7"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    with caplog.at_level(logging.DEBUG):
        warn_of_others({"unix:/tmp/ipi_a": [Address(socket.AF_UNIX, "/tmp/ipi_a")]})
    assert not caplog.records
    assert not path.exists()


def test_who_dials_nothing_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "find_sockets", lambda: pytest.fail("somebody is asked"))
    warn_of_others({})


@pytest.mark.parametrize(
    ("theirs", "ours", "is_same"),
    [
        ("inet:127.0.0.1:31415", "inet:localhost:31415", True),
        ("inet:localhost:31415", "inet:127.0.0.1:31415", True),
        ("inet:localhost:31416", "inet:127.0.0.1:31415", False),
        ("inet:[::1]:31415", "inet:[0:0:0:0:0:0:0:1]:31415", True),
        ("inet:127.0.0.2:31415", "inet:127.0.0.1:31415", False),
        ("shm:/tmp/ipi_a", "unix:a", True),  # one socket
        ("something of another version", "unix:a", False),
        ("unix:/tmp/ipi_a@b", "unix:a", False),
    ],
)
def test_two_names_of_one_address_are_one(
    theirs: str, ours: str, is_same: bool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    messages = warned(folder, caplog, {"7": told(theirs)}, [ours])
    assert [message.partition(": ")[0] for message in messages] == ([ours.replace(":a", ":/tmp/ipi_a")] * is_same)


def test_hosts_that_another_machine_would_have_to_find_are_known_by_name(
    monkeypatch: pytest.MonkeyPatch, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lookup = socket.getaddrinfo

    def numbers_only(*args: object, flags: int = 0, **options: object) -> object:
        assert flags & socket.AI_NUMERICHOST
        return lookup(*args, flags=flags, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(socket, "getaddrinfo", numbers_only)
    with ControlServer(folder / "7", lambda: told("inet:node7:31415", "inet:node8:31415")):
        warn_of_others({"inet:node7:31415": [Address(socket.AF_INET, ("10.0.0.7", 31415))]})
    (message,) = [record.message for record in caplog.records if "dials it too" in record.message]
    assert message.startswith("inet:node7:31415: dpserver 7,")
