"""The model section: DeePMD-kit's keys, aliases and defaults, and errors that name the key."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from pydantic import ValidationError

from dpserver.errors import ConfigError
from dpserver.models.config import ACTIVATIONS, LocFrameConfig, ModelConfig, SeE2AConfig, parse

SMOOTH: dict[str, Any] = {
    "type_map": ["O", "H"],
    "descriptor": {"type": "se_e2_a", "sel": [46, 92]},
    "fitting_net": {},
}
LOCAL: dict[str, Any] = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "loc_frame",
        "sel_a": [16, 32],
        "sel_r": [30, 60],
        "axis_rule": [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
    },
    "fitting_net": {"neuron": [240, 120, 60, 30, 10]},
}


def changed(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one entry replaced."""
    data = copy.deepcopy(base)
    section = data
    *parents, key = path.split(".")
    for name in parents:
        section = section[name]
    section[key] = value
    return data


def message(data: object) -> str:
    with pytest.raises(ConfigError) as error:
        parse(ModelConfig, data, "model")
    return str(error.value)


def test_defaults_are_deepmd_kits() -> None:
    model = parse(ModelConfig, {"type_map": ["O"], "descriptor": {"type": "se_e2_a"}})
    assert model.descriptor.model_dump() == {
        "type": "se_e2_a",
        "sel": "auto",
        "rcut": 6.0,
        "rcut_smth": 0.5,
        "neuron": (10, 20, 40),
        "axis_neuron": 4,
        "activation_function": "tanh",
        "resnet_dt": False,
        "type_one_side": False,
        "exclude_types": (),
        "keeps_excluded_slots": None,
        "precision": "default",
        "set_davg_zero": False,
        "env_protection": 0.0,
        "trainable": True,
        "seed": None,
    }
    assert model.fitting_net.model_dump() == {
        "type": "ener",
        "neuron": (120, 120, 120),
        "activation_function": "tanh",
        "resnet_dt": True,
        "skips_only_equal": False,
        "numb_fparam": 0,
        "numb_aparam": 0,
        "default_fparam": None,
        "trainable": True,
        "precision": "default",
        "rcond": None,
        "atom_ener": (),
        "seed": None,
    }
    assert model.data_stat_nbatch == 10
    assert LocFrameConfig(sel_a=(1,), sel_r=(0,), axis_rule=(0, 0, 0, 0, 0, 1)).rcut == 6.0


@pytest.mark.parametrize("data", [SMOOTH, LOCAL])
def test_survives_json(data: dict[str, Any]) -> None:
    model = parse(ModelConfig, data)
    stored = json.loads(json.dumps(model.model_dump(mode="json")))
    assert ModelConfig.model_validate(stored) == model
    assert parse(ModelConfig, stored) == model


def test_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse(ModelConfig, SMOOTH).type_map = ("He",)  # type: ignore[misc]


def test_aliases_comments_and_keys_without_effect() -> None:
    model = parse(
        ModelConfig,
        {
            "_comment": "water",
            "type": "standard",
            "type_map": ["O", "H"],
            "data_bias_nsample": 20,
            "pair_exclude_types": [],
            "descriptor": {"type": "se_a", "sel": [46, 92], "n_axis_neuron": 5, "_note": 1, "trainable": True},
            "fitting_net": {"n_neuron": [8, 8], "numb_fparam": 0, "numb_aparam": 0, "atom_ener": []},
        },
    )
    assert isinstance(model.descriptor, SeE2AConfig)
    assert (model.descriptor.type, model.descriptor.axis_neuron) == ("se_e2_a", 5)
    assert model.fitting_net.neuron == (8, 8)


def test_loc_frame_axes() -> None:
    descriptor = parse(ModelConfig, LOCAL).descriptor
    assert isinstance(descriptor, LocFrameConfig)
    assert descriptor.axes == (((0, 1, 0), (0, 1, 1)), ((0, 0, 0), (0, 1, 0)))


@pytest.mark.parametrize("name", [*ACTIVATIONS, "Tanh", "silut:2.5", "custom_silu:10"])
def test_accepts_activation(name: str) -> None:
    model = parse(ModelConfig, changed(SMOOTH, "descriptor.activation_function", name))
    assert isinstance(model.descriptor, SeE2AConfig)
    assert model.descriptor.activation_function == name.lower()


