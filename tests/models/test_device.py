"""The form of potentials for GPUs: the same numbers as the reference, by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from dpserver.errors import StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.models import device
from dpserver.models.device import DeviceCompiled
from dpserver.models.potential import Potential
from dpserver.neighbors import on_device
from tests import structures
from tests.contract import scaled
from tests.models.test_se_e2_a import make
from tests.patience import JOB_PATIENCE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL: dict[str, Any] = {"neuron": [4, 8], "axis_neuron": 3, "sel": [20, 40], "rcut": 4.0, "rcut_smth": 1.0}
FITTING = {"neuron": [10, 10]}


def potential(precision: str = "double", **changed: Any) -> Potential:
    made = make(fitting={**FITTING, **changed.pop("fitting", {})}, **{**SMALL, **changed})
    made.set_precision(precision)
    return made.to(DEVICE)


def molecules() -> Frames:
    return Frames.concatenate([structures.molecule(), structures.tiny(), structures.molecule(9)])


def assert_same(found: ForceResult, expected: ForceResult, tolerance: float) -> None:
    largest = np.abs(expected.forces).max()
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=tolerance * largest)
    np.testing.assert_allclose(found.virial, expected.virial, rtol=0, atol=10 * tolerance * largest)
    np.testing.assert_allclose(found.energy, expected.energy, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.atom_energy, expected.atom_energy, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(found.frame_idx, expected.frame_idx)


@pytest.mark.parametrize(
    "changed",
    [
        {"type_one_side": False},
        {"type_one_side": True, "resnet_dt": True},
        {"exclude_types": [[0, 1]], "type_one_side": False},
        {"exclude_types": [[0, 0]], "type_one_side": True},
        {"fitting": {"neuron": [24, 24], "resnet_dt": True}},
        {"neuron": [4, 8, 16, 40], "axis_neuron": 2},
    ],
    ids=["two-sided", "one-sided", "silent", "excluded", "input carried on", "several blocks of columns"],
)
def test_same_numbers_as_the_reference(changed: dict[str, Any]) -> None:
    model, frames = potential(**changed), molecules()
    assert_same(DeviceCompiled([model], 1e-9).evaluate(frames)[0], model.reference(frames), 1e-8)


@pytest.mark.parametrize(("precision", "tolerance"), [("mixed", 2e-5), ("single", 2e-4)])
def test_in_other_precisions(precision: str, tolerance: float) -> None:
    frames = molecules()
    compiled = DeviceCompiled([potential(precision)], 1e-9)
    assert "float32" in str(compiled)
    assert_same(compiled.evaluate(frames)[0], potential().reference(frames), tolerance)


def test_in_periodic_cells() -> None:
    model, frames = potential(), structures.triclinic()
    assert_same(DeviceCompiled([model], 1e-9).evaluate(frames)[0], model.reference(frames), 1e-8)


def test_cells_change_and_atoms_are_far_away_while_lists_hold() -> None:
    model, rng = potential(), np.random.default_rng(4)
    compiled = DeviceCompiled([model], 1e-9)
    frames = Frames.concatenate([structures.tiny(), structures.molecule(), structures.tiny(8)])
    frames = structures.wrapped(frames, rng, far=3)
    for _ in range(3):
        assert_same(compiled.evaluate(frames)[0], model.reference(frames), 1e-8)
        strain = np.eye(3) + 0.003 * rng.uniform(-1, 1, (3, 3))
        frames = replace(frames, positions=frames.positions @ strain, cell=frames.cell @ strain)
    assert compiled._lists.n_built == 3


def test_members_of_a_committee_share_lists() -> None:
    members, frames = [potential(), potential(resnet_dt=True)], molecules()
    found = DeviceCompiled(members, 1e-9).evaluate(frames)
    assert not np.allclose(found[0].forces, found[1].forces)
    for result, member in zip(found, members, strict=True):
        assert_same(result, member.reference(frames), 1e-8)


def test_lists_are_used_again_and_made_again() -> None:
    model, frame = potential(), structures.molecule()
    compiled, rng = DeviceCompiled([model], 1e-9), np.random.default_rng(3)
    for size in (0.0, 0.05, 0.05, 1.5):  # the last is beyond the skin
        frame = structures.moved(frame, size * rng.uniform(-1, 1, frame.positions.shape) / np.sqrt(3))
        found, again = (compiled.evaluate(frame)[0] for _ in range(2))
        assert_same(found, model.reference(frame), 1e-8)
        np.testing.assert_array_equal(found.forces, again.forces)


def test_what_the_tables_do_not_reach_is_left_to_the_reference() -> None:
    model = potential()
    close = Frames.single([[0, 0, 0], [0.12, 0, 0], [0, 2, 0]], [0, 1, 1])
    frames = Frames.concatenate([structures.molecule(), close])
    assert_same(DeviceCompiled([model], 1e-9).evaluate(frames)[0], model.reference(frames), 1e-8)


def test_too_many_neighbours_are_refused_without_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = potential()
    model.descriptor.sel = (1, 1)
    monkeypatch.setattr(Potential, "reference", None)
    with pytest.raises(StructureError, match=r"within 4\.0 Å, but the model was made for at most 1 \(sel\)"):
        DeviceCompiled([model], 1e-9).evaluate(structures.molecule())


def test_ghosts_are_no_centres() -> None:
    model, frame = potential(), structures.molecule()
    ghosts = np.zeros(frame.n_atoms, dtype=bool)
    ghosts[1::2] = True
    part = copy.copy(frame)
    object.__setattr__(part, "is_ghost", ghosts)
    found = DeviceCompiled([model], 1e-9).evaluate(part)[0]
    assert_same(found, model.reference(part), 1e-8)
    assert np.abs(found.forces[ghosts]).max() > 0
    assert not found.atom_energy[ghosts].any()


def test_warming_up_makes_the_list_of_a_periodic_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes such lists on a GPU is another's library, which must fail before anybody waits for an answer."""
    seen: list[bool] = []
    monkeypatch.setattr(on_device, "uses_nvalchemi", lambda frames, _: seen.append(bool(frames.pbc.all())))
    compiled = DeviceCompiled([potential()], 1e-9)
    compiled.warm_up()
    assert seen == [False, True]
    assert compiled._lists._batches.n_edges == 6


