"""Parts of structures: who owns and sees what; and answers that sum to those of the whole."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dpserver import neighbors
from dpserver.engine import ForceModel
from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Floats, ForceResult, Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.neighbors.grid import Grid
from dpserver.parallel.domain import Decomposition, estimated_work
from tests import structures
from tests.models import committees
from tests.models.test_loc_frame import WATER_RULE
from tests.models.test_loc_frame import make as make_loc_frame
from tests.models.test_se_e2_a import model_with_sel
from tests.models.test_se_e2_r import make as make_radial

RCUT, SKIN = 4.0, 0.8
MODEL = committees.member(3, RCUT)
FAST = deepcopy(MODEL)
FAST.accelerate(1, 1e-12)


def droplet(n: int = 4, seed: int = 0) -> Frames:
    """A ball of water in an open box, and one molecule far from it."""
    frame = structures.water((n, n, n), None, (False, False, False), seed)
    centre = frame.positions.mean(axis=0)
    molecules = np.linalg.norm(frame.positions[::3] - centre, axis=1) < structures.SPACING * n / 2
    keep = np.repeat(molecules, 3)
    positions = np.concatenate([frame.positions[keep], frame.positions[:3] + 25.0])
    return Frames.single(positions, np.append(frame.types[keep], [0, 1, 1]))


def with_vacuum(seed: int = 0) -> Frames:
    """A slab across the face of a cell that is periodic in all directions, most of it empty."""
    frame = structures.water((2, 2, 2), structures.SHEAR, seed=seed)
    cell = frame.cell[0] * [[1.0], [1.0], [4.0]]
    return Frames.single(frame.positions - 0.4 * frame.cell[0, 2], frame.types, cell)


def metal(n: int = 4, seed: int = 0) -> Frames:
    """A crystal with warm atoms: many at nearly the same distance, planes along which to cut."""
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = 2.9 * (grid + np.random.default_rng(seed).normal(scale=0.02, size=grid.shape))
    return Frames.single(positions, np.arange(len(grid)) % 2, 2.9 * n * np.eye(3))


CASES = {
    "cubic": structures.water((3, 3, 3)),
    "triclinic": structures.water((3, 2, 2), structures.SHEAR),
    "thin": structures.water((1, 1, 4), structures.SHEAR),
    "tiny": structures.tiny(),
    "slab": structures.slab(),
    "wire": structures.wire(),
    "cluster": structures.cluster(),
    "droplet": droplet(),
    "vacuum": with_vacuum(),
    "metal": metal(),
    "molecule": structures.molecule(),
    "atom": structures.atom(),
}


# --- who owns and sees what ------------------------------------------------------------------------------------------


Atom = tuple[int, ...]
"""An atom of the whole, and the lattice shift of its image."""


def surroundings(frame: Frames, reach: float) -> dict[int, list[Atom]]:
    """The atoms within reach of each, by the lists of vesin, which are held against ASE's."""
    found: dict[int, list[Atom]] = {i: [] for i in range(frame.n_atoms)}
    edges = neighbors.build(frame, reach)
    for i, j, shift in zip(edges.centre, edges.neighbour, edges.shift.astype(int), strict=True):
        found[int(i)].append((int(j), *map(int, shift)))
    return found


def check(frame: Frames, n_parts: int, skin: float = SKIN) -> Decomposition:
    """Hold index lists against plain loops."""
    cut = Decomposition.build(frame, n_parts, RCUT, skin)
    owners = np.concatenate([part.index[: part.n_owned] for part in cut.parts])
    np.testing.assert_array_equal(np.sort(owners), np.arange(frame.n_atoms))
    assert cut.n_parts == n_parts
    around = surroundings(frame, RCUT + skin)
    for part in cut.parts:
        atoms = [(int(i), *map(int, s)) for i, s in zip(part.index, part.shift, strict=True)]
        assert len(set(atoms)) == len(atoms)
        owned = atoms[: part.n_owned]
        assert part.n_ghosts == 0 or part.n_owned > 0
        seen = {(j, a + x, b + y, c + z) for i, x, y, z in owned for j, a, b, c in around[i]}
        assert set(atoms) == seen | set(owned)
    assert not cut.shift[:, ~frame.pbc[0]].any()
    return cut


