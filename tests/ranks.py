"""Ranks as threads of one process, and models that need neither torch nor files."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpserver.errors import DeviceError
from dpserver.frames import CommitteeResult, ForceResult, Frames
from dpserver.neighbors import build
from dpserver.parallel.communicator import Place
from dpserver.parallel.crew import Crew
from dpserver.parallel.ranked import RankedModel
from dpserver.parallel.waiting import Patience
from dpserver.parallel.worker import Worker
from tests.patience import PATIENCE


@dataclass
class _Sent:
    data: bytes
    is_taken: bool = False

    def test(self) -> bool:
        return self.is_taken


@dataclass
class _Received:
    world: World
    key: tuple[int, int, int]
    array: NDArray

    def test(self) -> bool:
        message = self.world.take(self.key)
        if message is None:
            return False
        assert len(message.data) == self.array.nbytes, "a message of another size than was announced"
        self.array.reshape(-1).view(np.uint8)[:] = np.frombuffer(message.data, np.uint8)
        return True


@dataclass(eq=False)
class World:
    """The boxes between all ranks. A message is through when it is taken, and not before, as large ones are in MPI."""

    size: int
    boxes: dict[tuple[int, int, int], deque[_Sent]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    n_messages: int = 0
    n_bytes: int = 0

    def put(self, key: tuple[int, int, int], message: _Sent) -> None:
        with self.lock:
            self.n_messages += 1
            self.n_bytes += len(message.data)
            self.boxes.setdefault(key, deque()).append(message)

    def has(self, key: tuple[int, int, int]) -> bool:
        with self.lock:
            return bool(self.boxes.get(key))

    def take(self, key: tuple[int, int, int]) -> _Sent | None:
        with self.lock:
            box = self.boxes.get(key)
            if not box:
                return None
            message = box.popleft()
            message.is_taken = True
            return message

    def group(self, rank: int) -> Group:
        return Group(self, rank)

    def places(self) -> list[Place]:
        return [Place(k, "here", os.getpid(), 0, k, (0, 1)) for k in range(self.size)]


@dataclass(eq=False)
class Group:
    """The world seen from one rank."""

    world: World
    rank: int

    @property
    def size(self) -> int:
        return self.world.size

    def has_message(self, source: int, tag: int) -> bool:
        return self.world.has((source, self.rank, tag))

    def isend(self, array: NDArray, dest: int, tag: int) -> _Sent:
        assert array.flags.c_contiguous
        message = _Sent(array.tobytes())
        self.world.put((self.rank, dest, tag), message)
        return message

    def irecv(self, array: NDArray, source: int, tag: int) -> _Received:
        return _Received(self.world, (source, self.rank, tag), array)


@dataclass(eq=False)
class Together:
    """Bcast and Reduce among threads: what each has brought lies here until all have come by.

    Args:
        size: how many there are.
    """

    size: int

    def __post_init__(self) -> None:
        self.brought: list[NDArray] = [np.empty(0)] * self.size
        self.barrier = threading.Barrier(self.size, timeout=PATIENCE)

    def of(self, rank: int) -> Collective:
        return Collective(self, rank)


@dataclass(eq=False)
class Collective:
    """The same seen from one rank, with mpi4py's names."""

    together: Together
    rank: int

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.together.size

    def _exchange(self, array: NDArray) -> list[NDArray]:
        self.together.brought[self.rank] = array.copy()
        self.together.barrier.wait()
        found = list(self.together.brought)
        self.together.barrier.wait()
        return found

    def Bcast(self, array: NDArray) -> None:
        array[:] = self._exchange(array)[0]

    def Reduce(self, array: NDArray, total: NDArray) -> None:
        summed = np.sum(self._exchange(array), axis=0)
        if not self.rank:
            total[:] = summed


def patience(is_over: Callable[[], bool] = lambda: False) -> Patience:
    """Waits without spinning; gives up once it is over."""

    def check() -> None:
        if is_over():
            raise DeviceError("the test is over")

    return Patience(spin=0.0, check=check)


