"""How a rank waits for another: without a core of its own, for MPI's own ways of waiting keep one busy each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

SECONDS_TO_NOTICE: Final = 2.0
"""Within which it is known that a rank has gone."""


class IsThere(Protocol):
    """Tells whether something has come; never waits."""

    def __call__(self) -> bool:
        """Whether it has."""


def _no_reason() -> None:
    """Nothing speaks against waiting on."""


@dataclass(frozen=True)
class Patience:
    """Looks at once, again and again for a moment, then with pauses that grow.

    A pause is a share of the time waited so far: what comes is never noticed later than by that share, nor by more than
    the longest pause, and who waits long looks rarely. An idle rank takes two to four percent of a core.

    Attributes:
        spin: how long to look without a pause, s.
        shortest: pause, s; also about as long as a system lets sleep at least.
        longest: pause, s.
        share: of the time waited.
        check: is called before each pause, and raises where there is nothing left to wait for.
        clock: seconds, monotonic.
        sleep: waits for so many seconds.
    """

    spin: float = 2e-4
    shortest: float = 5e-5
    longest: float = 8e-4
    share: float = 0.02
    check: Callable[[], None] = _no_reason
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep

    def until(self, is_there: IsThere) -> None:
        """Return as soon as something has come."""
        if is_there():
            return
        since = self.clock()
        while not is_there():
            waited = self.clock() - since
            if waited < self.spin:
                os.sched_yield()
                continue
            self.check()
            self.sleep(min(max(self.shortest, self.share * waited), self.longest))

    def linger(self, seconds: float) -> None:
        """Wait for so long for a reason to end: `check` may learn of one later than others do."""
        deadline = self.clock() + seconds
        while self.clock() < deadline:
            self.check()
            self.sleep(self.longest)

    def until_all(self, are_there: Iterable[IsThere]) -> None:
        """Return as soon as all have come."""
        for is_there in are_there:
            self.until(is_there)
