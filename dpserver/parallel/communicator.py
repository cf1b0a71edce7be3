"""What this package asks of MPI, so that its tests need none: messages between the ranks of one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


class Pending(Protocol):
    """A message on its way; its array must neither be changed nor be forgotten until it is through."""

    def test(self) -> bool:
        """Whether it is through; never waits."""


class Communicator(Protocol):
    """The ranks of a group, 0 to `size` - 1; messages of one source and tag come in the order they were sent."""

    @property
    def rank(self) -> int:
        """Of this process."""

    @property
    def size(self) -> int:
        """How many there are."""

    def has_message(self, source: int, tag: int) -> bool:
        """Whether a message has come that is not received yet; never waits."""

    def isend(self, array: NDArray[Any], dest: int, tag: int) -> Pending:
        """Begin to send a contiguous array."""

    def irecv(self, array: NDArray[Any], source: int, tag: int) -> Pending:
        """Begin to receive into a contiguous array, of the size of the message."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs.

    Attributes:
        rank: in its group.
        host: name of its node.
        pid: of its process.
        node: number of its node.
        local_rank: number among the ranks of its node.
        cores: that its process may use.
    """

    rank: int
    host: str
    pid: int
    node: int
    local_rank: int
    cores: tuple[int, ...]

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


def threads_of(place: Place, places: list[Place]) -> int:
    """Threads for a rank: its share of the cores, each one in equal parts for all ranks of its node that may use it."""
    neighbours = [other for other in places if other.node == place.node]
    share = sum(1.0 / sum(core in other.cores for other in neighbours) for core in place.cores)
    return max(1, int(share + 1e-9))
