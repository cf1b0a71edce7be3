from __future__ import annotations

import json
import os
import socket
import urllib.request
from pathlib import Path

import pytest

from dpserver.errors import ConfigError
from dpserver.monitor import Meter
from dpserver.monitor.outlets import open_outlets
from dpserver.transport.control import ask, find_sockets
from tests.patience import PATIENCE


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "dpserver"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_the_control_socket_tells_what_the_meter_knows(runtime):
    meter = Meter()
    with open_outlets(meter):
        (path,) = [p for p in find_sockets() if p.parent == runtime]
        assert path == runtime / str(os.getpid())
        answer = ask(path)
        assert answer
        assert json.loads(answer)["pid"] == os.getpid()
    assert not path.exists()


def test_off_is_off(runtime):
    with open_outlets(Meter(), "off"):
        assert not runtime.exists()


def test_a_place_of_ones_own(tmp_path, runtime):
    with open_outlets(Meter(), str(tmp_path / "here")):
        assert ask(tmp_path / "here")
        assert not runtime.exists()


def test_without_a_usual_place_the_daemon_serves_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("dpserver.transport.control.directories", lambda: [tmp_path / "no" / "where"])
    with open_outlets(Meter()):
        pass
    assert "dpserver status will not see this daemon: there is no place for a control socket" in caplog.text


def test_a_place_that_was_asked_for_must_be_had(tmp_path):
    with pytest.raises(ConfigError, match="there can be no control socket"), open_outlets(Meter(), str(tmp_path)):
        pass


def test_metrics_over_http():
    pytest.importorskip("prometheus_client")
    port = free_port()
    with (
        open_outlets(Meter(), "off", f"127.0.0.1:{port}"),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer,
    ):
        assert b"dpserver_info{" in answer.read()


def test_a_busy_port():
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"cannot listen on port {port} of 127.0.0.1: .*; choose another port"),
            open_outlets(Meter(), "off", f"127.0.0.1:{port}"),
        ):
            pass
