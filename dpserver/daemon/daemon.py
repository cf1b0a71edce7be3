"""Joins the parts: one thread talks to every peer and answers STATUS at once, one thread computes.

The talking thread owns the links, the scheduler and the selector, and never waits for anything else; that is why none
of them needs a lock. A batch goes to the compute thread and comes back through a pipe that wakes the selector.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable, Sequence
from enum import IntEnum

from dpserver.daemon.compute import ComputeThread, WakeUp
from dpserver.daemon.conversation import Conversation, End
from dpserver.daemon.link import Link, Phase, Services, Target
from dpserver.engine import Budget, Engine, ForceModel, Request, Scheduler
from dpserver.errors import DeviceError
from dpserver.ipi import Limits
from dpserver.transport import Backoff, Watchable

logger = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """What a daemon tells its shell; 2 and 3 are errors of the command line, before there is a daemon."""

    STOPPED = 0
    INPUT_REFUSED = 4
    DEVICE_LOST = 5
    TIMED_OUT = 6


class Daemon:
    """Serves a model to every peer that listens at its targets.

    Args:
        model: loaded, and not used by anybody else.
        targets: whom to dial.
        is_once: leave when every target's peer has left, instead of dialling again.
        timeout: leave when nobody has been connected for so long, s; None waits for ever.
        budget: bounds of a batch.
        limits: bounds on what a peer may announce.
        make_backoff: pauses between the attempts of one connection.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: ForceModel,
        targets: Sequence[Target],
        *,
        is_once: bool = False,
        timeout: float | None = None,
        budget: Budget | None = None,
        limits: Limits | None = None,
        make_backoff: Callable[[], Backoff] = Backoff,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._timeout = timeout
        self._scheduler: Scheduler[Request] = Scheduler(budget or Budget(), clock)
        self._owners: dict[Request, Conversation] = {}
        services = Services(model, self._submit, clock, limits or Limits(), make_backoff, is_once)
        self._links = [Link(t, k + 1, services) for t in targets for k in range(t.connections)]
        self._is_once = is_once
        self._is_stopping = False
        self._is_told = False
        self._last_served = clock()
        self._wake_up = WakeUp()
        self._compute = ComputeThread(Engine(model), self._wake_up)
        self._selector = selectors.DefaultSelector()
        self._watched: dict[Link, tuple[Watchable, int]] = {}

    def stop(self) -> None:
        """Ask to leave once no answer is owed; from any thread or a signal handler."""
        self._is_stopping = True
        self._wake_up.wake()

    def run(self) -> ExitCode:
        """Serve until asked to stop, until nobody is left to serve, or until the device is lost."""
        self._selector.register(self._wake_up, selectors.EVENT_READ)
        try:
            with self._compute:
                return self._serve()
        except DeviceError as error:
            logger.critical("%s", error)
            return ExitCode.DEVICE_LOST
        finally:
            for link in self._links:
                link.abandon()
            self._selector.close()
            self._wake_up.close()

    def _serve(self) -> ExitCode:
        while True:
            self._start_batch()
            self._watch()
            ready = self._selector.select(self._patience())
            if self._is_serving:
                self._last_served = self._clock()
            for key, mask in ready:
                if isinstance(key.data, Link):
                    key.data.on_ready(mask)
                else:
                    self._wake_up.drain()
            self._finish_batch()
            self._keep_time()
            if self._is_stopping:
                self._stop_links()
            if self._is_once:
                self._leave_finished_targets()
            if all(link.phase is Phase.DONE for link in self._links):
                refused = any(link.last_end is End.REFUSED for link in self._links)
                return ExitCode.INPUT_REFUSED if refused and self._is_once else ExitCode.STOPPED
            if self._has_timed_out():
                logger.error("nobody has listened for %g s", self._timeout)
                return ExitCode.TIMED_OUT

    def _submit(self, conversation: Conversation, request: Request) -> None:
        self._owners[request] = conversation
        self._scheduler.add(request)

    def _start_batch(self) -> None:
        """Keep the compute thread busy; requests whose peer has left meanwhile are dropped."""
        for request in [r for r, owner in self._owners.items() if owner.ending is not None]:
            self._scheduler.cancel(request)
            del self._owners[request]
        if not self._compute.is_busy and (batch := self._scheduler.take()):
            self._compute.submit(batch)

    def _finish_batch(self) -> None:
        """Bring the answers of a batch to their peers, after the next batch is on its way."""
        if (done := self._compute.collect()) is None:
            return
        self._start_batch()
        for request, answer in zip(*done, strict=True):
            if (owner := self._owners.pop(request, None)) is not None:
                owner.deliver(answer)
        for link in self._links:
            link.settle()

    def _keep_time(self) -> None:
        now = self._clock()
        for link in self._links:
            if link.deadline is not None and link.deadline <= now:
                link.on_deadline()

    def _patience(self) -> float | None:
        """Seconds until something is due although no byte comes; None waits for ever."""
        now = self._clock()
        due = [link.deadline - now for link in self._links if link.deadline is not None]
        if not self._compute.is_busy and (delay := self._scheduler.delay()) is not None:
            due.append(delay)
        if self._timeout is not None and not self._is_serving:
            due.append(self._last_served + self._timeout - now)
        return max(0.0, min(due)) if due else None

    @property
    def _is_serving(self) -> bool:
        return any(link.phase is Phase.SERVING for link in self._links)

    def _has_timed_out(self) -> bool:
        if self._timeout is None or self._is_serving:
            return False
        return self._clock() - self._last_served >= self._timeout

    def _stop_links(self) -> None:
        if not self._is_told:
            logger.info("asked to stop")
            self._is_told = True
        for link in self._links:
            link.stop()

    def _leave_finished_targets(self) -> None:
        """A target whose peer has left is not dialled by its other connections either."""
        finished = [link.target for link in self._links if link.phase is Phase.DONE]
        for link in self._links:
            if link.phase in {Phase.WAITING, Phase.DIALLING} and any(link.target is t for t in finished):
                link.abandon()

    def _watch(self) -> None:
        """Let the selector know what the links are waiting for now."""
        wanted = {link: (handle, link.interest) for link in self._links if (handle := link.watchable) is not None}
        stale = [link for link, watched in self._watched.items() if wanted.get(link) != watched]
        # First all that ends: a new socket may have got the descriptor of an old one.
        for link in stale:
            self._selector.unregister(self._watched.pop(link)[0])
        for link, (handle, interest) in wanted.items():
            if link not in self._watched:
                self._selector.register(handle, interest, link)
                self._watched[link] = handle, interest
