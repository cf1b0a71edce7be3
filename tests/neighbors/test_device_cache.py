"""Lists with a skin on a device, here on CPU tensors: every pair within the cutoff, for as long as they are used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dpserver import neighbors
from dpserver.errors import StructureError
from dpserver.frames import Frames
from dpserver.neighbors import device_cache
from dpserver.neighbors.device_cache import DeviceListCache, DeviceNeighbourhood, _List
from dpserver.neighbors.on_device import DeviceRows, build_on_device
from tests import structures
from tests.neighbors.test_cache import looks_at, orientations, rows

RCUT, SKIN = 3.0, 0.8


def cache() -> DeviceListCache:
    return DeviceListCache(RCUT, SKIN, 2, torch.device("cpu"))


def within(found: DeviceNeighbourhood, frames: Frames) -> np.ndarray:
    """The pairs closer than the cutoff as sorted rows (i, j, vector in thousandths of Å)."""
    starts, neighbour, shift, incoming, incoming_starts, wraps, shifts, shift_frame = (
        getattr(found, name).numpy() for name in DeviceNeighbourhood.__dataclass_fields__
    )
    assert starts[-1] == incoming_starts[-1] == found.n_edges
    row = np.repeat(np.arange(2 * frames.n_atoms), np.diff(starts))
    centre = row // 2
    np.testing.assert_array_equal(frames.types[neighbour], row % 2)
    ends_at = np.repeat(np.arange(frames.n_atoms), np.diff(incoming_starts))
    np.testing.assert_array_equal(neighbour[incoming], ends_at)
    x = frames.positions - np.einsum("as,asd->ad", wraps, frames.cell[frames.frame_idx])
    vectors = x[neighbour] - x[centre] + np.einsum("ns,nsd->nd", shifts, frames.cell[shift_frame])[shift]
    near = np.linalg.norm(vectors, axis=1) < RCUT
    return rows(centre[near], neighbour[near], vectors[near])


def check(lists: DeviceListCache, frames: Frames) -> None:
    """Compare with a list that is made for these very positions."""
    edges = neighbors.build(frames, RCUT)
    shift = np.einsum("es,esd->ed", edges.shift, frames.cell[frames.frame_idx[edges.centre]])
    vectors = frames.positions[edges.neighbour] - frames.positions[edges.centre] + shift
    expected = rows(edges.centre, edges.neighbour, vectors)
    np.testing.assert_array_equal(within(lists.find(frames), frames), expected)


def every_frame() -> Frames:
    names = (structures.cubic, structures.triclinic, structures.slab, structures.wire, structures.cluster)
    return Frames.concatenate([*(make() for make in names), structures.tiny(), structures.molecule()])


def beads(n: int) -> Frames:
    """Structures of the same atoms, far from each other's lists."""
    return Frames.concatenate(structures.triclinic(seed) for seed in range(n))


def pushed(frames: Frames, number: int, by: float) -> Frames:
    """The same with the first atom of one frame moved, Å."""
    x = frames.positions.copy()
    x[frames.offsets[number], 0] += by
    return replace(frames, positions=x)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.floats(0.0, 0.5), n=st.integers(1, 4))
def test_every_pair_whatever_moves(seed: int, size: float, n: int) -> None:
    rng, lists, frames = np.random.default_rng(seed), cache(), every_frame()
    for _ in range(n):
        frames = structures.moved(frames, size * rng.uniform(-1, 1, frames.positions.shape))
        strain = np.eye(3) + 0.01 * rng.uniform(-1, 1, (3, 3))
        frames = replace(frames, positions=frames.positions @ strain, cell=frames.cell @ strain)
        check(lists, frames)


def test_lists_are_the_same_object_while_they_hold() -> None:
    lists, frames = cache(), every_frame()
    first = lists.find(frames)
    assert lists.find(pushed(frames, 0, 0.99 * SKIN / 2)) is first
    assert lists.n_built == frames.n_frames
    check(lists, pushed(frames, 0, 1.01 * SKIN / 2))
    assert lists.n_built == frames.n_frames + 1


