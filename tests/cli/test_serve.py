from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dpserver.cli import ranks, serve
from dpserver.errors import ConfigError, ModelFileError
from dpserver.frames import Frames
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.transport import InetEndpoint, ShmEndpoint, UnixEndpoint
from dpserver.transport.control import ask
from tests import structures
from tests.cli.commands import exit_code
from tests.models import committees
from tests.patience import JOB_PATIENCE, PATIENCE
from tests.peer import EXIT, GETFORCE, NEEDINIT, Line, Peer, posdata

CONFIG = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "se_e2_a", "sel": [30, 60], "rcut": 3.0, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 2,
    },
    "fitting_net": {"neuron": [8]},
}  # fmt: skip
FRAME = structures.cubic()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "w.pt"
    potential = Potential(parse(ModelConfig, CONFIG))
    potential.template = ("O", "H", "H")
    checkpoint.save(path, potential)
    return path


def check(line: Line, model: Path, frame: Frames = FRAME) -> None:
    expected = checkpoint.load(model, device="cpu").evaluate(frame)
    reply = line.ask(frame.positions, frame.cell[0])
    np.testing.assert_allclose(reply.energy, expected.energy, rtol=1e-10)
    np.testing.assert_allclose(reply.forces[0], expected.forces, atol=1e-10)


def in_background(play: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=play)
    thread.start()
    return thread


LOCAL = InetEndpoint("localhost", 31415)


@pytest.mark.parametrize(
    ("given", "endpoints"),
    [
        ({}, [LOCAL]),
        ({"port": 4000}, [InetEndpoint("localhost", 4000)]),
        ({"host": "node7"}, [InetEndpoint("node7", 31415)]),
        ({"host": "node7", "port": 4000}, [InetEndpoint("node7", 4000)]),
        ({"unix": "water"}, [UnixEndpoint("/tmp/ipi_water")]),
        ({"is_unix": True, "host": "water", "port": 4000}, [UnixEndpoint("/tmp/ipi_water")]),
        ({"is_unix": True}, [UnixEndpoint("/tmp/ipi_localhost")]),
        ({"is_shm": True, "host": "water"}, [ShmEndpoint("/tmp/ipi_water")]),
        ({"is_shm": True, "is_unix": True, "host": "water", "port": 4000}, [ShmEndpoint("/tmp/ipi_water")]),
        ({"connect": ["shm:water"]}, [ShmEndpoint("/tmp/ipi_water")]),
        ({"unix": "water", "prefix": "/run/md_"}, [UnixEndpoint("/run/md_water")]),
        ({"connect": ["unix:a", "inet:h:1"]}, [UnixEndpoint("/tmp/ipi_a"), InetEndpoint("h", 1)]),
        ({"connect": ["unix:a"], "port": 31415}, [UnixEndpoint("/tmp/ipi_a"), LOCAL]),
    ],
)
def test_every_way_to_name_an_endpoint(given, endpoints):
    options = {"port": None, "host": None, "unix": None, "is_unix": False, "is_shm": False, "connect": []}
    options["prefix"] = "/tmp/ipi_"
    assert serve._endpoints(**{**options, **given}) == [(endpoint, None) for endpoint in endpoints]


