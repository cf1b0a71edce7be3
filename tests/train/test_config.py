"""The training input: official DeePMD-kit examples are accepted, everything else is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dpserver.errors import ConfigError
from dpserver.models.config import LocFrameConfig, SeE2AConfig
from dpserver.models.section import parse
from dpserver.train.config import TrainInput, load_input
from dpserver.train.data_config import DataConfig, parse_auto_prob
from dpserver.train.learning_rate import ExponentialDecay
from dpserver.train.loss_config import LossConfig

# The keys of DeePMD-kit's examples/water/se_e2_a/input.json and examples/water/local_frame/input.json.
SE_E2_A: dict[str, Any] = {
    "_comment1": " model parameters",
    "model": {
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "se_e2_a",
            "sel": [46, 92],
            "rcut_smth": 0.50,
            "rcut": 6.00,
            "neuron": [25, 50, 100],
            "resnet_dt": False,
            "axis_neuron": 16,
            "type_one_side": True,
            "precision": "float64",
            "seed": 1,
            "_comment2": " that's all",
        },
        "fitting_net": {
            "neuron": [240, 240, 240],
            "resnet_dt": True,
            "precision": "float64",
            "seed": 1,
            "_comment3": " that's all",
        },
        "_comment4": " that's all",
    },
    "learning_rate": {"type": "exp", "decay_steps": 5000, "start_lr": 0.001, "stop_lr": 3.51e-8},
    "loss": {
        "type": "ener",
        "start_pref_e": 0.02,
        "limit_pref_e": 1,
        "start_pref_f": 1000,
        "limit_pref_f": 1,
        "start_pref_v": 0,
        "limit_pref_v": 0,
    },
    "training": {
        "training_data": {"systems": ["../data/data_0/", "../data/data_1/"], "batch_size": "auto"},
        "validation_data": {"systems": ["../data/data_3"], "batch_size": 1, "numb_btch": 3},
        "numb_steps": 1000000,
        "seed": 10,
        "disp_file": "lcurve.out",
        "disp_freq": 100,
        "save_freq": 10000,
    },
}
LOCAL_FRAME: dict[str, Any] = {
    "model": {
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "loc_frame",
            "sel_a": [16, 32],
            "sel_r": [30, 60],
            "rcut": 6.00,
            "axis_rule": [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
        },
        "fitting_net": {"neuron": [240, 120, 60, 30, 10], "resnet_dt": True, "seed": 1},
    },
    "learning_rate": {"type": "exp", "start_lr": 0.001, "stop_lr": 3.51e-8, "decay_steps": 5000},
    "loss": {
        "start_pref_e": 0.02,
        "limit_pref_e": 8,
        "start_pref_f": 1000,
        "limit_pref_f": 1,
        "start_pref_v": 0.02,
        "limit_pref_v": 8,
        "start_pref_pf": 0,
        "limit_pref_pf": 0,
        "intensive_ener_virial": True,
    },
    "training": {
        "training_data": {
            "systems": "../data/",
            "batch_size": 4,
            "set_prefix": "set",
            "auto_prob_style": "prob_uniform",
        },
        "stop_batch": 1000000,
        "seed": 1,
        "disp_file": "lcurve.out",
        "disp_freq": 100,
        "save_freq": 1000,
        "save_ckpt": "model.ckpt",
        "disp_training": True,
        "time_training": True,
        "profiling": False,
        "profiling_file": "timeline.json",
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The se_e2_a example with one entry replaced."""
    data = copy.deepcopy(SE_E2_A)
    section = data
    *parents, key = path.split(".")
    for name in parents:
        section = section.setdefault(name, {})
    section[key] = value
    return data


def message(data: object) -> str:
    with pytest.raises(ConfigError) as error:
        parse(TrainInput, data)
    return str(error.value)


def write(folder: Path, data: object) -> Path:
    path = folder / "input.json"
    path.write_text(json.dumps(data))
    return path


def test_official_se_e2_a_example(tmp_path: Path) -> None:
    found = load_input(write(tmp_path, SE_E2_A))
    assert isinstance(found.model.descriptor, SeE2AConfig)
    assert found.model.descriptor.type_one_side
    assert found.training.numb_steps == 1000000
    assert found.training.validation_data is not None
    assert found.training.validation_data.numb_btch == 3
    assert (found.training.save_ckpt, found.training.max_ckpt_keep) == ("model.ckpt", 5)
    assert found.loss.terms == {"e", "f"}
    assert found.options.precision == "double"


