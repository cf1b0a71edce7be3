"""What the smooth descriptors have in common: which neighbours and which empty slots they see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import scaled

PAIRS = [[0, 1]]


def make(kind: str, pairs: list[list[int]] | None = None, **descriptor: Any) -> Potential:
    shape = {"sel": [15, 30], "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], **descriptor}
    model = {
        "type_map": list(structures.SPECIES),
        "descriptor": {"type": kind, **shape},
        "fitting_net": {"neuron": [10, 10]},
        "pair_exclude_types": pairs or [],
    }
    potential = Potential(parse(ModelConfig, model), seed=3)
    potential.descriptor.davg[:, 0] = torch.tensor([0.06, 0.05])
    potential.descriptor.dstd[:] = torch.tensor([0.15, 0.09, 0.09, 0.09])[: potential.descriptor.dstd.shape[1]]
    return scaled(potential, structures.cluster())


@pytest.mark.parametrize("kind", ["se_e2_a", "se_e2_r"])
@pytest.mark.parametrize("one_side", [True, False])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("way", ["excluded", "unseen"])
def test_descriptor_slot_by_slot(kind: str, one_side: bool, keeps: bool, way: str) -> None:
    """Against DeePMD-kit's own way: every slot of `sel` filled, those without a neighbour with R̃ = 0."""
    options = {"exclude_types": PAIRS, "keeps_excluded_slots": keeps} if way == "excluded" else {"pairs": PAIRS}
    potential = make(kind, type_one_side=one_side, **options)
    frame = structures.cluster()
    graph = potential.graph(frame)
    d, types, r_ij = potential.descriptor, torch.as_tensor(frame.types), graph.vectors()
    for centre, (features, _) in enumerate(d(graph, r_ij)):
        rows = (d.environment(r_ij) - d.davg[centre]) / d.dstd[centre]
        empty = (-d.davg[centre] / d.dstd[centre])[None]
        for place, atom in enumerate(graph.atoms[centre].tolist()):
            moment, total = torch.zeros(4, 8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
            for species, sel in enumerate((15, 30)):
                mine = rows[(graph.centre == atom) & (types[graph.neighbour] == species)]
                assert 0 < len(mine) < sel
                if centre != species and way == "excluded":
                    if not keeps:
                        continue
                    mine = torch.zeros_like(mine)
                elif centre != species:
                    mine = mine[:0]
                slots = torch.cat([mine, empty.expand(sel - len(mine), -1)])
                g = d.embedding[species if one_side else species * 2 + centre](slots[:, :1])
                total += g.sum(dim=0) / 45 / 5
                if kind == "se_e2_a":
                    moment += slots.T @ g / 45
            expected = total if kind == "se_e2_r" else (moment.T @ moment[:, :4]).flatten()
            torch.testing.assert_close(features[place], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["se_e2_a", "se_e2_r"])
def test_pairs_without_interaction_feel_no_forces(kind: str) -> None:
    frame = structures.molecule()
    assert np.abs(make(kind, type_one_side=True).evaluate(frame).forces).max() > 0
    potential = make(kind, [[0, 1], [1, 1]], type_one_side=True)
    np.testing.assert_array_equal(potential.evaluate(frame).forces, 0)
    # Nor do such neighbours need room in sel.
    assert make(kind, [[0, 1], [1, 1]], sel=[15, 1]).evaluate(frame).energy


def test_statistics_leave_out_unseen_pairs() -> None:
    potential = make("se_e2_a", [[0, 0], [0, 1]])
    potential.descriptor.fit_normalisation([potential.graph(structures.cluster())], 0.01)
    assert potential.descriptor.davg[0].abs().max() == 0
    assert potential.descriptor.dstd[0].tolist() == [0.01] * 4
    assert potential.descriptor.davg[1, 0] > 0


def test_pairs_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"pair_exclude_types: types go from 0 to 1, got \[0, 2\]"):
        make("se_e2_r", [[0, 2]])
