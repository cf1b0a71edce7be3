"""Models of DeePMD-kit's TensorFlow backend (`.pb`), made into its tree.

The graph holds the training input as a text, and the numbers as constants with the names of the backend's variables.
Where the backend means something else than the tree does, the tree is written so that it gives the numbers of the
graph: cutoffs are those of its operators, in float32; an excluded pair has no empty slots; and the fitting net has skip
connections only between hidden layers of one width.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.graphdef import Constants, read_constants
from dpserver.models.deepmd.kinds import both_ways, check_kind, read_types
from dpserver.models.deepmd.tree import Tree, get, get_or, get_section, is_unset

_EMBEDDING: Final = re.compile(r"filter_type_(all|\d+)/(matrix|bias|idt)_(\d+)_(\d+)")
_FITTING: Final = re.compile(r"(?:layer_(\d+)|final_layer)_type_(\d+)/(matrix|bias|idt)")
_VARIABLES: Final = {"matrix": "w", "bias": "b", "idt": "idt"}

Layers = dict[int, dict[str, Any]]


def read_graph(path: Path) -> Tree:
    """Read the tree of a frozen TensorFlow model, `.pb`; nothing of the graph is run.

    Raises:
        ModelFileError: damaged, no Deep Potential, or of a kind that is not supported.
        ConfigError: protobuf is not installed.
    """
    constants = read_constants(path)
    script = constants.get("train_attr/training_script")
    if not isinstance(script, bytes):
        raise ModelFileError(
            "its graph lacks train_attr/training_script, as those of old versions do; `dp convert-from` of DeePMD-kit "
            "brings it up to date"
        )
    try:
        given = json.loads(script)
    except (ValueError, RecursionError):
        raise ModelFileError("its train_attr/training_script is no JSON") from None
    parameters = get(given, "model", dict, "training_script")
    descriptor_type = check_kind(parameters)
    _check_graph(constants, given)
    model: Tree = dict(parameters)
    types = read_types(model)
    model["descriptor"] = _descriptor(constants, get(model, "descriptor", dict, "model"), descriptor_type, len(types))
    model["fitting"] = _fitting(constants, get_section(model, "fitting_net", "model"), len(types))
    out_bias = _numbers(constants, "model_attr/model_attr/t_out_bias", "model_attr/t_out_bias")
    model["atom_exclude_types"] = model["pair_exclude_types"] = []  # no part of a graph
    model["@variables"] = {} if out_bias is None else {"out_bias": out_bias}
    distance = _numbers(constants, "train_attr/min_nbor_dist")
    return {
        "backend": "TensorFlow",
        "model": model,
        "model_def_script": parameters,
        "@variables": {} if distance is None else {"min_nbor_dist": distance},
    }


def _check_graph(constants: Constants, given: Tree) -> None:
    """Refuse what the constants of a graph tell besides its input."""
    kind = constants.get("model_attr/model_type", b"ener")
    if kind != b"ener":
        raise ModelFileError(f"it is a model of type {kind!r}, expected 'ener'")
    if any(name.startswith(("modifier_attr/", "dipole_charge/", "spin_attr/")) for name in constants):
        raise ModelFileError("it is a model with a modifier (dplr) or spin, which is not supported")
    if any(name.startswith(("type_embed_net", "attention_layer")) for name in constants):
        raise ModelFileError("it is a model with type embedding or attention, which is not supported")
    if isinstance(given.get("training"), dict) and given["training"].get("mixed_precision"):
        raise ModelFileError("it was trained with mixed_precision, whose numbers cannot be repeated")
    spread = _numbers(constants, "model_attr/model_attr/t_out_std", "model_attr/t_out_std")
    if spread is not None and not np.all(spread == 1):
        raise ModelFileError(
            "it was converted from a PyTorch model, and its graph multiplies the energies by their spread (out_std), "
            "so that they are wrong; import the .pth, .pt or .dp file it was made from"
        )


def _numbers(constants: Constants, *names: str) -> Any:
    """The first array there is under one of these names."""
    return next((v for name in names if isinstance(v := constants.get(name), np.ndarray)), None)


def _descriptor(constants: Constants, given: Tree, kind: str, n_types: int) -> Tree:
    n_columns = 4 if kind == "se_e2_a" else 1
    sel, original = (_numbers(constants, f"descrpt_attr/{name}") for name in ("sel", "original_sel"))
    if sel is not None and original is not None and not np.array_equal(sel, original):
        raise ModelFileError(
            f"its sel was changed after training, from {original.tolist()} to {sel.tolist()}, which is not supported"
        )
    is_one_side = given.get("type_one_side", False) is True
    nets = _embeddings(constants, is_one_side, n_types)
    if not any(nets):
        raise ModelFileError(
            "it is a compressed model: its graph holds tables in place of the embedding nets; import the uncompressed "
            "model it was made from (the input of `dp compress`)"
        )
    excluded: list[Any] = get_or(given, "exclude_types", [], "model.descriptor")
    if is_one_side and not is_unset(excluded) and kind == "se_r":
        if np.any(_numbers(constants, "descrpt_attr/t_avg")):
            raise ModelFileError(
                "it is a se_e2_r model with exclude_types and type_one_side, whose graph counts excluded neighbours in "
                "a way that is not supported"
            )
    elif is_one_side and not is_unset(excluded):
        places = both_ways(excluded)
        pairs = [divmod(k, n_types) for k in range(n_types**2)]
        is_one_side, nets = False, [{} if pair in places else nets[pair[0]] for pair in pairs]
    moments = {}
    for name, constant in (("davg", "t_avg"), ("dstd", "t_std")):
        value = _numbers(constants, f"descrpt_attr/{constant}")
        if value is None or value.ndim != 2 or value.shape[1] % n_columns:
            raise ModelFileError(f"its graph has no descrpt_attr/{constant} of the expected shape")
        moments[name] = value.reshape(len(value), -1, n_columns)
    cutoffs = {key: float(np.float32(get(given, key, float, "model.descriptor"))) for key in ("rcut", "rcut_smth")}
    return {
        **given,
        **cutoffs,
        "type": kind,
        "type_one_side": is_one_side,
        "sel": given.get("sel") if sel is None else sel.tolist(),
        "embeddings": _collection(nets, 1 if is_one_side else 2),
        "@variables": moments,
    }


def _embeddings(constants: Constants, is_one_side: bool, n_types: int) -> list[Layers]:
    """Layers of the embedding nets, from 1 on, in the order of the tree."""
    nets: list[Layers] = [{} for _ in range(n_types if is_one_side else n_types**2)]
    for name, value in constants.items():
        if match := _EMBEDDING.fullmatch(name):
            centre, kind, layer, neighbour = match[1], match[2], int(match[3]), int(match[4])
            if (centre == "all") != is_one_side or max(neighbour, int(centre) if centre != "all" else 0) >= n_types:
                raise ModelFileError(f"its graph has the constant {name}, which its training_script has no place for")
            place = neighbour if is_one_side else neighbour * n_types + int(centre)
            nets[place].setdefault(layer, {})[_VARIABLES[kind]] = value
    return nets


def _fitting(constants: Constants, given: Tree, n_types: int) -> Tree:
    nets: list[Layers] = [{} for _ in range(n_types)]
    n_hidden = len(get_or(given, "neuron", [120, 120, 120], "model.fitting_net"))
    for name, value in constants.items():
        if match := _FITTING.fullmatch(name):
            layer, owner = n_hidden if match[1] is None else int(match[1]), int(match[2])
            if owner >= n_types or (match[1] is not None and layer >= n_hidden):
                raise ModelFileError(f"its graph has the constant {name}, which its training_script has no place for")
            nets[owner].setdefault(layer, {})[_VARIABLES[match[3]]] = value
    for net in nets:
        for k, found in net.items():
            found["resnet"] = 0 < k < n_hidden and len(set(np.shape(found.get("w", 0)))) == 1
    bias = _numbers(constants, "fitting_attr/t_bias_atom_e")
    variables = {"bias_atom_e": np.zeros(n_types) if bias is None else bias}
    return {**given, "nets": _collection(nets, 1), "@variables": variables}


def _collection(nets: list[Layers], n_axes: int) -> Tree:
    """A collection of networks, as it stands in the tree; `n_axes` is 2 for a network of each pair of types."""
    networks = [
        {"layers": [{"resnet": net[k].pop("resnet", True), "@variables": net[k]} for k in sorted(net)]} if net else None
        for net in nets
    ]
    return {"ndim": n_axes, "networks": networks}
