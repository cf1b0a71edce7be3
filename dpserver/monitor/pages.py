"""What is served over HTTP to programs that watch: the metrics, and whether the daemon is alive and ready."""

from __future__ import annotations

import time
from collections.abc import Callable

from dpserver.errors import ConfigError
from dpserver.monitor.meter import Meter, Phase
from dpserver.transport.web import Page, Pages

ALIVE_SECONDS = 2.0
"""How long the talking thread has to turn once when it is woken."""

_LOOK_SECONDS = 0.01


def make_pages(meter: Meter) -> Pages:
    """Make `/metrics`, `/healthz` and `/readyz`.

    Args:
        meter: knows.

    Raises:
        ConfigError: prometheus-client is not installed.
    """
    try:
        from dpserver.monitor.prometheus import CONTENT_TYPE, exposition
    except ImportError:
        raise ConfigError("--metrics needs prometheus-client; run: pip install 'dpserver[metrics]'") from None
    expose = exposition(meter.snapshot)
    return {
        "/metrics": lambda: Page(200, expose(), CONTENT_TYPE),
        "/healthz": lambda: health(meter),
        "/readyz": lambda: readiness(meter),
    }


def health(meter: Meter, sleep: Callable[[float], None] = time.sleep) -> Page:
    """Find out whether the talking thread still turns, by having it turn once.

    It sleeps for as long as nothing comes, so that the time of its last turn says nothing. While the model is being
    loaded there is no such thread: the process lives, or there would be no answer.

    Args:
        meter: counts the turns.
        sleep: between two looks.
    """
    wake = meter.wake
    if wake is None:
        return Page(200, f"{meter.phase.value}\n".encode())
    before = meter.turns
    wake()
    for _ in range(round(ALIVE_SECONDS / _LOOK_SECONDS)):
        if meter.turns != before:
            return Page(200, b"alive\n")
        sleep(_LOOK_SECONDS)
    return Page(503, f"the thread that talks to the peers does not answer; waited {ALIVE_SECONDS:g} s\n".encode())


def readiness(meter: Meter) -> Page:
    """Whether the model is loaded and the device there; that a peer listens is up to the peer."""
    return Page(200 if meter.phase is Phase.SERVING else 503, f"{meter.phase.value}\n".encode())
