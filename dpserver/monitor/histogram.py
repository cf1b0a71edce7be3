"""Counts of values in ranges that are fixed beforehand."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

FRAMES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""Bounds for the structures of a batch."""

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds for times."""


class Histogram:
    """How often values have come up to each bound.

    Args:
        bounds: upper ends of the ranges, ascending; each belongs to its range. Above the last is one more range.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def snapshot(self) -> dict[str, object]:
        """Give `bounds`, the `counts` of the ranges (one more), their total `count` and the `sum` of the values."""
        counts = list(self._counts)
        return {"bounds": list(self._bounds), "counts": counts, "count": sum(counts), "sum": self._sum}
