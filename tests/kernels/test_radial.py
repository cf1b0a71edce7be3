"""The smooth radial descriptor by the CPU kernels: the contract, and agreement with the reference."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dpserver.errors import StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.models import deepmd, planning
from dpserver.models.compilation import table_error
from dpserver.models.compiled import Compiled
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import ROUNDED, TABULATED, assert_close, scaled
from tests.models import test_se_e2_r
from tests.models.deepmd import stored
from tests.models.test_se_e2_a import RCUT, every_cell
from tests.models.test_se_e2_r import make


class TestContract(test_se_e2_r.SeE2RContract):
    descriptor: ClassVar = {"type_one_side": False}

    def potential(self) -> Potential:
        potential = super().potential()
        potential.accelerate(threads=2)
        return potential


class TestContractExcludedTypes(TestContract):
    descriptor: ClassVar = {"type_one_side": True, "exclude_types": [[0, 1]], "env_protection": 0.05}


def fast(potential: Potential, threads: int = 1, error: float = 1e-12) -> Potential:
    """A copy that the kernels evaluate, and that it does."""
    copy = deepcopy(potential)
    copy.accelerate(threads, error)
    assert isinstance(copy.compiled()[0], Compiled)
    return copy


def assert_agree(result: ForceResult, expected: ForceResult) -> None:
    scale = max(1.0, float(np.abs(expected.forces).max()))
    np.testing.assert_allclose(result.forces, expected.forces, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(result.atom_energy, expected.atom_energy, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(result.virial, expected.virial, rtol=0, atol=1e-9 * scale)


def assert_same(result: ForceResult, expected: ForceResult) -> None:
    for name in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)


MODELS: dict[str, dict[str, Any]] = {
    "two-sided": {"type_one_side": False},
    "one-sided": {"type_one_side": True},
    "switched late": {"rcut_smth": 3.5},
    "protected": {"env_protection": 0.2},
    "time steps": {"resnet_dt": True},
    "one channel": {"neuron": [1]},
    "wide": {"neuron": [10, 20, 40]},
    "input carried on": {"neuron": [5, 10]},
    "excluded, slots kept": {"exclude_types": [[0, 1]], "type_one_side": True},
    "excluded, slots gone": {"exclude_types": [[0, 0]], "type_one_side": False},
    "gelu": {"activation_function": "gelu"},
    "linear": {"activation_function": "linear"},
}


@pytest.mark.parametrize("name", MODELS)
def test_same_as_the_reference(name: str) -> None:
    potential, frames = make(**MODELS[name]), every_cell()
    expected = potential.reference(frames)
    assert np.abs(expected.forces).max() > 0.1
    assert_agree(fast(potential).evaluate(frames), expected)
    tolerated = fast(potential, error=1e-9).evaluate(frames)
    assert_close(tolerated, expected.energy, expected.forces, expected.virial, TABULATED)
    potential.set_precision("mixed")
    rounded = fast(potential, error=1e-9).evaluate(frames)
    assert_close(rounded, expected.energy, expected.forces, expected.virial, ROUNDED)


@pytest.mark.parametrize("pairs", [[[0, 1]], [[1, 1]]])
def test_pairs_that_do_not_see_each_other(pairs: list[list[int]]) -> None:
    """`pair_exclude_types` leaves their slots empty, which adds what empty slots add."""
    potential = make()
    config = potential.config.model_copy(update={"pair_exclude_types": tuple(map(tuple, pairs))})
    blind = Potential(config, seed=3)
    blind.load_state_dict(potential.state_dict())
    expected = blind.reference(every_cell())
    assert not np.allclose(expected.atom_energy, potential.reference(every_cell()).atom_energy)
    assert_agree(fast(blind).evaluate(every_cell()), expected)


@pytest.mark.parametrize("plan", range(2))
def test_every_way_to_the_inputs(plan: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that are channels, the same of all species, and fewer columns for each."""
    potential, seen = make(neuron=[8, 16, 32], type_one_side=True), []

    def choose(candidate: Any, _: Any) -> float:
        seen.append(candidate)
        return float((len(seen) - 1) % 2 != plan)

    monkeypatch.setattr(planning, "_operations", choose)
    result = fast(potential, error=1e-10).evaluate(every_cell())
    assert [sum(t.mix is not None for t in p.tables) for p in seen] == [0, 2, 0, 2]
    assert seen[0].columns == 32
    expected = potential.reference(every_cell())
    assert_close(result, expected.energy, expected.forces, expected.virial, TABULATED)


