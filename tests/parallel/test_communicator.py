from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from dpserver.daemon.team import Service
from dpserver.parallel.communicator import Place, threads_of
from dpserver.parallel.mpi import MPIGroup


def places(*cores: tuple[int, ...], nodes: tuple[int, ...] | None = None) -> list[Place]:
    where = nodes or (0,) * len(cores)
    return [Place(k, f"n{n}", 100 + k, n, k, c) for k, (c, n) in enumerate(zip(cores, where, strict=True))]


@pytest.mark.parametrize(
    ("cores", "nodes", "expected"),
    [
        ([(0, 1, 2, 3)], None, [4]),
        ([(0, 1, 2, 3)] * 2, None, [2, 2]),
        ([(0, 1, 2, 3)] * 3, None, [1, 1, 1]),
        ([(0, 1)] * 8, None, [1] * 8),
        ([(0,), (1,)], None, [1, 1]),  # bound by the launcher
        ([(0, 1, 2, 3), (4, 5, 6, 7)], None, [4, 4]),
        ([(0, 1, 2, 3)] * 2, (0, 1), [4, 4]),  # the same numbers on two nodes
        ([(0, 1, 2, 3), (2, 3)], None, [3, 1]),
    ],
)
def test_ranks_of_a_node_share_its_cores(cores, nodes, expected):
    found = places(*cores, nodes=nodes)
    assert [threads_of(place, found) for place in found] == expected


def test_a_place_names_itself():
    assert str(places((0,))[0]) == "rank 0 (process 100 on n0)"


@dataclass
class Job:
    """A communicator of ranks on several nodes, seen from one of them, with mpi4py's names."""

    rank: int
    nodes: list[int]

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return len(self.nodes)

    def Split_type(self, kind: str) -> Any:
        assert kind == "shared"
        mine = [rank for rank, node in enumerate(self.nodes) if node == self.nodes[self.rank]]
        return SimpleNamespace(bcast=lambda _: mine[0], Get_rank=lambda: mine.index(self.rank), Free=lambda: None)

    def allgather(self, mine: Place) -> list[Place]:
        return [mine]


@pytest.mark.parametrize(
    ("nodes", "local", "devices"),
    [
        ([0, 0, 0, 0], [0, 1, 2, 3], [0, 1, 0, 1]),
        ([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 0, 1]),
        ([0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 0, 0]),  # dealt out to the nodes in turn
    ],
)
def test_ranks_are_counted_on_each_node(monkeypatch, nodes, local, devices):
    """By the node that MPI says memory can be shared on, and not by what the launcher or a host is called."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("SLURM_LOCALID", "7")
    mpi = SimpleNamespace(COMM_TYPE_SHARED="shared")
    places = [MPIGroup(mpi, Job(rank, nodes)).places()[0] for rank in range(len(nodes))]
    assert [place.local_rank for place in places] == local
    assert [place.node for place in places] == [nodes.index(node) for node in nodes]
    service = Service("auto", None, None, "native", "w.pt")
    assert [service.device_of(place) for place in places] == [f"cuda:{k}" for k in devices]
