"""Atoms without energy, and pairs that do not see each other, in models and in their training."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError
from dpserver.frames import Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import TABULATED, EvaluationContract, assert_close, scaled
from tests.models.test_se_e2_a import every_cell

DESCRIPTOR = {"type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 3}


def make(**model: Any) -> Potential:
    section = {"type_map": ["O", "H"], "descriptor": DESCRIPTOR, "fitting_net": {"neuron": [10, 10]}, **model}
    potential = Potential(parse(ModelConfig, section), seed=41)
    potential.descriptor.davg[:, 0] = torch.tensor([0.06, 0.05])
    potential.descriptor.dstd.copy_(torch.tensor([[0.15, 0.09, 0.09, 0.09], [0.12, 0.08, 0.08, 0.08]]))
    return scaled(potential, every_cell())


class TestAtomsWithoutEnergy(EvaluationContract):
    """The whole contract, by the kernels."""

    absent: ClassVar = [0]

    def potential(self) -> Potential:
        potential = make(atom_exclude_types=self.absent)
        potential.accelerate(1)
        return potential

    def frames(self) -> Frames:
        return every_cell()


@pytest.mark.parametrize("absent", [0, 1])
def test_such_atoms_are_neighbours_only(absent: int) -> None:
    potential, frames = make(atom_exclude_types=[absent]), every_cell()
    whole = make()
    whole.load_state_dict(potential.state_dict())
    all_of_it, result = whole.evaluate(frames), potential.evaluate(frames)
    expected = np.where(frames.types == absent, 0.0, all_of_it.atom_energy)
    np.testing.assert_array_equal(result.atom_energy, expected)
    assert np.abs(result.forces[frames.types == absent]).max() > 0.01
    potential.accelerate(1)
    assert_close(potential.evaluate(frames), result.energy, result.forces, result.virial, TABULATED)


def test_nothing_has_energy() -> None:
    result = make().evaluate(structures.tiny())
    potential = Potential(make().config.model_copy(update={"atom_exclude_types": (0, 1)}))
    nothing = potential.evaluate(structures.tiny())
    assert np.abs(result.forces).max() > 0
    np.testing.assert_array_equal(nothing.energy, 0)
    np.testing.assert_array_equal(nothing.forces, 0)


@pytest.mark.parametrize("key", ["exclude_types", "pair_exclude_types"])
def test_statistics_take_excluded_neighbours_for_empty_slots(key: str) -> None:
    frames = structures.cubic()
    pairs = {key: [[0, 1]]}
    section = {
        "type_map": ["O", "H"],
        "descriptor": {**DESCRIPTOR, **(pairs if key == "exclude_types" else {})},
        **(pairs if key == "pair_exclude_types" else {}),
    }
    potential = Potential(parse(ModelConfig, section))
    graph = potential.graph(frames)
    potential.descriptor.fit_normalisation([graph], 1e-2)
    for species in range(2):
        block = graph.blocks[species, species]
        s = potential.descriptor.environment(graph.vectors())[block.edges, 0]
        mean = s.sum() / (60 * len(graph.atoms[species]))
        torch.testing.assert_close(potential.descriptor.davg[species, 0], mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"atom_exclude_types": [2]}, r"model\.atom_exclude_types: types go from 0 to 1, got \[2\]"),
        ({"atom_exclude_types": ["O"]}, r"model\.atom_exclude_types\[0\]: input should be a valid integer"),
        (
            {"preset_out_bias": {"energy": [1.0]}},
            r"model\.preset_out_bias: needs one energy, or null, for each of the 2",
        ),
        ({"preset_out_bias": {"dos": [1.0, 2.0]}}, r"model\.preset_out_bias.*'energy'"),
        ({"atom_exclude_types": [0, 1]}, r"model\.atom_exclude_types: leaves no type whose atoms add anything"),
    ],
)
def test_refused(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse(ModelConfig, {"type_map": ["O", "H"], "descriptor": DESCRIPTOR, **section}, "model")


@pytest.mark.parametrize(
    ("preset", "in_vacuum", "expected"),
    [
        (None, [], ()),
        ({"energy": [None, [2.0]]}, [], (None, 2.0)),
        ({"energy": [1.0, None]}, [None, -3.0], (1.0, -3.0)),
    ],
)
def test_energies_that_are_not_fitted(preset: Any, in_vacuum: list[Any], expected: tuple[Any, ...]) -> None:
    fitting = {"atom_ener": in_vacuum}
    section = {"type_map": ["O", "H"], "descriptor": DESCRIPTOR, "fitting_net": fitting, "preset_out_bias": preset}
    config = parse(ModelConfig, section)
    assert config.given_energies == expected
    assert parse(ModelConfig, config.model_dump(mode="json")) == config
