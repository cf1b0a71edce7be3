"""What can be seen of a daemon that serves peers who follow a script."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from dpserver.daemon import ExitCode
from dpserver.errors import DeviceError, StructureError
from dpserver.monitor import Meter, Phase
from dpserver.monitor.outlets import open_outlets
from tests import structures
from tests.daemon.serving import serving, target
from tests.doubles import Faulty, PairModel
from tests.patience import PATIENCE
from tests.peer import EXIT, GETFORCE, Peer, batched_posdata, posdata, reply_size

FRAME = structures.cubic()
N = FRAME.n_atoms


def until(is_so, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def endpoint(meter: Meter) -> dict[str, object]:
    (found,) = meter.snapshot()["endpoints"]
    return found


def test_every_count():
    meter = Meter()
    assert meter.phase is Phase.LOADING
    with Peer() as peer, serving(PairModel(), target(peer.endpoint, connections=2), meter=meter):
        until(lambda: meter.phase is Phase.SERVING, "it does not begin")
        assert endpoint(meter)["endpoint"] == peer.endpoint
        with peer.accept() as a, peer.accept() as b:
            a.handshake()
            b.handshake(b" batch_size:3")
            for _ in range(2):
                a.ask(FRAME.positions, FRAME.cell[0])
            b.send(batched_posdata([FRAME.positions] * 3, [FRAME.cell[0]] * 3), GETFORCE)
            b.reply(N, 3)
            until(lambda: meter.totals().replies == 3, "an answer is not counted")
            snapshot = meter.snapshot()
            assert endpoint(meter)["connections"] == 2
            assert endpoint(meter)["evaluations"] == 5
            assert snapshot["totals"]["batches"] == 3
            assert snapshot["totals"]["atoms"] == 5 * N
            assert snapshot["totals"]["sent"] >= 2 * reply_size(N) + reply_size(N, 3)
            assert snapshot["totals"]["received"] > 5 * 24 * N
            assert snapshot["histograms"]["reply_seconds"]["count"] == 3
            times = [snapshot["totals"][name] for name in ("computing", "wire", "waiting")]
            assert min(times) > 0
            assert sum(times) == pytest.approx(snapshot["uptime_seconds"])
            a.send(EXIT)
            assert a.is_closed()
            with peer.accept():
                until(lambda: endpoint(meter)["reconnects"] == 1, "a reconnect is not counted")
                assert endpoint(meter)["connected"] == 3
    assert meter.phase is Phase.STOPPING
    assert meter.n_connections == 0
    assert meter.wake is None


def test_what_is_refused_and_why():
    def refuse(frames, result):
        raise StructureError("for the sake of the test")

    meter = Meter()
    with Peer() as peer, serving(Faulty(refuse), target(peer.endpoint, connections=1), meter=meter):
        with peer.accept() as line:
            line.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
            assert line.is_closed()
        with peer.accept() as line:
            line.send(b"GET / HTTP/1.1\r\n\r\n")
            assert line.is_closed()
        until(lambda: endpoint(meter)["refused"] == 2, "a refusal is not counted")
        assert meter.snapshot()["refused"] == {"structure": 1, "protocol": 1, "device": 0, "internal": 0}
        assert meter.totals().replies == 0


def test_a_lost_device():
    def lose(frames, result):
        raise DeviceError("gone")

    meter = Meter()
    with Peer() as peer, serving(Faulty(lose), target(peer.endpoint), meter=meter) as served, peer.accept() as line:
        line.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        assert served.result() is ExitCode.DEVICE_LOST
    assert meter.phase is Phase.DEVICE_LOST


def test_a_line_with_figures(caplog):
    caplog.set_level("INFO", "dpserver.monitor")
    with Peer() as peer, serving(PairModel(), target(peer.endpoint), report=1.0), peer.accept() as line:
        line.handshake()
        line.ask(FRAME.positions, FRAME.cell[0])
        until(lambda: caplog.records, "there is no line")  # although no byte comes any more
    (record,) = caplog.records
    assert "1 at most" in record.getMessage()
    assert record.figures["mean_batch"] == 1


def get(port: int, page: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_prometheus_and_probes(port):
    pytest.importorskip("prometheus_client")
    meter = Meter()
    with Peer() as peer, open_outlets(meter, "off", f"127.0.0.1:{port}"):
        assert get(port, "readyz") == (503, "loading the model\n")
        assert get(port, "healthz") == (200, "loading the model\n")
        with serving(PairModel(), target(peer.endpoint, connections=1), meter=meter):
            with peer.accept() as line:
                line.handshake()
                line.ask(FRAME.positions, FRAME.cell[0])
                until(lambda: meter.totals().replies == 1, "the answer is not counted")
                assert get(port, "readyz") == (200, "serving\n")
                assert get(port, "healthz") == (200, "alive\n")
                status, text = get(port, "metrics")
                assert status == 200
                assert f'dpserver_requests_total{{endpoint="{peer.endpoint}"}} 1.0' in text
                assert "dpserver_reply_seconds_count 1.0" in text
            until(lambda: endpoint(meter)["reconnects"] == 1, "it does not dial again")
            assert get(port, "healthz") == (200, "alive\n")  # nobody says anything, and it sleeps
        assert get(port, "readyz") == (503, "stopping\n")


def test_a_daemon_that_computes_for_long_is_alive(port):
    pytest.importorskip("prometheus_client")
    is_reached, is_open = threading.Event(), threading.Event()

    def hold(frames, result):
        is_reached.set()
        assert is_open.wait(PATIENCE)
        return result

    meter = Meter()
    with (
        Peer() as peer,
        open_outlets(meter, "off", f"127.0.0.1:{port}"),
        serving(Faulty(hold), target(peer.endpoint), meter=meter),
        peer.accept() as line,
    ):
        line.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        assert is_reached.wait(PATIENCE)
        assert get(port, "healthz") == (200, "alive\n")
        assert meter.snapshot()["batch_running_seconds"] > 0
        is_open.set()
        line.reply(N)
