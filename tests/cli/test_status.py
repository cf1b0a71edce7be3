from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from dpserver.cli import status
from dpserver.monitor import Kind, Phase
from dpserver.transport import control
from dpserver.transport.control import ControlServer
from tests.cli.commands import exit_code
from tests.monitor.doubles import Job, Watched


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """The only directory for control sockets."""
    directory = tmp_path / "dpserver"
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(control, "directories", lambda: [directory])
    monkeypatch.setenv("COLUMNS", "40")
    return directory


@pytest.fixture
def watched() -> Watched:
    watched = Watched()
    meter = watched.meter
    meter.about.update(model="w.pt", device="cuda:0")
    meter.memory = lambda: 123_456_789
    meter.phase = Phase.SERVING
    watched.connect("unix:/tmp/ipi_water", *range(8))
    meter.expect("inet:node7:31415")
    meter.refused("unix:/tmp/ipi_water", Kind.STRUCTURE, 3)
    for _ in range(200):
        watched.evaluate([Job(k) for k in range(8)], 0.04)
        watched.wait(0.01)
    return watched


def serve(home: Path, watched: Watched, name: int | None = None) -> ControlServer:
    path = home / str(os.getpid() if name is None else name)
    return ControlServer(path, lambda: json.dumps(watched.meter.snapshot()).encode())


def test_a_page_for_people(home, watched, monkeypatch, capsys):
    with serve(home, watched):
        assert exit_code(monkeypatch, "status") == 0
    text = capsys.readouterr().out
    assert f"dpserver {os.getpid()}: serving for 0:00:10, w.pt on cuda:0, 123 MB" in text
    assert "last 10 s: 20 batches/s of 8 structures, 8 at most; 160 evaluations/s, 26 µs/atom\n" in text
    assert "time: 20% waiting for the peer, 80% computing, 0% on the wire" in text
    assert "in all: 1,600 evaluations in 200 batches, answers after 40 ms on average, 3 refused (structure)" in text
    (row,) = [line.split() for line in text.splitlines() if "unix:/tmp/ipi_water" in line]
    assert row == ["unix:/tmp/ipi_water", "8", "0", "1,600", "3", "8", "0%"]
    (row,) = [line.split() for line in text.splitlines() if "inet:node7:31415" in line]
    assert row == ["inet:node7:31415", "0", "0", "0", "0", "-", "-"]


def test_json_for_programs(home, watched, monkeypatch, capsys):
    with serve(home, watched, 7), serve(home, watched, 12):
        assert exit_code(monkeypatch, "status", "--json") == 0
        first, second = json.loads(capsys.readouterr().out)
        assert first["totals"]["frames"] == second["totals"]["frames"] == 1600
        assert exit_code(monkeypatch, "status", "--json", "--pid", "12") == 0
        assert len(json.loads(capsys.readouterr().out)) == 1


def test_a_daemon_that_loads_its_model(home, monkeypatch, capsys):
    with serve(home, Watched()):
        assert exit_code(monkeypatch, "status") == 0
    text = capsys.readouterr().out
    assert "loading the model for 0:00:00" in text
    assert "0 batches/s" in text


def test_a_socket_elsewhere(tmp_path, watched, monkeypatch, capsys):
    with serve(tmp_path, watched, 1):
        assert exit_code(monkeypatch, "status", "--control", tmp_path / "1") == 0
    assert "w.pt" in capsys.readouterr().out


def test_nobody(home, monkeypatch, capsys):
    assert exit_code(monkeypatch, "status") == 1
    assert "no daemon of this user is running here" in capsys.readouterr().err
    assert exit_code(monkeypatch, "status", "--pid", "7") == 1
    assert "no daemon of this user with the process number 7 is running here" in capsys.readouterr().err
    assert exit_code(monkeypatch, "status", "--control", home / "1") == 1
    assert "no daemon listens at" in capsys.readouterr().err
    assert exit_code(monkeypatch, "status", "--json") == 1
    assert json.loads(capsys.readouterr().out) == []


def test_a_dead_daemon_is_tidied_up(home, monkeypatch):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(home / "7"))
        sock.listen()
    assert exit_code(monkeypatch, "status") == 1
    assert list(home.iterdir()) == []


def test_a_daemon_that_does_not_answer(home, monkeypatch, capsys):
    monkeypatch.setattr(control.ask, "__defaults__", (0.05,))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(home / "7"))
        sock.listen()
        assert exit_code(monkeypatch, "status") == 0
        assert "dpserver 7: does not answer" in capsys.readouterr().out
        assert exit_code(monkeypatch, "status", "--json") == 0
        assert json.loads(capsys.readouterr().out) == [{"pid": 7, "phase": "does not answer"}]


def test_watching_until_ctrl_c(home, watched, monkeypatch, capsys):
    turns = []

    def wait(seconds: float) -> None:
        turns.append(seconds)
        if len(turns) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(status, "sleep", wait)
    with serve(home, watched):
        assert exit_code(monkeypatch, "status", "--watch") == 0
    assert len(turns) == 3
    assert "1,600 evaluations" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--json", "--watch"], ["--pid", "1", "--control", "x"]])
def test_options_that_exclude_each_other(monkeypatch, capsys, options):
    assert exit_code(monkeypatch, "status", *options) == 2
    assert "give one of them" in capsys.readouterr().err
