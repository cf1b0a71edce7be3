"""What a session tells its owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dpserver.ipi.codec import Structures
from dpserver.ipi.shared import SharedStructures


@dataclass(frozen=True)
class Initialised:
    """INIT came.

    Attributes:
        bead: the id it was sent for; the connection may serve any other.
        parameters: the pairs of its string.
        batch_size: structures in each message to come.
    """

    bead: int
    parameters: Mapping[str, str]
    batch_size: int


@dataclass(frozen=True, eq=False)
class ForcesWanted:
    """POSDATA came: the session rests until it is given the forces of these structures."""

    structures: Structures


@dataclass(frozen=True)
class SharedForcesWanted:
    """The same of structures that lie in shared memory.

    Their forces have to be there before what `Session.data_to_send` returns after `Session.send` is sent.
    """

    shared: SharedStructures


@dataclass(frozen=True)
class PeerLeft:
    """Nothing more will come.

    Attributes:
        is_clean: whether the peer said EXIT or closed between two exchanges, owed nothing; not so while we were
            computing, before it took its forces, or in the middle of a message.
        reason: how it left, for the log.
    """

    is_clean: bool
    reason: str


Event = Initialised | ForcesWanted | SharedForcesWanted | PeerLeft
