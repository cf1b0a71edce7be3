"""Lists with a skin: every pair within the cutoff, for as long as they are used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dpserver import neighbors
from dpserver.errors import StructureError
from dpserver.frames import Frames
from dpserver.neighbors.cache import ListCache, Neighbourhood, _List
from dpserver.neighbors.keeping import Kept
from dpserver.neighbors.rows import MOST_EDGES
from tests import structures

RCUT, SKIN = 3.0, 0.8


def within(found: Neighbourhood, frames: Frames, n_species: int = 2) -> np.ndarray:
    """The pairs closer than the cutoff as sorted rows (i, j, vector in thousandths of Å)."""
    x, shifts = found.positions(frames), found.translations(frames)
    row = np.repeat(np.arange(frames.n_atoms * n_species), np.diff(found.starts))
    centre = row // n_species
    vectors = x[found.neighbour] - x[centre] + shifts[found.shift]
    ends_at = np.repeat(np.arange(frames.n_atoms), np.diff(found.incoming_starts))
    np.testing.assert_array_equal(found.neighbour[found.incoming], ends_at)
    near = np.linalg.norm(vectors, axis=1) < RCUT
    return rows(centre[near], found.neighbour[near], vectors[near])


def rows(centre: np.ndarray, neighbour: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    table = np.column_stack([centre, neighbour, np.rint(1e3 * vectors)]).astype(np.int64)
    return table[np.lexsort(table.T[::-1])]


def check(cache: ListCache, frames: Frames) -> None:
    """Compare with a list that is made for these very positions."""
    edges = neighbors.build(frames, RCUT)
    shift = np.einsum("es,esd->ed", edges.shift, frames.cell[frames.frame_idx[edges.centre]])
    vectors = frames.positions[edges.neighbour] - frames.positions[edges.centre] + shift
    expected = rows(edges.centre, edges.neighbour, vectors)
    np.testing.assert_array_equal(within(cache.find(frames), frames), expected)


def cache(**options: Any) -> ListCache:
    return ListCache(RCUT, SKIN, 2, **options)


def every_frame() -> Frames:
    names = (structures.cubic, structures.triclinic, structures.slab, structures.wire, structures.cluster)
    return Frames.concatenate([*(make() for make in names), structures.tiny(), structures.molecule()])


def test_atoms_move_up_to_the_limit() -> None:
    """Two atoms come straight towards each other by half of the skin each; a hair further the list is made again."""
    frame, mine = structures.cubic(), cache()
    check(mine, frame)
    rng = np.random.default_rng(0)
    for _ in range(40):
        directions = rng.normal(size=frame.positions.shape)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        check(mine, structures.moved(frame, directions * SKIN / 2 * (1 - 1e-8)))
        assert mine.n_built == 1
    check(mine, structures.moved(frame, directions * SKIN / 2 * (1 + 1e-8)))
    assert mine.n_built == 2


def test_a_pair_that_comes_in_from_just_outside_is_seen() -> None:
    mine = cache()
    apart = Frames.single([[0.0, 0, 0], [RCUT + SKIN + 1e-6, 0, 0]], [0, 1])
    assert mine.find(apart).n_edges == 0
    almost = Frames.single([[SKIN / 2 - 1e-5, 0, 0], [RCUT + SKIN / 2 + 1e-5, 0, 0]], [0, 1])
    assert mine.find(almost).n_edges == 0
    inside = Frames.single([[SKIN / 2 + 1e-5, 0, 0], [RCUT + SKIN / 2 - 1e-5, 0, 0]], [0, 1])
    assert mine.find(inside).n_edges == 2
    assert mine.n_built == 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    strain=st.floats(0, 0.08),
    moves=st.floats(0, 0.25),
    steps=st.integers(1, 6),
)
def test_cells_change_and_atoms_move(seed: int, strain: float, moves: float, steps: int) -> None:
    rng, mine, frames = np.random.default_rng(seed), cache(), every_frame()
    for _ in range(steps):
        deformed = structures.strained(frames, strain * rng.uniform(-1, 1, (3, 3)))
        check(mine, structures.moved(deformed, rng.uniform(-moves, moves, frames.positions.shape)))


def test_a_small_change_of_the_cell_needs_no_new_list() -> None:
    frames, mine = every_frame(), cache()
    check(mine, frames)
    built = mine.n_built
    for k in range(5):
        check(mine, structures.strained(frames, 0.01 * k * np.array([[1, 0.2, 0], [0, -1, 0.3], [0.1, 0, 1]])))
    assert mine.n_built == built
    check(mine, structures.strained(frames, -0.25 * np.eye(3)))
    assert mine.n_built > built


def test_beads_in_any_order_and_number() -> None:
    """Beads are found by content: other connections may bring them, a few of them or all."""
    rng, mine = np.random.default_rng(1), cache()
    frame = structures.triclinic()
    beads = structures.copies(frame, rng.normal(scale=0.8, size=(6, frame.n_atoms, 3)))
    check(mine, beads)
    assert mine.n_built == 6
    for order in ([3, 1, 5, 0, 2, 4], [2], [5, 4], [0, 0, 1]):
        some = Frames.concatenate(beads[k] for k in order)
        check(mine, structures.moved(some, rng.uniform(-0.1, 0.1, some.positions.shape)))
    assert mine.n_built == 6
    assert mine.find(beads) is mine.find(beads)


def test_species_and_periodicity_tell_structures_apart() -> None:
    mine, frame = cache(), structures.cluster()
    first = mine.find(frame)
    other = Frames.single(frame.positions, 1 - frame.types)
    check(mine, other)
    assert mine.find(frame) is first
    check(mine, Frames.single(frame.positions, frame.types, np.eye(3) * 9.0))
    check(mine, Frames.single(frame.positions, frame.types, np.eye(3) * 9.0, (True, False, True)))
    assert mine.n_built == 4


def test_ghosts_tell_parts_apart() -> None:
    """Two parts of one structure may have the same atoms; only their centres differ."""
    mine, frame = cache(), structures.cluster()
    whole = mine.find(frame).n_edges
    assert mine.find(replace(frame, is_ghost=np.zeros(frame.n_atoms, dtype=bool))).n_edges == whole
    assert mine.n_built == 1
    is_ghost = np.arange(frame.n_atoms) < 5
    parts = [replace(frame, is_ghost=mask) for mask in (is_ghost, ~is_ghost)]
    for _ in range(2):
        found = [mine.find(part) for part in parts]
        assert sum(near.n_edges for near in found) == whole
        for near, mask in zip(found, (is_ghost, ~is_ghost), strict=True):
            np.testing.assert_array_equal(np.diff(near.starts[::2])[mask], 0)
    joined = mine.find(Frames.concatenate([parts[0], frame, parts[1]]))
    assert joined.n_edges == 2 * whole
    ends_at = np.repeat(np.arange(3 * frame.n_atoms), np.diff(joined.incoming_starts))
    np.testing.assert_array_equal(joined.neighbour[joined.incoming], ends_at)
    assert mine.n_built == 3


def test_old_lists_are_forgotten() -> None:
    mine = cache(max_edges=2000)
    for k in range(30):
        check(mine, structures.cubic(seed=k))
    kept = [entry.rows.n_edges for known in mine._lists.values() for entry in known]
    assert sum(kept[:-1]) <= 2000
    assert mine._batches.n_edges <= 2000 + max(kept)
    check(mine, Frames.concatenate(structures.cubic(seed=k) for k in range(30)))  # all of these are in use


def test_lists_without_edges_are_forgotten_too() -> None:
    """Simulations of single molecules that take turns: what each leaves behind must not grow for ever."""
    mine = cache()
    for k in range(600):
        check(mine, Frames.single([[2.0 * k, 0.0, 0.0]], [0]))
        check(mine, Frames.single([[0.0, 2.0 * k, 9.0]], [0]))
    assert [len(known) for known in mine._lists.values()] < [300]


def test_compositions_that_have_gone_are_forgotten() -> None:
    mine = cache(max_edges=0)
    for n in range(1, 9):
        check(mine, Frames.single(np.arange(3 * n).reshape(n, 3), [0] * n))
        with pytest.raises(StructureError):
            mine.find(Frames.single(np.arange(3 * n).reshape(n, 3), [1] * n, 1e-2 * np.eye(3)))
    assert len(mine._lists) <= 2


def test_what_was_used_of_late_is_looked_at_before_what_is_of_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, frame = cache(), structures.cubic()
    ours = structures.moved(frame, np.full(frame.positions.shape, 3.0))
    for k in range(1, 20):  # another simulation of the same atoms moves on, and leaves its lists behind
        mine.find(ours)
        mine.find(structures.moved(frame, np.full(frame.positions.shape, 3.0 + 2.0 * k)))
    assert mine.n_built == 20
    assert [len(known) for known in mine._lists.values()] == [20]
    looks = looks_at(_List, monkeypatch)
    mine.find(ours)
    mine.find(structures.moved(frame, np.full(frame.positions.shape, 41.0)))
    assert mine.n_built == 20
    assert len(looks) <= 4


@pytest.mark.parametrize("cells", ["none", "same", "different", "slabs"])
def test_many_structures_of_the_same_atoms_are_not_all_compared_with_each_other(
    cells: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of molecules in all orientations: none is near enough to another for its list, but for the first atom."""
    mine, n, looks = cache(), 200, looks_at(_List, monkeypatch)
    mine.find(orientations(n, cells))
    assert mine.n_built == n
    assert len(looks) < 3 * n
    looks.clear()
    mine.find(orientations(n, cells))
    assert mine.n_built == n
    assert len(looks) == n
    looks.clear()
    mine.find(orientations(n, cells, seed=7))  # others, that find many lists to be held against
    assert mine.n_built == 2 * n
    assert len(looks) < 5 * n


