"""A few threads that run one function at a time together, and sleep in between."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Final

from dpserver.errors import ConfigError

Job = Callable[[int], None]

_SOME: Final = 256
_MOST_PER_CORE: Final = 4
"""More threads than these on each core, and than `_SOME` in all, are a slip of the finger."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_count(count: int) -> None:
    """Refuse numbers of threads that nobody can want.

    Raises:
        ConfigError: there is none, or there are far more than cores.
    """
    if count < 1:
        raise ConfigError(f"the number of threads must be at least 1, got {count}")
    cores = available_cores()
    if count > (most := max(_SOME, _MOST_PER_CORE * cores)):
        on = f"{cores} core{'s' * (cores != 1)}"
        raise ConfigError(
            f"the number of threads must be at most {most}, got {count}; this process may use {on}, and more threads "
            "than cores are no faster"
        )


class Threads:
    """The calling thread and `count` - 1 others.

    Args:
        count: threads that compute, by default one for each core available; nothing else here starts any.

    Raises:
        ConfigError: it is not positive, or far larger than the number of cores.
    """

    def __init__(self, count: int | None = None) -> None:
        if count is not None:
            check_count(count)
        self.count = count or available_cores()
        self._jobs: list[queue.SimpleQueue[Job | None]] = []
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._process = os.getpid()
        self._start()
        weakref.finalize(self, _dismiss, self._jobs)

    def run(self, job: Job) -> None:
        """Call a function in every thread, with the thread's number, and wait for all of them."""
        if os.getpid() != self._process:  # threads do not survive a fork
            self._process = os.getpid()
            self._start()
        for jobs in self._jobs:
            jobs.put(job)
        errors: list[BaseException | None] = []
        try:
            job(0)
        finally:
            errors = [self._done.get() for _ in self._jobs]
        for error in errors:
            if error is not None:
                raise error

    def _start(self) -> None:
        self._done = queue.SimpleQueue()
        self._jobs[:] = [queue.SimpleQueue() for _ in range(self.count - 1)]
        for k, jobs in enumerate(self._jobs):
            name = f"dpserver-compute-{k + 1}"
            threading.Thread(target=_work, args=(k + 1, jobs, self._done), name=name, daemon=True).start()


def _work(number: int, jobs: queue.SimpleQueue[Job | None], done: queue.SimpleQueue[BaseException | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job(number)
        except BaseException as error:
            done.put(error)
        else:
            done.put(None)
        del job


def _dismiss(jobs: list[queue.SimpleQueue[Job | None]]) -> None:
    """Let the threads of a pool that is gone end."""
    for mine in jobs:
        mine.put(None)
