"""The other ranks, as rank 0 sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpserver.errors import DeviceError, DPServerError
from dpserver.parallel.communicator import Communicator, Place
from dpserver.parallel.exchange import Channel, Command, Status, error_of
from dpserver.parallel.waiting import Patience


class Crew:
    """The other ranks, as rank 0 sees them.

    Args:
        group: of all ranks that compute together; this one is 0.
        places: where each runs.
        patience: how to wait.
    """

    def __init__(self, group: Communicator, places: Sequence[Place], patience: Patience) -> None:
        self.places = tuple(places)
        self.channels = {rank: Channel(group, rank, patience) for rank in range(1, group.size)}

    @property
    def size(self) -> int:
        """How many ranks there are, rank 0 included."""
        return len(self.channels) + 1

    def send_model(self, file: bytes) -> None:
        """Begin to send the model file to all; `await_model` says what becomes of it."""
        body = np.frombuffer(file, dtype=np.uint8)
        for channel in self.channels.values():
            channel.send([Command.MODEL], body)

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

    def dismiss(self) -> None:
        """Tell all that it is over."""
        for channel in self.channels.values():
            channel.send([Command.STOP])
        for channel in self.channels.values():
            channel.flush()
