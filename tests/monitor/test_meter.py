from __future__ import annotations

import json
import threading

import pytest

from dpserver.errors import ConfigError, DeviceError, RemoteProtocolError, StructureError
from dpserver.monitor import Kind, Meter, Phase
from tests.monitor.doubles import Job, Watched


def test_time_is_split_in_three_without_a_gap():
    watched = Watched()
    watched.connect("unix:a", 1, 2)
    watched.meter.awake()
    watched.wait(2.0)
    watched.evaluate([Job(1), Job(2)], seconds=5.0, reading=0.5, writing=0.25)
    watched.clock.now += 0.25
    watched.wait(1.0)
    totals = watched.meter.totals()
    assert (totals.waiting, totals.computing, totals.wire) == (3.0, 5.0, 1.0)
    assert totals.time == 109.0


def test_a_batch_that_is_not_done_is_computing():
    watched = Watched()
    watched.connect("unix:a", 1)
    watched.meter.asked(Job(1))
    watched.meter.started([Job(1)])
    watched.clock.now += 7.0
    snapshot = watched.meter.snapshot()
    assert snapshot["totals"]["computing"] == 7.0
    assert snapshot["batch_running_seconds"] == 7.0
    assert watched.meter.is_busy


def test_counts_of_a_batch():
    watched = Watched()
    watched.connect("unix:a", 1, 2)
    watched.connect("unix:b", 3)
    watched.evaluate([Job(1), Job(2, n_frames=4, n_atoms=40), Job(3)], seconds=0.3, reading=0.03, writing=0.02)
    watched.evaluate([Job(3)], seconds=0.1)
    snapshot = watched.meter.snapshot()
    totals = snapshot["totals"]
    assert {key: totals[key] for key in ("requests", "replies", "batches", "frames", "atoms", "received", "sent")} == {
        "requests": 4, "replies": 4, "batches": 2, "frames": 7, "atoms": 616, "received": 400, "sent": 800,
    }  # fmt: skip
    assert totals["evaluating"] == pytest.approx(0.4)
    a, b = snapshot["endpoints"]
    assert (a["endpoint"], a["connections"], a["requests"], a["evaluations"]) == ("unix:a", 2, 2, 5)
    assert (b["endpoint"], b["connections"], b["requests"], b["evaluations"]) == ("unix:b", 1, 2, 2)
    histograms = snapshot["histograms"]
    assert (histograms["batch_frames"]["count"], histograms["batch_frames"]["sum"]) == (2, 7)
    assert histograms["queue_seconds"]["sum"] == pytest.approx(3 * 0.03)
    assert histograms["reply_seconds"]["sum"] == pytest.approx(3 * 0.35 + 0.1)
    assert histograms["evaluation_seconds"]["sum"] == pytest.approx(0.4)


def test_requests_that_wait():
    watched = Watched()
    watched.connect("unix:a", 1, 2, 3)
    watched.meter.asked(Job(1))
    watched.meter.started([Job(1)])
    watched.meter.asked(Job(2))
    watched.meter.asked(Job(3))
    assert watched.meter.snapshot()["requests_waiting"] == 2
    watched.meter.closed(2)
    assert watched.meter.snapshot()["requests_waiting"] == 1
    watched.meter.closed(1)  # while its structures are computed
    watched.meter.evaluated(0.1)
    assert watched.meter.snapshot()["requests_waiting"] == 1
    assert watched.meter.is_busy
    watched.meter.closed(3)
    assert not watched.meter.is_busy


def test_the_next_request_may_come_while_an_answer_is_written():
    watched = Watched()
    watched.connect("unix:a", 1)
    watched.meter.asked(Job(1))
    watched.meter.started([Job(1)])
    watched.clock.now += 2.0
    watched.meter.evaluated(2.0)
    watched.meter.asked(Job(1))
    watched.meter.replied(Job(1), 1, 1)
    watched.meter.started([Job(1)])
    watched.clock.now += 3.0
    watched.meter.evaluated(3.0)
    watched.meter.replied(Job(1), 1, 1)
    histograms = watched.meter.snapshot()["histograms"]
    assert (histograms["reply_seconds"]["count"], histograms["reply_seconds"]["sum"]) == (2, 5.0)
    assert histograms["queue_seconds"]["sum"] == 0
    assert not watched.meter.is_busy


def test_a_reconnect_takes_the_place_of_a_connection_that_has_ended():
    watched = Watched()
    meter = watched.meter
    meter.expect("unix:a")
    watched.connect("unix:a", 1, 2, 3)

    def counts() -> tuple[int, int, int]:
        (endpoint,) = meter.snapshot()["endpoints"]
        return endpoint["connections"], endpoint["connected"], endpoint["reconnects"]

    assert counts() == (3, 3, 0)
    meter.closed(1)
    meter.closed(2)
    assert counts() == (1, 3, 0)
    assert meter.n_connections == 1
    watched.connect("unix:a", 4, 5, 6)
    assert counts() == (4, 6, 2)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StructureError("x"), Kind.STRUCTURE),
        (RemoteProtocolError("x"), Kind.PROTOCOL),
        (DeviceError("x"), Kind.DEVICE),
        (ConfigError("x"), Kind.INTERNAL),
        (ZeroDivisionError("x"), Kind.INTERNAL),
    ],
)
def test_kinds_of_refusals(error, kind):
    assert Kind.of(error) is kind


