"""Neighbour lists against ASE's."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpserver import neighbors
from dpserver.errors import StructureError
from dpserver.frames import Floats, Frames
from dpserver.neighbors import lists
from tests import structures


def table(i: np.ndarray, j: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Edges as sorted rows (i, j, S)."""
    rows = np.column_stack([i, j, np.rint(shift)]).astype(np.int64).reshape(-1, 5)
    return rows[np.lexsort(rows.T[::-1])]


def by_ase(frame: Frames, rcut: float, quantities: str = "ijS") -> tuple[np.ndarray, ...]:
    """ASE's answer; it gets open directions as long vectors at right angles to the rest (zeros lead it astray)."""
    pbc, cell = frame.pbc[0], frame.cell[0].copy()
    open_directions = np.linalg.svd(cell[pbc])[2][int(pbc.sum()) :]
    cell[~pbc] = open_directions * (np.ptp(frame.positions, axis=0).max() + 2 * rcut)
    found: tuple[np.ndarray, ...] = primitive_neighbor_list(quantities, pbc, cell, frame.positions, rcut)
    return found


def check(frames: Frames, rcut: float) -> int:
    """Compare every frame; return the number of edges."""
    edges = neighbors.build(frames, rcut)
    frame_of_edge = frames.frame_idx[edges.centre]
    np.testing.assert_array_equal(frames.frame_idx[edges.neighbour], frame_of_edge)
    assert np.all(np.diff(frame_of_edge) >= 0)
    for k, frame in enumerate(frames):
        mine, first = frame_of_edge == k, frames.offsets[k]
        found = table(edges.centre[mine] - first, edges.neighbour[mine] - first, edges.shift[mine])
        np.testing.assert_array_equal(found, table(*by_ase(frame, rcut)))
    vectors = frames.positions[edges.neighbour] - frames.positions[edges.centre]
    vectors = vectors + np.einsum("es,esd->ed", edges.shift, frames.cell[frame_of_edge])
    np.testing.assert_allclose(edges.distance, np.linalg.norm(vectors, axis=1), rtol=1e-12, atol=1e-12)
    assert np.all(edges.distance < rcut)
    assert (edges.centre.dtype, edges.neighbour.dtype, edges.shift.dtype) == (np.int64, np.int64, np.float64)
    return len(edges)


CASES = {
    "cubic": structures.cubic(),
    "triclinic": structures.triclinic(),
    "slab": structures.slab(),
    "slab with a vacuum vector": structures.water((2, 2, 1), structures.SHEAR),
    "wire": structures.wire(),
    "cluster": structures.cluster(),
    "tiny": structures.tiny(),
    "molecule": structures.molecule(),
    "atom": structures.atom(),
    "atom in a cell": Frames.single([[9.0, -7.0, 1.0]], [0], np.eye(3) * 1.9),
    "left-handed": Frames.single(structures.cubic().positions, structures.cubic().types, -structures.cubic().cell[0]),
    "rotated": structures.strained(structures.triclinic(), structures.rotation(np.random.default_rng(3)) - np.eye(3)),
}
object.__setattr__(CASES["slab with a vacuum vector"], "pbc", np.array([[True, False, True]]))


@pytest.mark.parametrize("rcut", [0.5, 3.0, 6.0])
@pytest.mark.parametrize("name", CASES)
def test_same_edges_as_ase(name: str, rcut: float) -> None:
    check(CASES[name], rcut)


@pytest.mark.parametrize("name", CASES)
def test_atoms_many_cells_away(name: str) -> None:
    frame = CASES[name]
    far = structures.wrapped(frame, np.random.default_rng(5), far=50)
    assert check(far, 4.0) == check(frame, 4.0)


def test_batch_is_the_frames_one_after_the_other() -> None:
    batch = Frames.concatenate(CASES.values())
    assert check(batch, 4.0) == sum(check(frame, 4.0) for frame in CASES.values())


def test_no_edges() -> None:
    edges = neighbors.build(structures.atom(), 6.0)
    assert len(edges) == 0
    assert edges.shift.shape == (0, 3)
    assert edges.distance.shape == (0,)


