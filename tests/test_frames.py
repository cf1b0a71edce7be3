"""Batches: making, joining, taking apart, and what `check` refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpserver.errors import StructureError
from dpserver.frames import CommitteeResult, ForceResult, Frames
from tests import structures


def same(a: Frames, b: Frames) -> bool:
    names = ("positions", "types", "cell", "pbc", "frame_idx")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


# --- making ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "pbc", "expected"),
    [
        (None, None, [False] * 3),
        (np.zeros((3, 3)), None, [False] * 3),
        (np.eye(3) * 5, None, [True] * 3),
        (np.eye(3) * 5, False, [False] * 3),
        (np.diag([5.0, 5.0, 0.0]), (True, True, False), [True, True, False]),
    ],
)
def test_single(cell: Any, pbc: Any, expected: list[bool]) -> None:
    frame = Frames.single([[0, 0, 0], [1, 1, 1]], [0, 1], cell, pbc)
    assert (frame.n_atoms, frame.n_frames) == (2, 1)
    np.testing.assert_array_equal(frame.pbc, [expected])
    np.testing.assert_array_equal(frame.cell, [np.zeros((3, 3)) if cell is None else cell])
    assert (frame.positions.dtype, frame.types.dtype, frame.pbc.dtype) == (np.float64, np.int64, np.bool_)
    frame.check(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0, 0]], [0]), r"positions must have shape \(n_atoms, 3\), got \(1, 2\)"),
        (([0, 0, 0], [0]), r"positions must have shape \(n_atoms, 3\), got \(3,\)"),
        (([[0, 0, 0]], [0, 1]), r"types must have shape \(1,\) to match the positions, got \(2,\)"),
        (([[0, 0, 0]], [0], [1, 1, 1]), r"cell must have shape \(3, 3\), got \(3,\)"),
    ],
)
def test_single_refuses_wrong_shapes(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(StructureError, match=message):
        Frames.single(*arguments)


@pytest.mark.parametrize("types", [["O", "H"], ["0", "1"], [0.5, 1.0], [np.nan, 0.0], [None, 0], np.array(["O", "H"])])
def test_single_refuses_types_that_are_no_indices(types: Any) -> None:
    with pytest.raises(StructureError, match="types must be indices into the model's species, such as 0 for the first"):
        Frames.single([[0, 0, 0], [1, 1, 1]], types)


def test_single_refuses_ragged_types() -> None:
    with pytest.raises(StructureError, match="types must be one list of numbers"):
        Frames.single([[0, 0, 0], [1, 1, 1]], [[0], [0, 1]])


def test_single_takes_whole_numbers_of_any_kind() -> None:
    for types in ([0, 1], [0.0, 1.0], np.array([0, 1], dtype=np.uint8)):
        np.testing.assert_array_equal(Frames.single([[0, 0, 0], [1, 1, 1]], types).types, [0, 1])


# --- joining and taking apart ----------------------------------------------------------------------------------------

KINDS = (structures.cubic, structures.slab, structures.cluster, structures.molecule, structures.atom)


@given(st.lists(st.sampled_from(KINDS), max_size=6))
def test_concatenate_and_iterate_are_inverse(kinds: list[Any]) -> None:
    parts = [make() for make in kinds]
    batch = Frames.concatenate(parts)
    assert (batch.n_frames, batch.n_atoms) == (len(parts), sum(p.n_atoms for p in parts))
    np.testing.assert_array_equal(batch.counts, [p.n_atoms for p in parts])
    np.testing.assert_array_equal(batch.offsets, np.cumsum([0, *(p.n_atoms for p in parts)]))
    assert batch.frame_idx.dtype == np.int64
    assert batch.counts.dtype == np.int64
    assert all(same(a, b) for a, b in zip(batch, parts, strict=True))


def test_concatenate_batches_of_several_frames() -> None:
    a = Frames.concatenate([structures.cubic(), structures.atom()])
    b = Frames.concatenate([structures.cluster(), structures.slab()])
    joined = Frames.concatenate([a, b])
    assert same(joined, Frames.concatenate([*a, *b]))
    joined.positions[0] = 7.0
    assert not np.any(a.positions[0] == 7.0)


def test_a_frame_is_a_view() -> None:
    batch = Frames.concatenate([structures.atom(), structures.molecule()])
    assert np.shares_memory(batch[1].positions, batch.positions)


@pytest.mark.parametrize("frame", [-1, 2])
def test_frame_out_of_range(frame: int) -> None:
    batch = Frames.concatenate([structures.atom(), structures.molecule()])
    with pytest.raises(IndexError, match=f"frame {frame} of a batch of 2"):
        batch[frame]


# --- what no model can answer ----------------------------------------------------------------------------------------


def changed(**arrays: Any) -> Frames:
    return replace(structures.cubic(), **arrays)


def positions(value: float) -> np.ndarray:
    x = structures.cubic().positions.copy()
    x[5, 1] = x[9, 0] = value
    return x


SINGULAR = np.array([[[6.0, 0, 0], [0, 6.0, 0], [6.0, 6.0, 0]]])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (changed(positions=positions(np.nan)), r"position of atom 5 is not finite .*2 of 24 atoms.*blown up"),
        (changed(positions=positions(np.inf)), r"position of atom 5 is not finite"),
        (changed(cell=np.full((1, 3, 3), np.nan)), r"lattice vector is not finite.*barostat"),
        (changed(fparam=np.array([[1.0, np.nan]])), r"fparam of frame 0: expected finite numbers, got \[ 1\. nan\]"),
        (changed(aparam=np.repeat([[0.0], [np.inf]], [7, 17], axis=0)), "aparam of atom 7: expected finite"),
        (changed(types=np.full(24, 2)), r"atom 0 has type 2; the model knows 0 to 1"),
        (changed(types=np.full(24, -1)), r"atom 0 has type -1"),
        (changed(cell=SINGULAR), r"the cell is singular.*send zeros for an open system"),
        (changed(cell=np.zeros((1, 3, 3))), r"the cell is singular"),
        (changed(cell=np.diag([6.0, 6.0, 0.0])[None]), r"the cell is singular"),
        (Frames.single(np.zeros((0, 3)), []), r"frame 0 has no atoms"),
    ],
)
def test_check_refuses(frames: Frames, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        frames.check(2)


def test_check_finds_the_bad_frame_of_a_batch() -> None:
    with pytest.raises(StructureError, match="frame 1 has no atoms"):
        Frames.concatenate([structures.cubic(), Frames.single(np.zeros((0, 3)), []), structures.atom()]).check(2)
    with pytest.raises(StructureError, match="singular"):
        Frames.concatenate([structures.cubic(), changed(cell=SINGULAR)]).check(2)


def test_check_accepts_every_kind_of_cell() -> None:
    kinds = (structures.cubic, structures.triclinic, structures.slab, structures.wire, structures.cluster)
    Frames.concatenate([*(make() for make in kinds), structures.tiny(), structures.atom(1)]).check(2)
    changed(cell=SINGULAR, pbc=np.array([[True, True, False]])).check(2)


# --- results ---------------------------------------------------------------------------------------------------------


def result() -> ForceResult:
    rng, frame_idx = np.random.default_rng(1), np.array([0, 0, 1, 2, 2, 2])
    return ForceResult(
        rng.normal(size=3), rng.normal(size=(6, 3)), rng.normal(size=(3, 3, 3)), rng.normal(size=6), frame_idx
    )


def test_result_of_one_frame() -> None:
    whole = result()
    one = whole[2]
    np.testing.assert_array_equal(one.energy, whole.energy[2:])
    np.testing.assert_array_equal(one.forces, whole.forces[3:])
    np.testing.assert_array_equal(one.virial, whole.virial[2:])
    np.testing.assert_array_equal(one.atom_energy, whole.atom_energy[3:])
    np.testing.assert_array_equal(one.frame_idx, [0, 0, 0])


@pytest.mark.parametrize(
    ("name", "index", "frame"), [("energy", 1, 1), ("forces", (4, 2), 2), ("virial", (0, 1, 1), 0)]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_is_finite_names_the_frame(name: str, index: Any, frame: int, value: float) -> None:
    whole = result()
    assert whole.is_finite().all()
    getattr(whole, name)[index] = value
    np.testing.assert_array_equal(whole.is_finite(), np.arange(3) != frame)


@pytest.mark.parametrize("size", [1e-200, 1e-3, 1.0, 1e200])
def test_whether_a_cell_is_singular_does_not_depend_on_its_size(size: float) -> None:
    good, bad = np.diag([1.0, 2.0, 3.0]), np.array([[1.0, 0, 0], [0, 2.0, 0], [3.0, 4.0, 1e-9]])
    frames = Frames.concatenate(Frames.single(np.zeros((1, 3)), [0], size * cell) for cell in (good, good))
    frames.check(1)
    with pytest.raises(StructureError, match="singular"):
        replace(frames, cell=size * np.stack([good, bad])).check(1)


# --- committees ------------------------------------------------------------------------------------------------------


def with_committee(n_members: int = 3) -> ForceResult:
    rng, whole = np.random.default_rng(2), result()
    shapes = (whole.energy.shape, whole.forces.shape, whole.virial.shape)
    members = CommitteeResult(*(rng.normal(size=(n_members, *shape)) for shape in shapes))
    return replace(whole, committee=members)


def test_members_go_with_their_frames() -> None:
    whole = with_committee()
    one, rest = whole[0], whole.part(slice(1, 3))
    assert whole.committee is not None
    assert one.committee is not None
    assert rest.committee is not None
    assert one.committee.n_members == 3
    np.testing.assert_array_equal(one.committee.energy, whole.committee.energy[:, :1])
    np.testing.assert_array_equal(one.committee.forces, whole.committee.forces[:, :2])
    np.testing.assert_array_equal(one.committee.virial, whole.committee.virial[:, :1])
    np.testing.assert_array_equal(rest.forces, whole.forces[2:])
    np.testing.assert_array_equal(rest.frame_idx, [0, 1, 1, 1])
    np.testing.assert_array_equal(rest.committee.forces, whole.committee.forces[:, 2:])
    np.testing.assert_array_equal(rest[1].max_force_deviation(), whole.max_force_deviation()[2:])


def test_force_deviation_is_that_of_model_devi() -> None:
    """sqrt(⟨|F - ⟨F⟩|²⟩) of every atom, the largest of every frame, loop by loop."""
    whole = with_committee()
    members = whole.committee
    assert members is not None
    expected = np.zeros(3)
    for atom, frame in enumerate(whole.frame_idx):
        mean = sum(members.forces[m, atom] for m in range(3)) / 3
        square = sum(np.linalg.norm(members.forces[m, atom] - mean) ** 2 for m in range(3)) / 3
        np.testing.assert_allclose(members.force_deviation()[atom], np.sqrt(square), rtol=1e-14)
        expected[frame] = max(expected[frame], np.sqrt(square))
    np.testing.assert_allclose(whole.max_force_deviation(), expected, rtol=1e-14)
    np.testing.assert_array_equal(result().max_force_deviation(), 0.0)
