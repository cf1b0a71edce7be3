"""MPI as i-PI's `<ffmpi>` speaks it: one job, in which i-PI is rank 0 and each driver rank a group of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from dpserver.errors import ConfigError, RemoteProtocolError
from dpserver.frames import Floats
from dpserver.ipi import Forces, ForcesWanted, Initialised, Limits, PeerLeft
from dpserver.ipi import ffmpi as messages
from dpserver.ipi.ffmpi import HEADER_INTS, Ints32, Tag
from dpserver.parallel.mpi import MPIGroup, load_mpi

SERVER = 0
"""The rank of i-PI."""

LAST_WORDS_SECONDS = 0.2
"""What the launcher has to pass on before it is told to end all, or it may drop the message that says why."""

ABORT_SECONDS = 3
"""After this a process that has to end is ended by the system."""

LAUNCH = "mpirun -n 1 i-pi input.xml : -n 1 dpserver --model w.pt --mpi-driver"

_DRIVERS = 1  # color of all that are not i-PI

MpiEvent = Initialised | ForcesWanted | PeerLeft


def end_job(code: int) -> None:
    """End every process of the MPI job this one belongs to, i-PI included, with an exit code; alone, do nothing."""
    try:
        mpi = load_mpi()
    except ConfigError:  # then there is no job we could be part of
        return
    if mpi.COMM_WORLD.Get_size() > 1:
        time.sleep(LAST_WORDS_SECONDS)
        mpi.COMM_WORLD.Abort(code)


def abort_job(code: int) -> NoReturn:
    """End every process of the MPI job, from any thread; this one in any case, should MPI not be able to."""
    signal.alarm(ABORT_SECONDS)
    end_job(code)
    os._exit(code)


class DriverGroup:
    """This process as the driver of an `<ffmpi>` force field, or as one of several that are a driver together.

    Of those the first speaks with i-PI, and the others have no use for the methods here.

    Nothing here waits for the other side for longer than the rest of a message that has begun to come; what is sent
    goes out while `next_event` is called again and again.

    Args:
        mpi: the module `mpi4py.MPI`.
        name: of the force field in i-PI's input; empty where it has only one.
        limits: bounds on what i-PI may announce.
        size: ranks of each driver: consecutive ones that were started with the same name and size.

    Attributes:
        rank: of this process in the job, which i-PI shares.
        group: the ranks of this driver.

    Raises:
        ConfigError: this is no job of i-PI and its drivers, or the ranks do not make up groups of that size.
    """

    def __init__(self, mpi: Any, name: str = "", limits: Limits | None = None, size: int = 1) -> None:
        self._mpi = mpi
        self._name = name
        self._world = mpi.COMM_WORLD
        self._limits = limits or Limits()
        self._status = mpi.Status()
        self._sending: list[tuple[Any, object]] = []  # requests, and the buffers they send from
        self._shape = (0, 0)
        self._received = self._sent = 0
        self.rank = int(self._world.Get_rank())
        self._check()
        # i-PI splits the world once, with every rank, and is alone in its part; that of the drivers is theirs.
        drivers = self._world.Split(_DRIVERS, self.rank)
        ranks = _members(drivers.allgather((self.rank, name, size)), self.rank)
        self.group = MPIGroup(mpi, drivers.Split(ranks[0], self.rank))
        if self.rank == ranks[0]:
            self._world.Send([messages.encode_hello(ranks), mpi.INT], dest=SERVER, tag=Tag.HELLO)
            self._world.Send([np.frombuffer(name.encode(), np.uint8), mpi.BYTE], dest=SERVER, tag=Tag.HELLO)

    def __str__(self) -> str:
        return f"mpi:{self._name or 'i-pi'} rank {self.rank}"

    def _check(self) -> None:
        if self._world.Get_size() < 2:
            library = self._mpi.Get_library_version().split("\n")[0].strip()
            raise ConfigError(
                f"this process is alone in its MPI job; start it together with i-PI, as in: {LAUNCH}. Is that so, then "
                f"mpirun is of another MPI than mpi4py, which has {library}"
            )
        if self.rank == SERVER:
            raise ConfigError(f"rank 0 of an MPI job must be i-PI, and this is dpserver; start them as in: {LAUNCH}")

    def next_event(self) -> MpiEvent | None:
        """Take the next message, None if there is none yet.

        Raises:
            RemoteProtocolError: it is no message of this protocol.
        """
        self._sending = [(request, buffer) for request, buffer in self._sending if not request.Test()]
        if not self._world.Iprobe(source=SERVER, tag=self._mpi.ANY_TAG, status=self._status):
            return None
        match self._status.Get_tag():
            case Tag.INIT:
                header = self._receive_header(Tag.INIT)
                raw = np.empty(messages.init_size(header, self._limits), np.uint8)
                self._receive(raw, self._mpi.BYTE, Tag.INIT)
                return messages.decode_init(header, raw.tobytes(), self._limits)
            case Tag.WORK:
                header = self._receive_header(Tag.WORK)
                body: Floats = np.empty(messages.work_size(header, self._limits))
                self._receive(body, self._mpi.DOUBLE, Tag.WORK)
                structures = messages.decode_work(header, body)
                self._shape = structures.n_frames, structures.n_atoms
                return ForcesWanted(structures)
            case Tag.EXIT:
                self._receive(np.empty(1, np.int32), self._mpi.INT, Tag.EXIT)
                return PeerLeft(is_clean=not self._sending, reason="said EXIT")
            case tag:
                raise RemoteProtocolError(f"i-PI sent a message of tag {tag}; expected {', '.join(map(str, Tag))}")

    def send(self, answer: Forces) -> None:
        """Begin to send the forces of the last `ForcesWanted`.

        Raises:
            LocalProtocolError: they are of another shape, or a number is not finite.
        """
        answer.check(*self._shape)
        numbers, extras = messages.encode_result(answer)
        # Not `Send`: i-PI may leave without taking them, and would be waited for.
        for buffer, kind, tag in (
            (numbers, self._mpi.DOUBLE, Tag.RESULT),
            (np.frombuffer(extras, np.uint8), self._mpi.BYTE, Tag.EXTRA),
        ):
            self._sending.append((self._world.Isend([buffer, kind], dest=SERVER, tag=tag), buffer))
            self._sent += buffer.nbytes

    def take_traffic(self) -> tuple[int, int]:
        """Give the bytes that came and that went since this was last asked."""
        traffic = self._received, self._sent
        self._received = self._sent = 0
        return traffic

    def _receive_header(self, tag: Tag) -> Ints32:
        header: Ints32 = np.empty(HEADER_INTS, np.int32)
        self._receive(header, self._mpi.INT, tag)
        return header

    def _receive(self, array: np.ndarray[Any, Any], kind: Any, tag: Tag) -> None:
        """Fill an array with the next message of a tag.

        Raises:
            RemoteProtocolError: it is of another size.
        """
        self._world.Probe(source=SERVER, tag=tag, status=self._status)
        count = self._status.Get_count(kind)
        if count != array.size:
            raise RemoteProtocolError(f"i-PI sent {tag.name} with {count} numbers; expected {array.size}")
        self._world.Recv([array, kind], source=SERVER, tag=tag)
        self._received += array.nbytes


def _members(drivers: Sequence[tuple[int, str, int]], rank: int) -> list[int]:
    """The ranks of the group of one of them.

    Args:
        drivers: rank, name and size of the group of each, ascending.
        rank: the one.

    Raises:
        ConfigError: consecutive ranks with the same name and size are no whole number of groups.
    """
    groups: list[list[tuple[int, str, int]]] = []
    for driver in drivers:
        other, name, size = driver
        if groups and groups[-1][-1] == (other - 1, name, size) and len(groups[-1]) < size:
            groups[-1].append(driver)
        else:
            groups.append([driver])
    for group in groups:
        first, _, size = group[0]
        if len(group) != size:
            raise ConfigError(
                f"--group-size {size} does not divide the ranks it was given for: of the last group there are only "
                f"{len(group)}, from rank {first} of the job on"
            )
    return next(found for group in groups if rank in (found := [other for other, _, _ in group]))