@pytest.mark.parametrize("n_parts", [1, 2, 3, 7])
@pytest.mark.parametrize("name", CASES)
def test_each_atom_is_owned_once_and_ghosts_are_complete(name: str, n_parts: int) -> None:
    check(CASES[name], n_parts)


def test_atoms_many_cells_away_are_brought_together() -> None:
    frame = structures.water((3, 2, 2), structures.SHEAR)
    far = structures.wrapped(frame, np.random.default_rng(1), far=30)
    near, cut = (Decomposition.build(f, 4, RCUT, SKIN) for f in (frame, far))
    assert [part.n_atoms for part in cut.parts] == [part.n_atoms for part in near.parts]
    for k in range(4):
        assert np.ptp(cut.positions(far, k), axis=0).max() < 25


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(CASES)),
    seed=st.integers(0, 2**32 - 1),
    n_parts=st.integers(1, 8),
    skin=st.floats(0, 1.5),
    moves=st.floats(0, 0.3),
    strain=st.floats(0, 0.1),
)
def test_any_cell_and_number_of_parts(
    name: str, seed: int, n_parts: int, skin: float, moves: float, strain: float
) -> None:
    rng = np.random.default_rng(seed)
    frame = structures.strained(CASES[name], strain * rng.uniform(-1, 1, (3, 3)))
    frame = structures.moved(frame, rng.uniform(-moves, moves, frame.positions.shape))
    check(structures.wrapped(frame, rng), n_parts, skin)


def test_more_parts_than_atoms() -> None:
    cut = check(structures.molecule(), 8)
    assert sorted(cut.n_owned.tolist()) == [0] * 5 + [1] * 3
    empty = int(np.argmin(cut.n_owned))
    assert cut.parts[empty].n_atoms == cut.local(structures.molecule(), empty).n_atoms == 0


def test_a_slab_across_the_face_of_a_cell_is_one_piece() -> None:
    frame = with_vacuum()
    for k in range(4):
        height = frame.cell[0, 2, 2] / 4
        cut = Decomposition.build(structures.moved(frame, k / 3 * frame.cell[0, 2]), 2, RCUT, SKIN)
        positions = cut.positions(structures.moved(frame, k / 3 * frame.cell[0, 2]))
        assert np.ptp(positions[:, 2]) < 3 * height


