from __future__ import annotations

import pytest

from dpserver.parallel.communicator import Place, threads_of


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