@pytest.mark.parametrize(("text", "count"), [("auto", None), ("1", 1), ("32", 32)])
def test_connections(text, count):
    assert serve._connections(text) == count


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "100000", ""])
def test_connections_out_of_bounds(text):
    with pytest.raises(ConfigError, match=r"--connections must be auto or a number from 1 to"):
        serve._connections(text)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--port", "0"], "port 0 is out of range"),
        (["--connect", "http://x"], "of no known kind"),
        (["--connect", "shm:"], "a shm endpoint needs a name"),
        (["--extras", "some"], "--extras must be auto, on, off; got 'some'"),
        (["--unix", "x", "--connect", "unix:x"], "endpoint unix:/tmp/ipi_x is named twice"),
        (["--host", "no.such.host.invalid"], "has no address"),
        (["--template", "nowhere.xyz"], "'nowhere.xyz' is no file"),
        (["--connect", "unix:x@nowhere.xyz"], "'nowhere.xyz' is no file"),
        (["--template", "w.xyz", "--species", "O H H"], "give one of them"),
        (["--species", "O H Xx"], "species 'Xx' (atom 2 of --species (O H Xx)) is unknown to the model"),
        (["--timeout", "0"], "--timeout must be positive seconds, got 0"),
        (["--connections", "0"], "--connections must be auto or a number"),
        (["--save-deviating", "x.xyz"], "--save-deviating needs --warn-deviation"),
        (["--warn-deviation", "0.1"], "--warn-deviation needs a committee, and this model file holds a single model"),
        (["--report", "0.5"], "--report must be at least 1 second, or 0 for no such lines; got 0.5"),
        (["--metrics", "9100"], "--metrics '9100' is no address; expected HOST:PORT, [IPv6]:PORT or :PORT"),
        (["--control", "/no/such/place"], "there can be no control socket '/no/such/place'"),
        (["--log-level", "loud"], "log level 'loud' is unknown; expected one of debug, info, warning, error"),
        (["--precision", "half"], "precision"),
        (["--fparam", "warm"], "--fparam is 'warm', expected numbers such as 0.5,1.2"),
        (["--fparam", "0.5"], "--fparam: 1 parameter fparam given, but the model takes no parameters fparam; leave"),
        (["--aparam", "nowhere.npy"], "--aparam nowhere.npy cannot be read: No such file"),
        (["--born-charges"], "--born-charges needs --dipole FILE"),
        (["--dipole", "d.pt", "--extras", "off"], "--extras off keeps back what --dipole is evaluated for"),
    ],
)
def test_options_that_cannot_be_used_are_one_line_and_exit_2(model, monkeypatch, capsys, options, complaint):
    assert exit_code(monkeypatch, "--model", model, *options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not re.match(r"\d{4}-", line)]
    assert line.startswith("error: ")
    assert complaint in line


def test_a_missing_model_exits_3(monkeypatch, capsys, tmp_path):
    assert exit_code(monkeypatch, "--model", tmp_path / "none.pt") == 3
    assert f"error: model file {tmp_path}/none.pt does not exist" in capsys.readouterr().err


def test_a_model_is_needed(monkeypatch, capsys):
    assert exit_code(monkeypatch, "--port", "31415") == 2
    assert "--model" in capsys.readouterr().err


def test_nobody_listening_exits_6(model, monkeypatch, capsys):
    assert exit_code(monkeypatch, "--model", model, "--unix", "dpserver_test_nobody", "--timeout", "0.1") == 6
    assert "nobody has listened for 0.1 s" in capsys.readouterr().err


def test_a_peer_is_served_once(model, monkeypatch, capsys):
    with Peer() as peer:

        def play() -> None:
            with peer.accept() as line:
                line.handshake()
                check(line, model)
                line.send(EXIT)
                line.is_closed()

        thread = in_background(play)
        assert exit_code(monkeypatch, "--model", model, "--unix", peer.address, "--once") == 0
        thread.join(PATIENCE)
    log = capsys.readouterr().err
    assert "w.pt: knows O, H, cutoff 3 Å" in log
    assert (
        "species of 24 atoms (O 8, H 16) are O H×2, 8 times, from the model's own template; boundaries: periodic" in log
    )
    assert "left: said EXIT; served 1 evaluation, mean" in log


def test_a_busy_metrics_port_exits_2_before_the_model_is_loaded(monkeypatch, capsys):
    with Peer(0) as other:
        assert exit_code(monkeypatch, "--model", "none.pt", "--metrics", f"127.0.0.1:{other.address}") == 2
    assert f"error: --metrics cannot listen on port {other.address} of 127.0.0.1" in capsys.readouterr().err