def test_ghosts_are_sorted_by_bins_and_lists_are_the_same_every_time() -> None:
    first, second = (Decomposition.build(CASES["cubic"], 5, RCUT, SKIN) for _ in range(2))
    np.testing.assert_array_equal(first.index, second.index)
    np.testing.assert_array_equal(first.shift, second.shift)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, RCUT), "number of parts must be at least 1, got 0"),
        ((2, RCUT, -0.1), "skin of parts must not be negative"),
        ((2, RCUT, 1.0, np.ones(5)), "weights must be 24 positive numbers"),
        ((2, RCUT, 1.0, np.zeros(24)), "weights must be 24 positive numbers"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decomposition.build(structures.cubic(), *arguments)


def test_one_structure_at_a_time_is_cut() -> None:
    with pytest.raises(ConfigError, match="one structure at a time is cut into parts, got 2"):
        Decomposition.build(Frames.concatenate([structures.cubic()] * 2), 2, RCUT)


# --- balance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_parts", [2, 3, 5, 6, 7])
def test_parts_have_the_same_work(n_parts: int) -> None:
    cut = Decomposition.build(structures.water((6, 5, 7), structures.SHEAR), n_parts, RCUT, SKIN)
    assert cut.work.max() / cut.work.mean() < 1.02
    assert cut.n_owned.max() / cut.n_owned.mean() < 1.03


def test_work_follows_the_density() -> None:
    """Half of a box at an eighth of the density of the other half: there atoms have fewer neighbours to work on."""
    dense, thin = structures.water((6, 6, 6)), structures.strained(structures.water((3, 3, 3), seed=1), np.eye(3))
    positions = np.concatenate([dense.positions, thin.positions + dense.cell[0, 0]])
    frame = Frames.single(positions, np.tile([0, 1, 1], len(positions) // 3), dense.cell[0] * [[2.0], [1], [1]])
    work = estimated_work(Grid.build(frame, RCUT + SKIN), RCUT + SKIN)
    neighbours = np.bincount(neighbors.build(frame, RCUT + SKIN).centre)
    is_dense = np.arange(frame.n_atoms) < dense.n_atoms
    for some in (is_dense, ~is_dense):
        assert 200 * (work[some].mean() - 1) == pytest.approx(neighbours[some].mean(), rel=0.3, abs=6.0)
    cut = Decomposition.build(frame, 4, RCUT, SKIN)
    assert cut.work.max() / cut.work.mean() < 1.02


def test_measured_times_move_the_cuts() -> None:
    """One part computes at half the speed of the others; it is given half of their work."""
    frame = structures.water((8, 4, 4))
    speed = np.array([1.0, 0.5, 1.0, 1.0])
    cut = Decomposition.build(frame, 4, RCUT, SKIN)
    x_of = frame.positions[:, 0]
    for _ in range(12):
        slow = 1 / speed[np.minimum((x_of / frame.cell[0, 0, 0] * 4 % 4).astype(int), 3)]
        seconds = np.array([slow[part.index[: part.n_owned]].sum() for part in cut.parts])
        cut = Decomposition.build(frame, 4, RCUT, SKIN, cut.reweighted(seconds))
    assert seconds.max() / seconds.mean() < 1.05
    assert cut.weights.mean() == pytest.approx(1.0)


def test_parts_that_were_not_measured_keep_their_place() -> None:
    cut = Decomposition.build(structures.molecule(), 5, RCUT, SKIN)
    np.testing.assert_array_equal(cut.reweighted(np.zeros(5)), cut.weights)
    half = np.where(cut.n_owned > 0, 1.0, 0.0)
    half[np.flatnonzero(half)[0]] = 0.0
    weights = cut.reweighted(half)
    assert np.all(weights > 0)
    assert np.isfinite(weights).all()


# --- sums ------------------------------------------------------------------------------------------------------------


def in_parts(model: ForceModel, cut: Decomposition, frame: Frames) -> ForceResult:
    """Evaluate the parts one after the other, and add up."""
    results = [model.evaluate(cut.local(frame, k)) if cut.n_owned[k] else None for k in range(cut.n_parts)]
    return cut.total(results)


def assert_equal(found: ForceResult, expected: ForceResult) -> None:
    """To round-off: 1e-10 relative, of forces to the largest, of the virial to its scale."""
    scale = np.abs(expected.atom_energy).sum()
    assert abs(found.energy[0] - expected.energy[0]) <= 1e-11 * scale
    np.testing.assert_allclose(found.atom_energy, expected.atom_energy, rtol=0, atol=1e-11)
    largest = max(np.abs(expected.forces).max(), 1e-3)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-10 * largest)
    np.testing.assert_allclose(
        found.virial, expected.virial, rtol=0, atol=1e-10 * max(np.abs(expected.virial).max(), 1)
    )


def reference(model: Potential) -> ForceModel:
    """The same model, evaluated by torch."""
    plain = deepcopy(model)
    plain._compilation = None
    return plain


@pytest.mark.parametrize("n_parts", [1, 2, 5])
@pytest.mark.parametrize("name", CASES)
def test_parts_sum_to_the_whole(name: str, n_parts: int) -> None:
    frame = CASES[name]
    cut = Decomposition.build(frame, n_parts, RCUT, SKIN)
    assert_equal(in_parts(FAST, cut, frame), FAST.evaluate(frame))
    assert_equal(in_parts(reference(MODEL), cut, frame), MODEL.reference(frame))


def test_local_frames_of_the_first_paper_sum_to_the_whole() -> None:
    frames = Frames.concatenate([structures.water((2, 2, 2), structures.SHEAR, seed=8), structures.slab()])
    model = make_loc_frame([2, 4], [3, 5], WATER_RULE, frames)
    for frame in frames:
        cut = Decomposition.build(frame, 3, model.rcut, SKIN)
        assert_equal(in_parts(model, cut, frame), model.evaluate(frame))
        fast = deepcopy(model)
        fast.accelerate(1)
        assert_equal(in_parts(fast, cut, frame), fast.evaluate(frame))
        assert_equal(fast.evaluate(frame), model.evaluate(frame))


@pytest.mark.parametrize("name", ["triclinic", "droplet"])
def test_radial_descriptors_sum_to_the_whole(name: str) -> None:
    model, frame = make_radial(), CASES[name]
    model.accelerate(1)
    cut = Decomposition.build(frame, 3, model.rcut, SKIN)
    assert_equal(in_parts(model, cut, frame), model.evaluate(frame))


def test_members_of_a_committee_sum_to_the_whole() -> None:
    committee = committees.committee(4.0, 4.0, 3.5)
    frame = CASES["triclinic"]
    for _ in range(2):
        found = in_parts(committee, Decomposition.build(frame, 4, committee.rcut, SKIN), frame)
        expected = committee.evaluate(frame)
        assert_equal(found, expected)
        for name in ("energy", "forces", "virial"):
            of_members = getattr(found.committee, name), getattr(expected.committee, name)
            np.testing.assert_allclose(*of_members, rtol=1e-10, atol=1e-9)
        np.testing.assert_allclose(found.max_force_deviation(), expected.max_force_deviation(), rtol=1e-10)
        committee.accelerate(1)


def moved_by(frame: Frames, rng: np.random.Generator, far: float) -> Frames:
    """Every atom moved by as much, in any direction."""
    directions = rng.normal(size=frame.positions.shape)
    return structures.moved(frame, far * directions / np.linalg.norm(directions, axis=1, keepdims=True))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CASES)),
    seed=st.integers(0, 2**32 - 1),
    n_parts=st.integers(1, 8),
    skin=st.floats(0.05, 0.6),
    density=st.floats(0.9, 1.1),
    steps=st.integers(1, 4),
)
def test_parts_sum_to_the_whole_while_atoms_move_and_cells_change(
    name: str, seed: int, n_parts: int, skin: float, density: float, steps: int
) -> None:
    """Up to the limit in the same parts, whatever lists the evaluation of each has kept; beyond, in new ones."""
    rng = np.random.default_rng(seed)
    start = structures.wrapped(structures.strained(CASES[name], (density ** (-1 / 3) - 1) * np.eye(3)), rng)
    cut = Decomposition.build(start, n_parts, RCUT, skin)
    model = deepcopy(FAST)
    for _ in range(steps):
        frame = structures.strained(start, rng.uniform(0, 0.3) * skin / RCUT * rng.uniform(-0.3, 0.3, (3, 3)))
        frame = moved_by(frame, rng, rng.uniform(0, 0.6) * skin)
        if not cut.is_valid(frame):
            cut, start = Decomposition.build(frame, n_parts, RCUT, skin), frame
            assert cut.is_valid(frame)
        assert_equal(in_parts(model, cut, frame), MODEL_OF_WHOLE.evaluate(frame))