def test_official_local_frame_example(tmp_path: Path) -> None:
    found = load_input(write(tmp_path, LOCAL_FRAME))
    assert isinstance(found.model.descriptor, LocFrameConfig)
    assert found.training.numb_steps == 1000000
    assert found.training.training_data.auto_prob == "prob_uniform"
    assert found.training.validation_data is None
    assert found.loss.intensive_ener_virial


@pytest.mark.parametrize("data", [SE_E2_A, LOCAL_FRAME])
def test_survives_json(data: dict[str, Any]) -> None:
    found = parse(TrainInput, data)
    assert parse(TrainInput, json.loads(json.dumps(found.model_dump(mode="json")))) == found


def test_defaults_of_optional_sections() -> None:
    data = {k: v for k, v in SE_E2_A.items() if k in ("model", "training")}
    found = parse(TrainInput, data)
    assert found.learning_rate == ExponentialDecay()
    assert found.loss == LossConfig()
    assert found.loss.summary() == {
        "type": "ener",
        "start_pref_e": 0.02,
        "limit_pref_e": 1.0,
        "start_pref_f": 1000.0,
        "limit_pref_f": 1.0,
        "start_pref_v": 0.0,
        "limit_pref_v": 0.0,
        "intensive_ener_virial": False,
    }


def test_systems_are_found_from_here_or_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "a").mkdir(parents=True)
    there.mkdir()
    monkeypatch.chdir(here)
    data = changed("training.training_data.systems", ["a", "b", str(tmp_path / "c")])
    found = load_input(write(there, changed("training", data["training"])))
    assert found.training.training_data.systems == ("a", str(there / "b"), str(tmp_path / "c"))
    assert found.training.validation_data is not None
    assert found.training.validation_data.systems == (str(there / "../data/data_3"),)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("training.numb_stps", 3, "training.numb_stps: unknown key; did you mean training.numb_steps?"),
        ("numb_steps", 3, "numb_steps: unknown key; did you mean training.numb_steps?"),
        ("training.num_stps", 3, "training.num_stps: unknown key; did you mean training.numb_steps?"),
        ("stop_btch", 3, "stop_btch: unknown key; "),
        ("num_steps", 3, "num_steps: unknown key; did you mean training.numb_steps?"),
        ("learning_rat", {}, "learning_rat: unknown key; did you mean learning_rate?"),
        (
            "training.validation_data.numb_bch",
            1,
            "training.validation_data.numb_bch: unknown key; did you mean training.",
        ),
        ("training.numb_steps", 1e6, "training.numb_steps: input should be a valid integer, got 1000000.0"),
        ("training.numb_steps", 0, "training.numb_steps: input should be greater than 0, got 0"),
        ("training.numb_epoch", 3, "training.numb_epoch: says the same as numb_steps, which is given too"),
        ("training.mixed_precision", {}, "training.mixed_precision: is not supported with half precision; set"),
        ("training.data_dict", {}, "training.data_dict: belongs to a multi-task training, which dpserver does not do"),
        ("training.gradient_max_norm", -1.0, "training.gradient_max_norm: input should be greater than or equal to 0"),
        ("training.ckpt_keep_ratio", 1.0, "training.ckpt_keep_ratio: input should be less than 1"),
        ("training.warmup_steps", "3", "learning_rate.warmup_steps: input should be a valid integer"),
        ("training.profiling", True, "training.profiling: true is not supported by dpserver; supported: false"),
        ("training.systems", ["x"], "training.systems: this is the place of DeePMD-kit before version 2; today it is"),
        ("training.set_prefix", "set", "training.set_prefix: this is the place of DeePMD-kit before version 2"),
        ("training.disp_file", "", "training.disp_file: "),
        ("training.training_data.systems", [], "training.training_data.systems: must be a path or a list of paths"),
        ("training.training_data.batch_size", "mix:3", "training.training_data.batch_size: must be an integer"),
        ("training.training_data.batch_size", "max", "training.training_data.batch_size: must be an integer"),
        ("training.training_data.batch_size", "auto:0", "training.training_data.batch_size: must be an integer"),
        ("training.training_data.batch_size", [2, 0], "training.training_data.batch_size: must be an integer"),
        ("training.training_data.auto_prob", "prob", 'training.training_data.auto_prob: must be "prob_uniform"'),
        ("training.training_data.auto_prob", "prob_sys_size;2:1:1", "training.training_data.auto_prob: must be"),
        ("training.training_data.auto_prob", 3, "training.training_data.auto_prob: must be"),
        ("training.training_data.min_pair_dist", -1.0, "training.training_data.min_pair_dist: input should be greater"),
        ("loss.type", "dos", "loss.type: supported are 'ener', 'tensor'; got \"dos\""),
        (
            "loss",
            {"type": "tensor", "pref": 1, "pref_atomic": 1},
            "loss.type: must be ener with model.fitting_net.type",
        ),
        ("loss.start_pref_h", 1.0, "loss.start_pref_h: 1.0 is not supported by dpserver; supported: 0.0"),
        ("loss.start_pref_f", -1.0, "loss.start_pref_f: input should be greater than or equal to 0, got -1.0"),
        (
            "loss",
            {"start_pref_e": 0, "start_pref_f": 0},
            "loss.start_pref_e: every term of the loss has a prefactor of 0",
        ),
        ("learning_rate.type", "step", "learning_rate.type: supported are 'exp', 'cosine', 'wsd'; got \"step\""),
        ("learning_rate.stop_lr_ratio", 1e-3, "learning_rate.stop_lr_ratio: says the same as stop_lr"),
        ("learning_rate.decay_rate", 1.5, "learning_rate.decay_rate: input should be less than or equal to 1"),
        ("optimizer", {"type": "LKF"}, "optimizer.type: supported are 'Adam', 'AdamW'; got \"LKF\""),
        ("optimizer", {"type": "Adam", "momentum": 0.9}, "optimizer.momentum: unknown key"),
        ("optimizer", {"adam_beta1": 1.0}, "optimizer.adam_beta1: input should be less than 1"),
        ("dpserver", {"precision": "half"}, "dpserver.precision: input should be 'double', 'mixed' or 'single'"),
        ("dpserver", {"device": "tpu"}, "dpserver.device: "),
        ("validating", {"full_validation": True}, "validating.full_validation: true is not supported by dpserver"),
        ("nvnmd", {}, "nvnmd: is about models for the NVNMD chip"),
        ("model.model_dict", {}, "model.model_dict: belongs to a multi-task training"),
    ],
)
def test_refuses(path: str, value: object, expected: str) -> None:
    assert message(changed(path, value)).startswith(expected)