@contextmanager
def ranked(
    model: object, n_ranks: int, load: Callable[[int, bytes], object], **options: object
) -> Iterator[RankedModel]:
    """A model over ranks that are threads; each loads its own by number."""
    world, over = World(n_ranks), threading.Event()
    failures: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            Worker(world.group(rank), lambda *files: load(rank, *files), patience(over.is_set)).run()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(1, n_ranks)]
    for thread in threads:
        thread.start()
    crew = Crew(world.group(0), world.places(), patience(lambda: bool(failures)))
    try:
        crew.send_model(b"a model file")
        crew.await_model()
        found = RankedModel(model, crew, **options)
        found.world = world
        yield found
        crew.dismiss()
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert not failures, failures
    assert not any(thread.is_alive() for thread in threads)
    assert not any(world.boxes.values()), "messages were left"


class Springs:
    """A pair potential in numpy, u(r) = k (1 - r²/rcut²)³ for each pair of species; its energy belongs to centres.

    Args:
        rcut: cutoff radius, Å.
        n_members: of a committee; 0 is a single model.
        mistakes: raise an error for what their function returns one for.
    """

    species = ("A", "B")
    template = None
    can_cut = True

    def __init__(
        self, rcut: float = 3.0, n_members: int = 0, mistakes: Callable[[Frames], Exception | None] | None = None
    ) -> None:
        self.rcut = rcut
        self.n_members = n_members
        self.min_distance = self.crowd_distance = np.zeros((2, 2))
        self.mistakes = mistakes
        self.n_evaluations = 0

    def evaluate(self, frames: Frames) -> ForceResult:
        self.n_evaluations += 1
        if self.mistakes is not None and (error := self.mistakes(frames)) is not None:
            raise error
        frames.check(2)
        strengths = [np.array([[1.0, 0.7], [0.7, 0.4]]) * (1 + 0.1 * m) for m in range(max(1, self.n_members))]
        results = [self._one(frames, strength) for strength in strengths]
        if not self.n_members:
            return results[0]
        committee = CommitteeResult(
            np.stack([r.energy for r in results]),
            np.stack([r.forces for r in results]),
            np.stack([r.virial for r in results]),
        )
        means = (committee.energy.mean(0), committee.forces.mean(0), committee.virial.mean(0))
        return ForceResult(*means, np.mean([r.atom_energy for r in results], 0), frames.frame_idx.copy(), committee)

    def _one(self, frames: Frames, strength: NDArray) -> ForceResult:
        edges = build(frames, self.rcut)
        i, j = edges.centre, edges.neighbour
        shift = np.einsum("es,esd->ed", edges.shift, frames.cell[frames.frame_idx[i]])
        r = frames.positions[j] - frames.positions[i] + shift
        k = strength[frames.types[i], frames.types[j]]
        if frames.is_ghost is not None:
            k = np.where(frames.is_ghost[i], 0.0, k)
        if frames.fparam is not None:
            k = k * frames.fparam[frames.frame_idx[i], 0]
        if frames.aparam is not None:
            k = k * frames.aparam[i, 0]
        x = 1 - (r**2).sum(1) / self.rcut**2
        atom_energy = np.bincount(i, k * x**3, frames.n_atoms)
        gradient = (-6 * k * x**2 / self.rcut**2)[:, None] * r
        forces = np.zeros((frames.n_atoms, 3))
        np.add.at(forces, i, gradient)
        np.subtract.at(forces, j, gradient)
        virial = np.zeros((frames.n_frames, 3, 3))
        np.add.at(virial, frames.frame_idx[i], -gradient[:, :, None] * r[:, None, :])
        energy = np.bincount(frames.frame_idx, atom_energy, frames.n_frames)
        return ForceResult(energy, forces, virial, atom_energy, frames.frame_idx.copy())
