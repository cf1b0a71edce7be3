"""Where benchmarks keep what they measure: JSON lists in `benchmarks/results`, with date, machine and versions."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dpserver

RESULTS = Path(__file__).parent / "results"


def _processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def provenance(machine: str | None = None) -> dict[str, Any]:
    """When, where and with what something is measured; the machine is by default its processor."""
    n_cores = len(os.sched_getaffinity(0))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine or f"{_processor()}, {n_cores} core{'' if n_cores == 1 else 's'}",
        "versions": {"dpserver": dpserver.__version__, **_versions("torch", "ipi", "numpy", "numba", "triton")},
    }


def append(name: str, values: Mapping[str, Any], machine: str | None = None) -> None:
    """Add a record to `results/NAME.json` and print it."""
    record = {**values, **provenance(machine)}
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*records, record], indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))
