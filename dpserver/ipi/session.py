"""The engine's side of one i-PI connection: bytes in, events out. All state logic of the protocol is in this file.

The owner feeds what it receives and an empty chunk at the end of the stream, takes events until there is none, and
sends what `data_to_send` returns:

    session.receive_data(chunk)
    while (event := session.next_event()) is not None:
        match event:
            case ForcesWanted(structures): ...          # later: session.send(forces), and take events again
    transport.write(session.data_to_send())

STATUS and GETFORCE are answered here. Between POSDATA and `send` the session rests: the protocol has no word for
"busy", so a STATUS is answered when the forces are there, and a GETFORCE that came early waits in the buffer. That is
why both orders of messages, POSDATA-STATUS-GETFORCE and POSDATA+GETFORCE in one piece, are the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum, StrEnum

from dpserver.errors import LocalProtocolError, RemoteProtocolError
from dpserver.ipi import codec, shared
from dpserver.ipi.codec import HEADER_SIZE, Buffer, EngineMessage, Forces, Limits, PeerMessage
from dpserver.ipi.events import Event, ForcesWanted, Initialised, PeerLeft, SharedForcesWanted
from dpserver.ipi.parameters import is_from_ipi, parse_parameters, read_batch_size
from dpserver.ipi.shared import Segment, SharedStructures

MAX_PENDING_BYTES = 4096
"""What a peer may send while we compute; it owes us silence, but for a STATUS or a GETFORCE."""


class Extras(StrEnum):
    """Who is sent the extras of an answer; the others get `EMPTY_EXTRA`."""

    AUTO = "auto"  # peers whose INIT is that of i-PI
    ON = "on"
    OFF = "off"


class State(Enum):
    """Where an exchange stands, seen from the engine."""

    NEED_INIT = "waiting for INIT"
    READY = "waiting for POSDATA"
    COMPUTING = "computing forces"
    HAVE_FORCES = "waiting for GETFORCE"
    OVER = "over"


TRANSITIONS: Mapping[State, Mapping[PeerMessage, State]] = {
    State.NEED_INIT: {
        PeerMessage.STATUS: State.NEED_INIT,
        PeerMessage.INIT: State.READY,
        PeerMessage.POSDATA: State.COMPUTING,  # peers that have nothing to tell leave INIT out
        PeerMessage.EXIT: State.OVER,
    },
    State.READY: {
        PeerMessage.STATUS: State.READY,
        PeerMessage.POSDATA: State.COMPUTING,
        PeerMessage.EXIT: State.OVER,
    },
    State.COMPUTING: {},  # left by `send` alone
    State.HAVE_FORCES: {
        PeerMessage.STATUS: State.HAVE_FORCES,
        PeerMessage.GETFORCE: State.READY,
        PeerMessage.EXIT: State.OVER,
    },
    State.OVER: {},
}

STATUS_ANSWER: Mapping[State, EngineMessage] = {
    State.NEED_INIT: EngineMessage.NEEDINIT,
    State.READY: EngineMessage.READY,
    State.HAVE_FORCES: EngineMessage.HAVEDATA,
}


class Session:
    """State of one connection; it knows no socket, thread or clock.

    A `RemoteProtocolError` from any method ends it: the connection is to be closed. A `LocalProtocolError` is a bug of
    the owner, and changed nothing.

    Args:
        limits: bounds on the numbers a peer controls.
        is_shared: expect structures in shared memory, and send answers without their numbers.
        extras: whether the peer is sent extras.
    """

    def __init__(self, limits: Limits | None = None, *, is_shared: bool = False, extras: Extras = Extras.AUTO) -> None:
        self._limits = limits or Limits()
        self._is_shared = is_shared
        self._extras = extras
        self._has_extras = extras is Extras.ON
        self._state = State.NEED_INIT
        self._buffer = bytearray()
        self._has_ended = False  # the stream, not the session
        self._batch_size = 1
        self._shape = (0, 0)  # (n_frames, n_atoms) of the structures that are being computed
        self._names: Mapping[Segment, str] = {}  # of shared memory, from the first POSDATA on
        self._reply: list[Buffer] = []
        self._outbox: list[Buffer] = []

    @property
    def has_extras(self) -> bool:
        """Whether the peer is sent extras, as far as it has told who it is; nobody needs to make them otherwise."""
        return self._has_extras

    @property
    def state(self) -> State:
        """Where the exchange stands."""
        return self._state

    def receive_data(self, data: Buffer) -> None:
        """Take bytes from the peer; an empty chunk says that it closed the stream.

        Raises:
            RemoteProtocolError: the peer talks on although it has to wait for its forces.
        """
        chunk = memoryview(data)
        self._has_ended |= not chunk
        if self._state is State.OVER:
            return
        if self._state is State.COMPUTING and len(self._buffer) + len(chunk) > MAX_PENDING_BYTES:
            self._end()
            raise RemoteProtocolError(
                f"the peer sent more than {MAX_PENDING_BYTES} bytes while it had to wait for its forces"
            )
        self._buffer += chunk

    def next_event(self) -> Event | None:
        """Go on with the bytes that have come.

        Returns:
            The next event, or None: nothing until more bytes come, or until `send` brings the forces asked for.

        Raises:
            RemoteProtocolError: the peer said what it may not say now.
        """
        try:
            while self._state is not State.OVER:
                if self._state is State.COMPUTING or not self._buffer:
                    return self._leave() if self._has_ended else None
                message, size = self._head()
                if message is None or len(self._buffer) < size:
                    return self._leave_midway(message, size) if self._has_ended else None
                if (event := self._handle(message, size)) is not None:
                    return event
        except RemoteProtocolError:
            self._end()
            raise
        return None

    def send(self, answer: Forces) -> None:
        """Bring the forces of the structures of the last `ForcesWanted`; then take events again.

        Raises:
            LocalProtocolError: none were asked for, of another shape, or a number is not finite.
        """
        if self._state is not State.COMPUTING:
            raise LocalProtocolError(f"forces were given to a session that is {self._state.value}")
        answer.check(*self._shape)
        if answer.extras and not self._has_extras:
            answer = replace(answer, extras=())
        self._reply = shared.encode_forces(answer) if self._is_shared else codec.encode_forces(answer)
        self._state = State.HAVE_FORCES

    def data_to_send(self) -> list[Buffer]:
        """Take what is ready for the peer, as buffers to be written in order."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def _head(self) -> tuple[PeerMessage | None, int]:
        """Name the message at the head of the buffer, None until its header has come, and count its bytes."""
        if len(self._buffer) < HEADER_SIZE:
            return None, HEADER_SIZE
        message = codec.decode_header(self._buffer)
        if message not in TRANSITIONS[self._state]:
            raise RemoteProtocolError(f"the peer sent {message} while we were {self._state.value}")
        if message is not PeerMessage.POSDATA:
            return message, codec.message_size(message, self._buffer, self._batch_size, self._limits)
        if self._is_shared:
            return message, shared.posdata_size(self._buffer, self._batch_size, not self._names, self._limits)
        if shared.names_segments(self._buffer):
            raise RemoteProtocolError("the peer's forcefield has mode='shm'; dial it as shm:NAME")
        return message, codec.message_size(message, self._buffer, self._batch_size, self._limits)

    def _handle(self, message: PeerMessage, size: int) -> Event | None:
        """Make the transition of a whole message and take it off the buffer."""
        event: Event | None = None
        match message:
            case PeerMessage.STATUS:
                self._outbox.append(codec.encode_header(STATUS_ANSWER[self._state]))
            case PeerMessage.INIT:
                event = self._initialise()
            case PeerMessage.POSDATA:
                event = self._take_shared() if self._is_shared else self._take_structures()
            case PeerMessage.GETFORCE:
                self._outbox += self._reply
                self._reply = []
            case PeerMessage.EXIT:
                event = PeerLeft(is_clean=True, reason="said EXIT")
        self._state = TRANSITIONS[self._state][message]
        del self._buffer[:size]
        return event

    def _initialise(self) -> Initialised:
        """Read INIT, and from it the layout of every POSDATA to come."""
        bead, raw = codec.decode_init(self._buffer)
        parameters = parse_parameters(raw)
        self._batch_size = read_batch_size(parameters, self._limits)
        self._has_extras |= self._extras is Extras.AUTO and is_from_ipi(raw)
        return Initialised(bead, parameters, self._batch_size)

    def _take_structures(self) -> ForcesWanted:
        """Read POSDATA."""
        structures = codec.decode_posdata(self._buffer, self._batch_size)
        self._shape = structures.n_frames, structures.n_atoms
        return ForcesWanted(structures)

    def _take_shared(self) -> SharedForcesWanted:
        """Read POSDATA without its structures; the segments are of the size of the first."""
        n_atoms, names = shared.decode_posdata(self._buffer, not self._names)
        if self._names and n_atoms != self._shape[1]:
            raise RemoteProtocolError(
                f"POSDATA announces {n_atoms} atoms; expected {self._shape[1]}, for which the peer made its segments "
                "of shared memory"
            )
        self._names = self._names or names
        self._shape = self._batch_size, n_atoms
        return SharedForcesWanted(SharedStructures(self._batch_size, n_atoms, self._names))

    def _leave(self) -> PeerLeft:
        """The stream ended where a message might have started, or while we were computing."""
        said_exit = self._buffer.endswith(codec.encode_header(PeerMessage.EXIT))
        is_clean = said_exit or self._state in {State.NEED_INIT, State.READY}
        reason = "said EXIT" if said_exit else f"closed the connection while we were {self._state.value}"
        self._end()
        return PeerLeft(is_clean, reason)

    def _leave_midway(self, message: PeerMessage | None, size: int) -> PeerLeft:
        """The stream ended before the message at the head of the buffer was whole."""
        came = len(self._buffer)
        self._end()
        name = "header" if message is None else message.value
        return PeerLeft(
            is_clean=False, reason=f"closed the connection in the middle of a {name}: {came} of {size} bytes came"
        )

    def _end(self) -> None:
        """Nothing more is read or sent."""
        self._state = State.OVER
        self._buffer = bytearray()  # a new one: the frames of an exception may still look into the old one
        self._reply, self._outbox = [], []