@pytest.mark.parametrize("name", ["swish", "", None, "tanh:3", "silut:-1", "silut:x", "silut:inf"])
def test_refuses_activation(name: object) -> None:
    assert message(changed(SMOOTH, "fitting_net.activation_function", name)).startswith(
        "model.fitting_net.activation_function: "
    )


@pytest.mark.parametrize("sel", ["auto", "auto:1.5", [4, 0]])
def test_accepts_sel(sel: object) -> None:
    parse(ModelConfig, changed(SMOOTH, "descriptor.sel", sel))


@pytest.mark.parametrize("sel", ["all", "auto:0.5", "auto:x", [], [0, 0], [1.5, 2], [True, 1], [-1, 3], 46, None])
def test_refuses_sel(sel: object) -> None:
    assert message(changed(SMOOTH, "descriptor.sel", sel)).startswith("model.descriptor.sel: ")


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("descriptor.rcutt", 3.0, "model.descriptor.rcutt: unknown key; did you mean model.descriptor.rcut?"),
        ("rcut_smth", 3.0, "model.rcut_smth: unknown key; did you mean model.descriptor.rcut_smth?"),
        ("rcut", 3.0, "model.rcut: unknown key; did you mean model.descriptor.rcut?"),
        ("fitting_net.zzz", 1, "model.fitting_net.zzz: unknown key; known here are neuron, "),
        (
            "descriptor.type",
            "dpa2",
            "model.descriptor.type: supported are 'se_e2_a', 'se_e2_r', 'se_e3', 'se_atten', 'se_atten_v2', "
            "'loc_frame', 'behler_parrinello', 'hybrid'; got \"dpa2\"",
        ),
        ("descriptor", {"sel": [1, 2]}, "model.descriptor.type: supported are"),
        ("descriptor", 3, "model.descriptor: "),
        ("fitting_net.type", "dos", "model.fitting_net.type: supported are 'ener', 'dipole', 'polar'; got \"dos\""),
        ("descriptor.rcut", "6", 'model.descriptor.rcut: input should be a valid number, got "6"'),
        ("descriptor.rcut", True, "model.descriptor.rcut: input should be a valid number, got true"),
        ("descriptor.rcut", float("nan"), "model.descriptor.rcut: input should be"),
        ("descriptor.rcut", 0.0, "model.descriptor.rcut: input should be greater than 0, got 0.0"),
        ("descriptor.neuron", [3, "a"], 'model.descriptor.neuron[1]: input should be a valid integer, got "a"'),
        ("descriptor.neuron", [8.0], "model.descriptor.neuron[0]: input should be a valid integer, got 8.0"),
        ("descriptor.neuron", [], "model.descriptor.neuron: "),
        ("descriptor.resnet_dt", 1, "model.descriptor.resnet_dt: input should be a valid boolean, got 1"),
        ("descriptor.precision", "float16", "model.descriptor.precision: input should be 'default', 'float32' or"),
        ("descriptor.seed", 1.5, "model.descriptor.seed: must be an integer ≥ 0, or null"),
        ("descriptor.sel", [46], "model.descriptor.sel: needs one number per type of type_map (2), got 1"),
        ("descriptor.exclude_types", [[0, 2]], "model.descriptor.exclude_types: types go from 0 to 1, got [0, 2]"),
        ("descriptor.rcut_smth", 6.0, "model.descriptor.rcut_smth: must be smaller than rcut = 6.0, got 6.0"),
        ("descriptor.axis_neuron", 41, "model.descriptor.axis_neuron: must not exceed the last width of neuron, 40"),
        ("descriptor.trainable", 1, "model.descriptor.trainable: input should be a valid boolean"),
        ("fitting_net.trainable", [True, False], "model.fitting_net.trainable: needs one entry for each layer of"),
        ("fitting_net.default_fparam", [1.0], "model.fitting_net.default_fparam: needs numb_fparam = 0 numbers, got 1"),
        ("fitting_net.numb_fparam", -1, "model.fitting_net.numb_fparam: input should be greater than or equal to 0"),
        ("fitting_net.atom_ener", [0.0], "model.fitting_net.atom_ener: needs one energy, or null, for each type of"),
        ("fitting_net.dim_case_embd", 2, "model.fitting_net.dim_case_embd: 2 is not supported by dpserver"),
        ("fitting_net.use_aparam_as_mask", True, "model.fitting_net.use_aparam_as_mask: true is not supported"),
        ("fitting_net", {"type": "polar", "scale": [1.0] * 3}, "model.fitting_net.scale: needs one number, or one for"),
        ("fitting_net", {"type": "dipole", "sel_type": [2]}, "model.fitting_net.sel_type: must name some types from"),
        ("fitting_net", {"type": "dipole", "pol_type": [0]}, "model.fitting_net.pol_type: unknown key"),
        ("fitting_net.layer_name", ["a"], "model.fitting_net.layer_name: dpserver does not support this key"),
        ("spin", {}, "model.spin: spin is not supported; train such a model with DeePMD-kit"),
        ("type_map", ["H", "H"], "model.type_map: names a species twice: ['H', 'H']"),
        ("type_map", [], "model.type_map: "),
        ("type_map", "OH", 'model.type_map: input should be a valid tuple, got "OH"'),
    ],
)
def test_refuses(path: str, value: object, expected: str) -> None:
    assert message(changed(SMOOTH, path, value)).startswith(expected)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("axis_rule", [0] * 6, "needs 6 integers per type, 12 in all, got 6"),
        ("axis_rule", [2, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0], "for centre type 0: (2, 1, 0) must be a class 0 or 1"),
        ("axis_rule", [0, 2, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0], "for centre type 0: (0, 2, 0) must be a class 0 or 1"),
        (
            "axis_rule",
            [0, 1, 0, 0, 1, 1, 0, 0, 16, 0, 1, 0],
            "for centre type 1: neighbour 16 of type 0 does not exist",
        ),
        ("axis_rule", [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0], "for centre type 1: both axes are defined by the same"),
        ("sel_a", [16], "needs one number per type of type_map (2), got 1"),
        ("sel_r", [1, 2, 3], "needs one number per type of type_map (2), got 3"),
    ],
)
def test_refuses_in_loc_frame(key: str, value: object, expected: str) -> None:
    text = message(changed(LOCAL, f"descriptor.{key}", value))
    assert text.startswith(f"model.descriptor.{key}: {expected}")


