"""Joins the parts: one thread talks to every peer and answers STATUS at once, one thread computes.

The talking thread owns the links, the scheduler and the selector, and never waits for anything else; that is why none
of them needs a lock. A batch goes to the compute thread and comes back through a pipe that wakes the selector, unless
it is over sooner than that.
"""

from __future__ import annotations

import logging
import select
import selectors
import time
from collections.abc import Callable, Hashable, Sequence
from enum import IntEnum

from dpserver.daemon.compute import ComputeThread, WakeUp
from dpserver.daemon.conversation import Conversation
from dpserver.daemon.link import Link, Phase, Services, Target
from dpserver.daemon.pool import Pool
from dpserver.engine import Budget, DeviationWatch, Engine, ForceModel, Request, Scheduler
from dpserver.errors import DeviceError, DPServerError
from dpserver.ipi import Limits
from dpserver.monitor import Kind, Meter, Reporter
from dpserver.monitor import Phase as DaemonPhase
from dpserver.transport import Backoff, Watchable

logger = logging.getLogger(__name__)

BRIEF_SECONDS = 5e-3
"""An evaluation that takes less is made by the talking thread itself: to wake another one and to be woken by it takes
a quarter of a millisecond, and nobody waits longer than the evaluation for a STATUS."""


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
        watch: is shown what a committee answers.
        meter: is told what goes on; on the same clock.
        report: seconds between two lines in the log that say how it goes; None for none.
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
        watch: DeviationWatch | None = None,
        meter: Meter | None = None,
        report: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._timeout = timeout
        budget = budget or Budget()
        self._scheduler: Scheduler[Request] = Scheduler(budget, clock)
        self._conversations: dict[Hashable, Conversation] = {}
        services = Services(
            model, self._join, self._leave, self._submit, clock, limits or Limits(), make_backoff, is_once
        )
        self._pools = [Pool(target, services) for target in targets]
        self._links: list[Link] = []  # of all pools, found anew every turn
        self._is_once = is_once
        self._is_stopping = False
        self._is_told = False
        self._lost: DeviceError | None = None
        self._last_served = clock()
        self._wake_up = WakeUp()
        self._compute = ComputeThread(Engine(model, budget.atoms, watch), self._wake_up)
        self._selector = selectors.DefaultSelector()
        self._watched: dict[Link, tuple[Watchable, int]] = {}
        self._meter = meter or Meter(clock)
        self._reporter = Reporter(self._meter, report, clock)
        for target in targets:
            self._meter.expect(target.endpoint)

    def stop(self) -> None:
        """Ask to leave once no answer is owed; from any thread or a signal handler."""
        self._is_stopping = True
        self._wake_up.wake()

    def lose(self, error: DeviceError) -> None:
        """Leave at once, for the device is lost; from any thread."""
        self._lost = error
        self._wake_up.wake()

    def run(self) -> ExitCode:
        """Serve until asked to stop, until nobody is left to serve, or until the device is lost."""
        self._selector.register(self._wake_up, selectors.EVENT_READ)
        self._meter.phase, self._meter.wake = DaemonPhase.SERVING, self._wake_up.wake
        try:
            with self._compute:
                return self._serve()
        except DeviceError as error:
            logger.critical("%s", error)
            self._meter.phase = DaemonPhase.DEVICE_LOST
            return ExitCode.DEVICE_LOST
        finally:
            self._meter.wake = None
            for pool in self._pools:
                pool.abandon()
            self._selector.close()
            self._wake_up.close()

    def _serve(self) -> ExitCode:
        while True:
            self._links = [link for pool in self._pools for link in pool.links]
            self._watch()
            patience = self._patience()
            self._meter.asleep()
            ready = self._select(patience)
            self._meter.awake()
            if self._lost is not None:
                raise self._lost
            if self._is_serving:
                self._last_served = self._clock()
            for key, mask in ready:
                if isinstance(key.data, Link):
                    key.data.on_ready(mask)
                else:
                    self._wake_up.drain()
            self._start_batch()
            self._finish_batches()
            self._keep_time()
            if self._is_stopping:
                self._stop_links()
            for pool in self._pools:
                pool.tend()
            if all(pool.is_done for pool in self._pools):
                refused = any(pool.was_refused for pool in self._pools)
                return ExitCode.INPUT_REFUSED if refused and self._is_once else ExitCode.STOPPED
            if self._has_timed_out():
                logger.error("nobody has listened for %g s", self._timeout)
                return ExitCode.TIMED_OUT

    def _join(self, conversation: Conversation, group: Hashable) -> None:
        """A conversation begins."""
        self._conversations[conversation] = conversation
        self._meter.opened(group, conversation)
        self._scheduler.join(conversation, group)

    def _leave(self, conversation: Conversation) -> None:
        """It has ended: what it asked for is not computed any more, and an answer that comes is dropped."""
        del self._conversations[conversation]
        self._scheduler.leave(conversation)
        self._meter.closed(conversation)
        if conversation.ending is not None and conversation.ending.error is not None:
            self._meter.refused(conversation.group, Kind.of(conversation.ending.error))

    def _submit(self, request: Request) -> None:
        self._scheduler.add(request)
        self._meter.asked(request)
        self._reporter.note_work()

    def _start_batch(self) -> None:
        """Keep the compute thread busy."""
        is_brief = self._is_brief()
        if not self._compute.is_busy and (batch := self._scheduler.take()):
            self._meter.started(batch)
            self._compute.submit(batch, is_brief=is_brief)

    def _is_brief(self) -> bool:
        """Whether the evaluation of all that is waiting is soon over, for certain."""
        seconds = self._scheduler.at_most()
        return seconds is not None and seconds < BRIEF_SECONDS

    def _finish_batches(self) -> None:
        """Bring the answers of a batch to their peers, after the next batch is on its way to the compute thread.

        A brief one, which this thread evaluates, has its turn later: nobody's answer waits for it.
        """
        while (done := self._compute.collect()) is not None:
            self._scheduler.done(done.batch, done.seconds)
            self._scheduler.limit(done.max_atoms)
            self._meter.evaluated(done.seconds)
            if not self._is_brief():
                self._start_batch()
            for request, answer in zip(done.batch, done.answers, strict=True):
                if (conversation := self._conversations.get(request.peer)) is not None:
                    conversation.deliver(answer)
                if isinstance(answer, DPServerError):
                    self._meter.refused(request.group, Kind.of(answer), request.n_frames)
                elif conversation is not None:
                    self._meter.replied(request, *conversation.connection.take_traffic())
            for link in self._links:
                link.settle()

    def _keep_time(self) -> None:
        now = self._clock()
        for link in self._links:
            if link.deadline is not None and link.deadline <= now:
                link.on_deadline()
        self._reporter.report()

    def _patience(self) -> float | None:
        """Seconds until something is due although no byte comes; None waits for ever."""
        now = self._clock()
        deadlines = [pool.deadline for pool in self._pools] + [link.deadline for link in self._links]
        due = [deadline - now for deadline in deadlines if deadline is not None]
        if not self._compute.is_busy and (delay := self._scheduler.delay()) is not None:
            due.append(delay)
        if (delay := self._reporter.delay()) is not None:
            due.append(delay)
        if self._timeout is not None and not self._is_serving:
            due.append(self._last_served + self._timeout - now)
        return max(0.0, min(due)) if due else None

    def _select(self, patience: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for a socket or for the compute thread.

        The selector counts in whole milliseconds; a shorter wait is made by `select`, on the selector itself.
        """
        if patience is not None and 0.0 < patience < 1e-2:
            select.select([self._selector.fileno()], [], [], patience)
            patience = 0.0
        return self._selector.select(patience)

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
            self._meter.phase = DaemonPhase.STOPPING
        for pool in self._pools:
            pool.stop()

    def _watch(self) -> None:
        """Let the selector know what the links are waiting for now."""
        # First all that ends: a new socket may have got the descriptor of an old one.
        for link in [link for link, watched in self._watched.items() if link.watch is not watched]:
            self._selector.unregister(self._watched.pop(link)[0])
        for link in self._links:
            if link.watch is not None and link not in self._watched:
                self._selector.register(*link.watch, link)
                self._watched[link] = link.watch
