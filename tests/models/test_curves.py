"""What tables hold: against the nets they stand for, and with their derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpserver.kernels import layout
from dpserver.models import curves
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.se_atten import SeAtten
from tests import structures
from tests.models import test_se_atten, test_se_e2_a
from tests.models.test_se_e2_a import RCUT

MEANS = (0.06, 0.05)
MODELS: dict[str, dict[str, Any]] = {
    "two sides": {"type_one_side": False},
    "concatenated": {"type": "se_atten", "env_protection": 0.1},
    "concatenated with skip": {"type": "se_atten", "neuron": [7, 14]},
    "concatenated one side": {"type": "se_atten", "type_one_side": True},
    "stripped": {"type": "se_atten", "tebd_input_mode": "strip", "rcut_smth": 2.0},
    "smooth": {"type": "se_atten_v2", "davg": MEANS, "rcut_smth": 2.0, "env_protection": 0.2},
    "smooth to the end": {"type": "se_atten_v2", "rcut_smth": 0.0},
    "smooth at the end": {"type": "se_atten_v2", "davg": MEANS, "rcut_smth": 3.7},
}


def make(name: str) -> Potential:
    options = MODELS[name]
    return test_se_atten.make(attn_layer=0, **options) if "type" in options else test_se_e2_a.make(**options)


def embedded(potential: Potential, centre: int, neighbour: int, r: np.ndarray) -> np.ndarray:
    """G of neighbours at some distances, by the descriptor's own nets."""
    d = potential.descriptor
    vectors = torch.zeros(len(r), 3, dtype=torch.float64)
    vectors[:, 0] = torch.from_numpy(r)
    s = ((d.environment(vectors) - d.davg[centre]) / d.dstd[centre])[:, :1]
    if isinstance(d, SeAtten):
        w = d.switch(torch.from_numpy(r)[:, None])
        return d.embed(s, w, d.pair_of(d.types(), centre, neighbour)).detach().numpy()
    return d.embedding_of(centre, neighbour)(s).detach().numpy()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (1, 1)])
def test_features_are_those_of_the_nets(name: str, pair: tuple[int, int]) -> None:
    potential, r = make(name), np.linspace(0.4, RCUT, 301)
    d = potential.descriptor
    found = curves.features(d, *pair)(curves.argument(d, r), 0)[0]
    np.testing.assert_allclose(found, embedded(potential, *pair, r), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_are_those_of_the_features(name: str) -> None:
    d = make(name).descriptor
    break_at = curves.break_of(d)
    end = float(curves.argument(d, np.array([0.4]))[0])
    v, h = np.linspace(0.05 * end, 0.95 * end, 60), 1e-3 * end
    if break_at is not None:
        v = v[np.abs(v - break_at) > 2 * h]
    function = curves.features(d, 0, 1)
    for order in range(3):
        low2, low, high, high2 = (function(v + n * h, order)[order] for n in (-2, -1, 1, 2))
        numeric = (low2 - 8 * low + 8 * high - high2) / (12 * h)
        exact = function(v, order + 1)[order + 1]
        np.testing.assert_allclose(exact, numeric, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_the_argument_grows_from_nothing_at_the_cutoff() -> None:
    r = np.linspace(RCUT, 0.3, 200)
    for name in MODELS:
        v = curves.argument(make(name).descriptor, r)
        assert v[0] == pytest.approx(0, abs=1e-15)
        assert (np.diff(v) > 0).all()


def test_what_is_known() -> None:
    assert curves.tabulated(test_se_atten.make(attn_layer=0)) is not None
    assert curves.tabulated(test_se_atten.make(attn_layer=1)) is None
    assert curves.tabulated(test_se_atten.make(attn_layer=0, davg=MEANS)) is None
    assert curves.tabulated(test_se_atten.make(attn_layer=0, lmax=2)) is None
    assert curves.tabulated(make("smooth")) is not None
    assert curves.variable_of(make("smooth").descriptor) == layout.BY_DISTANCE
    assert curves.variable_of(make("stripped").descriptor) == layout.BY_SWITCHED
    with pytest.raises(TypeError, match="do not know this SeAtten"):
        curves.descriptor_of(test_se_atten.make())


@pytest.mark.parametrize(
    ("n_types", "width", "expected"), [(2, 10, True), (2, 27, False), (curves.MOST_SPECIES + 1, 10, False)]
)
def test_what_the_kernels_have_no_form_for(n_types: int, width: int, expected: bool) -> None:
    """A first layer that carries the types on, and too many pairs of species."""
    descriptor = {"type": "se_atten", "sel": 60, "neuron": [4, 8], "axis_neuron": 3, "tebd_dim": 3, "attn_layer": 0}
    model = {
        "type_map": [f"X{k}" for k in range(n_types)],
        "descriptor": descriptor,
        "fitting_net": {"neuron": [width, width]},
    }
    potential = Potential(parse(ModelConfig, model))
    assert potential.descriptor.n_features == 27
    assert (curves.tabulated(potential) is not None) == expected


@pytest.mark.parametrize("has_types", [True, False])
def test_types_go_into_the_first_bias(has_types: bool) -> None:
    potential = test_se_atten.make(attn_layer=0, concat_output_tebd=has_types)
    d, frame = potential.descriptor, structures.cluster()
    graph = potential.graph(frame)
    net = potential.fitting.net_of(0)
    for centre, description in enumerate(d(graph, graph.vectors())):
        folded = curves.without_types(d, net[0], centre)
        n_own = folded.weight.shape[0]
        assert n_own == d.n_features - (3 if has_types else 0)
        expected, found = net[0](description.features), folded(description.features[:, :n_own])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
