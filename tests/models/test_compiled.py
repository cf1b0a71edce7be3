"""The CPU kernels: the contract, and agreement with the reference, for all that a model can be made of."""

from __future__ import annotations

import builtins
import logging
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.models import compilation, deepmd, planning
from dpserver.models.assembly import Sizes
from dpserver.models.committee import Committee
from dpserver.models.compiled import Compiled
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import ROUNDED, TABULATED, assert_close, scaled
from tests.models import test_se_e2_a
from tests.models.deepmd import stored
from tests.models.test_se_e2_a import RCUT, every_cell, make

NUMBERS = ("energy", "forces", "virial", "atom_energy")


class TestContract(test_se_e2_a.SeE2AContract):
    descriptor: ClassVar = {"type_one_side": False}

    def potential(self) -> Potential:
        potential = super().potential()
        potential.accelerate(threads=2)
        return potential


class TestContractOneSidedResnetDt(TestContract):
    descriptor: ClassVar = {"type_one_side": True, "resnet_dt": True, "rcut_smth": 2.0}


class TestContractExcludedTypes(TestContract):
    descriptor: ClassVar = {"type_one_side": False, "exclude_types": [[0, 1]]}


class TestContractExcludedTypesOneSided(TestContract):
    descriptor: ClassVar = {"type_one_side": True, "exclude_types": [[1, 1]]}


class TestContractProtectedOtherActivation(TestContract):
    descriptor: ClassVar = {"env_protection": 0.1, "activation_function": "silu"}
    fitting: ClassVar = {"activation_function": "gelu", "resnet_dt": False, "neuron": [7, 7, 14]}


def fast(potential: Potential, threads: int = 1, table_error: float = 1e-12) -> Potential:
    """A copy that the kernels evaluate, and that it does."""
    copy = deepcopy(potential)
    copy.accelerate(threads, table_error)
    assert isinstance(compiled(copy), Compiled)
    return copy


def compiled(potential: Potential) -> Compiled | None:
    assert potential._compilation is not None
    ((_, found),) = potential._compilation.groups()
    return found


def assert_same(result: ForceResult, expected: ForceResult) -> None:
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)


# --- against the reference -------------------------------------------------------------------------------------------

MODELS: dict[str, dict[str, Any]] = {
    "two-sided": {"type_one_side": False},
    "one-sided": {"type_one_side": True},
    "switched late": {"rcut_smth": 3.5},
    "protected": {"env_protection": 0.2},
    "time steps": {"resnet_dt": True},
    "one layer": {"neuron": [5], "axis_neuron": 2},
    "one channel": {"neuron": [1], "axis_neuron": 1},
    "wide": {"neuron": [10, 20, 40], "axis_neuron": 7},
    "all axes": {"neuron": [6, 12], "axis_neuron": 12},
    "excluded, slots kept": {"exclude_types": [[0, 1]], "type_one_side": True},
    "excluded, slots gone": {"exclude_types": [[0, 0]], "type_one_side": False},
    "input carried on": {"neuron": [4, 8], "axis_neuron": 3, "fitting": {"neuron": [24, 24], "resnet_dt": True}},
    "input carried on twice": {"neuron": [4, 8], "axis_neuron": 3, "fitting": {"neuron": [48, 24, 24, 12, 24]}},
    "wide fitting net": {"fitting": {"neuron": [100, 50, 50, 7]}},
    "sigmoid": {"activation_function": "sigmoid"},
    "gelu": {"activation_function": "gelu"},
    "softplus": {"activation_function": "softplus"},
    "linear": {"activation_function": "linear"},
}


