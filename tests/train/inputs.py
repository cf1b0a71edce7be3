"""Training inputs as DeePMD-kit's users write them: one for each kind of model and of data, with the keys they use."""

from __future__ import annotations

import copy
from typing import Any

WATER = ["O", "H"]
COMMON: dict[str, Any] = {"rcut": 6.0, "rcut_smth": 0.5, "resnet_dt": False, "seed": 1, "_comment": "descriptor"}
NET: dict[str, Any] = {"neuron": [25, 50, 100], **COMMON}
FITTING: dict[str, Any] = {"neuron": [240, 240, 240], "resnet_dt": True, "seed": 1, "_comment": "fitting"}
SE_E2_A: dict[str, Any] = {"type": "se_e2_a", "sel": [46, 92], "axis_neuron": 16, **NET}
LOSS: dict[str, Any] = {
    **{"type": "ener", "start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000, "limit_pref_f": 1},
    **{"start_pref_v": 0, "limit_pref_v": 0},
}
TENSOR: dict[str, Any] = {"type": "tensor", "pref": 1.0, "pref_atomic": 1.0}


def whole(
    descriptor: dict[str, Any],
    fitting: dict[str, Any] | None = None,
    *,
    model: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """An input with the sections everybody writes."""
    found = {
        "_comment": "model parameters",
        "model": {"type_map": WATER, "descriptor": descriptor, "fitting_net": fitting or FITTING, **(model or {})},
        "learning_rate": {"type": "exp", "decay_steps": 5000, "start_lr": 0.001, "stop_lr": 3.51e-8, "_comment": "lr"},
        "loss": LOSS if loss is None else loss,
        "training": {
            "training_data": {"systems": ["../data/0/", "../data/1/"], "batch_size": "auto", **(data or {})},
            "validation_data": {"systems": ["../data/2"], "batch_size": 1, "numb_btch": 3},
            "numb_steps": 1000,
            "seed": 10,
            "disp_file": "lcurve.out",
            "disp_freq": 100,
            "save_freq": 1000,
            **(training or {}),
        },
        **sections,
    }
    return copy.deepcopy(found)


def without(data: dict[str, Any], *paths: str) -> dict[str, Any]:
    """An input without some keys."""
    data = copy.deepcopy(data)
    for path in paths:
        *parents, key = path.split(".")
        section = data
        for name in parents:
            section = section[name]
        del section[key]
    return data


ATTENTION: dict[str, Any] = {
    **{"type": "se_atten", "sel": 120, "axis_neuron": 16, "attn": 128, "attn_layer": 2, "attn_dotr": True},
    **{"attn_mask": False, **NET},
}
LOC_FRAME: dict[str, Any] = {
    **{"type": "loc_frame", "sel_a": [16, 32], "sel_r": [30, 60], "rcut": 6.0},
    "axis_rule": [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
}
QM_MM: list[dict[str, Any]] = [
    {**SE_E2_A, "sel": [6, 11, 0], "precision": "float32", "exclude_types": [[0, 2], [1, 2], [2, 2]]},
    {
        **{**ATTENTION, "sel": 150, "attn_layer": 0, "set_davg_zero": True, "precision": "float32"},
        **{"stripped_type_embedding": True, "rcut_smth": 5.8, "exclude_types": [[0, 0], [0, 1], [1, 1], [2, 2]]},
    },
]

ACCEPTED: dict[str, dict[str, Any]] = {
    "se_e2_a": whole({**SE_E2_A, "type_one_side": True, "precision": "float64"}, {**FITTING, "precision": "float64"}),
    "se_a of the TensorFlow backend, names from before": whole(
        {**SE_E2_A, "type": "se_a", "n_axis_neuron": 8, "sel": [60, 60]} | {"axis_neuron": None},
        {"n_neuron": [120, 120]},
        training={
            **{"stop_batch": 1000, "save_ckpt": "m", "disp_training": True, "time_training": True},
            **{"profiling": False, "profiling_file": "timeline.json"},
        },
        data={"set_prefix": "set", "auto_prob_style": "prob_uniform"},
    ),
    "length in epochs, statistics in a file": without(
        whole(SE_E2_A, model={"data_stat_nbatch": 20}, training={"num_epoch": 100, "stat_file": "./s.hdf5"}),
        "training.numb_steps", "loss.start_pref_v", "loss.limit_pref_v",
    ),
    "se_e2_r": whole({"type": "se_e2_r", "sel": [46, 92], **{**NET, "neuron": [5, 10, 20]}, "precision": "float64"}),
    "se_e3": whole({"type": "se_e3", "sel": [40, 80], **{**NET, "neuron": [2, 4, 8]}, "precision": "float64"}),
    "loc_frame": whole(LOC_FRAME, {**FITTING, "neuron": [240, 120, 60, 30, 10]}, data={"batch_size": 4}),
    "se_atten": whole(ATTENTION),
    "se_atten without attention": whole({**ATTENTION, "attn_layer": 0, "type_one_side": True, "set_davg_zero": False}),
    "se_atten_v2": whole({**ATTENTION, "type": "se_atten_v2", "attn_layer": 0, "precision": "float64"}),
    "dpa1": whole(
        {
            **{**ATTENTION, "type": "dpa1", "tebd_dim": 8, "scaling_factor": 1.0, "normalize": True},
            **{"type_one_side": True, "temperature": 1.0, "concat_output_tebd": True, "activation_function": "tanh"},
            **{"tebd_input_mode": "strip", "smooth_type_embedding": True, "use_econf_tebd": False},
        },
        training={"stat_file": "./dpa1.hdf5", "gradient_max_norm": 5.0, "warmup_steps": 0},
    ),
    "mixed batches of molecules without a cell": whole(
        {**ATTENTION, "attn_layer": 0, "sel": "auto"}, data={"systems": "../data/", "batch_size": "mixed:4"}
    ),
    "hybrid": whole(
        {"type": "hybrid", "list": [
            {**SE_E2_A, "sel": [20, 40], "rcut": 4.0, "neuron": [10, 20, 40], "axis_neuron": 4},
            {"type": "se_e2_r", "sel": [46, 92], **NET},
            {**ATTENTION, "attn_layer": 0, "sel": [46, 92], "axis_neuron": 4},
        ]}
    ),
    "QM/MM": whole(
        {"type": "hybrid", "list": QM_MM},
        {**FITTING, "precision": "float32", "type": "ener", "atom_ener": [None, None, 0.0]},
        model={"type_map": ["C", "H", "OW"]},
        loss={**LOSS, "start_pref_gf": 10.0, "limit_pref_gf": 100.0, "numb_generalized_coord": 1},
    ),
    "short-range table": whole(
        {**SE_E2_A, "precision": "float64"},
        model={"use_srtab": "table.txt", "smin_alpha": 0.1, "sw_rmin": 0.8, "sw_rmax": 1.0},
    ),
    "parameters of frames": whole(
        {**SE_E2_A, "sel": [60, 60]}, {**FITTING, "numb_fparam": 1}, model={"data_stat_nbatch": 1}
    ),
    "parameters of atoms": whole({**SE_E2_A, "sel": "auto:1.2"}, {**FITTING, "numb_aparam": 1}),
    "dipole": whole(
        {**SE_E2_A, "axis_neuron": 6}, {**FITTING, "type": "dipole", "sel_type": [0], "neuron": [100, 100, 100]},
        loss=TENSOR,
    ),
    "dipole of Wannier centres": whole(
        SE_E2_A, {**FITTING, "type": "dipole", "dipole_type": [0]}, loss={**TENSOR, "pref": 0.0},
        data={"set_prefix": "set"},
    ),
    "dipole of the PyTorch backend": whole(
        SE_E2_A, {**FITTING, "type": "dipole"}, model={"atom_exclude_types": [1]}, loss=TENSOR
    ),
    "polarizability": whole(
        SE_E2_A, {**FITTING, "type": "polar", "fit_diag": False, "sel_type": [0]}, loss=TENSOR
    ),
    "every term of the loss": whole(
        SE_E2_A,
        loss={
            **LOSS, "start_pref_ae": 1, "limit_pref_ae": 1, "start_pref_pf": 1, "limit_pref_pf": 1, "relative_f": 1.0,
            "enable_atom_ener_coeff": True, "use_default_pf": True, "intensive_ener_virial": True,
        },
    ),
    "absolute errors": whole(SE_E2_A, loss={**LOSS, "loss_func": "mae", "f_use_norm": True}),
    "Huber's loss": whole(SE_E2_A, loss={**LOSS, "use_huber": True, "huber_delta": [0.01, 0.02, 0.03]}),
    "cosine after a warm-up, AdamW": without(
        whole(
            SE_E2_A,
            learning_rate={"type": "cosine", "start_lr": 1e-3, "stop_lr_ratio": 1e-3, "warmup_ratio": 0.05},
            optimizer={"type": "AdamW", "weight_decay": 1e-4, "adam_beta1": 0.9, "adam_beta2": 0.95},
        ),
        "training.validation_data",
    ),
    "stable, then falling": whole(
        SE_E2_A,
        learning_rate={"type": "wsd", "start_lr": 1e-3, "stop_lr": 1e-6, "warmup_steps": 10, "decay_phase_ratio": 0.2,
                       "decay_type": "cosine", "warmup_start_factor": 0.1, "scale_by_worker": "none"},
        training={"save_dir": "ckpt", "ckpt_keep_ratio": 0.5, "disp_avg": True, "change_bias_after_training": True},
    ),
    "an average of the weights": whole(
        SE_E2_A, training={"enable_ema": True, "ema_decay": 0.99, "ema_ckpt_keep": 2, "disp_avg": False}
    ),
    "ways to draw batches": whole(
        SE_E2_A,
        data={"batch_size": [1, 2], "sys_probs": [0.3, 0.7], "rglob_patterns": ["*"], "min_pair_dist": 0.5},
        validating={"full_validation": False, "validation_freq": 100},
    ),
    "blocks of systems": whole(
        {**SE_E2_A, "sel": "auto", "trainable": False, "set_davg_zero": True, "env_protection": 1e-6},
        {**FITTING, "trainable": [True, True, True, False], "rcond": 1e-3},
        data={"batch_size": "max:128", "auto_prob": "prob_sys_size;0:1:0.3;1:2:0.7"},
        model={"pair_exclude_types": [[0, 0]], "preset_out_bias": {"energy": [None, -13.0]}, "data_bias_nsample": 5},
    ),
}  # fmt: skip
"""Inputs that are trained on as they are."""
ACCEPTED["se_a of the TensorFlow backend, names from before"]["model"]["descriptor"].pop("axis_neuron")
del ACCEPTED["se_a of the TensorFlow backend, names from before"]["training"]["numb_steps"]

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DPA-2": (
        whole({"type": "dpa2", "repinit": {}, "repformer": {}}),
        "model.descriptor.type: supported are 'se_e2_a',",
    ),
    "several tasks": (
        {"model": {"model_dict": {}, "shared_dict": {}}, "training": {"data_dict": {}, "model_prob": {}}},
        "model.model_dict: belongs to a multi-task training, which dpserver does not do; ",
    ),
    "several fitting nets": (
        whole(SE_E2_A, model={"fitting_net_dict": {}}),
        "model.fitting_net_dict: belongs to a multi-task training",
    ),
    "spin": (
        whole(SE_E2_A, model={"spin": {"use_spin": [True, False]}}),
        "model.spin: ",
    ),
    "long-range electrostatics": (
        whole(SE_E2_A, model={"modifier": {"type": "dipole_charge", "ewald_beta": 0.4}}),
        "model.modifier: ",
    ),
    "type embedding of its own": (
        whole({**SE_E2_A, "type": "se_e2_a_tpe"}, model={"type_embedding": {"neuron": [8]}}),
        "model.type_embedding: ",
    ),
    "density of states": (
        whole(SE_E2_A, {"type": "dos", "numb_dos": 250}, loss={"type": "dos", "start_pref_dos": 0.0}),
        "model.fitting_net.type: supported are ",
    ),
    "properties": (
        whole(SE_E2_A, {"type": "property", "property_name": "band"}, loss={"type": "property"}),
        "model.fitting_net.type: supported are ",
    ),
    "a sum of models": (
        without(
            whole(SE_E2_A, model={"type": "linear_ener", "weights": "sum", "models": []}),
            "model.descriptor", "model.fitting_net",
        ),
        "model.type: ",
    ),
    "NVNMD": (whole(SE_E2_A, nvnmd={"version": 0}), "nvnmd: is about models for the NVNMD chip"),
    "Hessians": (whole(SE_E2_A, loss={**LOSS, "start_pref_h": 10, "limit_pref_h": 1}), "loss.start_pref_h: "),
    "half precision": (
        whole(SE_E2_A, training={"mixed_precision": {"compute_prec": "float16", "output_prec": "float32"}}),
        "training.mixed_precision: is not supported with half precision; set \"dpserver\": {\"precision\": \"mixed\"}",
    ),
    "Kalman filter": (whole(SE_E2_A, training={"opt_type": "LKF", "kf_blocksize": 1024}), "optimizer.type: supported"),
    "Muon": (whole(SE_E2_A, optimizer={"type": "HybridMuon"}), "optimizer.type: supported are 'Adam', 'AdamW'; got"),
    "LMDB": (whole(SE_E2_A, data={"batch_size": "mix:256"}), "training.training_data.batch_size: must be an integer"),
    "the best checkpoint": (
        whole(SE_E2_A, validating={"full_validation": True}),
        "validating.full_validation: true is not supported",
    ),
    "species without names": (
        without(whole(SE_E2_A), "model.type_map"),
        "model.type_map: this key is required, the species in the order of the data's type numbers",
    ),
    "version 1": (
        without(whole(SE_E2_A, training={"systems": ["../data"], "batch_size": 4, "numb_test": 10}),
                "training.training_data"),
        "training.systems: this is the place of DeePMD-kit before version 2; today it is training.training_data",
    ),
    "version 0": (
        {"sel_a": [16, 32], "n_neuron": [240, 120], "systems": ["../data/"], "stop_batch": 1000, "start_lr": 0.001},
        "sel_a: this is the place of DeePMD-kit before version 2; today it is model.descriptor",
    ),
    "a file of GROMACS": ({"graph_file": "frozen_model.pb", "lambda": 1.0, "pbc": False}, "graph_file: unknown key"),
}  # fmt: skip
"""Inputs that are refused, and what is said of the first key that is the reason."""