def test_missing_keys() -> None:
    assert message({"descriptor": {"type": "loc_frame"}}) == (
        "model.type_map: this key is required, the species in the order of the data's type numbers, as in "
        '["O", "H"]; model.descriptor.sel_a: this key is required; '
        "model.descriptor.sel_r: this key is required; model.descriptor.axis_rule: this key is required"
    )


def test_every_problem_is_named() -> None:
    data = changed(changed(SMOOTH, "descriptor.rcutt", 1), "fitting_net.neurons", [1])
    assert message(data) == (
        "model.descriptor.rcutt: unknown key; did you mean model.descriptor.rcut?; "
        "model.fitting_net.neurons: unknown key; did you mean model.fitting_net.neuron?"
    )


def test_a_key_and_its_alias_together() -> None:
    data = changed(SMOOTH, "fitting_net", {"neuron": [8], "n_neuron": [8]})
    assert message(data) == "model.fitting_net.n_neuron: says the same as neuron, which is given too; keep one of them"


@pytest.mark.parametrize("value", [True, [1], "se_e2_a"])
@pytest.mark.parametrize("key", ["descriptor", "fitting_net", "electrostatics", "preset_out_bias"])
def test_a_value_in_place_of_a_section(key, value):
    model = {"type_map": ["O", "H"], "descriptor": {"type": "se_e2_a", "sel": "auto"}, key: value}
    with pytest.raises(ConfigError) as refused:
        parse(ModelConfig, model, "model")
    shown = json.dumps(value)
    assert str(refused.value) == f"model.{key}: must be keys with their values in braces, {{ … }}, got {shown}"
