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
from typing import Final

import numpy as np

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.graphdef import Constants, numbers, read_constants
from dpserver.models.deepmd.kinds import check_kind, read_types
from dpserver.models.deepmd.nets import VARIABLES, Layers, collection_of_layers
from dpserver.models.deepmd.tree import Tree, get, get_or, get_section

_FITTING: Final = re.compile(r"(?:layer_(\d+)|final_layer)_type_(\d+)/(matrix|bias|idt)")


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
    form = check_kind(parameters)
    _check_graph(constants, given)
    model: Tree = dict(parameters)
    types = read_types(model)
    model["descriptor"] = form.of_constants(get(model, "descriptor", dict, "model"), constants, len(types))
    model["fitting"] = _fitting(constants, get_section(model, "fitting_net", "model"), len(types))
    out_bias = numbers(constants, "model_attr/model_attr/t_out_bias", "model_attr/t_out_bias")
    model["atom_exclude_types"] = model["pair_exclude_types"] = []  # no part of a graph
    model["@variables"] = {} if out_bias is None else {"out_bias": out_bias}
    distance = numbers(constants, "train_attr/min_nbor_dist")
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
    spread = numbers(constants, "model_attr/model_attr/t_out_std", "model_attr/t_out_std")
    if spread is not None and not np.all(spread == 1):
        raise ModelFileError(
            "it was converted from a PyTorch model, and its graph multiplies the energies by their spread (out_std), "
            "so that they are wrong; import the .pth, .pt or .dp file it was made from"
        )


def _fitting(constants: Constants, given: Tree, n_types: int) -> Tree:
    nets: list[Layers] = [{} for _ in range(n_types)]
    n_hidden = len(get_or(given, "neuron", [120, 120, 120], "model.fitting_net"))
    for name, value in constants.items():
        if match := _FITTING.fullmatch(name):
            layer, owner = n_hidden if match[1] is None else int(match[1]), int(match[2])
            if owner >= n_types or (match[1] is not None and layer >= n_hidden):
                raise ModelFileError(f"its graph has the constant {name}, which its training_script has no place for")
            nets[owner].setdefault(layer, {})[VARIABLES[match[3]]] = value
    for net in nets:
        for k, found in net.items():
            found["resnet"] = 0 < k < n_hidden and len(set(np.shape(found.get("w", 0)))) == 1
    bias = numbers(constants, "fitting_attr/t_bias_atom_e")
    variables = {"bias_atom_e": np.zeros(n_types) if bias is None else bias}
    return {**given, "nets": collection_of_layers(nets, 1), "@variables": variables}