def test_flat_input_of_the_oldest_versions_gets_a_hint() -> None:
    old = {"use_smooth": True, "sel_a": [46, 92], "rcut": 6.0, "n_neuron": [240, 240, 240], "systems": ["data"]}
    assert message(old).startswith("use_smooth: this is the place of DeePMD-kit before version 2; today it is model.")


@pytest.mark.parametrize(
    ("descriptor", "fitting", "options", "expected"),
    [
        ("default", "default", {}, "double"),
        ("float64", "default", {}, "double"),
        ("float32", "float32", {}, "mixed"),
        ("float32", "float32", {"precision": "double"}, "double"),
        ("float32", "float64", {"precision": "single"}, "single"),
        ("float32", "float32", {"device": "cpu"}, "mixed"),
    ],
)
def test_precision(descriptor: str, fitting: str, options: dict[str, str], expected: str) -> None:
    data = changed("dpserver", options)
    data["model"]["descriptor"]["precision"] = descriptor
    data["model"]["fitting_net"]["precision"] = fitting
    found = parse(TrainInput, data)
    assert found.options.precision == expected
    assert found.options.device == options.get("device", "auto")


def test_precision_of_loc_frame_is_that_of_its_fitting_net() -> None:
    data = copy.deepcopy(LOCAL_FRAME)
    data["model"]["fitting_net"]["precision"] = "float32"
    assert parse(TrainInput, data).options.precision == "mixed"


@pytest.mark.parametrize(("descriptor", "fitting"), [("float32", "float64"), ("float32", "default")])
def test_precisions_that_differ_are_the_higher_one(descriptor: str, fitting: str) -> None:
    data = changed("model.descriptor.precision", descriptor)
    data["model"]["fitting_net"]["precision"] = fitting
    assert parse(TrainInput, data).options.precision == "double"


@pytest.mark.parametrize(("second", "expected"), [("float32", "mixed"), ("default", "double")])
def test_precision_of_a_hybrid_is_the_highest_of_its_parts(second: str, expected: str) -> None:
    part = {"type": "se_e2_r", "sel": [4, 8]}
    parts = [{**part, "precision": "float32"}, {**part, "precision": second}]
    data = changed("model.descriptor", {"type": "hybrid", "list": parts})
    data["model"]["fitting_net"]["precision"] = "float32"
    assert parse(TrainInput, data).options.precision == expected


