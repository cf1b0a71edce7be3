"""MPI for the tests of one process: what was sent lies in a box until it is received, and nothing ever blocks."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpserver.units import BOHR, HARTREE

HELLO, INIT, WORK, RESULT, EXTRA, EXIT = range(1, 7)


@dataclass(eq=False)
class Message:
    source: int
    tag: int
    data: bytes
    kind: str
    is_taken: bool = False


@dataclass
class Status:
    message: Message | None = None

    def Get_tag(self) -> int:
        assert self.message is not None
        return self.message.tag

    def Get_count(self, kind: str) -> int:
        assert self.message is not None
        return len(self.message.data) // np.dtype(kind).itemsize


@dataclass
class Request:
    message: Message

    def Test(self) -> bool:
        return self.message.is_taken


@dataclass
class Communicator:
    """The world seen from one rank."""

    rank: int
    boxes: list[list[Message]]
    splits: list[object] = field(default_factory=list)

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return len(self.boxes)

    def Split(self, color: object, key: int) -> Drivers:
        self.splits.append(color)
        return Drivers(self)

    def Get_attr(self, name: int) -> int | None:
        return None

    def Dup(self) -> Communicator:
        return self

    def Isend(self, buffer: tuple[NDArray, str], dest: int, tag: int) -> Request:
        array, kind = buffer
        assert array.dtype == np.dtype(kind)
        assert array.flags.c_contiguous
        message = Message(self.rank, tag, array.tobytes(), kind)
        self.boxes[dest].append(message)
        return Request(message)

    Send = Isend

    def _find(self, source: int, tag: int) -> Message | None:
        fit = (m for m in self.boxes[self.rank] if m.source == source and tag in {m.tag, FakeMPI.ANY_TAG})
        return next(fit, None)

    def Iprobe(self, source: int, tag: int, status: Status) -> bool:
        status.message = self._find(source, tag)
        return status.message is not None

    def Probe(self, source: int, tag: int, status: Status) -> None:
        assert self.Iprobe(source, tag, status), "this would wait for ever"

    def Recv(self, buffer: tuple[NDArray, str], source: int, tag: int) -> None:
        array, kind = buffer
        message = self._find(source, tag)
        assert message is not None, "this would wait for ever"
        assert kind == message.kind
        assert array.nbytes == len(message.data)
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(message.data, np.uint8)
        message.is_taken = True
        self.boxes[self.rank].remove(message)


@dataclass
class Drivers:
    """All ranks but i-PI's, which were all started with the same options."""

    world: Communicator

    def allgather(self, value: tuple[int, str, int]) -> list[tuple[int, str, int]]:
        return [(rank, *value[1:]) for rank in range(1, self.world.Get_size())]

    def Split(self, color: object, key: int) -> Communicator:
        return self.world


class FakeMPI:
    """The module of one rank."""

    ANY_TAG = -1
    APPNUM = 5
    UNDEFINED = -32766
    INT, DOUBLE, BYTE = "int32", "float64", "uint8"
    Status = Status

    def __init__(self, rank: int, boxes: list[list[Message]]) -> None:
        self.COMM_WORLD = Communicator(rank, boxes)

    def Get_library_version(self) -> str:
        return "Fake MPI 1.0\nand more"


class FakeIpi:
    """Rank 0: i-PI's side of the protocol, in steps that a test takes one by one.

    Args:
        size: ranks of the job, i-PI's own included.
    """

    def __init__(self, size: int = 2) -> None:
        boxes: list[list[Message]] = [[] for _ in range(size)]
        self.modules = [FakeMPI(rank, boxes) for rank in range(size)]
        self.world = self.modules[0].COMM_WORLD

    def send(self, tag: int, array: ArrayLike, kind: str = "int32", rank: int = 1) -> None:
        self.world.Send((np.ascontiguousarray(array, dtype=kind), kind), dest=rank, tag=tag)

    def receive(self, tag: int, kind: str, rank: int = 1) -> NDArray:
        status = Status()
        self.world.Probe(rank, tag, status)
        array = np.empty(status.Get_count(kind), dtype=kind)
        self.world.Recv((array, kind), source=rank, tag=tag)
        return array

    def hello(self, rank: int = 1) -> tuple[list[int], str]:
        numbers = self.receive(HELLO, "int32", rank).tolist()
        return numbers, self.receive(HELLO, "uint8", rank).tobytes().decode()

    def init(self, text: str = " ", rank: int = 1) -> None:
        raw = text.encode()
        self.send(INIT, [0, len(raw)], rank=rank)
        self.send(INIT, np.frombuffer(raw, np.uint8), "uint8", rank)

    def work(self, positions: ArrayLike, cells: ArrayLike, rank: int = 1) -> None:
        """Structures in Å, lattice vectors as rows."""
        x, h = np.asarray(positions) / BOHR, np.asarray(cells).transpose(0, 2, 1) / BOHR
        n_frames = len(x)
        rows = [h.reshape(n_frames, 9), np.full((n_frames, 9), np.nan), x.reshape(n_frames, -1)]
        self.send(WORK, [x.shape[1], n_frames], rank=rank)
        self.send(WORK, np.concatenate(rows, axis=1).ravel(), "float64", rank)

    def result(self, n_frames: int, rank: int = 1) -> tuple[NDArray, NDArray, NDArray, list[bytes]]:
        """Energies, forces, virials in eV and Å, and extras."""
        rows = self.receive(RESULT, "float64", rank).reshape(n_frames, -1)
        raw = self.receive(EXTRA, "uint8", rank).tobytes()
        extras, at = [], 0
        for _ in range(n_frames):
            (length,) = struct.unpack_from("=i", raw, at)
            extras.append(raw[at + 4 : at + 4 + length])
            at += 4 + length
        assert at == len(raw)
        forces = rows[:, 1:-9].reshape(n_frames, -1, 3) * (HARTREE / BOHR)
        return rows[:, 0] * HARTREE, forces, rows[:, -9:].reshape(n_frames, 3, 3) * HARTREE, extras

    def exit(self, rank: int = 1) -> None:
        self.send(EXIT, [0], rank=rank)
