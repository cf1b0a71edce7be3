"""A daemon in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dpserver.daemon import Daemon, ExitCode, Target
from dpserver.engine import ForceModel, Order
from dpserver.transport import Backoff, parse_endpoint
from tests.patience import PATIENCE

WATER = Order(("O", "H", "H"), "--species")


def target(endpoint: str, order: Order | None = WATER, connections: int | None = 1) -> Target:
    parsed, _ = parse_endpoint(endpoint)
    return Target(parsed, parsed.resolve(), order, connections)


def impatient() -> Backoff:
    """No pauses to speak of, whatever the peer does."""
    return Backoff(0.001, 0.01, 0.01, 0.01)


@dataclass
class Served:
    """What a test can do with a running daemon."""

    daemon: Daemon
    thread: threading.Thread
    codes: list[ExitCode]

    def result(self) -> ExitCode:
        """Wait for its end."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the daemon goes on"
        return self.codes[0]


@contextmanager
def serving(model: ForceModel, *targets: Target, **options: object) -> Iterator[Served]:
    """Run a daemon until the test is done with it; one that has to be asked to stop must stop."""
    daemon = Daemon(model, targets, **{"make_backoff": impatient, **options})  # type: ignore[arg-type]
    codes: list[ExitCode] = []
    thread = threading.Thread(target=lambda: codes.append(daemon.run()), name="daemon")
    thread.start()
    served = Served(daemon, thread, codes)
    try:
        yield served
    finally:
        daemon.stop()
        served.result()
