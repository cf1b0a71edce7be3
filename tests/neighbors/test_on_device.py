"""Lists that torch makes on a device, here on CPU tensors, against those of the host."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dpserver import neighbors
from dpserver.frames import Frames
from dpserver.neighbors import on_device
from dpserver.neighbors.nvalchemi import Library
from dpserver.neighbors.on_device import DeviceRows, build_on_device
from dpserver.neighbors.rows import build_rows
from tests import structures
from tests.neighbors.test_lists import CASES, any_frame, table

CPU = torch.device("cpu")


def edges_of(rows: Any, n_atoms: int, starts: np.ndarray) -> np.ndarray:
    """Sorted i, j and shift from the atoms as they come."""
    centre = np.repeat(np.arange(n_atoms), np.diff(starts[::2]))
    neighbour, shift, wraps, shifts = (np.asarray(getattr(rows, name)) for name in NAMES)
    return table(centre, neighbour, shifts[shift] - wraps[neighbour] + wraps[centre])


NAMES = ("neighbour", "shift", "wraps", "shifts")


def check(frames: Frames, reach: float) -> int:
    """Compare each frame's list with the host's; return the number of edges."""
    found = build_on_device(frames, reach, 2, CPU)
    for frame, rows in zip(frames, found, strict=True):
        expected = build_rows(frame, reach, 2)
        starts = np.append(rows.starts.numpy(), rows.n_edges)
        np.testing.assert_array_equal(starts, expected.starts)
        incoming_starts = np.append(rows.incoming_starts.numpy(), rows.n_edges)
        np.testing.assert_array_equal(incoming_starts, expected.incoming_starts)
        np.testing.assert_array_equal(
            edges_of(rows, frame.n_atoms, starts), edges_of(expected, frame.n_atoms, expected.starts)
        )
        species = np.repeat(np.arange(2 * frame.n_atoms), np.diff(starts)) % 2
        np.testing.assert_array_equal(frame.types[rows.neighbour.numpy()], species)
        ends_at = np.repeat(np.arange(frame.n_atoms), np.diff(incoming_starts))
        np.testing.assert_array_equal(rows.neighbour.numpy()[rows.incoming.numpy()], ends_at)
        np.testing.assert_array_equal(np.sort(rows.incoming.numpy()), np.arange(rows.n_edges))
        assert {rows.neighbour.dtype, rows.shift.dtype, rows.incoming.dtype} == {torch.int32}
    return sum(rows.n_edges for rows in found)


def all_cases() -> Frames:
    return Frames.concatenate(CASES.values())


@pytest.mark.parametrize("reach", [0.5, 3.0, 6.0])
def test_same_edges_as_on_the_host(reach: float) -> None:
    """All kinds of cells in one batch."""
    check(all_cases(), reach)


def test_atoms_many_cells_away() -> None:
    rng = np.random.default_rng(5)
    far = Frames.concatenate(structures.wrapped(case, rng, far=50) for case in CASES.values())
    assert check(far, 4.0) == check(all_cases(), 4.0)


def test_a_large_frame_and_a_dense_one() -> None:
    assert check(structures.water((7, 6, 5)), 3.0) > 5000
    assert check(structures.tiny(), 13.0) > 64 * 3 * 2


@pytest.mark.parametrize("chunk", [1, 50, 5000])
def test_candidates_in_pieces(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = check(all_cases(), 4.0)
    monkeypatch.setattr(on_device, "_CHUNK", chunk)
    assert check(all_cases(), 4.0) == whole


@pytest.mark.parametrize("around", [1, 300])
def test_bins_in_pieces(around: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_on_device(all_cases(), 4.0, 2, CPU)
    monkeypatch.setattr(on_device, "_AROUND", around)
    assert_equal(build_on_device(all_cases(), 4.0, 2, CPU), whole)


@settings(max_examples=60, deadline=None)
@given(frame=any_frame(), other=any_frame(), reach=st.floats(0.5, 6.0))
def test_same_edges_for_any_frames(frame: Frames, other: Frames, reach: float) -> None:
    assume(all(_is_clear(f, reach) for f in (frame, other)))
    check(Frames.concatenate([frame, other]), reach)


@settings(max_examples=40, deadline=None)
@given(frame=any_frame(), reach=st.floats(0.5, 6.0), seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_ghosts_have_no_edges_of_their_own(frame: Frames, reach: float, seed: int, share: float) -> None:
    assume(_is_clear(frame, reach))
    is_ghost = np.random.default_rng(seed).random(frame.n_atoms) < share
    check(replace(frame, is_ghost=is_ghost), reach)


def test_atoms_without_neighbours() -> None:
    assert check(Frames.concatenate([structures.atom(0), structures.molecule(), structures.atom(1)]), 0.05) == 0


def test_the_same_list_again_to_the_last_entry() -> None:
    assert_equal(*(build_on_device(all_cases(), 5.0, 2, CPU) for _ in range(2)))


def assert_equal(one: list[DeviceRows], other: list[DeviceRows]) -> None:
    for a, b in zip(one, other, strict=True):
        for name in DeviceRows.__dataclass_fields__:
            assert torch.equal(getattr(a, name), getattr(b, name))


def test_more_edges_than_a_list_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "MOST_EDGES", 100)
    with pytest.raises(MemoryError, match=r"24 atoms have \d+ pairs, more than the 100 that a neighbour list can"):
        build_on_device(structures.cubic(), 4.0, 2, CPU)


class Overflow(Exception):
    """What the library raises where there is no room for a list."""


def stand_in(frames: Frames, has_room: bool = True) -> ModuleType:
    """A library that answers as nvalchemi-toolkit-ops does: directed pairs, integer shifts of atoms as they come.

    The pairs come in another order each time.
    """
    rng = np.random.default_rng(0)

    def neighbor_list(positions: torch.Tensor, cutoff: float, **options: Any) -> tuple[torch.Tensor, ...]:
        if not has_room:
            raise Overflow
        assert options["pbc"].all()
        cell, pbc, frame_idx = (options[name].numpy() for name in ("cell", "pbc", "batch_idx"))
        np.testing.assert_array_equal(options["batch_ptr"], frames.offsets)
        edges = neighbors.build(Frames(positions.numpy(), frames.types, cell, pbc, frame_idx), cutoff)
        assert np.bincount(edges.centre).max() <= options["max_neighbors"]
        order = rng.permutation(len(edges))
        pairs = torch.from_numpy(np.stack([edges.centre, edges.neighbour])[:, order]).int()
        return pairs, torch.zeros(0), torch.from_numpy(edges.shift[order]).int()

    package = ModuleType("nvalchemiops.torch.neighbors")
    package.neighbor_list = neighbor_list  # type: ignore[attr-defined]
    package.NeighborOverflowError = Overflow  # type: ignore[attr-defined]
    return package


def periodic() -> Frames:
    rng = np.random.default_rng(5)
    cases = [structures.cubic(), structures.triclinic(), structures.tiny()]
    return Frames.concatenate(structures.wrapped(frame, rng, far=3) for frame in cases)


def install(package: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a library asked, on the CPU too."""
    for name in ("nvalchemiops", "nvalchemiops.torch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "nvalchemiops.torch.neighbors", package)  # type: ignore[arg-type]
    monkeypatch.setattr(on_device, "_library", Library())
    monkeypatch.setattr(on_device, "uses_nvalchemi", lambda *_: True)


@pytest.mark.parametrize("has_room", [True, False])
def test_lists_of_a_library_mean_the_same(
    has_room: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(stand_in(periodic(), has_room), monkeypatch)
    assert check(periodic(), 4.0) > 0
    assert not caplog.records


def test_lists_of_a_library_are_the_same_again_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    install(stand_in(periodic()), monkeypatch)
    assert_equal(*(build_on_device(periodic(), 4.0, 2, CPU) for _ in range(2)))


def changed(change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]) -> Any:
    """A library whose pairs and shifts are changed before they are given back."""
    find = stand_in(periodic()).neighbor_list

    def neighbor_list(positions: torch.Tensor, cutoff: float, **options: Any) -> tuple[torch.Tensor, ...]:
        pairs, _, shifts = find(positions, cutoff, **options)
        return change(pairs, shifts)

    return neighbor_list


def other_arguments(positions: torch.Tensor, cutoff: float) -> None:
    """As of another version."""


def failing(*_: Any, **__: Any) -> None:
    raise RuntimeError("no kernel image is available")


NOTHING = torch.zeros(0)
BROKEN: dict[str, tuple[Any, str]] = {
    "no such module": (None, "ModuleNotFoundError: import of"),
    "no such function": (ModuleType("nvalchemiops.torch.neighbors"), "ImportError: cannot import name"),
    "other arguments": (other_arguments, "TypeError: other_arguments"),
    "a failure": (failing, "RuntimeError: no kernel image is available"),
    "two tensors": (changed(lambda p, s: (p, s)), "ValueError: not enough values"),
    "a matrix": (changed(lambda p, s: (p.T, NOTHING, s)), r"ValueError: a list must have pairs \(2, n\)"),
    "no tensors": (lambda *_, **__: (1, 2, 3), "AttributeError: 'int' object"),
    "each pair once": (changed(lambda p, s: (p[:, p[0] < p[1]], NOTHING, s[p[0] < p[1]])), "ValueError: .* other pair"),
    "shifts of the first": (changed(lambda p, s: (p, NOTHING, -s)), "ValueError: .* pairs of different structures"),
    "other atoms": (changed(lambda p, s: (p + 1, NOTHING, s)), "ValueError: .* has others in it"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_torch_stands_in_for_a_library_that_fails(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, message = BROKEN[name]
    package = broken
    if callable(broken):
        package = stand_in(periodic())
        package.neighbor_list = broken  # type: ignore[attr-defined]
    install(package, monkeypatch)
    with caplog.at_level("WARNING"):
        assert check(periodic(), 4.0) == check(periodic(), 4.0)
    assert len(caplog.records) == 1
    assert re.search(rf"nvalchemi-toolkit-ops cannot be used \({message}", caplog.text)
    assert not on_device._library.is_there()


def test_a_library_that_fails_later(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    package = stand_in(periodic())
    install(package, monkeypatch)
    n = check(periodic(), 4.0)
    package.neighbor_list = failing  # type: ignore[attr-defined]
    assert check(periodic(), 4.0) == n
    assert len(caplog.records) == 1


def test_a_full_device_is_no_failure_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("full")

    package = stand_in(periodic())
    find, package.neighbor_list = package.neighbor_list, full  # type: ignore[attr-defined]
    install(package, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        check(periodic(), 4.0)
    package.neighbor_list = find  # type: ignore[attr-defined]
    assert check(periodic(), 4.0) > 0
    assert not on_device._library._has_failed


def _is_clear(frame: Frames, reach: float) -> bool:
    """Whether no two atoms overlap, and no distance is so near the reach that either answer would be right."""
    if build_rows(frame, 0.06, 1).n_edges:
        return False
    return not np.any(np.abs(neighbors.build(frame, reach + 0.1).distance - reach) < 1e-9)
