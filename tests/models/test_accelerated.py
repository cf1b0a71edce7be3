"""What all fast forms leave to others: structures without an answer are refused as the reference refuses them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from dpserver.bench import tiled
from dpserver.engine.runner import Runner
from dpserver.errors import StructureError
from dpserver.frames import ForceResult, Frames, Ints
from dpserver.kernels.layout import GOOD, TOO_CLOSE, TOO_MANY
from dpserver.models import accelerated, atomic
from dpserver.models.accelerated import Accelerated
from dpserver.models.committee import Committee
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.models.test_loc_frame import WATER_RULE

SMOOTH: dict[str, Any] = {"rcut": 4.0, "rcut_smth": 0.5, "neuron": [4]}
SE_E2_A: dict[str, Any] = {"type": "se_e2_a", "sel": [20, 13], "axis_neuron": 2, **SMOOTH}
SE_ATTEN: dict[str, Any] = {
    "type": "se_atten", "sel": 25, "axis_neuron": 2, "attn_layer": 0, "tebd_dim": 3, "tebd_input_mode": "strip",
    "set_davg_zero": True, **SMOOTH,
}  # fmt: skip
LOC_FRAME: dict[str, Any] = {
    "type": "loc_frame", "sel_a": [2, 4], "sel_r": [3, 5], "rcut": 4.0, "axis_rule": WATER_RULE,
}  # fmt: skip


def model(descriptor: dict[str, Any], seed: int = 0) -> Potential:
    config = {"type_map": ["O", "H"], "descriptor": descriptor, "fitting_net": {"neuron": [4]}}
    return Potential(parse(ModelConfig, config), seed=seed)


def accelerate(potential: Potential | Committee) -> None:
    potential.accelerate(1, 1e-9)
    assert isinstance(potential.compiled()[0], Accelerated)


def of_two(frame: Frames) -> Frames:
    """A frame as the second, behind one that has an answer."""
    return Frames.concatenate([structures.cluster(), frame])


def overlapping() -> Frames:
    """Atoms too close for tables, and others on top of each other."""
    frame = structures.cubic()
    frame.positions[4] = frame.positions[3] + [0.2, 0.1, 0.2]
    frame.positions[7] = frame.positions[6] + [0.01, 0.0, 0.0]
    return frame


CASES: dict[str, tuple[dict[str, Any], Frames, str]] = {
    "too many": (SE_E2_A, structures.cubic(), "of frame 1 has .* at most 13 "),
    "too many, excluded": ({**SE_E2_A, "exclude_types": [[0, 1]]}, structures.cubic(), "at most 13 "),
    "too many, no directions": ({**SMOOTH, "type": "se_e2_r", "sel": [20, 13]}, structures.cubic(), "at most 13 "),
    "too many of all species": (SE_ATTEN, structures.cubic(), "at most 25 "),
    "no neighbours for a frame": (
        LOC_FRAME, Frames.single([[0, 0, 0], [0, 0, 0.97]], [0, 1]), "of frame 1 .* has 1 neighbours of type 1"
    ),
    "a line for a frame": (
        LOC_FRAME, Frames.single([[0, 0, 0], [0, 0, 0.97], [0, 0, -0.95]], [0, 1, 1]), "lies on one line"
    ),
    "overlapping": ({**SE_E2_A, "sel": [20, 60]}, overlapping(), "0.01 Å apart: they overlap"),
    "overlapping and too many": (SE_E2_A, overlapping(), "0.01 Å apart: they overlap"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refusals_are_those_of_the_reference_without_it(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor, frame, message = CASES[case]
    potential, frames = model(descriptor), of_two(frame)
    accelerate(potential)
    with pytest.raises(StructureError, match=message) as expected:
        potential.reference(frames)
    monkeypatch.setattr(Potential, "reference", not_to_be_asked)
    monkeypatch.setattr(Potential, "forward", not_to_be_asked)
    with pytest.raises(StructureError) as found:
        potential.evaluate(frames)
    assert words(found) == words(expected)


def not_to_be_asked(*_: Any) -> ForceResult:
    raise AssertionError("nothing has to be evaluated to say what is wrong")


def words(error: pytest.ExceptionInfo[StructureError]) -> str:
    """A message, whichever of two atoms that overlap is named first."""
    return str(error.value).replace("atoms 7 and 6", "atoms 6 and 7")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Frames:
    """A structure that the reference has no memory for."""
    large = tiled(structures.cubic(), 6)
    monkeypatch.setattr(atomic, "_MANY_EDGES", 20_000)
    monkeypatch.setattr("dpserver.models.memory.memory_left", lambda: 1 << 20)
    with pytest.raises(MemoryError):
        model({**SE_E2_A, "sel": [20, 40]}).reference(large)
    return large


@pytest.mark.parametrize(("sel", "number"), [(21, "22"), (13, r"\d\d")])
def test_a_structure_too_large_for_the_reference_is_refused(little_memory: Frames, sel: int, number: str) -> None:
    """Whether few atoms have too many neighbours, or nearly all have."""
    potential = model({**SE_E2_A, "sel": [20, sel]})
    accelerate(potential)
    message = (
        rf"^atom \d+ has {number} neighbours of type 1 within 4\.0 Å, but the model was made for at most {sel} \(sel\)"
    )
    with pytest.raises(StructureError, match=message):
        potential.evaluate(little_memory)


def test_atoms_of_a_part_have_the_names_of_the_whole() -> None:
    frame, potential = structures.cubic(), model(SE_E2_A)
    is_ghost = np.arange(frame.n_atoms) % 2 == 0
    part = replace(frame, is_ghost=is_ghost, names=1000 + np.arange(frame.n_atoms))
    accelerate(potential)
    with pytest.raises(StructureError) as expected:
        potential.reference(part)
    with pytest.raises(StructureError, match=r"^atom 10\d[13579] has") as found:
        potential.evaluate(part)
    assert str(found.value) == str(expected.value)


def test_a_committee_refuses_what_its_members_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    committee = Committee([model(SE_E2_A, seed) for seed in range(2)])
    accelerate(committee)
    monkeypatch.setattr(Potential, "reference", not_to_be_asked)
    with pytest.raises(StructureError, match=r"of frame 1 has .* at most 13 \(sel\)"):
        committee.evaluate(of_two(structures.cubic()))


def test_of_a_batch_one_request_is_refused_and_the_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    potential = model(SE_E2_A)
    accelerate(potential)
    monkeypatch.setattr(Potential, "reference", not_to_be_asked)
    found = Runner(potential).run([structures.cluster(), structures.cubic(), structures.molecule()])
    assert [type(answer) for answer in found] == [ForceResult, StructureError, ForceResult]
    assert re.match(r"atom \d+ has \d+ neighbours of type 1 .* at most 13 \(sel\)", str(found[1]))


class Undecided(Accelerated):
    """Kernels that take some atoms, not all rightly, for such as they have no answer for.

    Args:
        members: the potentials.
        doubts: status of some atoms.
    """

    def __init__(self, members: Sequence[Potential], doubts: dict[int, int]) -> None:
        super().__init__(members)
        self.doubts = doubts

    def _compute(self, frames: Frames) -> tuple[list[ForceResult], Ints]:
        status: Ints = np.full(frames.n_atoms, GOOD, dtype=np.int64)
        status[list(self.doubts)] = list(self.doubts.values())
        zeros = (np.zeros(frames.n_frames), np.zeros((frames.n_atoms, 3)), np.zeros((frames.n_frames, 3, 3)))
        return [ForceResult(*zeros, np.zeros(frames.n_atoms), frames.frame_idx) for _ in self._members], status

    def profile(self, frames: Frames) -> dict[str, float]:
        return {}

    def products(self, frames: Frames) -> float:
        return 0.0


@pytest.mark.parametrize("status", [TOO_CLOSE, TOO_MANY])
def test_what_only_the_kernels_doubt_is_answered_by_the_reference(status: int) -> None:
    """A neighbour at the cutoff may be within for one and beyond for the other."""
    potential, frames = model({**SE_E2_A, "sel": [20, 40]}), of_two(structures.cubic())
    n = structures.cluster().n_atoms
    found = Undecided([potential], {n + 2: status}).evaluate(frames)[0]
    expected = potential.reference(structures.cubic())
    np.testing.assert_array_equal(found.forces[n:], expected.forces)
    np.testing.assert_array_equal(found.energy, [0.0, expected.energy[0]])
    assert not found.forces[:n].any()


def test_only_so_many_atoms_are_looked_at_the_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerated, "_EXAMINED", 2)
    seen: list[list[int]] = []
    build = Potential.graph
    monkeypatch.setattr(Potential, "graph", lambda self, frames: seen.append(centres(frames)) or build(self, frames))
    doubts = {1: TOO_CLOSE, 2: TOO_CLOSE, 9: TOO_MANY}
    Undecided([model({**SE_E2_A, "sel": [20, 40]})], doubts).evaluate(structures.cubic())
    assert seen[0] == [1, 9]


def centres(frames: Frames) -> list[int]:
    is_ghost = np.zeros(frames.n_atoms, dtype=bool) if frames.is_ghost is None else frames.is_ghost
    return np.flatnonzero(~is_ghost).tolist()
