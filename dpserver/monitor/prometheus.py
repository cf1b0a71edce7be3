"""The meter as Prometheus metrics. Imports prometheus-client, which is an extra: to be imported where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

Snapshot = Mapping[str, Any]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "dpserver_replies": ("replies", "Requests answered."),
    "dpserver_atoms": ("atoms", "Atoms of all structures evaluated."),
    "dpserver_received_bytes": ("received", "Bytes from peers, counted at each answer."),
    "dpserver_sent_bytes": ("sent", "Bytes to peers, counted at each answer."),
}
_ENDPOINT_COUNTERS = {
    "dpserver_requests": ("requests", "Messages that asked for forces."),
    "dpserver_evaluations": ("evaluations", "Structures evaluated."),
    "dpserver_reconnects": ("reconnects", "Connections made in place of one that had ended."),
}
_ENDPOINT_GAUGES = {
    "dpserver_connections": ("connections", "Open connections."),
    "dpserver_wave_frames": ("wave_frames", "Structures of one step of the simulation, where they can be told."),
    "dpserver_waves_split_ratio": ("waves_split", "Share of the last steps that came in more than one part."),
}
_HISTOGRAMS = {
    "dpserver_batch_frames": ("batch_frames", "Structures of a batch."),
    "dpserver_queue_seconds": ("queue_seconds", "From the arrival of a request to the start of its batch."),
    "dpserver_evaluation_seconds": ("evaluation_seconds", "What the evaluation of a batch took."),
    "dpserver_reply_seconds": ("reply_seconds", "From the arrival of a request to its answer."),
}
_STATES = ("computing", "wire", "waiting")


def exposition(snapshot: Callable[[], Snapshot]) -> Callable[[], bytes]:
    """Make what gives the text of `/metrics`, from a registry of its own.

    Args:
        snapshot: of a meter.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(snapshot))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)


class _Collector(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Metric]:
        """Nothing: so the registry does not collect only to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Turn a snapshot into metrics."""
        snapshot = self._snapshot()
        about = {key: snapshot[key] or "" for key in ("version", "model", "device")}
        yield _gauge("dpserver_info", "What is served, and where; always 1.", about, 1)
        for name, (key, text) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, value=snapshot["totals"][key])
        for name, (key, text) in _ENDPOINT_COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=["endpoint"])
            for endpoint in snapshot["endpoints"]:
                counter.add_metric([endpoint["endpoint"]], endpoint[key])
            yield counter
        for name, (key, text) in _ENDPOINT_GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=["endpoint"])
            for endpoint in snapshot["endpoints"]:
                if endpoint[key] is not None:
                    gauge.add_metric([endpoint["endpoint"]], endpoint[key])
            yield gauge
        refused = CounterMetricFamily("dpserver_refused_frames", "Structures refused, by reason.", labels=["kind"])
        for kind, count in snapshot["refused"].items():
            refused.add_metric([kind], count)
        yield refused
        for name, (key, text) in _HISTOGRAMS.items():
            yield _histogram(name, text, snapshot["histograms"][key])
        yield from _present(snapshot)


def _present(snapshot: Snapshot) -> Iterator[Metric]:
    """Give time, memory and what is under way."""
    seconds = CounterMetricFamily("dpserver_time_seconds", "Where the time has gone.", labels=["state"])
    for state in _STATES:
        seconds.add_metric([state], snapshot["totals"][state])
    yield seconds
    yield _gauge("dpserver_requests_waiting", "Requests that are in no batch yet.", {}, snapshot["requests_waiting"])
    running = snapshot["batch_running_seconds"] or 0.0
    yield _gauge("dpserver_batch_running_seconds", "Since the start of the present batch; 0 without one.", {}, running)
    if (memory := snapshot["memory_bytes"]) is not None:
        text = "Memory in use on the device; of the process where the device is the processor."
        yield _gauge("dpserver_device_memory_bytes", text, {"device": snapshot["device"] or ""}, memory)


def _gauge(name: str, text: str, labels: Mapping[str, str], value: float) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=list(labels))
    gauge.add_metric(list(labels.values()), value)
    return gauge


def _histogram(name: str, text: str, values: Mapping[str, Any]) -> Metric:
    bounds = [*map(str, values["bounds"]), "+Inf"]
    return HistogramMetricFamily(
        name, text, list(zip(bounds, accumulate(values["counts"]), strict=True)), values["sum"]
    )
