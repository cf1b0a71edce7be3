"""Models on a CUDA device that is not there: what is on the host and what on the device, graphs, and their memory.

See `tests/pretend_cuda.py` for what this can show. The numbers are the host's own, so that they have to agree exactly
wherever the same operations are made.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numba")

from dpserver.bench import ceiling
from dpserver.cli.bench import _peak_memory
from dpserver.engine.runner import Runner
from dpserver.errors import DeviceError
from dpserver.frames import ForceResult, Frames
from dpserver.models import checkpoint
from dpserver.models.committee import Committee
from dpserver.models.device import DeviceCompiled
from dpserver.models.memory import memory_in_use
from dpserver.models.potential import Potential
from dpserver.neighbors.device_cache import DeviceListCache
from dpserver.neighbors.on_device import build_on_device
from tests import structures
from tests.contract import PotentialContract
from tests.models import (
    test_behler_parrinello,
    test_electrostatics,
    test_fitting,
    test_hybrid,
    test_loc_frame,
    test_pair_table,
    test_se_atten,
    test_se_e2_a,
    test_se_e2_r,
    test_se_e3,
    test_tensors,
)
from tests.models.test_device import SMALL, assert_same
from tests.pretend_cuda import Claimed, Machine, pretended

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")

SECOND = "cuda:1"
"""Not the device that is current: what forgets to say where it is to be done is found out."""
TINY: dict[str, Any] = {**SMALL, "neuron": [2, 4], "axis_neuron": 2}

KINDS: dict[str, type[PotentialContract]] = {
    "se_e2_a, one-sided": test_se_e2_a.TestOneSided,
    "se_e2_a, two-sided": test_se_e2_a.TestTwoSided,
    "se_e2_a, excluded": test_se_e2_a.TestExcludedTypes,
    "se_e2_r": test_se_e2_r.TestTwoSided,
    "se_e3": test_se_e3.TestPlain,
    "loc_frame": test_loc_frame.TestWater,
    "se_atten": test_se_atten.TestConcatenated,
    "se_atten, stripped": test_se_atten.TestStrippedAndSmooth,
    "se_atten, attention": test_se_atten.TestAttention,
    "hybrid": test_hybrid.TestHybrid,
    "pair table": test_pair_table.TestSwitched,
    "behler_parrinello": test_behler_parrinello.TestBoth,
    "charges": test_electrostatics.TestFixed,
    "charges, trained": test_electrostatics.TestTrained,
    "charges of the environment": test_electrostatics.TestOfTheEnvironment,
    "frame parameters, vacuum": test_fitting.TestVacuum,
}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with pretended(2) as found:
        yield found


def tiny(precision: str = "double", **changed: Any) -> Potential:
    made = test_se_e2_a.make(fitting={"neuron": [4, 4]}, **{**TINY, **changed})
    made.set_precision(precision)
    return made.requires_grad_(False)


def molecules(n: int, seed: int = 0, size: float = 0.02) -> Frames:
    frames = Frames.concatenate([structures.molecule()] * n)
    return structures.moved(frames, size * np.random.default_rng(seed).uniform(-1, 1, frames.positions.shape))


def loss_gradient(potential: Potential, frames: Frames) -> list[torch.Tensor]:
    """Of a loss of energies, forces and virials, by every weight, on the host."""
    found = potential(potential.graph(frames), is_training=True)
    loss = found.energy.square().mean() + found.forces.square().mean() + found.virial.square().mean()
    weights = list(potential.parameters())
    return [g.cpu() for g in torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_evaluated_and_differentiated_there(kind: str) -> None:
    contract = KINDS[kind]()
    model, frames = contract.potential(), contract.frames()
    frames = min(frames, key=lambda frame: frame.n_atoms)
    model.set_precision("mixed")
    expected, gradient = model.reference(frames), loss_gradient(model, frames)
    with pretended(2):
        there = deepcopy(model).to(SECOND)
        assert there.device == torch.device(SECOND)
        found = there.reference(frames)
        for name in ("energy", "forces", "virial", "atom_energy"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        for mine, theirs in zip(gradient, loss_gradient(there, frames), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", test_tensors.KINDS)
def test_dipoles_and_polarizabilities_are_evaluated_there(kind: str) -> None:
    model, frames = test_tensors.make(**test_tensors.KINDS[kind]), structures.tiny()
    has_charges = model.kind == "dipole"
    expected = model.evaluate(frames, has_born_charges=has_charges)
    with pretended(2):
        found = deepcopy(model).to(SECOND).evaluate(frames, has_born_charges=has_charges)
    np.testing.assert_array_equal(found.total, expected.total)
    np.testing.assert_array_equal(found.atoms, expected.atoms)
    if expected.born_charges is not None:
        assert found.born_charges is not None
        np.testing.assert_array_equal(found.born_charges, expected.born_charges)


@pytest.mark.parametrize(
    "frames",
    [
        Frames.concatenate([structures.tiny(), structures.slab(), structures.molecule(), structures.triclinic()]),
        structures.wrapped(structures.wire(), np.random.default_rng(1), far=3),
        replace(structures.cluster(), is_ghost=np.arange(12) % 3 == 0),
    ],
    ids=["every cell", "far away", "ghosts"],
)
def test_neighbour_lists_are_made_there(frames: Frames) -> None:
    expected = build_on_device(frames, 4.5, 2, torch.device("cpu"))
    with pretended(2):
        found = build_on_device(frames, 4.5, 2, torch.device(SECOND))
        for mine, theirs in zip(found, expected, strict=True):
            for name, value in vars(mine).items():
                assert value.device == torch.device(SECOND), name
                np.testing.assert_array_equal(value.cpu(), getattr(theirs, name))


@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_one_graph_serves_a_simulation(machine: Machine, precision: str) -> None:
    model = tiny(precision, type_one_side=precision == "double")
    compiled = DeviceCompiled([deepcopy(model).to(SECOND)], 1e-7)
    for step in range(2):
        frames = molecules(2, step)
        machine.waits.clear()
        found = compiled.evaluate(frames)[0]
        assert_same(found, model.reference(frames), 1e-8 if precision == "double" else 2e-5)
        if step:
            assert machine.waits == ["Stream.synchronize"]
    assert machine.graphs == 1
    assert machine.launches.count("compact") == 4  # for two species, once to compile and once for the graph


def test_beads_with_lists_that_outgrow_their_room_get_another_graph(machine: Machine) -> None:
    model = tiny()
    compiled = DeviceCompiled([deepcopy(model).to(SECOND)], 1e-7)
    apart = structures.moved(molecules(2), np.repeat([[0, 0, 0], [40, 0, 0], [0, 40, 0]] * 2, 1, axis=0))
    for frames in (apart, molecules(2), apart):
        assert_same(compiled.evaluate(frames)[0], model.reference(frames), 1e-8)
    assert machine.graphs == 2


def test_periodic_structures(machine: Machine) -> None:
    model, frames = tiny(), structures.tiny()
    compiled = DeviceCompiled([deepcopy(model).to(SECOND)], 1e-7)
    assert_same(compiled.evaluate(frames)[0], model.reference(frames), 1e-8)


def test_what_tables_do_not_reach_is_left_to_the_reference_there(machine: Machine) -> None:
    model = tiny()
    close = Frames.single([[0, 0, 0], [0.12, 0, 0], [0, 2, 0]], [0, 1, 1])
    found = DeviceCompiled([deepcopy(model).to(SECOND)], 1e-7).evaluate(close)[0]
    assert_same(found, model.reference(close), 1e-8)


def test_stages_are_timed_where_the_model_is(machine: Machine) -> None:
    compiled = DeviceCompiled([tiny().to(SECOND)], 1e-7)
    assert set(compiled.profile(molecules(1))) > {"edges", "moments", "fitting", "sums"}


class Served:
    """What a runner runs.

    Args:
        compiled: evaluates for it.
    """

    species = structures.SPECIES
    rcut = 4.0
    template = None

    def __init__(self, compiled: DeviceCompiled) -> None:
        self.compiled = compiled

    def evaluate(self, frames: Frames) -> ForceResult:
        return self.compiled.evaluate(frames)[0]


def test_what_was_too_large_leaves_the_memory_to_what_is_tried_next(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    compiled = DeviceCompiled([deepcopy(model).to(SECOND)], 1e-6)
    runner, parts = Runner(Served(compiled)), [molecules(1, seed) for seed in range(2)]
    expected = [compiled.evaluate(part)[0] for part in parts]
    before = [weakref.ref(batch) for batch in compiled._batches.values()]
    left: list[int] = []

    def watched(lists: DeviceListCache, frames: Frames) -> Any:
        machine.fills = 40 if frames.n_frames > 1 else None
        gc.collect()
        left.append(sum(ref() is not None for ref in before))
        return find(lists, frames)

    find = DeviceListCache.find
    monkeypatch.setattr(DeviceListCache, "find", watched)
    found = runner.run(parts)
    assert left == [1, 0, 0, 0]  # the second time it is tried with nothing kept
    assert runner.max_atoms == 3
    for result, alone in zip(found, expected, strict=True):
        assert isinstance(result, ForceResult)
        np.testing.assert_array_equal(result.forces, alone.forces)


def test_a_committee_is_evaluated_together(machine: Machine) -> None:
    members = [tiny(), tiny(resnet_dt=True)]
    committee = Committee([deepcopy(m).to(SECOND) for m in members])
    committee.accelerate(table_error=1e-9)
    frames = molecules(1)
    found = committee.evaluate(frames)
    assert found.committee is not None
    for mine, member in zip(found.committee.forces, members, strict=True):
        np.testing.assert_allclose(mine, member.reference(frames).forces, rtol=0, atol=1e-8)
    assert len(committee.compiled()) == 1


def test_files_are_loaded_to_the_device_that_is_named(machine: Machine, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "w.pt", tiny())
    for name, expected in (("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")):
        assert checkpoint.load(tmp_path / "w.pt", name).device == torch.device(expected)
    with pytest.raises(DeviceError, match="sees 2 CUDA devices"):
        checkpoint.load(tmp_path / "w.pt", "cuda:2")
    there = checkpoint.load(tmp_path / "w.pt", "cuda:1")
    assert memory_in_use(there.device) == 1 << 30
    checkpoint.save(tmp_path / "again.pt", there)
    assert all(not isinstance(t, Claimed) for t in checkpoint.read(tmp_path / "again.pt")["state"].values())


def test_the_bench_measures_the_device_of_the_model(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("dpserver.bench.ceiling"), "_ROWS_ON_GPU", 64)
    assert ceiling(torch.float32, torch.device(SECOND))["torch"] > 0
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: asked.append(device) or 5 << 20)
    assert _peak_memory(torch.device(SECOND)) == 5
    assert asked == [torch.device(SECOND)]


def test_nothing_here_is_the_hosts_by_mistake(machine: Machine) -> None:
    compiled = DeviceCompiled([tiny().to(SECOND)], 1e-7)
    compiled.evaluate(molecules(1))
    for owner in (compiled._model.centres[0][0], *compiled._batches.values()):
        for name, value in vars(owner).items():
            if isinstance(value, torch.Tensor) and not name.endswith("_host"):
                assert value.device == torch.device(SECOND), name
