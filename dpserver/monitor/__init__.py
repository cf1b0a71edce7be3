"""Seeing it work: what the daemon has done, as a log line, a status socket and Prometheus metrics."""

from dpserver.monitor.meter import Kind, Meter, Phase
from dpserver.monitor.report import Reporter

__all__ = ["Kind", "Meter", "Phase", "Reporter"]