@pytest.mark.parametrize("name", MODELS)
def test_same_as_the_reference(name: str) -> None:
    potential = make(**MODELS[name])
    frames = every_cell()
    expected = potential.reference(frames)
    assert np.abs(expected.forces).max() > 0.1
    result = fast(potential).evaluate(frames)
    np.testing.assert_allclose(result.forces, expected.forces, rtol=0, atol=2e-11)
    np.testing.assert_allclose(result.atom_energy, expected.atom_energy, rtol=0, atol=1e-11)
    np.testing.assert_allclose(result.energy, expected.energy, rtol=1e-12, atol=0)
    np.testing.assert_allclose(result.virial, expected.virial, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(result.virial, result.virial.transpose(0, 2, 1))
    assert_close(fast(potential, table_error=1e-9).evaluate(frames), *numbers(expected), TABULATED)
    for precision in ("mixed", "single"):
        potential.set_precision(precision)
        rounded = fast(potential, table_error=1e-9).evaluate(frames)
        assert_close(rounded, *numbers(expected), ROUNDED)
        assert not np.array_equal(rounded.forces, result.forces)


def numbers(result: ForceResult) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return result.energy, result.forces, result.virial


@pytest.mark.parametrize("name", test_se_e2_a.ACTIVATIONS)
def test_every_activation_of_the_fitting_net(name: str) -> None:
    potential = make(fitting={"activation_function": name, "neuron": [10, 10, 20]})
    expected = potential.reference(every_cell())
    result = fast(potential).evaluate(every_cell())
    np.testing.assert_allclose(result.forces, expected.forces, rtol=0, atol=2e-11)
    np.testing.assert_allclose(result.atom_energy, expected.atom_energy, rtol=0, atol=1e-11)


@pytest.mark.parametrize("plan", range(3))
@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_every_way_to_the_inputs(plan: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that are channels, columns mixed into channels, and products of columns."""
    potential = make(neuron=[8, 16, 32], axis_neuron=5, type_one_side=True)
    expected = potential.reference(every_cell())
    potential.set_precision(precision)
    seen: list[Any] = []

    def choose(candidate: Any, _: Any) -> float:
        seen.append(candidate)
        return float((len(seen) - 1) % 3 != plan)

    monkeypatch.setattr(planning, "_operations", choose)
    result = fast(potential, table_error=1e-9).evaluate(every_cell())
    assert len(seen) == 6
    kinds = [(p.mix is not None, sum(t.mix is not None for t in p.tables), p.products.n_inputs) for p in seen[:3]]
    n_channels = 32 * 5 - 5 * 4 // 2
    assert [kind[:2] for kind in kinds] == [(False, 0), (True, 2), (False, 2)]
    assert kinds[0][2] == kinds[1][2] == n_channels
    assert_close(result, *numbers(expected), TABULATED if precision == "double" else ROUNDED)


MODEL = make(type_one_side=False)
FAST = deepcopy(MODEL)
FAST.accelerate(1, 1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    moves=st.floats(0, 0.15),
    strain=st.floats(0, 0.05),
)
def test_same_as_the_reference_for_any_batch(seed: int, kinds: list[int], moves: float, strain: float) -> None:
    rng = np.random.default_rng(seed)
    frames = Frames.concatenate(every_cell()[k] for k in kinds)
    frames = structures.strained(frames, strain * rng.uniform(-1, 1, (3, 3)))
    frames = structures.moved(frames, rng.uniform(-moves, moves, frames.positions.shape))
    frames, _ = structures.permuted(structures.wrapped(frames, rng), rng)
    expected, result = MODEL.reference(frames), FAST.evaluate(frames)
    scale = max(1.0, np.abs(expected.forces).max())
    np.testing.assert_allclose(result.forces, expected.forces, rtol=0, atol=2e-11 * scale)
    np.testing.assert_allclose(result.atom_energy, expected.atom_energy, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("model", ["water_tf", "water_pt", "two_sided", "resnet_dt", "davg_zero", "ethanol"])
def test_same_numbers_as_deepmd_kit(shared_dir: Any, model: str) -> None:
    pytest.importorskip("h5py")
    folder = shared_dir / "reference" / model
    potential = deepmd.load(folder / "model.dp")
    _, frames, expected = stored.reference(folder / "frames.npz")
    typical = np.sqrt(np.mean(expected["f"] ** 2))
    for precision, error in (("double", 1.5e-9), ("mixed", 2e-5)):
        potential.set_precision(precision)
        potential.accelerate()
        result = potential.evaluate(frames)
        assert compiled(potential) is not None
        np.testing.assert_allclose(result.forces, expected["f"], rtol=0, atol=error * typical)
        if precision == "double":
            np.testing.assert_allclose(
                result.energy / frames.counts, expected["e"] / frames.counts, rtol=1e-13, atol=1e-10
            )
            np.testing.assert_allclose(result.virial, expected["v"], rtol=0, atol=1e-9 * np.abs(expected["v"]).max())


@pytest.mark.parametrize("sel", [[30, 0], [0, 30]])
def test_no_slots_for_a_species(sel: list[int]) -> None:
    model = test_se_e2_a.model_with_sel(sel)
    frames = Frames.concatenate(structures.only(frame, int(sel[0] == 0)) for frame in every_cell())
    potential = scaled(Potential(parse(ModelConfig, model)), frames)
    result, expected = fast(potential).evaluate(frames), potential.reference(frames)
    np.testing.assert_allclose(result.forces, expected.forces, rtol=0, atol=1e-10)


def test_one_species() -> None:
    model = {
        "type_map": ["Ar"],
        "descriptor": {"type": "se_e2_a", "sel": [60], "rcut": RCUT, "neuron": [6, 12], "axis_neuron": 4},
        "fitting_net": {"neuron": [12, 12]},
    }
    frame = Frames.single(structures.cubic().positions, np.zeros(24, dtype=int), structures.cubic().cell[0])
    potential = scaled(Potential(parse(ModelConfig, model)), frame)
    result, expected = fast(potential).evaluate(frame), potential.reference(frame)
    np.testing.assert_allclose(result.forces, expected.forces, rtol=0, atol=1e-10)


# --- reproducible ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_any_number_of_threads_gives_the_same_bits(precision: str) -> None:
    potential = make(type_one_side=False)
    potential.set_precision(precision)
    frames = Frames.concatenate([every_cell(), structures.supercell(structures.cubic()), every_cell()])
    expected = fast(potential).evaluate(frames)
    for threads in (2, 3, 7):
        assert_same(fast(potential, threads).evaluate(frames), expected)


def test_a_batch_gives_the_bits_of_its_frames() -> None:
    potential = fast(make())
    frames = every_cell()
    batch = potential.evaluate(Frames.concatenate([frames, frames[2]]))
    for k in range(frames.n_frames):
        assert_same(batch[k], potential.evaluate(frames[k]))
    assert_same(batch[frames.n_frames], batch[2])


def test_the_past_leaves_no_trace() -> None:
    """A list made for other positions has other pairs beyond the cutoff."""
    potential, frames = make(type_one_side=False), every_cell()
    rng = np.random.default_rng(3)
    moved = structures.moved(frames, rng.uniform(-0.1, 0.1, frames.positions.shape))
    used, fresh = fast(potential), fast(potential)
    used.evaluate(frames)
    result, expected = used.evaluate(moved), fresh.evaluate(moved)
    np.testing.assert_allclose(result.forces, expected.forces, rtol=0, atol=1e-13)
    np.testing.assert_allclose(result.atom_energy, expected.atom_energy, rtol=0, atol=1e-13)


def test_work_space_that_finds_no_memory_is_not_replaced_by_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels write wherever they are told to: a block must never run in the space of a smaller one."""
    potential, small, large = fast(make()), structures.cluster(), structures.supercell(structures.cubic())
    expected = fast(make()).evaluate(large)
    potential.evaluate(small)
    make_space = Sizes.workspace

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Sizes, "workspace", full)
    with pytest.raises(MemoryError):
        potential.evaluate(large)
    rooms: list[tuple[int, int]] = []

    def note(self: Sizes, rows: int, room: int, *rest: Any) -> Any:
        rooms.append((rows, room))
        return make_space(self, rows, room, *rest)

    monkeypatch.setattr(Sizes, "workspace", note)
    assert_same(potential.evaluate(large), expected)
    assert len(rooms) == 1


# --- what the kernels leave to the reference -------------------------------------------------------------------------


def test_atoms_closer_than_the_tables_reach_are_answered_exactly() -> None:
    potential = make()
    potential.min_distance = np.array([[2.0, 0.9], [0.9, 1.3]])
    near = structures.molecule()
    near.positions[1] = near.positions[0] + [0.3, 0.1, 0.2]
    frames = Frames.concatenate([structures.cubic(), near, structures.cluster()])
    result, plain = fast(potential).evaluate(frames), fast(potential)
    assert_same(result[1], potential.reference(near))
    assert_same(result[0], plain.evaluate(structures.cubic()))
    assert_same(result[2], plain.evaluate(structures.cluster()))


@pytest.mark.parametrize(
    ("precision", "asked", "said"),
    [
        ("mixed", 1e-9, "tables of nets in float32 are made for 3.0e-07"),
        ("double", 1e-13, "tables of nets in float64 are made for 5.0e-11"),
        ("mixed", 1e-10, ""),  # the default
        ("double", 1e-9, ""),
    ],
)
def test_a_finer_error_of_tables_than_there_is_gets_one_line(
    precision: str, asked: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    compilation._tell_what_is_reached.cache_clear()
    potential = make()
    potential.set_precision(precision)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            potential.accelerate(threads=1, table_error=asked)
            potential.evaluate(structures.cluster())
    lines = [record.message for record in caplog.records if "--table-error" in record.message]
    assert lines == ([f"--table-error {asked:.1e} is finer than rounding leaves: {said}"] if said else [])


def test_errors_are_those_of_the_reference() -> None:
    frames = Frames.concatenate([structures.molecule(), structures.cubic()])
    potential = fast(Potential(parse(ModelConfig, test_se_e2_a.model_with_sel([20, 13]))))
    with pytest.raises(StructureError) as expected:
        potential.reference(frames)
    with pytest.raises(StructureError) as found:
        potential.evaluate(frames)
    assert str(found.value) == str(expected.value)
    assert "of frame 1 has" in str(found.value)
    absurd = structures.strained(structures.cubic(), -0.94 * np.eye(3))
    with pytest.raises(StructureError, match="check the cell and its units"):
        potential.evaluate(absurd)


@pytest.mark.parametrize("name", ["relu", "relu6", "silut:1.0"])
def test_embedding_nets_with_kinks_are_left_to_torch(name: str, caplog: pytest.LogCaptureFixture) -> None:
    potential = make(activation_function=name)
    potential.accelerate()
    with caplog.at_level(logging.WARNING):
        result = potential.evaluate(structures.cluster())
        potential.evaluate(structures.cluster())
    (record,) = caplog.records
    assert record.message.startswith(f"the embedding net with activation function {name} is too sharp for tables")
    assert_same(result, potential.reference(structures.cluster()))


def test_without_numba_torch_evaluates_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name == "numba":
            raise ImportError("no module of that name")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    compilation._has_numba.cache_clear()
    try:
        models = [make(), make()]
        for potential in models:
            potential.accelerate()
            assert_same(potential.evaluate(structures.wire()), potential.reference(structures.wire()))
    finally:
        compilation._has_numba.cache_clear()
    (record,) = caplog.records
    assert record.message.startswith("numba cannot be imported (no module of that name): models are evaluated by torch")


# --- never stale -----------------------------------------------------------------------------------------------------


def test_changed_weights_are_compiled_again() -> None:
    potential = fast(make(), table_error=1e-9)
    frames = structures.cubic()
    first = compiled(potential)
    assert compiled(potential) is first
    with torch.no_grad():
        potential.fitting[0][0].weight *= 1.5
    assert_close(potential.evaluate(frames), *numbers(potential.reference(frames)), TABULATED)
    assert compiled(potential) is not first
    potential.set_precision("mixed")
    assert compiled(potential)._model.nets.weights.dtype == np.float32
    potential.load_state_dict(make(type_one_side=False, sel=[20, 40]).state_dict())
    potential.set_precision("double")
    assert_close(potential.evaluate(frames), *numbers(potential.reference(frames)), TABULATED)


def test_a_copy_compiles_by_itself() -> None:
    potential = fast(make(), table_error=1e-9)
    copy = deepcopy(potential)
    copy.energy_bias += 1.0
    frame = structures.cluster()
    shift = copy.evaluate(frame).atom_energy - potential.evaluate(frame).atom_energy
    np.testing.assert_allclose(shift, 1.0, rtol=0, atol=1e-10)


def test_numbers_that_make_no_sense_are_refused() -> None:
    too_few, too_exact = "threads must be at least 1, got 0", "must be positive and at most 0.001"
    for arguments, message in (((0,), too_few), ((1, 0.0), too_exact)):
        with pytest.raises(ConfigError, match=message):
            make().accelerate(*arguments)


# --- committees ------------------------------------------------------------------------------------------------------


def test_members_of_a_committee_share_what_they_can() -> None:
    members = [make(), make(type_one_side=True, neuron=[5, 10]), make(rcut=3.5), make(rcut_smth=1.0)]
    for k, member in enumerate(members):
        member.energy_bias += k
    committee = Committee(members)
    committee.accelerate(threads=2, table_error=1e-9)
    assert [numbers for numbers, _ in committee._compilation.groups()] == [[0, 1], [2], [3]]
    frames = every_cell()
    result = committee.evaluate(frames)
    for k, member in enumerate(members):
        alone = fast(member, table_error=1e-9).evaluate(frames)
        np.testing.assert_array_equal(result.committee.forces[k], alone.forces)
        np.testing.assert_array_equal(result.committee.energy[k], alone.energy)
        np.testing.assert_array_equal(result.committee.virial[k], alone.virial)


def test_what_was_compiled_is_described() -> None:
    text = str(compiled(fast(make(), threads=3)))
    assert text.startswith("CPU kernels in float64 on 3 threads; tables of the embedding nets deviate by ")
    assert "(second derivative)" in text or "(second" in text