def test_beads_in_any_order_and_any_part() -> None:
    lists, frames = cache(), beads(6)
    check(lists, frames)
    for order in ([3, 1, 0, 5, 4, 2], [4, 2], [5, 3, 1, 0]):
        check(lists, Frames.concatenate(frames[k] for k in order))
    assert lists.n_built == 6


def test_lists_that_will_not_hold_for_long_are_made_anew_with_others() -> None:
    lists, frames = cache(), beads(4)
    lists.find(frames)
    later = pushed(pushed(frames, 1, 0.8 * SKIN / 2), 2, 0.5 * SKIN / 2)
    check(lists, later)
    assert lists.n_built == 4
    check(lists, pushed(later, 3, 1.1 * SKIN / 2))
    assert lists.n_built == 6
    check(lists, pushed(pushed(later, 3, 1.1 * SKIN / 2), 1, 0.9 * SKIN / 2))
    assert lists.n_built == 6


def test_identical_beads_part() -> None:
    """As at the start of path-integral dynamics."""
    lists, frames = cache(), Frames.concatenate([structures.triclinic()] * 4)
    rng = np.random.default_rng(1)
    for _ in range(5):
        check(lists, frames)
        frames = structures.moved(frames, rng.normal(0, 0.2, frames.positions.shape))


@pytest.mark.parametrize("cells", ["none", "same", "different", "slabs"])
def test_many_structures_of_the_same_atoms_are_not_all_compared_with_each_other(
    cells: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists, n, looks = cache(), 60, looks_at(_List, monkeypatch)
    lists.find(orientations(n, cells))
    lists.find(orientations(n, cells, seed=7))
    assert lists.n_built == 2 * n
    assert len(looks) < 5 * n
    looks.clear()
    lists.find(orientations(n, cells, seed=7))
    assert lists.n_built == 2 * n
    assert len(looks) < 3 * n


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_lists_that_still_hold_serve_on_where_there_is_no_memory_for_new_ones(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    lists, frames, most = cache(), beads(4), [4]

    def build(frames: Frames, *args: Any) -> list[DeviceRows]:
        if frames.n_frames > most[0]:
            raise error("full")
        return build_on_device(frames, *args)

    monkeypatch.setattr(device_cache, "build_on_device", build)
    lists.find(frames)
    later = pushed(pushed(frames, 1, 0.8 * SKIN / 2), 3, 1.1 * SKIN / 2)
    most[0] = 1
    check(lists, later)
    assert lists.n_built == 5
    assert lists.find(later) is lists.find(later)
    most[0] = 0
    with pytest.raises(error):  # this one cannot be done without
        lists.find(pushed(later, 2, 1.1 * SKIN / 2))
    most[0] = 4
    check(lists, pushed(later, 2, 1.1 * SKIN / 2))
    assert lists.n_built == 7


@pytest.mark.parametrize("limit", ["MAX_LISTS", "MAX_EDGES"])
def test_lists_of_the_past_are_given_up(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fewest = min(cache().find(structures.triclinic(seed)).n_edges for seed in range(20))
    monkeypatch.setattr(device_cache, limit, {"MAX_LISTS": 5, "MAX_EDGES": 5 * fewest}[limit])
    lists = cache()
    for seed in range(20):
        check(lists, structures.triclinic(seed))
    assert sum(map(len, lists._lists.values())) <= 6
    check(lists, structures.cubic())
    assert lists.find(structures.cubic()) is lists.find(structures.cubic())


def test_a_density_that_is_absurd() -> None:
    frame = structures.cubic()
    with pytest.raises(StructureError, match="neighbours an atom within"):
        cache().find(replace(frame, positions=frame.positions / 40, cell=frame.cell / 40))
