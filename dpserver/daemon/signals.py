"""SIGINT and SIGTERM: the first asks to stop, the second ends the process on the spot."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signals(stop: Callable[[], None], echo: float = 0.0) -> Iterator[None]:
    """Call `stop` at the first signal while the context lasts; in the main thread only.

    Args:
        stop: quick, and safe to call between any two instructions.
        echo: a signal that comes within so many seconds of the first is taken for the same one.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    first: list[float] = []

    def on_first(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if first and now - first[0] < echo:
            return
        if not first and echo:
            first.append(now)
            stop()
            return
        for n in numbers:
            signal.signal(n, signal.SIG_DFL)
        if first:
            signal.raise_signal(number)
        else:
            stop()

    before = {n: signal.signal(n, on_first) for n in numbers}
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
