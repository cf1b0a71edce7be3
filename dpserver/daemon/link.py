"""The life of one connection to an endpoint: wait, dial, serve, close, and again."""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum

from dpserver.daemon.conversation import Conversation, End, Ending, describe_service
from dpserver.engine import Assigner, ForceModel, Order, Parameters, Request
from dpserver.ipi import Extras, Limits, Session
from dpserver.transport import Attempt, Backoff, Connection, Endpoint, ShmEndpoint, Watchable
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
        connections: how many to keep open; None for as many as the peer has work for.
        extras: whether its peer is sent the extras of an answer.
        parameters: of its structures, for models that take such.
    """

    endpoint: Endpoint
    addresses: Sequence[Address]
    order: Order | None = None
    connections: int | None = None
    extras: Extras = Extras.AUTO
    parameters: Parameters | None = None


@dataclass(frozen=True)
class Services:
    """What a link needs of the daemon.

    Attributes:
        model: for the species of its atoms.
        join: told of a conversation that begins, and of its simulation.
        leave: told of its end.
        submit: takes what it asks for.
        clock: seconds, monotonic.
        limits: bounds on what a peer may announce.
        make_backoff: makes the pauses between attempts.
        is_once: whether to leave with the peer.
    """

    model: ForceModel
    join: Callable[[Conversation, Hashable], None]
    leave: Callable[[Conversation], None]
    submit: Callable[[Request], None]
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

    An extra is a connection that the peer may or may not have a use for: it is done when the peer does not want it or
    leaves, and made anew only after we refused an input on it. It says little until the peer has asked it for forces.

    Args:
        target: whom to dial.
        number: which of the target's connections this is, from 1.
        services: of the daemon.
        on_change: called when something has changed that the pool of the link may want to know.

    Attributes:
        number: the same.
        is_extra: whether it is one.
        phase: what is going on.
        conversation: with the peer that is served.
        was_asked: whether that peer, or the last one, has asked for forces on this connection.
        is_busy: whether it has, and has not gone on since: it may not have read its answer yet.
        last_end: how the last conversation ended.
        deadline: when `on_deadline` is to be called; None for never.
        watch: the socket to watch, and the events to watch it for.
    """

    def __init__(
        self, target: Target, number: int, services: Services, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.target = target
        self.number = number
        self.phase = Phase.WAITING
        self.conversation: Conversation | None = None
        self.was_asked = False
        self.is_busy = False
        self.last_end: End | None = None
        self.deadline: float | None = services.clock()
        self.watch: tuple[Watchable, int] | None = None
        self.is_extra = target.connections is None and number > 1
        has_number = number > 1 or target.connections not in {None, 1}
        self._name = str(target.endpoint) + (f" #{number}" if has_number else "")
        self._services = services
        self._on_change = on_change
        self._backoff = services.make_backoff()
        self._pause = 0.0
        self._attempt: Attempt | None = None
        self._closing: Connection | None = None
        self._has_told = False
        self._last_error = ""
        self._is_last = services.is_once

    @property
    def is_greeted(self) -> bool:
        """Whether a peer has accepted the connection and said a word."""
        return self.phase is Phase.SERVING and self.conversation is not None and self.conversation.has_heard

    @property
    def is_used(self) -> bool:
        """Whether the peer that is connected has asked for forces."""
        return self.phase is Phase.SERVING and self.was_asked

    @property
    def is_pending(self) -> bool:
        """Whether it has been dialled, or is to be, and not been greeted yet."""
        return self.phase is Phase.DIALLING or (self.phase in {Phase.WAITING, Phase.SERVING} and not self.is_greeted)

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
        self._look()

    def on_deadline(self) -> None:
        """Its time has come."""
        match self.phase:
            case Phase.WAITING:
                self._dial()
            case Phase.DIALLING if self._attempt is not None:
                self._attempt.give_up(f"no answer within {ATTEMPT_SECONDS:.0f} s")
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
        self._look()

    def settle(self) -> None:
        """After the conversation was given an answer: go on sending, or close it if it has come to its end."""
        if self.conversation is None:
            return
        if self.conversation.ending is not None:
            self._end(self.conversation.ending)
        self._look()

    def stop(self) -> None:
        """Leave as soon as nothing is owed to the peer."""
        self._is_last = True
        if self.phase is Phase.SERVING and self.conversation is not None:
            if self.is_extra and not self.is_greeted:
                self.abandon()
            elif self.conversation.is_idle:
                self._end(Ending(End.LEFT, "we were asked to stop"), has_to_linger=True)
            elif self.deadline is None and not self.conversation.is_computing:
                self.deadline = self._services.clock() + STOP_SECONDS
        elif self.phase is not Phase.CLOSING:
            self.abandon()

    def abandon(self) -> None:
        """Leave now."""
        if self._attempt is not None:
            self._attempt.cancel()
        if self.conversation is not None:
            self._services.leave(self.conversation)
            self.conversation.connection.close()
        if self._closing is not None:
            self._closing.close()
        self._attempt = self.conversation = self._closing = None
        self._enter(Phase.DONE, None)

    def _enter(self, phase: Phase, deadline: float | None) -> None:
        self.phase, self.deadline = phase, deadline
        self._look()
        self._on_change()

    def _look(self) -> None:
        """Find out what to watch; a peer that does not take its bytes is not read either."""
        sock, events = None, selectors.EVENT_READ
        if self._attempt is not None:
            sock, events = self._attempt.socket, selectors.EVENT_WRITE
        elif self.conversation is not None:
            sock = self.conversation.connection.socket
            if self.conversation.connection.has_unsent:
                events = selectors.EVENT_WRITE
        elif self._closing is not None:
            sock = self._closing.socket
        if self.watch != (now := None if sock is None else (sock, events)):
            self.watch = now

    def _dial(self) -> None:
        if not self._has_told:
            logger.log(self._level, "%s: dialling", self._name)
            self._has_told = True
        self._enter(Phase.DIALLING, None)
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
                # Nobody there is what everybody waits for; a full backlog and a spare that is not taken pass as well.
                is_expected = attempt.is_nobody or attempt.is_busy or self.is_extra
                level = logging.DEBUG if is_expected else logging.WARNING
                logger.log(level, "%s: cannot be reached: %s; trying on", self._name, attempt.error)
            self._attempt, self._last_error = None, attempt.error
            if self.is_extra and attempt.is_nobody:
                self.abandon()
            else:
                self._wait(self._backoff.after_nobody())
        else:
            self.deadline = self._services.clock() + ATTEMPT_SECONDS

    def _serve(self, connection: Connection) -> None:
        services = self._services
        logger.log(self._level, "%s: connected", self._name)
        assigner = Assigner(services.model, self.target.order, self._name, self._level, self.target.parameters)
        is_shared = isinstance(self.target.endpoint, ShmEndpoint)
        session = Session(services.limits, is_shared=is_shared, extras=self.target.extras)
        group = self.target.endpoint
        self.conversation = Conversation(connection, session, assigner, self._name, group, self._submit, services.clock)
        services.join(self.conversation, group)
        # Where several connections are offered, the first alone wonders: the others may be more than are wanted.
        self.was_asked = self.is_busy = False
        self._enter(Phase.SERVING, services.clock() + SILENCE_SECONDS if self.number == 1 else None)
        self._has_told = False

    @property
    def _level(self) -> int:
        """How loud to be: the first connection speaks for those that do the same."""
        return logging.INFO if self.number == 1 else logging.DEBUG

    def _submit(self, request: Request) -> None:
        """Pass a request on."""
        self.was_asked = self.is_busy = True
        self._on_change()
        self._services.submit(request)

    def _hear(self, conversation: Conversation) -> None:
        """Read; the first word of the peer ends the wait for it."""
        was_silent = not conversation.has_heard
        if self.is_busy and conversation.is_idle:
            self.is_busy = False
            self._on_change()
        conversation.on_readable()
        if was_silent and conversation.has_heard:
            self.deadline = None
            self._on_change()

    def _end(self, ending: Ending, *, has_to_linger: bool = False) -> None:
        """Take leave: at once where the peer has left, else after it has had the time to notice."""
        conversation = self.conversation
        if conversation is None:
            return
        self._services.leave(conversation)
        served = conversation.n_evaluations
        service = describe_service(served, conversation.seconds)
        level = self._level if ending.how is End.LEFT else logging.WARNING
        logger.log(level, "%s: %s: %s; %s", self._name, ending.how.value, ending.reason, service)
        is_refusal = ending.how is End.REFUSED and served < USEFUL_EVALUATIONS
        if is_refusal or not served:
            self._pause = self._backoff.after_failure(is_refusal=is_refusal)
        else:
            self._pause = self._backoff.after_success()
        self.last_end, self.conversation, self.is_busy = ending.how, None, False
        self._closing = conversation.connection
        if ending.how is End.REFUSED or has_to_linger:
            self._closing.finish()
            self._enter(Phase.CLOSING, self._services.clock() + LINGER_SECONDS)
        else:
            self._close()

    def _close(self) -> None:
        """Give the socket back and begin again, unless this was the last time."""
        if self._closing is not None:
            self._closing.close()
            self._closing = None
        if self._is_last or (self.is_extra and self.last_end is not End.REFUSED):
            self._enter(Phase.DONE, None)
        else:
            self._wait(self._pause)

    def _wait(self, seconds: float) -> None:
        self._enter(Phase.WAITING, self._services.clock() + seconds)
