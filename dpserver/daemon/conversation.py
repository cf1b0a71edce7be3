"""One connected peer: its bytes, its place in the protocol, the species of its atoms, and what it has been served."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum

from dpserver.engine import Assigner, Request
from dpserver.errors import DPServerError, RemoteProtocolError
from dpserver.ipi import (
    Event,
    Forces,
    ForcesWanted,
    Initialised,
    PeerLeft,
    Session,
    SharedForcesWanted,
    SharedStructures,
    State,
    Structures,
)
from dpserver.transport import Connection, SharedArrays

logger = logging.getLogger(__name__)

KNOWN_PARAMETERS = ("aparam", "batch_size", "fparam", "species", "template")


def explain_unknown(parameters: Sequence[str]) -> str:
    """Say which INIT parameters are not ours, which are, and which were probably meant."""
    near = [difflib.get_close_matches(name.casefold(), KNOWN_PARAMETERS, n=1) for name in parameters]
    meant = sorted({name for names in near for name in names})
    hint = f"; did you mean {', '.join(meant)}?" if meant else ""
    names = ", ".join(map(repr, parameters))
    return f"INIT parameters without a meaning here: {names}; known are {', '.join(KNOWN_PARAMETERS)}{hint}"


def take_parameters(event: Initialised, assigner: Assigner, name: str) -> None:
    """Let what a peer has said in INIT rule over the species of its atoms; warn of what has no meaning here.

    Args:
        event: of its INIT.
        assigner: of its atoms.
        name: of the peer, for the log.
    """
    assigner.parameters = event.parameters
    logger.debug("%s: INIT for bead %d, batches of %d, %s", name, event.bead, event.batch_size, event.parameters)
    if unknown := sorted(event.parameters.keys() - set(KNOWN_PARAMETERS)):
        logger.warning("%s: %s", name, explain_unknown(unknown))


def describe_service(n_evaluations: int, seconds: float) -> str:
    """Say how much a peer was given in how long, for the log."""
    mean = f", mean {1e3 * seconds / n_evaluations:.3g} ms" if n_evaluations else ""
    return f"served {n_evaluations} {'evaluation' if n_evaluations == 1 else 'evaluations'}{mean}"


class End(Enum):
    """How a conversation came to its end: the first two are the peer's doing, the last is ours."""

    LEFT = "left"
    LOST = "lost"  # left while we owed it something, or in the middle of a message
    REFUSED = "refused"


@dataclass(frozen=True)
class Ending:
    """How and why, and the error, if what the peer sent ended it before it was a request."""

    how: End
    reason: str
    error: Exception | None = None


class Conversation:
    """Drives the session of one connection.

    Args:
        connection: open; belongs to the conversation.
        session: new.
        assigner: gives the atoms of this peer their species.
        name: for the log.
        group: the simulation it belongs to.
        submit: takes a request; its answer comes back to `deliver`.
        clock: seconds, monotonic.

    Attributes:
        group: as given.
        ending: set once there is nothing more to say.
        has_heard: whether the peer has said anything.
        n_evaluations: structures answered.
        seconds: time from the arrival of their positions until their answers, summed over messages.
    """

    def __init__(
        self,
        connection: Connection,
        session: Session,
        assigner: Assigner,
        name: str,
        group: Hashable,
        submit: Callable[[Request], None],
        clock: Callable[[], float],
    ) -> None:
        self.connection = connection
        self.ending: Ending | None = None
        self.has_heard = False
        self.n_evaluations = 0
        self.seconds = 0.0
        self._session = session
        self._arrays: SharedArrays | None = None
        self._assigner = assigner
        self._name = name
        self.group = group
        self._submit = submit
        self._clock = clock
        self._asked_at = 0.0
        self._n_asked = 0

    @property
    def is_idle(self) -> bool:
        """Whether neither side owes the other anything."""
        return self._session.state in {State.NEED_INIT, State.READY} and not self.connection.has_unsent

    @property
    def is_computing(self) -> bool:
        """Whether we owe the peer an answer that is not there yet."""
        return self._session.state is State.COMPUTING

    def on_writable(self) -> None:
        """Go on sending."""
        self.connection.flush()

    def on_readable(self) -> None:
        """Read all that has come, and answer what can be answered at once."""
        self._guard(self._receive)

    def deliver(self, answer: Forces | DPServerError) -> None:
        """Bring the answer to the last request; one that comes too late is dropped."""
        if self.ending is not None:
            return
        if isinstance(answer, DPServerError):
            self.ending = Ending(End.REFUSED, str(answer))
            return
        self.n_evaluations += self._n_asked
        self.seconds += self._clock() - self._asked_at
        self._guard(lambda: self._answer(answer))

    def _receive(self) -> None:
        for chunk in self.connection.receive():
            self.has_heard |= bool(chunk)
            self._session.receive_data(chunk)
            self._advance()
            if self.ending is not None:
                return

    def _answer(self, answer: Forces) -> None:
        self._session.send(answer)
        if self._arrays is not None:
            self._arrays.write(answer)
        self._advance()

    def _advance(self) -> None:
        """Take every event there is, then send what they have brought about."""
        while self.ending is None and (event := self._session.next_event()) is not None:
            self._handle(event)
        if data := self._session.data_to_send():
            self.connection.send(data)

    def _handle(self, event: Event) -> None:
        match event:
            case Initialised():
                take_parameters(event, self._assigner, self._name)
            case ForcesWanted(structures):
                self._ask(structures)
            case SharedForcesWanted(shared):
                self._ask(self._open(shared).read())
            case PeerLeft(is_clean, reason):
                self.ending = Ending(End.LEFT if is_clean else End.LOST, reason)

    def _ask(self, structures: Structures) -> None:
        self._asked_at = self._clock()
        self._n_asked = structures.n_frames
        self._submit(Request(structures, self._assigner, self._session.has_extras, self, self.group))

    def _open(self, shared: SharedStructures) -> SharedArrays:
        """The shared memory of this connection, which is open until the connection is closed."""
        if self._arrays is None:
            self._arrays = SharedArrays(shared)
            self.connection.companions.callback(self._arrays.close)
        return self._arrays

    def _guard(self, step: Callable[[], None]) -> None:
        """Let no error out: a peer that breaks the rules, or a bug of ours, ends this conversation and no other."""
        try:
            step()
        except RemoteProtocolError as error:
            self.ending = Ending(End.REFUSED, str(error), error)
        except Exception as error:
            logger.exception("%s: internal error", self._name)
            self.ending = Ending(End.REFUSED, f"internal error: {error!r}", error)
