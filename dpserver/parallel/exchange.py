"""The messages between rank 0 and the others: a head of a few integers, and a body whose size it tells.

    to a worker    MODEL   files of models, bytes           STEP   numbers of a form, float64
                   FORM    a `Form`, integers               STOP   nothing
    to rank 0      an answer to MODEL or STEP: how it went, seconds, and float64; or in words why not
    between any    what parts of a structure have to tell each other, see `meeting`

Nothing here waits in MPI, where waiting takes a core: what is to come is looked for, see `Patience`. Forms that were
sent are remembered on both sides, the same number of them, so that neither has to tell the other what it forgets.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpserver.errors import AbandonedError, ConfigError, DeviceError, DPServerError, ModelFileError, StructureError
from dpserver.frames import Floats, Ints
from dpserver.parallel.communicator import Communicator, Pending
from dpserver.parallel.waiting import Patience

HEAD: Final = 6
"""Integers in front of every message."""

MOST_FORMS: Final = 16

_TRANSFER: Final = 5e-3
"""s: how long to look without a pause while a message is on its way, which it is only as long as both sides look."""


class Tag(IntEnum):
    """Of the two halves of a message, and of what is said in a `meeting`."""

    HEAD = 1
    BODY = 2
    WORD = 3
    PART = 4


class Command(IntEnum):
    """What rank 0 wants; the first number of a head to a worker. The second is that of the form.

    With MODEL it is the number of files, and the next ones are their sizes.
    """

    MODEL = 1
    FORM = 2
    STEP = 3
    STOP = 4


class Status(IntEnum):
    """How it went; the first number of a head to rank 0.

    What follows after DONE are nanoseconds, `packing.Contents`, and nanoseconds spent waiting for other parts.
    """

    DONE = 0
    STRUCTURE = 1
    MEMORY = 2
    MODEL = 3
    CONFIG = 4
    DEVICE = 5
    FAILED = 6
    ABANDONED = 7


_SIZE: Final = HEAD - 1  # place of the size of the body
_KINDS: Final[dict[Status, type[DPServerError]]] = {
    Status.STRUCTURE: StructureError,
    Status.MODEL: ModelFileError,
    Status.CONFIG: ConfigError,
    Status.DEVICE: DeviceError,
    Status.ABANDONED: AbandonedError,
}

T = TypeVar("T")


class Recent(Generic[T]):
    """The things that were used last, by number."""

    def __init__(self, most: int = MOST_FORMS) -> None:
        self._most = most
        self._things: OrderedDict[int, T] = OrderedDict()

    def __contains__(self, number: int) -> bool:
        return number in self._things

    def use(self, number: int) -> T:
        """Give a thing that is known."""
        self._things.move_to_end(number)
        return self._things[number]

    def add(self, number: int, thing: T) -> None:
        """Remember a thing, and forget the one that was not used for longest."""
        self._things[number] = thing
        if len(self._things) > self._most:
            self._things.popitem(last=False)


def status_of(error: Exception, is_memory: bool) -> Status:
    """What to tell of an error: a refusal, which is an answer, or a failure."""
    if is_memory:
        return Status.MEMORY
    return next((status for status, kind in _KINDS.items() if isinstance(error, kind)), Status.FAILED)


def error_of(status: Status, text: str, who: object) -> Exception:
    """The error that another rank has met.

    Args:
        status: what it told.
        text: in words.
        who: the rank.
    """
    match status:
        case Status.STRUCTURE:
            return StructureError(text)
        case Status.MEMORY:
            return MemoryError(f"{who}: {text}")
        case Status.FAILED:
            return DeviceError(f"{who} failed: {text}")
        case _:
            return _KINDS[status](f"{who}: {text}")


class Channel:
    """Messages with one other rank; buffers grow as needed and stay.

    Args:
        group: of both.
        other: the other's rank.
        patience: how to wait.
    """

    def __init__(self, group: Communicator, other: int, patience: Patience) -> None:
        self._group = group
        self._other = other
        self._patience = patience
        self._at_once = replace(patience, spin=_TRANSFER)
        self._sending: list[tuple[Pending, NDArray[Any]]] = []
        self._in: Floats = np.empty(0)
        self._out: Floats = np.empty(0)
        self._head: Ints = np.empty(HEAD, dtype=np.int64)

    def room(self, n: int) -> Floats:
        """An array to write what is sent next to, (n,); the last body is through by then."""
        self._out = _grown(self._out, n)
        return self._out[:n]

    def send(self, numbers: list[int], body: NDArray[Any] | None = None) -> None:
        """Begin to send; see `flush`.

        Args:
            numbers: of the head, up to HEAD - 1.
            body: an array that nobody changes before `flush` has returned.
        """
        head = np.zeros(HEAD, dtype=np.int64)
        head[: len(numbers)] = numbers
        head[_SIZE] = 0 if body is None else body.size
        self._sending.append((self._group.isend(head, self._other, Tag.HEAD), head))
        if body is not None and body.size:
            self._sending.append((self._group.isend(body, self._other, Tag.BODY), body))

    def flush(self) -> None:
        """Wait until all that was sent is through."""
        self._at_once.until_all(pending.test for pending, _ in self._sending)
        self._sending.clear()

    def wait(self) -> None:
        """Wait until something has come."""
        self._patience.until(self._has_message)

    def receive_head(self) -> list[int]:
        """Wait for the next message: its head, the size of the body last."""
        self.wait()
        self._receive(self._head, Tag.HEAD)
        return [int(number) for number in self._head]

    def receive_body(self, size: int, dtype: type[np.generic] = np.float64) -> NDArray[Any]:
        """Take the body; numbers stand in a buffer that the next ones overwrite, all else in an array of its own."""
        if dtype is np.float64:
            self._in = _grown(self._in, size)
            body: NDArray[Any] = self._in[:size]
        else:
            body = np.empty(size, dtype=dtype)
        if size:
            self._receive(body, Tag.BODY)
        return body

    def _has_message(self) -> bool:
        return self._group.has_message(self._other, Tag.HEAD)

    def _receive(self, array: NDArray[Any], tag: Tag) -> None:
        pending = self._group.irecv(array, self._other, tag)
        self._at_once.until(pending.test)


def _grown(array: Floats, n: int) -> Floats:
    """The array, or a larger one where it is too small."""
    return array if len(array) >= n else np.empty(n + n // 8)


def describe(error: Exception) -> str:
    """An error in words: our own as they are, others with their class."""
    return str(error) if isinstance(error, DPServerError) else f"{type(error).__name__}: {error}"