def test_a_real_daemon_is_seen_by_status_and_leaves_no_socket(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Peer() as peer:
        command = [sys.executable, "-m", "dpserver", "--model", str(model), "--unix", str(peer.address)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            peer.listener.settimeout(60)
            with peer.accept() as line:
                line.handshake()
                check(line, model)
                assert exit_code(monkeypatch, "status", "--json", "--pid", process.pid) == 0
                (snapshot,) = json.loads(capsys.readouterr().out)
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
    assert (snapshot["pid"], snapshot["phase"], snapshot["device"]) == (process.pid, "serving", "cpu")
    assert snapshot["totals"]["frames"] == 1
    assert snapshot["memory_bytes"] > 10_000_000
    assert list((tmp_path / "dpserver").iterdir()) == []


def test_its_endpoints_are_told_while_the_model_is_loaded(monkeypatch, tmp_path):
    """So daemons that are started together learn of each other."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    told: list[dict] = []

    def look_and_fail(*_: object) -> None:
        told.append(json.loads(ask(tmp_path / "dpserver" / str(os.getpid())) or b"{}"))
        raise ModelFileError("enough seen")

    monkeypatch.setattr(ranks, "loaded", look_and_fail)
    assert exit_code(monkeypatch, "--model", "none.pt", "--unix", "x", "--connect", "inet:localhost:31415") == 3
    (snapshot,) = told
    assert snapshot["phase"] == "loading the model"
    assert {one["endpoint"] for one in snapshot["endpoints"]} == {"unix:/tmp/ipi_x", "inet:localhost:31415"}


def test_a_committee_tells_where_it_disagrees(monkeypatch, capsys, tmp_path):
    files = [tmp_path / "1.pt", tmp_path / "2.pt"]
    for seed, file in enumerate(files):
        checkpoint.save(file, committees.member(seed))
    checkpoint.write(tmp_path / "w.pt", checkpoint.join(files))
    kept = tmp_path / "kept.xyz"
    with Peer() as peer:

        def play() -> None:
            with peer.accept() as line:
                line.handshake()
                check(line, tmp_path / "w.pt")
                line.send(EXIT)
                line.is_closed()

        thread = in_background(play)
        options = ("--species", "O H H", "--warn-deviation", "1e-3", "--save-deviating", kept, "--once")
        assert exit_code(monkeypatch, "--model", tmp_path / "w.pt", "--unix", peer.address, *options) == 0
        thread.join(PATIENCE)
    log = capsys.readouterr().err
    assert "w.pt: knows O, H, cutoff 4 Å, committee of 2" in log
    assert "1 of 1 structures deviate by more than 0.001 eV/Å; most of all one of unix:" in log
    assert f"{kept}: structures kept: 1" in log
    assert kept.read_text().startswith(f"{FRAME.n_atoms}\n")


def test_every_option_can_come_from_the_environment(model, monkeypatch, capsys):
    with Peer() as a, Peer() as b:
        settings = {
            "MODEL": model, "CONNECT": f"{a.endpoint} {b.endpoint}", "ONCE": "1", "SPECIES": "H O H", "LOG_JSON": "1",
            "CONNECTIONS": "1", "DEVICE": "cpu", "PRECISION": "double", "TIMEOUT": "20", "LOG_LEVEL": "debug",
            "REPORT": "5", "METRICS": "127.0.0.1:0", "CONTROL": "off",
        }  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setenv(f"DPSERVER_{name}", str(value))

        def play() -> None:
            with a.accept() as first, b.accept() as second:
                first.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
                first.reply(FRAME.n_atoms)
                first.send(EXIT)
                second.send(EXIT)
                first.is_closed()

        thread = in_background(play)
        assert exit_code(monkeypatch, "serve") == 0
        thread.join(PATIENCE)
    entries = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {"time", "level", "logger", "message"} == set(entries[0])
    assert any(entry["message"].startswith("metrics on port ") for entry in entries)
    assert any("from --species (H O H)" in entry["message"] for entry in entries)


def test_refused_input_exits_4_when_serving_once(model, monkeypatch, capsys):
    with Peer() as peer:

        def play() -> None:
            with peer.accept() as line:
                line.send(b"GET / HTTP/1.1\r\n\r\n")
                assert line.is_closed()

        thread = in_background(play)
        assert exit_code(monkeypatch, "--model", model, "--unix", peer.address, "--once") == 4
        thread.join(PATIENCE)
    assert "refused: expected the header" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_real_daemon_that_is_serving(model, number):
    with Peer() as peer:
        command = [sys.executable, "-m", "dpserver", "--model", str(model), "--unix", str(peer.address)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
        try:
            peer.listener.settimeout(60)
            with peer.accept() as line:
                assert line.status() == NEEDINIT
                check(line, model)
                process.send_signal(number)
                assert line.is_closed()
            _, log = process.communicate(timeout=JOB_PATIENCE)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0
    assert "asked to stop" in log
    assert "we were asked to stop; served 1 evaluation, mean" in log
    assert "Traceback" not in log
