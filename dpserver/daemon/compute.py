"""The thread that computes, and the pipe that wakes the thread that talks."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from dpserver.engine import Engine, Request
from dpserver.errors import DeviceError, DPServerError, StructureError
from dpserver.ipi import Forces

logger = logging.getLogger(__name__)

Answer = Forces | DPServerError


@dataclass(frozen=True, eq=False)
class Done:
    """A batch that was evaluated.

    Attributes:
        batch: what was asked.
        answers: one for each.
        seconds: how long it took.
        max_atoms: that one evaluation may have from now on.
    """

    batch: Sequence[Request]
    answers: Sequence[Answer]
    seconds: float
    max_atoms: int


class WakeUp:
    """A pipe to end a `select` from another thread or a signal handler."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)

    def fileno(self) -> int:
        """The end to select on."""
        return self._read_end

    def wake(self) -> None:
        """Make the pipe readable; a full one is readable already, a closed one has nobody to wake."""
        with contextlib.suppress(OSError):
            os.write(self._write_end, b"\0")

    def drain(self) -> None:
        """Take the wake-ups that have come."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read_end, 4096):
                pass

    def close(self) -> None:
        """Give both ends back; their numbers will name other files, so they are forgotten."""
        for descriptor in (self._read_end, self._write_end):
            os.close(descriptor)
        self._read_end = self._write_end = -1


class ComputeThread:
    """Runs an engine on one batch at a time, away from the thread that answers STATUS.

    Args:
        engine: answers batches; used by one thread at a time.
        wake_up: told when a batch is done.
        clock: seconds, monotonic.
    """

    def __init__(self, engine: Engine, wake_up: WakeUp, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._wake_up = wake_up
        self._clock = clock
        self._jobs: queue.SimpleQueue[Sequence[Request] | None] = queue.SimpleQueue()
        self._done: deque[Done] = deque()
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._device_error: DeviceError | None = None
        self.is_busy = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.put(None)
        self._thread.join()

    def submit(self, batch: Sequence[Request], *, is_brief: bool = False) -> None:
        """Hand a batch over; the thread must not be busy.

        Args:
            batch: requests to answer together.
            is_brief: it takes less time than to hand it over and back, and is answered before this returns.
        """
        self.is_busy = True
        if is_brief:
            self._answer(batch)
        else:
            self._jobs.put(batch)

    def collect(self) -> Done | None:
        """Take the batch that is done, if it is.

        Raises:
            DeviceError: the device is lost.
        """
        if self._device_error is not None:
            raise self._device_error
        if not self._done:
            return None
        self.is_busy = False
        return self._done.popleft()

    def _run(self) -> None:
        while (batch := self._jobs.get()) is not None:
            self._answer(batch)
            self._wake_up.wake()

    def _answer(self, batch: Sequence[Request]) -> None:
        start = self._clock()
        try:
            answers: Sequence[Answer] = self._engine.answer(batch)
        except DeviceError as error:
            self._device_error = error
            return
        except Exception as error:
            logger.exception("a batch of %d requests failed", len(batch))
            answers = [StructureError(f"internal error: {error!r}")] * len(batch)
        self._done.append(Done(batch, answers, self._clock() - start, self._engine.max_atoms))