def test_refused_frames():
    meter = Meter()
    meter.refused("unix:a", Kind.STRUCTURE, 32)
    meter.refused("unix:a", Kind.PROTOCOL)
    snapshot = meter.snapshot()
    assert snapshot["refused"] == {"structure": 32, "protocol": 1, "device": 0, "internal": 0}
    assert snapshot["endpoints"][0]["refused"] == 33


def test_recent_looks_back_ten_seconds():
    watched = Watched()
    watched.connect("unix:a", *range(64))
    watched.evaluate([Job(k) for k in range(64)], seconds=1.0)
    for _ in range(30):
        watched.evaluate([Job(k) for k in range(16)], seconds=0.4)
        watched.wait(0.6)
    recent = watched.meter.snapshot()["recent"]
    assert recent["seconds"] == pytest.approx(10.6, abs=1)
    assert recent["evaluations_per_second"] == pytest.approx(16, rel=0.1)
    assert recent["largest_batch"] == 16
    assert recent["computing"] == pytest.approx(0.4, abs=0.04)
    watched.wait(3600.0)
    recent = watched.meter.snapshot()["recent"]
    assert recent["evaluations_per_second"] < 0.1
    assert recent["waiting"] == pytest.approx(1.0, abs=1e-2)


def split_runs(watched: Watched, endpoint: str, n_steps: int = 60, seconds: float = 0.01) -> None:
    """Sixteen beads, in two parts of varying size."""
    for step in range(n_steps):
        first = 1 + step % 15
        for beads in (range(first), range(first, 16)):
            watched.evaluate([Job((endpoint, bead)) for bead in beads], seconds + 1e-6 * len(beads))
            watched.wait(5e-4)
        watched.wait(4e-3)


def test_advice_is_given_once_while_the_peer_stays():
    watched = Watched()
    peers = [("unix:a", bead) for bead in range(16)]
    watched.connect("unix:a", *peers)
    assert watched.meter.take_advice() == []
    split_runs(watched, "unix:a")
    (advice,) = watched.meter.take_advice()
    assert advice.startswith(
        "unix:a: the 16 structures of a step come in parts in 100% of the steps, which costs 10 of"
    )
    assert "set <latency> to 1e-3" in advice
    split_runs(watched, "unix:a")
    assert watched.meter.take_advice() == []
    for peer in peers:
        watched.meter.closed(peer)
    watched.connect("unix:a", *peers)
    assert watched.meter.take_advice() == []
    split_runs(watched, "unix:a")
    assert len(watched.meter.take_advice()) == 1


def test_waves_of_two_simulations_are_told_apart():
    """Batches hold what both have sent; each sends its beads in one piece, and the sizes of batches say nothing."""
    watched = Watched()
    a, b = ([(name, bead) for bead in range(n)] for name, n in (("unix:a", 8), ("unix:b", 5)))
    watched.connect("unix:a", *a)
    watched.connect("unix:b", *b)
    for step in range(90):
        jobs = [Job(peer) for peer in (a if step % 2 else b if step % 3 else [*a, *b])]
        watched.evaluate(jobs, 0.01)
        watched.wait(1e-3)
    first, second = watched.meter.snapshot()["endpoints"]
    assert (first["wave_frames"], first["waves_split"]) == (8, 0)
    assert (second["wave_frames"], second["waves_split"]) == (5, 0)
    assert watched.meter.take_advice() == []


def test_a_snapshot_is_json():
    watched = Watched()
    watched.meter.about["model"] = "w.pt"
    watched.meter.memory = lambda: 12345
    watched.meter.phase = Phase.SERVING
    watched.connect("unix:a", 1)
    watched.evaluate([Job(1)], 0.1)
    snapshot = watched.meter.snapshot()
    assert json.loads(json.dumps(snapshot, allow_nan=False)) == snapshot
    assert (snapshot["phase"], snapshot["model"], snapshot["memory_bytes"]) == ("serving", "w.pt", 12345)


def test_readers_and_writers_do_not_get_into_each_others_way():
    meter = Meter()
    is_over = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not is_over.is_set():
                snapshot = meter.snapshot()
                assert snapshot["totals"]["frames"] == sum(e["evaluations"] for e in snapshot["endpoints"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for k in range(2000):
        job = Job(k)
        meter.opened(f"unix:{k % 7}", k)
        meter.asked(job)
        meter.started([job])
        meter.evaluated(0.0)
        meter.replied(job, 1, 1)
        meter.closed(k)
    is_over.set()
    for thread in threads:
        thread.join()
    assert failures == []
