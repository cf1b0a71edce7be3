"""Local frames by the CPU kernels: the contract, and agreement with the reference."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dpserver.errors import StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.models.committee import Committee
from dpserver.models.compiled import Compiled
from dpserver.models.config import ModelConfig, parse
from dpserver.models.frame_assembly import assemble_frames
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import ROUNDED, assert_close, scaled
from tests.models import test_loc_frame
from tests.models.test_loc_frame import RADIAL_RULE, RCUT, WATER_RULE, make
from tests.models.test_se_e2_r import make as make_radial

FRAMES = test_loc_frame.TestWater().frames()
MIXED_RULE = [1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 1, 2]
MODELS: dict[str, Potential] = {
    "water": make([2, 4], [3, 5], WATER_RULE, FRAMES),
    "radial axes": make([0, 3], [2, 4], RADIAL_RULE, structures.cubic()),
    "axes of both kinds": make([1, 2], [3, 6], MIXED_RULE, structures.cubic()),
    "many empty slots": make([30, 60], [10, 20], WATER_RULE, FRAMES),
    "full only": make([6, 9], [0, 0], WATER_RULE, FRAMES),
}


class TestContract(test_loc_frame.TestWater):
    def potential(self) -> Potential:
        return fast(super().potential(), threads=2)


class TestContractRadialAxes(test_loc_frame.TestAxesFromRadialNeighbours):
    def potential(self) -> Potential:
        return fast(super().potential())


def fast(potential: Potential, threads: int = 1) -> Potential:
    """A copy that the kernels evaluate, and that it does."""
    copy = deepcopy(potential)
    copy.accelerate(threads)
    assert isinstance(copy.compiled()[0], Compiled)
    return copy


def frames_of(name: str) -> Frames:
    """Structures in which every atom has a frame."""
    if name not in ("radial axes", "axes of both kinds"):
        return FRAMES
    tilted = structures.water((2, 2, 2), structures.SHEAR, seed=8)
    return Frames.concatenate([structures.cubic(), tilted, structures.slab()])


def assert_agree(result: ForceResult, expected: ForceResult) -> None:
    scale = max(1.0, float(np.abs(expected.forces).max()))
    np.testing.assert_allclose(result.forces, expected.forces, rtol=0, atol=2e-11 * scale)
    np.testing.assert_allclose(result.atom_energy, expected.atom_energy, rtol=0, atol=1e-11 * scale)
    np.testing.assert_allclose(result.energy, expected.energy, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(result.virial, expected.virial, rtol=0, atol=1e-9 * scale)


def assert_same(result: ForceResult, expected: ForceResult) -> None:
    for name in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_same_as_the_reference(name: str) -> None:
    potential, frames = MODELS[name], frames_of(name)
    expected = potential.reference(frames)
    assert np.abs(expected.forces).max() > 0.1
    assert_agree(fast(potential).evaluate(frames), expected)
    for precision in ("mixed", "single"):
        rounded = deepcopy(potential)
        rounded.set_precision(precision)
        result = fast(rounded).evaluate(frames)
        assert_close(result, expected.energy, expected.forces, expected.virial, ROUNDED)
        assert not np.array_equal(result.forces, expected.forces)


@pytest.mark.parametrize(
    "fitting",
    [
        {"neuron": [44, 20], "resnet_dt": True},
        {"neuron": [88, 44, 44], "resnet_dt": True},
        {"neuron": [8], "activation_function": "gelu"},
    ],
    ids=["input carried on", "input carried on twice", "other activation"],
)
def test_every_fitting_net(fitting: dict[str, Any]) -> None:
    """The descriptor has 44 features, which a first layer of as many or twice as many adds to its output."""
    descriptor = {"type": "loc_frame", "sel_a": [3, 5], "sel_r": [4, 8], "rcut": RCUT, "axis_rule": WATER_RULE}
    config = {"type_map": list(structures.SPECIES), "descriptor": descriptor, "fitting_net": fitting}
    potential = Potential(parse(ModelConfig, config), seed=5)
    assert potential.descriptor.n_features == 44
    potential.descriptor.fit_normalisation([potential.graph(FRAMES)], 0.1)
    scaled(potential, FRAMES)
    assert_agree(fast(potential).evaluate(FRAMES), potential.reference(FRAMES))


WATER = MODELS["water"]
FAST = fast(WATER)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.integers(0, FRAMES.n_frames - 1), min_size=1, max_size=3),
    moves=st.floats(0, 0.1),
    strain=st.floats(0, 0.05),
)
def test_same_as_the_reference_for_any_batch(seed: int, kinds: list[int], moves: float, strain: float) -> None:
    """Kept lists, ghosts, atoms in other cells and in any order."""
    rng = np.random.default_rng(seed)
    frames = Frames.concatenate(FRAMES[k] for k in kinds)
    frames = structures.strained(frames, strain * rng.uniform(-1, 1, (3, 3)))
    frames = structures.moved(frames, rng.uniform(-moves, moves, frames.positions.shape))
    frames, _ = structures.permuted(structures.wrapped(frames, rng), rng)
    if seed % 2:
        frames = replace(frames, is_ghost=rng.random(frames.n_atoms) < 0.4)
    assert_agree(FAST.evaluate(frames), WATER.reference(frames))


@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_any_number_of_threads_gives_the_same_bits(precision: str) -> None:
    potential = deepcopy(WATER)
    potential.set_precision(precision)
    frames = Frames.concatenate([FRAMES, structures.supercell(structures.cubic()), FRAMES])
    expected = fast(potential).evaluate(frames)
    for threads in (2, 3):
        assert_same(fast(potential, threads).evaluate(frames), expected)
    for k in (0, FRAMES.n_frames):
        assert_same(expected[k], fast(potential).evaluate(frames[k]))


def test_equal_distances_keep_the_order_of_the_atoms() -> None:
    """The nearest of each species are told apart although a lattice has many at one distance."""
    places = np.stack(np.meshgrid(*[np.arange(3.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    frame = Frames.single(1.7 * places, np.arange(27) % 2)
    expected, result = WATER.reference(frame), FAST.evaluate(frame)
    assert np.isfinite(result.forces).all()
    np.testing.assert_allclose(result.forces.sum(axis=0), 0, atol=1e-11)
    assert result.forces.shape == expected.forces.shape


def test_errors_are_those_of_the_reference() -> None:
    hydroxyl = Frames.single([[0, 0, 0], [0, 0, 0.97]], [0, 1])
    line = Frames.single([[0, 0, 0], [0, 0, 0.97], [0, 0, -0.96], [3.0, 0.1, 0]], [0, 1, 1, 1])
    for bad in (hydroxyl, line, structures.atom(0)):
        frames = Frames.concatenate([structures.cubic(), bad])
        with pytest.raises(StructureError) as expected:
            WATER.reference(frames)
        with pytest.raises(StructureError) as found:
            FAST.evaluate(frames)
        assert str(found.value) == str(expected.value)


def test_getting_ready_needs_no_structure(caplog: pytest.LogCaptureFixture) -> None:
    """A lone atom has no local frame, and the kernels are compiled with one all the same."""
    potential = fast(WATER)
    with caplog.at_level(logging.INFO):
        potential.warm_up()
    assert potential.evaluated_by() == ["CPU kernels in float64 on 1 thread"]
    assert any(record.message.startswith("getting ready") for record in caplog.records)


def test_changed_statistics_are_seen() -> None:
    potential = fast(WATER)
    before = potential.evaluate(FRAMES)
    with torch.no_grad():
        potential.descriptor.davg += 0.01
    after = potential.evaluate(FRAMES)
    assert not np.array_equal(before.forces, after.forces)
    assert_agree(after, potential.reference(FRAMES))


def test_members_of_a_committee_share_what_they_can() -> None:
    others = [make([2, 4], [3, 5], WATER_RULE, FRAMES), make([2, 4], [3, 4], WATER_RULE, FRAMES), make_radial()]
    others[0].descriptor.davg.mul_(1.1)
    committee = Committee([WATER, *others])
    committee.accelerate(threads=2)
    assert [numbers for numbers, _ in committee._compilation.groups()] == [[0, 1], [2], [3]]
    result = committee.evaluate(FRAMES)
    for k, member in enumerate(committee.members):
        alone = fast(member).evaluate(FRAMES)
        np.testing.assert_array_equal(result.committee.forces[k], alone.forces)
        np.testing.assert_array_equal(result.committee.energy[k], alone.energy)


def test_parts_of_the_time_and_of_the_work_are_told() -> None:
    compiled = fast(WATER).compiled()[0]
    assert list(compiled.profile(FRAMES)) == ["neighbours", "features", "fitting", "back to edges", "sums"]
    weights = [layer.weight.numel() for layer in WATER.fitting[0]][:-1]
    assert compiled.products(FRAMES) == 4.0 * FRAMES.n_atoms * sum(weights)


def test_other_descriptors_are_refused() -> None:
    with pytest.raises(TypeError, match="SeE2R has no local frames"):
        assemble_frames([make_radial()])
