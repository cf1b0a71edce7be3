"""The i-PI protocol without input and output: bytes in, events out."""

from dpserver.ipi.codec import Forces, Limits, Structures
from dpserver.ipi.events import Event, ForcesWanted, Initialised, PeerLeft
from dpserver.ipi.session import Session, State

__all__ = ["Event", "Forces", "ForcesWanted", "Initialised", "Limits", "PeerLeft", "Session", "State", "Structures"]
