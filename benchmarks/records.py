"""Where benchmarks keep what they measure: JSON lists in `benchmarks/results`, with date, machine and versions."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def _processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def append(name: str, values: Mapping[str, Any]) -> None:
    """Add a record to `results/NAME.json` and print it."""
    record = {
        **values,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {package: version(package) for package in ("dpserver", "torch", "ipi", "numpy", "numba")},
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*records, record], indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))
