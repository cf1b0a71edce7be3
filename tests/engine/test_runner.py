from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpserver.engine import Runner
from dpserver.errors import DeviceError, StructureError
from dpserver.frames import CommitteeResult, ForceResult, Frames
from tests import structures
from tests.doubles import Faulty, PairModel

PARTS = [structures.cubic(), structures.cluster(), Frames.concatenate([structures.slab(), structures.triclinic()])]


def same(a: ForceResult, b: ForceResult) -> None:
    np.testing.assert_array_equal(a.energy, b.energy)
    np.testing.assert_array_equal(a.forces, b.forces)
    np.testing.assert_array_equal(a.virial, b.virial)
    np.testing.assert_array_equal(a.atom_energy, b.atom_energy)
    np.testing.assert_array_equal(a.frame_idx, b.frame_idx)


def test_each_part_gets_its_own_result_from_one_evaluation():
    model = PairModel()
    outcomes = Runner(model).run(PARTS)
    assert model.batches == [4]
    for outcome, part in zip(outcomes, PARTS, strict=True):
        assert isinstance(outcome, ForceResult)
        same(outcome, PairModel().evaluate(part))


def test_nothing_asked_nothing_evaluated():
    model = PairModel()
    assert Runner(model).run([]) == []
    assert model.batches == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        ({"positions": np.full((24, 3), np.nan)}, "not finite"),
        ({"cell": np.full((1, 3, 3), 3.0)}, "singular"),
        ({"types": np.full(24, 2)}, "type 2"),
    ],
)
def test_what_can_be_seen_to_be_bad_is_never_shown_to_the_model(spoil, complaint):
    model = PairModel()
    outcomes = Runner(model).run([PARTS[0], replace(PARTS[0], **spoil), PARTS[1]])
    assert isinstance(outcomes[1], StructureError)
    assert complaint in str(outcomes[1])
    assert [isinstance(o, ForceResult) for o in outcomes] == [True, False, True]
    assert model.batches == [2]


def poison(frames: Frames) -> bool:
    return bool((frames.positions == 77.0).any())


def poisoned() -> Frames:
    frames = structures.cubic()
    frames.positions[3, 1] = 77.0
    return frames


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize(
    ("error", "kind", "complaint"),
    [
        (StructureError("atoms 1 and 2 overlap"), StructureError, "atoms 1 and 2 overlap"),
        (RuntimeError("odd"), StructureError, "the model failed on this structure: RuntimeError: odd"),
        (MemoryError("full"), DeviceError, "24 atoms do not fit into the memory of the device: full"),
    ],
)
def test_a_structure_that_breaks_the_model_breaks_nobody_else(position, error, kind, complaint, caplog):
    def fault(frames: Frames, result: ForceResult) -> ForceResult:
        if poison(frames):
            raise error
        return result

    parts = [structures.cubic(seed) for seed in range(4)]
    parts.insert(position, poisoned())
    outcomes = Runner(Faulty(fault)).run(parts)
    assert type(outcomes[position]) is kind
    assert str(outcomes[position]) == complaint
    for k, (outcome, part) in enumerate(zip(outcomes, parts, strict=True)):
        if k != position:
            assert isinstance(outcome, ForceResult)
            same(outcome, PairModel().evaluate(part))
    assert bool(caplog.records) == isinstance(error, RuntimeError)


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


class Small(PairModel):
    """A model on a device that holds so many atoms.

    Args:
        holds: atoms of an evaluation.
        error: raised beyond that.
    """

    def __init__(self, holds: int, error: Exception | None = None) -> None:
        super().__init__()
        self.holds = holds
        self.error = error or OutOfMemoryError("CUDA out of memory")
        self.atoms: list[int] = []

    def evaluate(self, frames: Frames) -> ForceResult:
        self.atoms.append(frames.n_atoms)
        if frames.n_atoms > self.holds:
            workspace = Workspace()
            self.workspace = weakref.ref(workspace)
            raise self.error
        if hasattr(self, "workspace"):
            assert self.workspace() is None, "what failed still holds its memory"
        return super().evaluate(frames)