MODEL_OF_WHOLE = deepcopy(FAST)


@pytest.mark.parametrize("name", ["cubic", "thin", "droplet", "vacuum"])
def test_the_limit_is_where_it_is_said_to_be(name: str) -> None:
    frame, rng = CASES[name], np.random.default_rng(5)
    cut = Decomposition.build(frame, 4, RCUT, SKIN)
    for _ in range(5):
        inside = moved_by(frame, rng, SKIN / 2 * (1 - 1e-8))
        assert cut.is_valid(inside)
        assert_equal(in_parts(FAST, cut, inside), FAST.evaluate(inside))
        assert not cut.is_valid(moved_by(frame, rng, SKIN / 2 * (1 + 1e-8)))
    assert not cut.is_valid(moved_by(frame, rng, 50.0))


def test_the_cell_may_change_with_the_atoms() -> None:
    frame = CASES["triclinic"]
    cut = Decomposition.build(frame, 3, RCUT, SKIN)
    assert cut.is_valid(structures.strained(frame, -0.99 * SKIN / (RCUT + SKIN) * np.eye(3)))
    assert not cut.is_valid(structures.strained(frame, -1.01 * SKIN / (RCUT + SKIN) * np.eye(3)))
    assert cut.is_valid(structures.strained(frame, 0.3 * np.eye(3)))
    assert not cut.is_valid(replace(frame, cell=0.9 * frame.cell))
    deformed = structures.strained(frame, 0.05 * np.array([[1, 0.3, 0], [0, -1, 0.2], [0.1, 0, 0.4]]))
    assert cut.is_valid(deformed)
    assert_equal(in_parts(FAST, cut, deformed), FAST.evaluate(deformed))


def test_other_atoms_need_other_parts() -> None:
    frame = CASES["cubic"]
    cut = Decomposition.build(frame, 3, RCUT, SKIN)
    assert not cut.is_valid(replace(frame, types=1 - frame.types))
    assert not cut.is_valid(replace(frame, pbc=np.array([[True, True, False]])))
    assert not cut.is_valid(structures.cubic())


