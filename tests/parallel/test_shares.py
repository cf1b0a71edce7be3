"""Shares of a batch, on the wire and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dpserver.frames import Frames
from dpserver.parallel.cuts import Cuts
from dpserver.parallel.packing import Contents, pack, packed_size, unpack
from dpserver.parallel.shares import Form, Layout, Piece
from tests import structures
from tests.ranks import Springs

BATCH = Frames.concatenate([structures.water((4, 3, 3)), structures.slab(), structures.cubic(), structures.wire()])


def layout(batch: Frames, *ranks: tuple[int, ...], n_ranks: int = 3, has_wholes: bool = False) -> Layout:
    cut = [k for k, mine in enumerate(ranks) if len(mine) > 1]
    found = Cuts(3.0, 1.0).find([batch[k] for k in cut], [len(ranks[k]) for k in cut])
    return Layout.build(7, batch, ranks, dict(zip(cut, found, strict=True)), n_ranks, has_wholes=has_wholes)


def local(made: Layout, batch: Frames, rank: int) -> Frames:
    share = made.shares[rank]
    assert share is not None
    numbers = np.empty(share.form.n_numbers)
    made.write(batch, rank, numbers)
    return Form.decode(share.form.encode()).frames(numbers)


def test_consecutive_frames_are_one_piece():
    made = layout(BATCH, (0,), (1,), (1,), (0,))
    assert made.shares[0].pieces == (Piece(0, 1), Piece(3, 4))
    assert made.shares[1].pieces == (Piece(1, 3),)
    assert made.shares[2] is None


def test_parts_know_what_they_are_parts_of_where_that_is_asked_for():
    batch = Frames.concatenate([BATCH[2], BATCH[0], BATCH[2], BATCH[0]])
    made = layout(batch, (0,), (0, 2), (1,), (0, 2), has_wholes=True)
    assert made.shares[1].form.wholes is None
    for rank in (0, 2):
        form = Form.decode(made.shares[rank].form.encode())
        assert form.wholes.ranks == (0, 2)
        numbers = np.empty(form.n_numbers)
        made.write(batch, rank, numbers)
        found = form.frames(numbers, parts=form)
        n = BATCH[0].n_atoms
        counts, cells = ([0, n, n], [2, 0, 0]) if rank == 0 else ([n, n], [0, 0])
        assert found.wholes.counts.tolist() == counts
        assert found.wholes.parts is form
        for k, frame in enumerate(cells):
            np.testing.assert_array_equal(found.wholes.cell[k], BATCH.cell[frame])
            assert found.wholes.pbc[k].all()
            np.testing.assert_array_equal(found.cell[k], BATCH.cell[2] if counts[k] == 0 else np.zeros((3, 3)))
            assert found.pbc[k].all() == (counts[k] == 0)
        part = made.cuts[1].local(batch[1], rank // 2)
        np.testing.assert_array_equal(found.part(counts.index(n), counts.index(n) + 1).positions, part.positions)
        assert form.frames(numbers).wholes is None


def test_whole_frames_arrive_as_they_are():
    found = local(layout(BATCH, (0,), (1,), (1,), (0,)), BATCH, 1)
    expected = BATCH.part(1, 3)
    for name in ("positions", "types", "cell", "pbc", "frame_idx"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.is_ghost is None


def test_a_part_is_open_and_has_ghosts_and_parameters():
    rng = np.random.default_rng(0)
    batch = replace(BATCH, fparam=rng.normal(size=(4, 2)), aparam=rng.normal(size=(BATCH.n_atoms, 3)))
    made = layout(batch, (0, 1), (1,), (2,), (2,))
    found = local(made, batch, 1)
    part = made.cuts[0].parts[1]
    assert found.pbc.tolist() == [[False] * 3, batch.pbc[1].tolist()]
    assert found.is_ghost.sum() == part.n_ghosts
    np.testing.assert_array_equal(found.positions[: part.n_atoms], made.cuts[0].local(batch[0], 1).positions)
    np.testing.assert_array_equal(found.fparam, batch.fparam[:2])
    np.testing.assert_array_equal(found.aparam[: part.n_atoms], batch.aparam[part.index])


@pytest.mark.parametrize("n_members", [0, 2])
@pytest.mark.parametrize("ranks", [((0,), (1,), (1,), (0,)), ((0, 1, 2), (1,), (2, 0), (2, 1, 0))])
def test_answers_add_up(ranks, n_members):
    model = Springs(n_members=n_members)
    made = layout(BATCH, *ranks)
    results = []
    for rank, share in enumerate(made.shares):
        if share is None:
            results.append(None)
            continue
        contents = Contents(n_members)
        numbers = np.empty(packed_size(share.form, contents))
        pack(model.evaluate(local(made, BATCH, rank)), numbers)
        results.append(unpack(numbers, share.form, contents))
    found, expected = made.collect(BATCH, results), model.evaluate(BATCH)
    for name in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-12)
    np.testing.assert_array_equal(found.frame_idx, expected.frame_idx)
    if n_members:
        np.testing.assert_allclose(found.committee.forces, expected.committee.forces, atol=1e-12)
        np.testing.assert_allclose(found.committee.virial, expected.committee.virial, atol=1e-12)
        np.testing.assert_allclose(found.committee.energy, expected.committee.energy, atol=1e-12)


def test_more_parts_than_atoms():
    batch = Frames.single([[0.0, 0, 0], [0, 0, 1.5]], [0, 1])
    made = layout(batch, tuple(range(5)), n_ranks=5)
    assert sum(share is not None for share in made.shares) == 2
