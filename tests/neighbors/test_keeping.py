"""Which lists and batches are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from dpserver.neighbors.keeping import Batches, Kept, key_of, outdated
from dpserver.neighbors.motion import Snapshot
from tests import structures


@dataclass(frozen=True)
class Sized:
    """Lists of so many edges."""

    n_edges: int


def entries(*sizes: int) -> list[Kept[Sized]]:
    """Lists of these sizes, the first used last of all."""
    snapshot = Snapshot.take(structures.molecule())
    return [Kept(k, snapshot, Sized(size), -k) for k, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("max_edges", "max_lists", "expected"),
    [(60, 3, set()), (59, 3, {2}), (30, 3, {2}), (29, 3, {1, 2}), (60, 1, {1, 2}), (0, 3, {0, 1, 2})],
)
def test_those_unused_for_longest_go_first_and_no_more_than_must(
    max_edges: int, max_lists: int, expected: set[int]
) -> None:
    assert outdated(entries(10, 20, 30), max_edges, max_lists) == expected


def test_a_batch_is_joined_once_while_it_is_kept() -> None:
    batches: Batches[Sized] = Batches()
    joined: list[int] = []

    def find(number: int, max_edges: int = 1000) -> Sized:
        def join() -> Sized:
            joined.append(number)
            return Sized(100)

        return batches.find((number,), join, max_edges)

    for number in (0, 1, 2, 3, 0, 3):
        find(number)
    assert joined == [0, 1, 2, 3]
    find(4)  # in place of 1, which has not been used for longest
    find(0)
    find(1)
    assert joined == [0, 1, 2, 3, 4, 1]
    find(5, max_edges=150)  # beside one other
    assert batches.n_edges == 200


def test_ghosts_tell_structures_apart_only_where_there_are_some() -> None:
    frame = structures.cubic()
    none, one = np.zeros(frame.n_atoms, dtype=bool), np.arange(frame.n_atoms) == 3
    assert key_of(frame) == key_of(replace(frame, is_ghost=none))
    assert key_of(frame) != key_of(replace(frame, is_ghost=one))
    assert key_of(frame) != key_of(replace(frame, pbc=~frame.pbc))
