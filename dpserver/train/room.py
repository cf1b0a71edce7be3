"""The memory that a training keeps neighbour lists and batches in, shared by all that keep something."""

from __future__ import annotations

from typing import Final

MAX_CACHED_EDGES = 50_000_000
"""What there is room for in all, in edges of neighbour lists; what does not fit is made anew each time."""
EDGE_BYTES: Final = 48
"""An edge of a list takes."""


class Room:
    """Counts what is kept.

    Args:
        n_bytes: that may be kept in all; by default that of `MAX_CACHED_EDGES`.

    Attributes:
        left: bytes that may still be.
    """

    def __init__(self, n_bytes: int | None = None) -> None:
        self.left = EDGE_BYTES * MAX_CACHED_EDGES if n_bytes is None else n_bytes

    def take(self, n_bytes: int) -> bool:
        """Whether there is room for so many bytes more; if so, they are counted."""
        if n_bytes > self.left:
            return False
        self.left -= n_bytes
        return True

    def give(self, n_bytes: int) -> None:
        """So many bytes are kept no longer."""
        self.left += n_bytes
