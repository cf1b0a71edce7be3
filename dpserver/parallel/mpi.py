"""MPI itself: mpi4py is imported here, and nowhere else in this package.

The communicator of all ranks is not ours: i-PI and others may be part of the job. It is split once, and what we send
goes over the part.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from dpserver.errors import ConfigError
from dpserver.parallel.communicator import Place

_OPEN_MPI = "OMPI_COMM_WORLD_SIZE"
_ABI = "MPI4PY_MPIABI"


def load_mpi() -> Any:
    """Import mpi4py and start MPI, unless that is done already.

    Returns:
        The module `mpi4py.MPI`.

    Raises:
        ConfigError: it is not installed, or finds no MPI.
    """
    if _OPEN_MPI in os.environ:  # the wheels of mpi4py know both kinds, and take MPICH first
        os.environ.setdefault(_ABI, "openmpi")
    try:
        import mpi4py

        mpi4py.rc.thread_level = "serialized"  # the thread that computes and the one that talks, one at a time
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"ranks need mpi4py and an MPI: pip install 'dpserver[mpi]' ({error})") from None
    return MPI


@dataclass(frozen=True, eq=False)
class _Request:
    request: Any

    def test(self) -> bool:
        return bool(self.request.Test())


class MPIGroup:
    """A group of ranks over a communicator of its own.

    Args:
        mpi: the module `mpi4py.MPI`.
        communicator: of the group; owned from here on.
    """

    def __init__(self, mpi: Any, communicator: Any) -> None:
        self._mpi = mpi
        self._communicator = communicator
        self.rank = int(communicator.Get_rank())
        self.size = int(communicator.Get_size())

    def has_message(self, source: int, tag: int) -> bool:
        """See `Communicator`."""
        return bool(self._communicator.Iprobe(source=source, tag=tag))

    def isend(self, array: NDArray[Any], dest: int, tag: int) -> _Request:
        """See `Communicator`."""
        return _Request(self._communicator.Isend(array, dest=dest, tag=tag))

    def irecv(self, array: NDArray[Any], source: int, tag: int) -> _Request:
        """See `Communicator`."""
        return _Request(self._communicator.Irecv(array, source=source, tag=tag))

    def places(self) -> list[Place]:
        """Where the ranks run; all have to ask."""
        node = self._communicator.Split_type(self._mpi.COMM_TYPE_SHARED)
        first = node.bcast(self.rank)
        mine = Place(self.rank, socket.gethostname(), os.getpid(), first, int(node.Get_rank()), _cores())
        node.Free()
        return list(self._communicator.allgather(mine))

    def share(self, value: Any) -> Any:
        """Give all ranks a value of rank 0; all have to ask."""
        return self._communicator.bcast(value)

    def collect(self, value: Any) -> list[Any]:
        """Give all ranks the values of all; all have to ask."""
        return list(self._communicator.allgather(value))

    def finish(self) -> None:
        """End MPI in this process; all ranks of the job have to."""
        self._mpi.Finalize()


def join_all(mpi: Any) -> MPIGroup:
    """Make a group of all ranks of the job."""
    return MPIGroup(mpi, mpi.COMM_WORLD.Dup())


def _cores() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))