def test_the_precision_of_the_nets_leaves_our_other_options_alone() -> None:
    data = changed("dpserver", {"optimizer": "soap"})
    data["model"]["descriptor"]["precision"] = data["model"]["fitting_net"]["precision"] = "float32"
    found = parse(TrainInput, data).options
    assert (found.precision, found.optimizer) == ("mixed", "soap")


def test_keys_that_moved_are_understood_where_they_were() -> None:
    data = changed("training.warmup_steps", 7)
    data["training"] |= {"opt_type": "AdamW", "weight_decay": 0.1}
    found = parse(TrainInput, data)
    assert found.learning_rate.warmup_steps == 7
    assert (found.optimizer.type, found.optimizer.weight_decay) == ("AdamW", 0.1)
    data["learning_rate"]["warmup_steps"] = 8
    assert message(data).startswith("training.warmup_steps: says the same as learning_rate.warmup_steps")


def test_length_in_epochs() -> None:
    data = changed("training.num_epochs", 2.5)
    del data["training"]["numb_steps"]
    found = parse(TrainInput, data).training
    assert (found.numb_steps, found.numb_epoch) == (None, 2.5)
    del data["training"]["num_epochs"]
    assert message(data).startswith("training.numb_steps: this key is required, or numb_epoch in its place")


def test_number_of_checkpoints_kept() -> None:
    found = parse(TrainInput, changed("training.ckpt_keep_ratio", 0.25)).training
    assert found.n_kept(95_000) == 3
    assert parse(TrainInput, SE_E2_A).training.n_kept(95_000) == 5


def test_folder_of_checkpoints() -> None:
    assert parse(TrainInput, changed("training.save_dir", "out/ckpt")).training.checkpoint_prefix == Path(
        "out/ckpt/model.ckpt"
    )


def test_learning_rate_ends_at_stop_lr() -> None:
    lr = ExponentialDecay(start_lr=1e-3, stop_lr=3.51e-8)
    assert lr.at(0, 1000000) == lr.at(4999, 1000000) == 1e-3
    # DeePMD-kit: decay_rate = exp(ln(3.51e-8 / 1e-3) / (1000000 / 5000))
    assert lr.at(5000, 1000000) == pytest.approx(1e-3 * 0.95000641, rel=1e-7)
    assert lr.at(1000000, 1000000) == pytest.approx(3.51e-8, rel=1e-9)


def test_learning_rate_of_the_paper() -> None:
    lr = ExponentialDecay(start_lr=1e-3, decay_rate=0.95, decay_steps=5000, stop_lr=1e-12, smooth=True)
    assert lr.at(7500, 1000000) == pytest.approx(1e-3 * 0.95**1.5, rel=1e-14)
    assert lr.at(10**6, 10**6) == pytest.approx(1e-3 * 0.95**200, rel=1e-12)


def test_learning_rate_limits() -> None:
    assert ExponentialDecay().limit == 5e-8
    assert ExponentialDecay(stop_lr_ratio=0.1).limit == pytest.approx(1e-4)
    given_rate = ExponentialDecay(decay_rate=0.5, decay_steps=1, stop_lr=1e-5)
    assert given_rate.at(1000, 10**6) == 1e-5


def test_learning_rate_of_a_short_training_has_shorter_stairs() -> None:
    lr = ExponentialDecay(start_lr=1e-3, stop_lr=1e-5, decay_steps=5000)
    assert lr.at(99, 3000) == 1e-3
    assert lr.at(100, 3000) == pytest.approx(1e-3 * 1e-2 ** (1 / 30))
    assert lr.at(4, 500) == pytest.approx(1e-3)
    assert lr.at(6, 500) == pytest.approx(1e-3 * 1e-2 ** (6 / 500))


def test_auto_prob_blocks() -> None:
    assert parse_auto_prob("prob_uniform") == []
    assert parse_auto_prob("prob_sys_size;0:1:0.3;1:4:0.7") == [(0, 1, 0.3), (1, 4, 0.7)]


def test_one_path_is_a_list_of_one() -> None:
    assert parse(DataConfig, {"systems": "data"}).systems == ("data",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"model": ', "is not JSON: Expecting value in line 1"),
        ("[1]", "must be one JSON object, got list"),
        ('{"loss": {"type": "ener", "type": "ener"}}', '"type" appears twice'),
        ("", "is not JSON"),
        ("[" * 100000, "is not JSON"),
    ],
)
def test_what_is_no_input(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "input.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_input(path)


def test_missing_or_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the training input"):
        load_input(tmp_path / "input.json")
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ConfigError, match="is not a text file"):
        load_input(tmp_path / "w.pt")
