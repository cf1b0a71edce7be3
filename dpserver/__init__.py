"""A force engine for Deep Potentials: train a model, load it, serve it over the i-PI socket.

>>> potential = dpserver.load("w.pt")
>>> result = potential.evaluate(frames)

The names below are imported when they are first used: `import dpserver` alone loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpserver.frames import CommitteeResult, ForceResult, Frames
    from dpserver.models.backends import load
    from dpserver.models.committee import Committee
    from dpserver.models.potential import Potential

__all__ = ["Committee", "CommitteeResult", "ForceResult", "Frames", "Potential", "__version__", "load"]

__version__ = "0.1.0"

_HOME = {
    "Committee": "dpserver.models.committee",
    "CommitteeResult": "dpserver.frames",
    "ForceResult": "dpserver.frames",
    "Frames": "dpserver.frames",
    "Potential": "dpserver.models.potential",
    "load": "dpserver.models.backends",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'dpserver' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
