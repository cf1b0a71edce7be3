"""A clock that stands still, and requests without structures."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from dpserver.monitor import Meter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, eq=False)
class Job:
    peer: Hashable
    n_frames: int = 1
    n_atoms: int = 192


class Watched:
    """A meter, and a daemon that tells it what the test says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.meter = Meter(self.clock)

    def connect(self, endpoint: str, *peers: Hashable) -> None:
        for peer in peers:
            self.meter.opened(endpoint, peer)

    def wait(self, seconds: float) -> None:
        """Asleep for so long."""
        self.meter.asleep()
        self.clock.now += seconds
        self.meter.awake()

    def evaluate(self, jobs: Sequence[Job], seconds: float, reading: float = 0.0, writing: float = 0.0) -> None:
        """All come at once and are answered."""
        for job in jobs:
            self.meter.asked(job)
        self.clock.now += reading
        self.meter.started(jobs)
        self.meter.asleep()
        self.clock.now += seconds
        self.meter.awake()
        self.meter.evaluated(seconds)
        self.clock.now += writing
        for job in jobs:
            self.meter.replied(job, 100, 200)