MODEL = make(type_one_side=False)
FAST = fast(MODEL)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    moves=st.floats(0, 0.15),
    strain=st.floats(0, 0.05),
)
def test_same_as_the_reference_for_any_batch(seed: int, kinds: list[int], moves: float, strain: float) -> None:
    rng = np.random.default_rng(seed)
    frames = Frames.concatenate(every_cell()[k] for k in kinds)
    frames = structures.strained(frames, strain * rng.uniform(-1, 1, (3, 3)))
    frames = structures.moved(frames, rng.uniform(-moves, moves, frames.positions.shape))
    frames, _ = structures.permuted(structures.wrapped(frames, rng), rng)
    if seed % 2:
        frames = replace(frames, is_ghost=rng.random(frames.n_atoms) < 0.4)
    assert_agree(FAST.evaluate(frames), MODEL.reference(frames))


@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_any_number_of_threads_gives_the_same_bits(precision: str) -> None:
    potential = make(type_one_side=False)
    potential.set_precision(precision)
    frames = Frames.concatenate([every_cell(), structures.supercell(structures.cubic())])
    expected = fast(potential).evaluate(frames)
    for threads in (2, 3):
        assert_same(fast(potential, threads).evaluate(frames), expected)
    assert_same(expected[2], fast(potential).evaluate(frames[2]))


def test_one_species_and_one_without_slots() -> None:
    model = {
        "type_map": list(structures.SPECIES),
        "descriptor": {"type": "se_e2_r", "sel": [0, 40], "rcut": RCUT, "rcut_smth": 0.5, "neuron": [4, 8]},
        "fitting_net": {"neuron": [8, 8]},
    }
    frame = structures.only(structures.cubic(), 1)
    potential = scaled(Potential(parse(ModelConfig, model), seed=2), frame)
    potential.descriptor.davg.fill_(0.05)
    assert_agree(fast(potential).evaluate(frame), potential.reference(frame))


def test_errors_and_short_distances_are_those_of_the_reference() -> None:
    config = MODEL.config.descriptor.model_copy(update={"sel": (20, 13)})
    small = Potential(MODEL.config.model_copy(update={"descriptor": config}))
    with pytest.raises(StructureError) as expected:
        small.reference(structures.cubic())
    with pytest.raises(StructureError) as found:
        fast(small).evaluate(structures.cubic())
    assert str(found.value) == str(expected.value)
    near = structures.molecule()
    near.positions[1] = near.positions[0] + [0.3, 0.1, 0.2]
    potential = make()
    potential.min_distance = np.array([[2.0, 0.9], [0.9, 1.3]])
    assert_same(fast(potential).evaluate(near), potential.reference(near))


def test_tables_are_reported_and_those_with_kinks_are_left_to_torch(caplog: pytest.LogCaptureFixture) -> None:
    error = table_error(make())
    assert error is not None
    assert 0 < error.value < 1e-9
    kinked = make(activation_function="relu")
    assert table_error(kinked) is None
    kinked.accelerate()
    with caplog.at_level(logging.WARNING):
        assert_same(kinked.evaluate(structures.cluster()), kinked.reference(structures.cluster()))
    assert "too sharp for tables" in caplog.text


def test_parameters_of_frames_are_folded() -> None:
    potential = make()
    fitting = potential.config.fitting_net.model_copy(update={"numb_fparam": 1, "neuron": (7, 7)})
    taking = Potential(potential.config.model_copy(update={"fitting_net": fitting}), seed=4)
    frames = replace(structures.cubic(), fparam=np.array([[0.3]]))
    taking.accelerate(1, 1e-12)
    for _ in range(2):
        result = taking.evaluate(frames)
    assert not np.array_equal(result.forces, taking.reference(frames).forces)
    assert_agree(result, taking.reference(frames))


def test_same_numbers_as_deepmd_kit(shared_dir: Any) -> None:
    pytest.importorskip("h5py")
    folder = shared_dir / "reference" / "se_e2_r"
    potential = deepmd.load(folder / "model.dp")
    _, frames, expected = stored.reference(folder / "frames.npz")
    potential.accelerate()
    result = potential.evaluate(frames)
    assert isinstance(potential.compiled()[0], Compiled)
    typical = np.sqrt(np.mean(expected["f"] ** 2))
    np.testing.assert_allclose(result.forces, expected["f"], rtol=0, atol=1.5e-9 * typical)
    np.testing.assert_allclose(result.energy / frames.counts, expected["e"] / frames.counts, rtol=1e-13, atol=1e-10)


def test_parts_of_the_time_are_told() -> None:
    seconds = FAST.compiled()[0].profile(structures.cubic())
    assert list(seconds) == ["edges", "moments", "fitting", "back to edges", "sums"]
    assert min(seconds.values()) >= 0