def orientations(n: int, cells: str, seed: int = 6) -> Frames:
    """Structures of the same atoms, far from each other, whose cells differ by some thousandths if at all."""
    rng = np.random.default_rng(seed)
    atoms = rng.normal(0.0, 2.0, (n, 6, 3))
    atoms[:, 0] = 0.0
    pbc = {"none": (False, False, False), "slabs": (True, True, False)}.get(cells, (True, True, True))
    changes = rng.uniform(-0.01, 0.01, (n, 3, 3)) if cells in ("different", "slabs") else np.zeros((n, 3, 3))
    cell = np.where(np.array(pbc)[:, None], 7.0 * np.eye(3) + changes, 0.0)
    types = np.array([0, 1, 1, 0, 1, 1])
    return Frames.concatenate(Frames.single(x, types, h, pbc) for x, h in zip(atoms, cell, strict=True))


def looks_at(lists: type[Kept[Any]], monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What grows by one whenever a frame is compared with one of these lists."""
    looks: list[object] = []
    compare = lists.compare
    monkeypatch.setattr(lists, "compare", lambda *args: looks.append(args) or compare(*args))
    return looks


def test_beads_of_a_cell_that_changes_are_found_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under constant pressure: each is known at the first look, though its cell and all of its atoms have moved."""
    rng, mine, frame = np.random.default_rng(8), cache(), structures.slab()
    beads = structures.copies(frame, rng.normal(scale=0.8, size=(8, frame.n_atoms, 3)))
    mine.find(beads)
    looks = looks_at(_List, monkeypatch)
    for step in range(1, 6):
        order = rng.permutation(8)
        shuffled = Frames.concatenate(beads[k] for k in order)
        strain = 0.004 * step * np.array([[1, 0.2, 0], [0, -1, 0.3], [0, 0, 0]])
        check(mine, structures.strained(shuffled, strain))
    assert mine.n_built == 8
    assert len(looks) <= 5 * 8 * 2


def test_simulations_of_the_same_atoms_that_take_turns_keep_their_lists() -> None:
    """Two runs of one system, whose steps do not fall together; each list gives its place to its own successor."""
    rng, mine = np.random.default_rng(4), cache()
    runs = [structures.cubic(seed=1), structures.moved(structures.cubic(seed=2), np.full((24, 3), 20.0))]
    for _ in range(30):
        for k, frame in enumerate(runs):
            runs[k] = structures.moved(frame, rng.uniform(-0.05, 0.05, frame.positions.shape))
            check(mine, runs[k])
    assert 2 <= mine.n_built < 20
    assert [len(known) for known in mine._lists.values()] == [2]


def test_a_list_that_has_become_useless_gives_its_place_to_the_next() -> None:
    rng, mine, frame = np.random.default_rng(2), cache(), structures.cubic()
    for _ in range(20):
        frame = structures.moved(frame, rng.uniform(-0.5, 0.5, frame.positions.shape))
        mine.find(frame)
    assert mine.n_built == 20
    assert [len(known) for known in mine._lists.values()] == [1]


def test_absurd_density_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(StructureError, match="check the cell and its units"):
        ListCache(6.0, 1.0, 2).find(structures.strained(structures.cubic(), -0.92 * np.eye(3)))


@pytest.mark.parametrize(("share", "n_made"), [(0.3, 1), (0.8, 2)])
def test_a_list_that_will_soon_be_stale_is_made_anew_with_another_one_of_its_batch(share: float, n_made: int) -> None:
    """Each of them would cost a joining of all."""
    mine, frames = cache(), Frames.concatenate([structures.cubic(), structures.triclinic()])
    mine.find(frames)
    built, (one, other) = mine.n_built, frames.offsets[:-1]
    moved = frames.positions.copy()
    moved[one, 0] += 1.01 * SKIN / 2
    moved[other, 0] += share * SKIN / 2
    check(mine, replace(frames, positions=moved))
    assert mine.n_built == built + n_made
    moved[one, 0] -= 1.01 * SKIN / 2 * 0.5
    check(mine, replace(frames, positions=moved))
    assert mine.n_built == built + n_made


def test_lists_that_still_hold_serve_on_where_there_is_no_memory_for_new_ones() -> None:
    room = [MOST_EDGES]
    frames = Frames.concatenate([structures.cubic(), structures.triclinic(), structures.slab()])
    mine = cache(room=lambda: room.pop() if len(room) > 1 else room[0])
    mine.find(frames)
    moved = frames.positions.copy()
    one, *others = frames.offsets[:-1]
    moved[one, 0] += 1.01 * SKIN / 2
    moved[others, 0] += 0.8 * SKIN / 2
    later = replace(frames, positions=moved)
    room[:] = [0, MOST_EDGES]  # for one list more
    check(mine, later)
    assert mine.n_built == 4
    kept = mine.find(later)
    assert mine.find(later) is kept
    moved[others, 0] += 0.3 * SKIN / 2
    with pytest.raises(MemoryError):  # these cannot be done without
        mine.find(replace(frames, positions=moved))
    room[:] = [MOST_EDGES]
    check(mine, replace(frames, positions=moved))
    assert mine.n_built == 6


def test_structures_that_share_a_list_get_one_each_when_it_is_made_anew() -> None:
    mine, same = cache(), structures.triclinic()
    mine.find(Frames.concatenate([same, same, structures.cubic()]))
    assert mine.n_built == 2
    frames = Frames.concatenate([same, same, structures.cubic()])
    moved = frames.positions.copy()
    one, two, three = frames.offsets[:-1]
    moved[[one, two], 0] += np.array([0.9, -0.9]) * SKIN / 2
    moved[three, 0] += 1.1 * SKIN / 2
    check(mine, replace(frames, positions=moved))
    assert mine.n_built == 5
    check(mine, replace(frames, positions=moved))
    assert mine.n_built == 5
    assert sorted(len(known) for known in mine._lists.values()) == [1, 2]