@pytest.fixture
def no_vesin(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(lists, "_vesin", lambda: None)


@pytest.mark.usefixtures("no_vesin")
@pytest.mark.parametrize("rcut", [0.5, 4.0])
def test_same_edges_without_vesin(rcut: float) -> None:
    assert neighbors.builder() == "dpserver.neighbors.rows"
    batch = Frames.concatenate(CASES.values())
    check(batch, rcut)
    check(structures.wrapped(batch, np.random.default_rng(5), far=50), rcut)


def test_what_is_missing_is_named_where_it_is_needed() -> None:
    """In a process of its own, where neither library can be imported."""
    code = """
import sys
sys.modules["vesin"] = sys.modules["numba"] = None
import numpy as np
from dataclasses import replace
from dpserver import neighbors
from dpserver.errors import ConfigError
from dpserver.frames import Frames
frame = Frames.single([[0, 0, 0]], [0])
for one in (frame, replace(frame, is_ghost=np.zeros(1, bool))):
    try:
        neighbors.build(one, 6.0)
    except ConfigError as error:
        print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert re.fullmatch(r"neighbour lists need vesin or numba \(.*\bnumba\b.*\): pip install vesin", found[0])
    assert re.fullmatch(r"neighbour lists with ghosts need numba \(.*\bnumba\b.*\): pip install numba", found[1])


def test_every_edge_has_its_reverse() -> None:
    for frame in CASES.values():
        edges = neighbors.build(frame, 5.0)
        reverse = table(edges.neighbour, edges.centre, -edges.shift)
        np.testing.assert_array_equal(table(edges.centre, edges.neighbour, edges.shift), reverse)


@st.composite
def any_frame(draw: st.DrawFn) -> Frames:
    """A few atoms in a cell of any shape that is not flat, anywhere in space."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    lengths = np.array(draw(st.tuples(*[st.floats(1.0, 12.0)] * 3)))
    cell: Floats = (np.eye(3) + draw(st.floats(0, 0.6)) * rng.uniform(-1, 1, (3, 3))) * lengths[:, None]
    assume(abs(np.linalg.det(cell / lengths[:, None])) > 0.2)
    cell = cell @ structures.rotation(rng)
    if draw(st.booleans()):
        cell = np.where(np.array(pbc)[:, None], cell, 0.0)
    positions = rng.uniform(-15, 15, (draw(st.integers(1, 12)), 3)) * draw(st.floats(0.1, 1.0))
    return Frames.single(positions, np.zeros(len(positions), dtype=int), cell, pbc)


@settings(max_examples=100, deadline=None)
@given(frame=any_frame(), rcut=st.floats(0.5, 6.0))
def test_same_edges_as_ase_for_any_frame(frame: Frames, rcut: float) -> None:
    *_, distances = by_ase(frame, rcut + 0.1, "ijSd")
    assume(not np.any(np.abs(distances - rcut) < 1e-9))  # either answer would be right
    assume(not np.any(distances < 0.06))
    check(frame, rcut)


def test_ghosts_are_neighbours_and_no_centres() -> None:
    batch = Frames.concatenate(CASES.values())
    is_ghost = np.random.default_rng(0).random(batch.n_atoms) < 0.4
    edges, of_all = neighbors.build(replace(batch, is_ghost=is_ghost), 4.0), neighbors.build(batch, 4.0)
    mine = ~is_ghost[of_all.centre]
    expected = table(of_all.centre[mine], of_all.neighbour[mine], of_all.shift[mine])
    np.testing.assert_array_equal(table(edges.centre, edges.neighbour, edges.shift), expected)
    np.testing.assert_allclose(np.sort(edges.distance), np.sort(of_all.distance[mine]), rtol=1e-12)
    assert (edges.centre.dtype, edges.neighbour.dtype, edges.shift.dtype) == (np.int64, np.int64, np.float64)


def test_no_centres_no_edges() -> None:
    batch = Frames.concatenate([structures.cubic(), structures.molecule()])
    edges = neighbors.build(replace(batch, is_ghost=batch.frame_idx == 0), 4.0)
    assert len(edges) == 6
    assert edges.centre.min() == 24


# --- refusals --------------------------------------------------------------------------------------------------------


def test_overlapping_atoms_are_named() -> None:
    frame = structures.cubic()
    positions = frame.positions.copy()
    positions[7] = positions[3] + frame.cell[0, 1] - 0.01
    with pytest.raises(StructureError, match=r"atoms (3 and 7|7 and 3) are 0\.017 Å apart.*overlap"):
        neighbors.build(Frames.single(positions, frame.types, frame.cell[0]), 4.0)


def test_absurd_density_is_refused_before_it_fills_the_memory() -> None:
    frame = structures.cubic()
    message = r"24 atoms in .* Å³ give about \d+ neighbours an atom within 6 Å.*check the cell and its units"
    with pytest.raises(StructureError, match=message):
        neighbors.build(structures.strained(frame, -0.92 * np.eye(3)), 6.0)


@pytest.mark.parametrize(("make", "unit"), [(structures.slab, "Å²"), (structures.wire, "Å")])
def test_so_is_an_absurd_cell_with_open_directions(make, unit) -> None:
    frame = make()
    tiny = Frames.single(frame.positions, frame.types, 1e-5 * frame.cell[0], frame.pbc[0].tolist())
    with pytest.raises(StructureError, match=rf"atoms in .* {unit} give about \d+ neighbours an atom within 6 Å"):
        neighbors.build(tiny, 6.0)
