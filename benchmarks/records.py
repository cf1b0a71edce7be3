"""Where benchmarks keep what they measure: JSON lists in `benchmarks/results`, with date, machine and versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def append(name: str, values: Mapping[str, Any]) -> None:
    """Add a record to `results/NAME.json` and print it."""
    record = {
        **values,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "versions": {package: version(package) for package in ("dpserver", "torch", "ipi", "numpy")},
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*records, record], indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))
