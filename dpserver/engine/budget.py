"""How much goes into one batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Bounds of a batch; what is larger by itself goes alone.

    Attributes:
        frames: most structures.
        atoms: most atoms, until the memory of the device has turned out to hold fewer.
    """

    frames: int = 1024
    atoms: int = 16_384
