"""Parts of structures as threads of one process, without ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

from dpserver.errors import AbandonedError
from tests.patience import PATIENCE

T = TypeVar("T")


class Table:
    """Where parts leave what is for the others.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.left: list[Sequence[NDArray[Any]]] = [()] * count
        self.barrier = threading.Barrier(count, timeout=PATIENCE)


@dataclass(frozen=True, eq=False)
class Seat:
    """One part; see `dpserver.parts.Parts`."""

    table: Table
    number: int

    @property
    def count(self) -> int:
        return self.table.count

    def exchange(self, outgoing: Sequence[NDArray[Any]], incoming: Sequence[NDArray[Any]]) -> None:
        try:
            self.table.left[self.number] = [array.copy() for array in outgoing]
            self.table.barrier.wait()
            for k, array in enumerate(incoming):
                if k != self.number:
                    found = self.table.left[k][self.number]
                    assert found.size == array.size
                    array.reshape(-1)[:] = found.reshape(-1)
            self.table.barrier.wait()
        except threading.BrokenBarrierError:
            raise AbandonedError("another part has failed") from None


def together(count: int, job: Callable[[Seat], T]) -> list[T]:
    """Do a job in so many parts at once; an error of one is raised, and ends the others."""
    table, found, errors = Table(count), [None] * count, []

    def work(number: int) -> None:
        try:
            found[number] = job(Seat(table, number))
        except Exception as error:
            errors.append(error)
            table.barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda error: isinstance(error, AbandonedError)):
        raise error
    return found