def test_what_is_kept_is_not_the_callers() -> None:
    frame = structures.cubic()
    cut = Decomposition.build(frame, 2, RCUT, SKIN)
    frame.positions[3] += 1.0
    assert not cut.is_valid(frame)


def test_parameters_of_frames_and_atoms_go_with_the_parts() -> None:
    frame = CASES["slab"]
    frame = replace(frame, fparam=np.array([[0.5]]), aparam=np.arange(2.0 * frame.n_atoms).reshape(-1, 2))
    cut = Decomposition.build(frame, 3, RCUT, SKIN)
    for k, part in enumerate(cut.parts):
        local = cut.local(frame, k)
        np.testing.assert_array_equal(local.fparam, frame.fparam)
        np.testing.assert_array_equal(local.aparam, frame.aparam[part.index])
        np.testing.assert_array_equal(local.types, frame.types[part.index])
        assert int(local.is_ghost.sum()) == part.n_ghosts
        assert not local.pbc.any()


@pytest.mark.parametrize("name", ["triclinic", "thin", "droplet", "vacuum"])
def test_parts_of_parts_sum_to_the_whole(name: str) -> None:
    """What is cut already can be cut again: its ghosts are ghosts of the smaller parts."""
    frame = CASES[name]
    cut = Decomposition.build(frame, 3, RCUT, SKIN)
    results = []
    for k in range(3):
        local = cut.local(frame, k)
        again = Decomposition.build(local, 2, RCUT, SKIN)
        assert again.is_valid(local)
        assert not again.is_valid(replace(local, is_ghost=None))
        owners = np.concatenate([part.index[: part.n_owned] for part in again.parts])
        np.testing.assert_array_equal(np.sort(owners), np.flatnonzero(~local.is_ghost))
        for part, smaller in enumerate(again.parts):
            np.testing.assert_array_equal(again.local(local, part).names, cut.parts[k].index[smaller.index])
        results.append(in_parts(FAST, again, local))
        assert_equal(results[-1], FAST.evaluate(local))
    assert_equal(cut.total(results), FAST.evaluate(frame))


def test_messages_name_atoms_of_the_whole() -> None:
    frame = CASES["cubic"]
    frame = Frames.single(frame.positions.copy(), frame.types, frame.cell[0])
    crowded = 50
    frame.positions[crowded] = frame.positions[17] + 0.01
    cut = Decomposition.build(frame, 4, RCUT, SKIN)
    for model in (FAST, MODEL):
        with pytest.raises(StructureError, match=r"atoms (50 and 17|17 and 50) are .* apart"):
            in_parts(model, cut, frame)
    few = Potential(parse(ModelConfig, model_with_sel([3, 60])))
    few.accelerate(1)
    frame = CASES["cubic"]
    edges = neighbors.build(frame, few.rcut)
    n_oxygens = np.bincount(edges.centre[frame.types[edges.neighbour] == 0])
    cut = Decomposition.build(frame, 4, few.rcut, SKIN)
    for k in range(4):
        with pytest.raises(StructureError, match=r"^atom \d+ has \d+ neighbours of type 0") as found:
            few.evaluate(cut.local(frame, k))
        atom, count, *_ = (int(word) for word in str(found.value).split() if word.isdigit())
        assert n_oxygens[atom] == count


def test_absurd_density_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(StructureError, match="check the cell and its units"):
        Decomposition.build(structures.strained(structures.cubic(), -0.92 * np.eye(3)), 2, 6.0)


def test_positions_of_all_parts_at_once_and_into_an_array() -> None:
    frame = CASES["triclinic"]
    cut = Decomposition.build(frame, 4, RCUT, SKIN)
    out: Floats = np.empty((len(cut.index), 3))
    assert cut.positions(frame, out=out) is out
    for k in range(4):
        low, high = cut.offsets[k : k + 2]
        np.testing.assert_array_equal(out[low:high], cut.positions(frame, k))
        np.testing.assert_array_equal(out[low:high], cut.local(frame, k).positions)
    plain = np.zeros((frame.n_atoms, 3))
    np.add.at(plain, cut.index, out)
    np.testing.assert_allclose(cut.sum(out), plain, rtol=1e-13)
