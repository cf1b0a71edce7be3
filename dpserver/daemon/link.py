"""The life of one connection to an endpoint: wait, dial, serve, close, and again."""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from dpserver.daemon.conversation import Conversation, End, Ending
from dpserver.engine import Assigner, ForceModel, Order, Request
from dpserver.ipi import Limits
from dpserver.transport import Attempt, Backoff, Connection, Endpoint, Watchable
from dpserver.transport.dialer import ATTEMPT_SECONDS
from dpserver.transport.endpoint import Address

logger = logging.getLogger(__name__)

LINGER_SECONDS = 1.0
"""How long a peer has to notice that we closed; what it sends meanwhile is read and dropped."""

SILENCE_SECONDS = 30.0
"""How long a peer may say nothing at all after it has accepted, before the log asks what listens there."""

STOP_SECONDS = 10.0
"""How long a peer has to take an answer that is due when we are asked to stop."""

USEFUL_EVALUATIONS = 100
"""After so many answers on a connection its refusal is an accident, not a habit, and earns no longer pause."""


@dataclass(frozen=True)
class Target:
    """An endpoint to serve.

    Attributes:
        endpoint: where the peer listens.
        addresses: the same, resolved.
        order: species of its atoms, if the user gave them.
        connections: how many to keep open.
    """

    endpoint: Endpoint
    addresses: Sequence[Address]
    order: Order | None = None
    connections: int = 1


@dataclass(frozen=True)
class Services:
    """What a link needs of the daemon."""

    model: ForceModel
    submit: Callable[[Conversation, Request], None]
    clock: Callable[[], float]
    limits: Limits
    make_backoff: Callable[[], Backoff]
    is_once: bool


class Phase(Enum):
    """Where a link stands."""

    WAITING = "waiting"
    DIALLING = "dialling"
    SERVING = "serving"
    CLOSING = "closing"
    DONE = "done"


