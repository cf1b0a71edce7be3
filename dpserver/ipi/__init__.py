"""The i-PI protocol without input and output: bytes in, events out."""

from dpserver.ipi.codec import Forces, Limits, Structures
from dpserver.ipi.events import Event, ForcesWanted, Initialised, PeerLeft, SharedForcesWanted
from dpserver.ipi.session import Extras, Session, State
from dpserver.ipi.shared import Segment, SharedStructures

__all__ = [
    "Event",
    "Extras",
    "Forces",
    "ForcesWanted",
    "Initialised",
    "Limits",
    "PeerLeft",
    "Segment",
    "Session",
    "SharedForcesWanted",
    "SharedStructures",
    "State",
    "Structures",
]
