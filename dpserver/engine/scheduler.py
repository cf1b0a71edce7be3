"""Which requests become the next batch. No tensors, no threads, no clock but the one it is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Work(Protocol):
    """What the scheduler has to know of a request."""

    @property
    def n_frames(self) -> int:
        """Structures it asks for."""

    @property
    def n_atoms(self) -> int:
        """Atoms of all of them."""


W = TypeVar("W", bound=Work)


@dataclass(frozen=True)
class Budget:
    """How much goes into one batch.

    Attributes:
        frames: most structures.
        atoms: most atoms; a request that is larger by itself goes alone.
        window: how long to wait for more after the last arrival while the batch is not full, s.
    """

    frames: int = 1024
    atoms: int = 16_384
    window: float = 0.0


class Scheduler(Generic[W]):
    """Requests in the order of their arrival, cut into batches.

    All that is waiting becomes one batch, up to the budget. A peer has one request at a time on a connection, so that
    first come, first served is also fair, and keeps each peer's order.

    Args:
        budget: bounds of a batch.
        clock: seconds, monotonic.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float]) -> None:
        self._budget = budget
        self._clock = clock
        self._waiting: deque[W] = deque()
        self._last_arrival = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: W) -> None:
        """Queue a request."""
        self._waiting.append(work)
        self._last_arrival = self._clock()

    def cancel(self, work: W) -> None:
        """Forget a request whose peer has gone; one that was taken already is not found, and that is fine."""
        self._waiting = deque(w for w in self._waiting if w is not work)

    def delay(self) -> float | None:
        """Seconds until `take` has something to give; None while nothing is waiting."""
        if not self._waiting:
            return None
        if self._next_size() < len(self._waiting):
            return 0.0
        return max(0.0, self._last_arrival + self._budget.window - self._clock())

    def take(self) -> list[W]:
        """Give the next batch away; empty when there is none yet."""
        if self.delay() != 0.0:
            return []
        return [self._waiting.popleft() for _ in range(self._next_size())]

    def _next_size(self) -> int:
        """Requests at the head of the queue that fit into one batch; at least one."""
        frames = atoms = 0
        for count, work in enumerate(self._waiting):
            frames += work.n_frames
            atoms += work.n_atoms
            if count and (frames > self._budget.frames or atoms > self._budget.atoms):
                return count
        return len(self._waiting)
