"""SIGINT and SIGTERM: the first asks to stop, the second ends the process on the spot."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first signal while the context lasts; in the main thread only.

    Args:
        stop: quick, and safe to call between any two instructions.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)

    def on_first(number: int, frame: FrameType | None) -> None:
        for n in numbers:
            signal.signal(n, signal.SIG_DFL)
        stop()

    before = {n: signal.signal(n, on_first) for n in numbers}
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
