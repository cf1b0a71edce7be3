"""What is exposed, read back with the parser of Prometheus' own client."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from dpserver.monitor import Kind
from dpserver.monitor.prometheus import exposition
from tests.monitor.doubles import Job, Watched

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(watched: Watched) -> Samples:
    text = exposition(watched.meter.snapshot)().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def get(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_everything_is_exposed():
    watched = Watched()
    meter = watched.meter
    meter.about.update(model="w.pt", device="cuda:0")
    meter.memory = lambda: 4096
    meter.expect("unix:b")
    watched.connect("unix:a", *range(40))
    meter.closed(39)
    watched.connect("unix:a", 39)
    watched.evaluate([Job(k) for k in range(3)], seconds=0.02, reading=0.001)
    watched.evaluate([Job(k) for k in range(40)], seconds=0.2, reading=0.001)
    meter.refused("unix:a", Kind.STRUCTURE, 5)
    meter.asked(Job(7))
    samples = scrape(watched)
    a = {"endpoint": "unix:a"}
    expected = {
        "dpserver_requests_total": 44, "dpserver_evaluations_total": 43, "dpserver_connections": 40,
        "dpserver_reconnects_total": 1,
    }  # fmt: skip
    for name, value in expected.items():
        assert get(samples, name, **a) == value
    assert get(samples, "dpserver_requests_total", endpoint="unix:b") == 0
    assert get(samples, "dpserver_replies_total") == 43
    assert get(samples, "dpserver_atoms_total") == 43 * 192
    assert get(samples, "dpserver_received_bytes_total") == 4300
    assert get(samples, "dpserver_sent_bytes_total") == 8600
    assert get(samples, "dpserver_refused_frames_total", kind="structure") == 5
    assert get(samples, "dpserver_refused_frames_total", kind="protocol") == 0
    assert get(samples, "dpserver_requests_waiting") == 1
    assert get(samples, "dpserver_batch_running_seconds") == 0
    assert get(samples, "dpserver_device_memory_bytes", device="cuda:0") == 4096
    assert get(samples, "dpserver_time_seconds_total", state="computing") == pytest.approx(0.22)
    assert get(samples, "dpserver_info", model="w.pt", device="cuda:0", version=meter.snapshot()["version"]) == 1
    assert get(samples, "process_resident_memory_bytes") > 0


def test_histograms_are_cumulative():
    watched = Watched()
    watched.connect("unix:a", *range(40))
    for n in (1, 3, 40):
        watched.evaluate([Job(k) for k in range(n)], seconds=0.02)
    samples = scrape(watched)
    counts = [
        get(samples, "dpserver_batch_frames_bucket", le=le) for le in ("1.0", "2.0", "4.0", "32.0", "64.0", "+Inf")
    ]
    assert counts == [1, 1, 2, 2, 3, 3]
    assert get(samples, "dpserver_batch_frames_count") == 3
    assert get(samples, "dpserver_batch_frames_sum") == 44
    assert get(samples, "dpserver_evaluation_seconds_sum") == pytest.approx(0.06)
    assert get(samples, "dpserver_reply_seconds_count") == 44
    assert get(samples, "dpserver_queue_seconds_count") == 44


def test_waves_are_exposed_where_they_are_known():
    watched = Watched()
    watched.connect("unix:a", *range(8))
    watched.connect("unix:b", "one")
    for _ in range(40):
        watched.evaluate([Job(k) for k in range(8)], 0.01)
        watched.wait(0.001)
    samples = scrape(watched)
    assert get(samples, "dpserver_wave_frames", endpoint="unix:a") == 8
    assert get(samples, "dpserver_waves_split_ratio", endpoint="unix:a") == 0
    assert ("dpserver_wave_frames", frozenset({("endpoint", "unix:b")})) not in samples


def test_the_global_registry_is_left_alone():
    before = set(REGISTRY._names_to_collectors)
    exposition(Watched().meter.snapshot)()
    assert set(REGISTRY._names_to_collectors) == before


def test_names_with_quotes_and_backslashes():
    watched = Watched()
    watched.connect('unix:/tmp/"\\\n', 1)
    assert get(scrape(watched), "dpserver_connections", endpoint='unix:/tmp/"\\\n') == 1
