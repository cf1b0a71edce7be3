"""How large a network may become."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpserver.errors import ConfigError
from dpserver.models import sizes
from dpserver.models.config import ModelConfig, TensorFittingConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel

SMOOTH: dict[str, Any] = {"sel": [4, 8], "rcut": 4.0, "neuron": [4, 8], "resnet_dt": True}
ATTENTION: dict[str, Any] = {**SMOOTH, "tebd_dim": 3, "attn": 5, "lmax": 2, "use_tebd_bias": True}
AXES = [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0]
DESCRIPTORS: dict[str, dict[str, Any]] = {
    "se_e2_a": {**SMOOTH, "axis_neuron": 3},
    "se_e2_r": {**SMOOTH, "type_one_side": True},
    "se_e3": SMOOTH,
    "se_atten": {**ATTENTION, "use_econf_tebd": True},
    "se_atten_v2": ATTENTION,
    "loc_frame": {"sel_a": [4, 8], "sel_r": [4, 8], "rcut": 4.0, "axis_rule": AXES},
    "behler_parrinello": {"rcut": 4.0},
    "hybrid": {"list": [{"type": "se_e2_a", **SMOOTH}, {"type": "se_e3", **SMOOTH}]},
}
MORE: dict[str, dict[str, Any]] = {
    "parameters": {"fitting_net": {"neuron": [6, 6], "numb_fparam": 2, "numb_aparam": 3}},
    "polar": {"fitting_net": {"type": "polar", "neuron": [6], "fit_diag": False}},
    "table": {"pair_table": {"rmin": 0.5, "step": 0.1, "n_splines": 9, "rcut": 1.4, "weights": [1.0, 1.0]}},
    "charges": {"electrostatics": {"charges": {"O": -0.8, "H": 0.4}, "environment": {"neuron": [5]}}},
}


def build(section: dict[str, Any]) -> Potential | TensorModel:
    """A model of water."""
    config = parse(ModelConfig, {"type_map": ["O", "H"], "fitting_net": {"neuron": [6, 6]}, **section})
    return (TensorModel if isinstance(config.fitting_net, TensorFittingConfig) else Potential)(config)


@pytest.mark.parametrize(
    "section",
    [
        *({"descriptor": {"type": name, **rest}} for name, rest in DESCRIPTORS.items()),
        *({"descriptor": {"type": "se_e2_a", **SMOOTH}, **rest} for rest in MORE.values()),
    ],
    ids=[*DESCRIPTORS, *MORE],
)
def test_all_numbers_of_a_network_are_counted_and_no_others(section: dict[str, Any]) -> None:
    state = build(section).state_dict()
    held = sizes.n_numbers(state.values())
    assert held == sum(tensor.numel() for tensor in state.values())
    given = 2 if "electrostatics" in section else 0  # the charges of the species are those of the config
    made = len(state) - (1 if given else 0)
    with sizes.AtMost(made, held - given, "too many"):
        assert build(section).state_dict().keys() == state.keys()
    for n_tensors, n_numbers in ((made, held - given - 1), (made - 1, held - given)):
        with sizes.AtMost(n_tensors, n_numbers, "too many"), pytest.raises(ConfigError, match="too many"):
            build(section)


def test_a_shape_may_be_written_in_any_way() -> None:
    for make in (torch.zeros, torch.ones, torch.empty, torch.randn, torch.rand):
        with sizes.AtMost(4, 18, "too many"):
            make(2, 3)
            make((2, 3))
            make(size=(2, 3))
            with pytest.raises(ConfigError, match="too many"):
                make(1)
    with sizes.AtMost(1, 1, "too many"), pytest.raises(ConfigError, match="too many"):
        torch.zeros(10**30)
    torch.zeros(3)


def test_numbers_that_are_only_said_are_not_held() -> None:
    whole = torch.zeros(3, 4)
    assert sizes.is_whole(whole)
    assert sizes.is_whole(whole.T)
    assert not sizes.is_whole(torch.zeros(1).expand(10**12))
    assert not sizes.is_whole(torch.empty(10**12, device="meta"))
    assert not sizes.is_whole(torch.zeros(9, 9).to_sparse())
    assert sizes.n_numbers([whole, whole.T, whole[0], torch.zeros(2)]) == 14
