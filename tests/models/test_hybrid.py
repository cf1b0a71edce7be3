"""Descriptors side by side: the contract, and that each part sees its own neighbours."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Frames
from dpserver.models.config import HybridConfig, ModelConfig, parse
from dpserver.models.hybrid import Hybrid
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import PotentialContract, scaled
from tests.models import slots
from tests.models.test_se_e2_a import pair
from tests.models.test_se_e3 import every_cell

LONG, SHORT = 4.0, 2.6
PARTS: list[dict[str, Any]] = [
    {"type": "se_e2_a", "sel": [16, 30], "rcut": SHORT, "rcut_smth": 0.5, "neuron": [3, 6], "axis_neuron": 2},
    {"type": "se_e2_r", "sel": [20, 40], "rcut": LONG, "rcut_smth": 1.0, "neuron": [4, 4], "type_one_side": True},
    {"type": "se_e3", "sel": [12, 24], "rcut": SHORT, "rcut_smth": 0.3, "neuron": [3, 3]},
]


def make(parts: list[dict[str, Any]] | None = None, **model: Any) -> Potential:
    """A small model of water with random weights, and statistics that leave empty slots something to say."""
    section = {
        "type_map": list(structures.SPECIES),
        "descriptor": {"type": "hybrid", "list": PARTS if parts is None else parts},
        "fitting_net": {"neuron": [8, 8]},
        **model,
    }
    potential = Potential(parse(ModelConfig, section), seed=31)
    for part in potential.descriptor:
        part.davg[:, :1] = torch.tensor([[0.06], [0.05]])
        scale = torch.tensor([[0.15, 0.4, 0.4, 0.4], [0.12, 0.3, 0.3, 0.3]])
        part.dstd.copy_(scale[:, : part.dstd.shape[1]])
    return scaled(potential, every_cell())


class TestHybrid(PotentialContract):
    def potential(self) -> Potential:
        return make()

    def frames(self) -> Frames:
        return every_cell()


class TestOneCutoffWithExclusions(PotentialContract):
    parts: ClassVar = [
        {**PARTS[0], "rcut": LONG, "sel": [20, 40], "exclude_types": [[1, 1]]},
        {**PARTS[1], "resnet_dt": True},
    ]

    def potential(self) -> Potential:
        return make(self.parts, pair_exclude_types=[[0, 0]])

    def frames(self) -> Frames:
        return every_cell()


@pytest.mark.parametrize("exclude", [[], [[0, 1]], [[1, 1]]])
@pytest.mark.parametrize("one_side", [True, False])
def test_slot_by_slot(exclude: list[list[int]], one_side: bool) -> None:
    """Each part as DeePMD-kit makes it: from the slots of the longest cutoff, cut to its own `sel`."""
    parts = [{**part, "exclude_types": exclude} for part in PARTS]
    parts = [part if part["type"] == "se_e3" else {**part, "type_one_side": one_side} for part in parts]
    potential = make(parts)
    for frame in (structures.tiny(), structures.cluster(), structures.atom()):
        graph = potential.graph(frame)
        found = potential.descriptor(graph, graph.vectors())
        near = slots.neighbours(frame, LONG)
        for centre, description in enumerate(found):
            for row, atom in enumerate(graph.atoms[centre].tolist()):
                sections = zip(potential.config.descriptor.list, potential.descriptor, strict=True)
                expected = [slots.ORACLES[config.type](part, centre, near[atom]) for config, part in sections]
                features = description.features[row].detach()
                np.testing.assert_allclose(features, np.concatenate(expected), rtol=1e-12, atol=1e-15)


def test_directions_are_those_of_the_parts_that_have_any() -> None:
    potential = make([PARTS[0], PARTS[1], {**PARTS[0], "neuron": [2, 4]}])
    graph = potential.graph(structures.tiny())
    description = potential.descriptor(graph, graph.vectors())[1]
    assert description.directions is not None
    assert description.directions.shape == (2, 6 + 4, 3)
    assert description.features.shape == (2, 12 + 4 + 8)


def test_a_part_is_full_by_its_own_cutoff() -> None:
    """Neighbours beyond the cutoff of a part do not count against its `sel`."""
    section = {
        "type_map": ["O", "H"],
        "descriptor": {"type": "hybrid", "list": [{**PARTS[0], "sel": [2, 2]}, PARTS[1]]},
    }
    potential = Potential(parse(ModelConfig, section, "model"))
    far = [[3.0 + 0.1 * k, 2.2 * (k % 2), 1.3 * k] for k in range(-1, 2)]
    assert np.isfinite(potential.evaluate(Frames.single([[0, 0, 0], *far], [0, 1, 1, 1])).energy).all()
    near = Frames.single([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 1, 1, 1])
    with pytest.raises(StructureError, match=r"atom 0 has 3 neighbours of type 1 within 2\.6 Å.*at most 2 \(sel\)"):
        potential.evaluate(near)


@pytest.mark.parametrize("rcut", [SHORT, LONG])
def test_continuous_across_every_cutoff(rcut: float) -> None:
    potential = make()
    outside = potential.evaluate(pair(np.array([rcut + 1e-9])))
    inside = potential.evaluate(pair(np.array([rcut - 1e-9])))
    np.testing.assert_allclose(inside.energy, outside.energy, rtol=0, atol=1e-9)
    np.testing.assert_allclose(inside.forces, outside.forces, rtol=0, atol=1e-8)


def test_statistics_are_those_of_each_part_alone() -> None:
    potential = make()
    frames = Frames.concatenate([structures.cluster(), structures.tiny()])
    potential.descriptor.fit_normalisation(iter([potential.graph(frames)]), 1e-2)
    for section, part in zip(PARTS, potential.descriptor, strict=True):
        alone = Potential(
            parse(ModelConfig, {"type_map": ["O", "H"], "descriptor": section, "fitting_net": {"neuron": [4]}})
        )
        alone.descriptor.fit_normalisation([alone.graph(frames)], 1e-2)
        torch.testing.assert_close(part.davg, alone.descriptor.davg, rtol=1e-13, atol=0)
        torch.testing.assert_close(part.dstd, alone.descriptor.dstd, rtol=1e-13, atol=0)


def test_hybrids_within_hybrids_are_one() -> None:
    nested = [{"type": "hybrid", "list": PARTS[:2]}, PARTS[2]]
    model = parse(ModelConfig, {"type_map": ["O", "H"], "descriptor": {"type": "hybrid", "list": nested}})
    assert isinstance(model.descriptor, HybridConfig)
    assert [part.type for part in model.descriptor.list] == ["se_e2_a", "se_e2_r", "se_e3"]
    assert model.descriptor.rcut == LONG
    assert isinstance(make(nested).descriptor, Hybrid)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], r"model\.descriptor\.list: .*at least 1 item"),
        ([{**PARTS[0], "sel": [3]}], r"model\.descriptor\.list\[0\]\.sel: needs one number per type"),
        ([PARTS[0], {**PARTS[1], "neurn": [3]}], r"list\[1\]\.neurn: unknown key; did you mean .*list\[1\]\.neuron\?"),
        ([{"type": "dpa2"}], r"model\.descriptor\.list\[0\]\.type: supported are .*; got \"dpa2\""),
        ([{"type": "loc_frame"}], r"model\.descriptor\.list\[0\]\.type: supported are"),
    ],
)
def test_refused(parts: list[dict[str, Any]], expected: str) -> None:
    section = {"type_map": ["O", "H"], "descriptor": {"type": "hybrid", "list": parts}}
    with pytest.raises(ConfigError, match=expected):
        parse(ModelConfig, section, "model")
