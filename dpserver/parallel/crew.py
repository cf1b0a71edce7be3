"""The other ranks, as rank 0 sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from dpserver.errors import DeviceError, DPServerError
from dpserver.parallel.communicator import Communicator, Place
from dpserver.parallel.exchange import Channel, Command, Status, error_of
from dpserver.parallel.meeting import Meeting
from dpserver.parallel.waiting import SECONDS_TO_NOTICE, Patience

SPIN: Final = 1e-3
"""s: how long rank 0 looks for answers without a pause: it waits for those only who are at work, like itself before."""


class Crew:
    """The other ranks, as rank 0 sees them.

    Args:
        group: of all ranks that compute together; this one is 0.
        places: where each runs.
        patience: how to wait.
    """

    def __init__(self, group: Communicator, places: Sequence[Place], patience: Patience) -> None:
        self._group = group
        self.places = tuple(places)
        self._patience = patience
        self.channels = {rank: Channel(group, rank, patience) for rank in range(1, group.size)}

    @property
    def size(self) -> int:
        """How many ranks there are, rank 0 included."""
        return len(self.channels) + 1

    def meet(self, members: Sequence[int]) -> Meeting:
        """A meeting of rank 0 with others that evaluate parts of the same structures; see `Meeting`."""
        return Meeting(self._group, members, self._patience)

    def send_model(self, *files: bytes) -> None:
        """Begin to send files to all: that of the model, and those of up to two more beside it; see `await_model`."""
        body = np.frombuffer(b"".join(files), dtype=np.uint8)
        for channel in self.channels.values():
            channel.send([Command.MODEL, len(files), *map(len, files)], body)

    def await_model(self) -> list[str]:
        """Wait until all have loaded the model.

        Returns:
            What each computes with, in words.

        Raises:
            ModelFileError: one cannot use it; likewise ConfigError and DeviceError, which name the rank.
        """
        about, errors = [], []
        for rank, channel in self.channels.items():
            channel.flush()
            status, *_, size = channel.receive_head()
            if status == Status.DONE:
                about.append(self.words(rank, size))
            else:
                errors.append(self.error(rank, Status(status), size))
        for error in errors:
            raise error if isinstance(error, DPServerError) else DeviceError(str(error))
        return about

    def words(self, rank: int, size: int) -> str:
        """Take the body of a message as text."""
        return self.channels[rank].receive_body(size, np.uint8).tobytes().decode()

    def error(self, rank: int, status: Status, size: int) -> Exception:
        """What a rank has met, after the head of its answer."""
        return error_of(status, self.words(rank, size), self.places[rank])

    def blame(self, error: Exception) -> None:
        """Find out whether a rank that has gone is the reason for a failure, which MPI may notice first.

        Args:
            error: of MPI's or of any other kind.

        Raises:
            DeviceError: one has gone; it says which and why.
        """
        if isinstance(error, DPServerError | MemoryError | ValueError):
            return
        self._patience.linger(SECONDS_TO_NOTICE)

    def dismiss(self) -> None:
        """Tell all that it is over."""
        for channel in self.channels.values():
            channel.send([Command.STOP])
        for channel in self.channels.values():
            channel.flush()