class Workspace:
    """What an evaluation needs besides; gone when nobody refers to its stack frame any more."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory"),
        MemoryError("full"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    ],
)
def test_a_batch_too_large_for_the_memory_is_split_and_the_next_is_smaller(error, caplog):
    model = Small(72, error)
    runner = Runner(model, 1000)
    parts = [structures.cubic(seed) for seed in range(8)]  # 24 atoms each
    for outcomes in (runner.run(parts), runner.run(parts)):
        for outcome, part in zip(outcomes, parts, strict=True):
            assert isinstance(outcome, ForceResult)
            same(outcome, PairModel().evaluate(part))
    assert model.atoms == [192, 96, *[48] * 4, *[48] * 4]
    assert runner.max_atoms == 48
    assert [r.getMessage() for r in caplog.records] == [
        "the memory of the device is full; evaluations of at most 48 atoms from now on"
    ]


def test_one_request_may_need_several_evaluations():
    model = Small(100)
    runner = Runner(model, 1000)
    parts = [structures.molecule(), many(11), structures.cluster()]
    for n_atoms in (1000, 72):
        assert runner.max_atoms == n_atoms
        outcomes = runner.run(parts)
        for outcome, part in zip(outcomes, parts, strict=True):
            assert isinstance(outcome, ForceResult)
            same(outcome, PairModel().evaluate(part))


def many(n_frames: int) -> Frames:
    return Frames.concatenate(structures.cubic(seed) for seed in range(n_frames))


def test_a_frame_larger_than_the_bound_is_evaluated_alone():
    model = PairModel()
    runner = Runner(model, 30)
    parts = [structures.cubic(1), many(3), structures.molecule()]
    outcomes = runner.run(parts)
    for outcome, part in zip(outcomes, parts, strict=True):
        same(outcome, PairModel().evaluate(part))
    assert model.batches == [1, 1, 1, 1, 1]


def test_a_frame_that_fits_by_no_means_is_refused_and_teaches_nothing():
    """It may be so large, or so dense; the others are not to blame."""
    model = Small(50)
    runner = Runner(model, 1000)
    giant = structures.water((3, 2, 3))
    outcomes = runner.run([structures.cubic(1), giant, structures.cubic(2)])
    assert isinstance(outcomes[1], DeviceError)
    assert str(outcomes[1]) == "54 atoms do not fit into the memory of the device: CUDA out of memory"
    for k in (0, 2):
        same(outcomes[k], PairModel().evaluate(structures.cubic(1 + k // 2)))
    assert runner.max_atoms == 1000


def test_a_part_that_is_refused_is_not_evaluated_further():
    model = Faulty(lambda frames, result: replace(result, energy=result.energy * np.nan))
    (outcome,) = Runner(model, 48).run([many(8)])
    assert isinstance(outcome, StructureError)
    assert model.batches == [2]


def test_the_members_of_a_committee_are_cut_and_put_together_too():
    def vote(frames: Frames, result: ForceResult) -> ForceResult:
        shift = np.array([-1.0, 0.0, 1.0])
        members = CommitteeResult(
            result.energy + shift[:, None],
            result.forces + shift[:, None, None],
            result.virial + shift[:, None, None, None],
        )
        return replace(result, committee=members)

    parts = [many(5), structures.cluster()]
    whole = Faulty(vote).evaluate(Frames.concatenate(parts))
    first, second = Runner(Faulty(vote), 48).run(parts)
    for name, axis in (("energy", 1), ("forces", 1), ("virial", 1)):
        got = [getattr(outcome.committee, name) for outcome in (first, second)]
        np.testing.assert_array_equal(np.concatenate(got, axis=axis), getattr(whole.committee, name))


@given(
    shape=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), max_size=6),
    max_atoms=st.integers(1, 150),
    holds=st.integers(12, 150),
)
def test_however_a_batch_is_cut_nobody_loses_a_result(shape, max_atoms, holds):
    kinds = {"a": structures.molecule(), "b": structures.cluster(), "c": structures.slab()}
    parts = [Frames.concatenate(kinds[k] for k in kinds_of_part) for kinds_of_part in shape]
    runner = Runner(Small(holds), max_atoms)
    for outcome, part in zip(runner.run(parts), parts, strict=True):
        same(outcome, PairModel().evaluate(part))
    assert runner.max_atoms <= max_atoms


@pytest.mark.parametrize("field", ["energy", "forces", "virial"])
def test_an_answer_that_is_not_finite_is_refused_and_no_other(field):
    def fault(frames: Frames, result: ForceResult) -> ForceResult:
        spoilt = getattr(result, field).copy()
        spoilt[-1] = np.nan
        return replace(result, **{field: spoilt})

    outcomes = Runner(Faulty(fault)).run(PARTS)
    assert [isinstance(o, ForceResult) for o in outcomes] == [True, True, False]
    assert "not finite" in str(outcomes[2])


SHORT = {
    "a frame": lambda r: replace(r, energy=r.energy[:-1], virial=r.virial[:-1]),
    "a frame and its atoms": lambda r: r.part(slice(0, len(r.energy) - 1)),
    "its first atom": lambda r: replace(
        r, forces=r.forces[1:], atom_energy=r.atom_energy[1:], frame_idx=r.frame_idx[1:]
    ),
    "its forces": lambda r: replace(r, forces=r.forces[:, :2]),
}


@pytest.mark.parametrize("what", SHORT)
def test_an_answer_that_lacks_something_is_given_to_nobody(what):
    def fault(frames: Frames, result: ForceResult) -> ForceResult:
        return SHORT[what](result) if frames.n_frames > 1 else result

    outcomes = Runner(Faulty(fault)).run(PARTS)
    assert [isinstance(o, ForceResult) for o in outcomes] == [True, True, False]
    same(outcomes[1], PairModel().evaluate(PARTS[1]))
    assert "the model was asked for" in str(outcomes[2])


class AcceleratorError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize("error", [DeviceError("gone"), AcceleratorError("gone")])
def test_a_lost_device_is_everybodys_business(error):
    def fault(frames: Frames, result: ForceResult) -> ForceResult:
        raise error

    with pytest.raises(DeviceError, match="the device is lost: gone"):
        Runner(Faulty(fault)).run(PARTS)
