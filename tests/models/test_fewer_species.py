"""Potentials of many species: those that stand for them where a few occur."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from dpserver.errors import StructureError
from dpserver.frames import Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.fewer_species import is_restrictable, restricted
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import ROUNDED, TABULATED, assert_close, scaled
from tests.models.test_se_e2_a import every_cell

SPECIES = ["C", "N", "O", "F", "Ne", "H", "Na", "Mg", "Al"]
WATER = (2, 5)


def water() -> Frames:
    frames = every_cell()
    return replace(frames, types=np.array(WATER)[frames.types])


def make(model: dict[str, Any] | None = None, *, scales: bool = True, **descriptor: Any) -> Potential:
    shape = {"type": "se_atten_v2", "sel": 75, "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 3, "attn_layer": 0}
    config = {
        "type_map": SPECIES,
        "descriptor": {**shape, **descriptor},
        "fitting_net": {"neuron": [10, 10]},
        **(model or {}),
    }
    potential = Potential(parse(ModelConfig, config), seed=5)
    generator = torch.Generator().manual_seed(6)
    potential.descriptor.davg[:, 0] = 0.03 + 0.04 * torch.rand(len(SPECIES), generator=generator)
    potential.descriptor.dstd[:] = 0.08 + 0.04 * torch.rand(len(SPECIES), 1, generator=generator)
    potential.min_distance[:] = 0.8
    return (scaled(potential, water()) if scales else potential).requires_grad_(False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tebd_dim": 9},
        {"tebd_dim": 4, "use_econf_tebd": True, "use_tebd_bias": True, "concat_output_tebd": False},
        {"exclude_types": [[2, 5], [0, 1], [5, 7]]},
        {"model": {"pair_exclude_types": [[5, 5]], "atom_exclude_types": [1, 5]}},
        {"model": {"fitting_net": {"neuron": [10], "atom_ener": [None, 1.0, -2.0, 0, 0, 3.0, 0, 0, None]}}},
    ],
    ids=["plain", "skip", "electrons", "excluded", "unseen and absent", "vacuum"],
)
def test_the_same_answers(options: dict[str, Any]) -> None:
    potential, frames = make(**options), water()
    fewer = restricted(potential, WATER)
    assert fewer.species == ("O", "H")
    expected, result = potential.reference(frames), fewer.reference(replace(frames, types=frames.types // 5))
    for name in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_they_are_evaluated_by_the_kernels(precision: str) -> None:
    potential, frames = make(), water()
    expected = potential.reference(frames)
    potential.set_precision(precision)
    potential.accelerate(threads=1)
    assert potential.compiled() == [None]
    assert is_restrictable(potential)
    result = potential.evaluate(frames)
    tolerance = TABULATED if precision == "double" else ROUNDED
    assert_close(result, expected.energy, expected.forces, expected.virial, tolerance)
    assert not np.array_equal(result.forces, potential.reference(frames).forces)
    alone = structures.only(frames[0], 5)
    again = potential.reference(alone)
    assert_close(potential.evaluate(alone), again.energy, again.forces, again.virial, tolerance)


def test_with_too_many_at_once_the_reference_answers() -> None:
    potential = make()
    potential.accelerate(threads=1)
    frame = water()[0]
    mixed = replace(frame, types=np.arange(frame.n_atoms) % len(SPECIES))
    np.testing.assert_array_equal(potential.evaluate(mixed).forces, potential.reference(mixed).forces)


@pytest.mark.parametrize("is_in_place", [True, False])
def test_changed_weights_are_seen(is_in_place: bool) -> None:
    potential, frames = make(), water()
    potential.accelerate(threads=1)
    before = potential.evaluate(frames).energy
    if is_in_place:
        potential.energy_bias += 1.0
    else:
        potential.energy_bias = potential.energy_bias + 1.0
    np.testing.assert_allclose(potential.evaluate(frames).energy - before, np.bincount(frames.frame_idx), rtol=1e-9)


def test_a_type_that_does_not_exist_is_refused() -> None:
    potential = make()
    potential.accelerate(threads=1)
    with pytest.raises(StructureError, match="atom 0 has type 9"):
        potential.evaluate(Frames.single([[0.0, 0.0, 0.0]], [9]))


def test_which_can_be_told_of_fewer() -> None:
    assert is_restrictable(make())
    assert not is_restrictable(make(attn_layer=1))
    assert not is_restrictable(make(model={"fitting_net": {"neuron": [10], "numb_aparam": 1}}, scales=False))
    other = Potential(parse(ModelConfig, {"type_map": ["O"], "descriptor": {"type": "se_e2_a", "sel": [9]}}))
    with pytest.raises(TypeError, match="species of SeE2A cannot be left out"):
        restricted(other, [0])