def test_atoms_without_neighbours() -> None:
    model = scaled(potential(), structures.molecule())
    frames = Frames.concatenate([structures.atom(0), structures.atom(1)])
    assert_same(DeviceCompiled([model], 1e-9).evaluate(frames)[0], model.reference(frames), 1e-8)


def test_nothing_of_the_plan_is_made_of_what_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the device `meta` have no numbers at all: whoever reads one is found out."""
    model = potential()
    monkeypatch.setattr(device, "_on_host", lambda _: model)
    compiled = DeviceCompiled([copy.deepcopy(model).to("meta")], 1e-9)
    assert compiled.is_accurate
    for name, value in vars(compiled._model.centres[0][0]).items():
        if isinstance(value, torch.Tensor):
            assert value.device.type == "meta", name


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dpserver.kernels import fused

shared = dict(
    x="*fp64", translations="*fp64", atoms="*i64", starts="*i64", neighbour="*i32", shift="*i32", pairs="*i64",
    bins="*fp64", cutoff="*fp64", kept="*i32", n_kept="*i64", n_empty="*i64", status="*fp64", bin_first="*i64",
    bin_parts="*fp64", norm="*fp64", blocks="*i64", edge_gradient="*fp64", pair_virial="*fp64", n_species="i32",
    columns="i32", left="*i32", right="*i32", places="*i32", n_inputs="i32", n_columns="i32", incoming="*i32",
    incoming_starts="*i64", forces="*fp64", values="*fp64", sums="*fp64",
)
kernels = ("compact", "moments", "gradients", "inputs", "inputs_back", "sum_forces", "sum_rows")
for number, names in (("fp64", kernels), ("fp32", ("moments", "gradients", "inputs", "inputs_back"))):
    tables = dict.fromkeys(("coefficients", "moment", "by_moment", "out", "by_input"), "*" + number)
    for name in names:
        kernel = getattr(fused, name)
        sizes = dict(EDGES=8, COLUMNS=8 if name == "sum_rows" else 32, POWERS=8, WIDTH=32, ROWS=64)
        constants = {n: sizes[n] for n in kernel.arg_names if n in sizes}
        signature = {n: "constexpr" if n in constants else {**shared, **tables}[n] for n in kernel.arg_names}
        made = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        print(name, len(made.asm["cubin"]))
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=JOB_PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 11