class Link:
    """One connection to a target, made anew whenever it ends.

    Args:
        target: whom to dial.
        number: which of the target's connections this is, from 1.
        services: of the daemon.

    Attributes:
        phase: what is going on.
        conversation: with the peer that is served.
        last_end: how the last conversation ended.
    """

    def __init__(self, target: Target, number: int, services: Services) -> None:
        self.target = target
        self.phase = Phase.WAITING
        self.conversation: Conversation | None = None
        self.last_end: End | None = None
        self.deadline: float | None = services.clock()
        self._name = str(target.endpoint) + (f" #{number}" if target.connections > 1 else "")
        self._services = services
        self._backoff = services.make_backoff()
        self._pause = 0.0
        self._attempt: Attempt | None = None
        self._closing: Connection | None = None
        self._has_told = False
        self._last_error = ""
        self._is_last = services.is_once

    @property
    def watchable(self) -> Watchable | None:
        """What to watch."""
        match self.phase:
            case Phase.DIALLING if self._attempt is not None:
                return self._attempt.socket
            case Phase.SERVING if self.conversation is not None:
                return self.conversation.connection.socket
            case Phase.CLOSING if self._closing is not None:
                return self._closing.socket
        return None

    @property
    def interest(self) -> int:
        """What to watch it for; a peer that does not take its bytes is not read either."""
        if self.phase is Phase.DIALLING:
            return selectors.EVENT_WRITE
        if self.conversation is not None and self.conversation.connection.has_unsent:
            return selectors.EVENT_WRITE
        return selectors.EVENT_READ

    def on_ready(self, mask: int) -> None:
        """Its socket is ready."""
        match self.phase:
            case Phase.DIALLING:
                self._advance_attempt()
            case Phase.SERVING if self.conversation is not None:
                if mask & selectors.EVENT_WRITE:
                    self.conversation.on_writable()
                if mask & selectors.EVENT_READ:
                    self._hear(self.conversation)
                self.settle()
            case Phase.CLOSING if self._closing is not None and self._closing.discard():
                self._close()

    def on_deadline(self) -> None:
        """Its time has come."""
        match self.phase:
            case Phase.WAITING:
                self._dial()
            case Phase.DIALLING if self._attempt is not None:
                self._attempt.skip()
                self._advance_attempt()
            case Phase.SERVING if self.conversation is not None and not self.conversation.has_heard:
                logger.warning(
                    "%s: connected, but the peer has said nothing for %.0f s; does an MD code listen there?",
                    self._name,
                    SILENCE_SECONDS,
                )
                self.deadline = None
            case Phase.SERVING:
                self._end(Ending(End.LOST, f"did not take its answer within {STOP_SECONDS:.0f} s"))
            case Phase.CLOSING:
                self._close()

    def settle(self) -> None:
        """Close a conversation that has come to its end."""
        if self.conversation is not None and self.conversation.ending is not None:
            self._end(self.conversation.ending)

    def stop(self) -> None:
        """Leave as soon as nothing is owed to the peer."""
        self._is_last = True
        if self.phase is Phase.SERVING and self.conversation is not None:
            if self.conversation.is_idle:
                self._end(Ending(End.LEFT, "we were asked to stop"), has_to_linger=True)
            elif self.deadline is None:
                self.deadline = self._services.clock() + STOP_SECONDS
        elif self.phase is not Phase.CLOSING:
            self.abandon()

    def abandon(self) -> None:
        """Leave now."""
        if self._attempt is not None:
            self._attempt.cancel()
        if self.conversation is not None:
            self.conversation.connection.close()
        if self._closing is not None:
            self._closing.close()
        self._attempt = self.conversation = self._closing = None
        self.phase, self.deadline = Phase.DONE, None

    def _dial(self) -> None:
        if not self._has_told:
            logger.info("%s: dialling", self._name)
            self._has_told = True
        self.phase = Phase.DIALLING
        self._attempt = Attempt(self.target.addresses)
        self._advance_attempt()

    def _advance_attempt(self) -> None:
        """Take the connection, try the next address, or wait and begin again."""
        attempt = self._attempt
        if attempt is None:
            return
        connection = attempt.advance()
        if connection is not None:
            self._attempt = None
            self._serve(connection)
        elif attempt.has_failed:
            if attempt.error != self._last_error:
                logger.debug("%s: %s", self._name, attempt.error)
            self._attempt, self._last_error = None, attempt.error
            self._wait(self._backoff.after_nobody())
        else:
            self.deadline = self._services.clock() + ATTEMPT_SECONDS

    def _serve(self, connection: Connection) -> None:
        services = self._services
        logger.info("%s: connected", self._name)
        assigner = Assigner(services.model, self.target.order, self._name)
        self.conversation = Conversation(
            connection, assigner, self._name, services.submit, services.clock, services.limits
        )
        self.phase, self.deadline = Phase.SERVING, services.clock() + SILENCE_SECONDS
        self._has_told = False

    def _hear(self, conversation: Conversation) -> None:
        """Read; the first word of the peer ends the wait for it."""
        was_silent = not conversation.has_heard
        conversation.on_readable()
        if was_silent and conversation.has_heard:
            self.deadline = None

    def _end(self, ending: Ending, *, has_to_linger: bool = False) -> None:
        """Take leave: at once where the peer has left, else after it has had the time to notice."""
        conversation = self.conversation
        if conversation is None:
            return
        served = conversation.n_evaluations
        mean = f", mean {1e3 * conversation.seconds / served:.3g} ms" if served else ""
        noun = "evaluation" if served == 1 else "evaluations"
        level = logging.INFO if ending.how is End.LEFT else logging.WARNING
        logger.log(level, "%s: %s: %s; served %d %s%s", self._name, ending.how.value, ending.reason, served, noun, mean)
        is_refusal = ending.how is End.REFUSED and served < USEFUL_EVALUATIONS
        if is_refusal or not served:
            self._pause = self._backoff.after_failure(is_refusal=is_refusal)
        else:
            self._pause = self._backoff.after_success()
        self.last_end, self.conversation = ending.how, None
        self._closing = conversation.connection
        if ending.how is End.REFUSED or has_to_linger:
            self._closing.finish()
            self.phase, self.deadline = Phase.CLOSING, self._services.clock() + LINGER_SECONDS
        else:
            self._close()

    def _close(self) -> None:
        """Give the socket back and begin again, unless this was the last time."""
        if self._closing is not None:
            self._closing.close()
            self._closing = None
        if self._is_last:
            self.phase, self.deadline = Phase.DONE, None
        else:
            self._wait(self._pause)

    def _wait(self, seconds: float) -> None:
        self.phase, self.deadline = Phase.WAITING, self._services.clock() + seconds
