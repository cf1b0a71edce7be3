"""The line in the log that says how it goes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dpserver.monitor.figures import compare
from dpserver.monitor.meter import Meter

logger = logging.getLogger(__name__)

SHORTEST = 1.0
"""Between two lines, s."""

FIRST_PAUSES = (SHORTEST, 9.0)
"""Before the first lines: does it work, and how fast?"""


class Reporter:
    """Writes what the meter has counted to the log, as long as there is work.

    Lines come a second and ten seconds after work has begun, then at a steady pace, and when the last peer has left.
    A pause that is longer than that pace ends the work. There is no line about a time in which nothing was evaluated.

    Args:
        meter: knows.
        interval: seconds between two lines, at least 1; None writes none, but gives advice all the same.
        clock: seconds, monotonic; that of the meter.
    """

    def __init__(self, meter: Meter, interval: float | None, clock: Callable[[], float]) -> None:
        self._meter = meter
        self._is_silent = interval is None
        self._interval = 60.0 if interval is None else interval
        self._clock = clock
        self._last = meter.totals()
        self._n_lines = 0  # since work has begun
        self._due: float | None = None

    def delay(self) -> float | None:
        """Seconds until `report` may have something to say; None while there is no work."""
        when = self._when()
        return None if when is None else max(0.0, when - self._clock())

    def note_work(self) -> None:
        """There is work; to be told of each request."""
        if self._due is not None:
            return
        now = self._clock()
        if not self._n_lines or now - self._last.time > self._interval:
            self._last, self._n_lines = self._meter.totals(), 0
            self._meter.take_largest_batch()
        pauses = [min(pause, self._interval) for pause in FIRST_PAUSES]
        pause = pauses[self._n_lines] if self._n_lines < len(pauses) else self._interval
        self._due = self._last.time + pause

    def report(self) -> None:
        """Write a line if one is due."""
        when = self._when()
        if when is None or (now := self._clock()) < when:
            return
        totals = self._meter.totals()
        if totals.batches == self._last.batches:
            self._due = now + SHORTEST if self._meter.is_busy else None
            return
        figures = compare(self._last, totals, self._meter.take_largest_batch())
        if not self._is_silent:
            logger.info("%s", figures, extra={"figures": figures.as_dict()})
        for line in self._meter.take_advice():
            logger.info("%s", line)
        self._last, self._due = totals, None
        self._n_lines += 1

    def _when(self) -> float | None:
        if self._due is None or self._meter.n_connections:
            return self._due
        return min(self._due, self._last.time + SHORTEST)
