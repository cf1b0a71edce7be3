from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dpserver.engine import Runner
from dpserver.errors import DeviceError, StructureError
from dpserver.frames import ForceResult, Frames
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


def test_a_batch_too_large_for_the_memory_is_split():
    def fault(frames: Frames, result: ForceResult) -> ForceResult:
        if frames.n_frames > 2:
            raise MemoryError("full")
        return result

    outcomes = Runner(Faulty(fault)).run([structures.cubic(seed) for seed in range(7)])
    assert all(isinstance(o, ForceResult) for o in outcomes)


@pytest.mark.parametrize("field", ["energy", "forces", "virial"])
def test_an_answer_that_is_not_finite_is_refused_and_no_other(field):
    def fault(frames: Frames, result: ForceResult) -> ForceResult:
        spoilt = getattr(result, field).copy()
        spoilt[-1] = np.nan
        return replace(result, **{field: spoilt})

    outcomes = Runner(Faulty(fault)).run(PARTS)
    assert [isinstance(o, ForceResult) for o in outcomes] == [True, True, False]
    assert "not finite" in str(outcomes[2])


class AcceleratorError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize("error", [DeviceError("gone"), AcceleratorError("gone")])
def test_a_lost_device_is_everybodys_business(error):
    def fault(frames: Frames, result: ForceResult) -> ForceResult:
        raise error

    with pytest.raises(DeviceError, match="the device is lost: gone"):
        Runner(Faulty(fault)).run(PARTS)
