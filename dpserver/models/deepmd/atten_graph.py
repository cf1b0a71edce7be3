"""The descriptor se_atten in graphs of the TensorFlow backend, made into a section of DeePMD-kit's tree.

There the embedding of types stands beside the descriptor, as a net that may have several layers; what comes of it is
stored as that of one linear layer. Queries are not divided by a temperature, empty slots of `sel` have the zero vector
for a type, and directions of short vectors are cut at another length. With smooth type embedding the graph switches off
by another function than the other backends.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import torch

from dpserver.errors import ConfigError, ModelFileError
from dpserver.frames import Floats
from dpserver.models.deepmd.graphdef import Constants
from dpserver.models.deepmd.nets import VARIABLES, Layers, collection_of_layers
from dpserver.models.deepmd.tree import Tree, array, get, get_or
from dpserver.models.deepmd.two_body import environment_of_constants
from dpserver.models.electrons import configuration
from dpserver.models.networks import activation

ADVICE: Final = "`dpserver --backend deepmd` serves it where DeePMD-kit is installed"
"""For graphs that cannot be read; DeePMD-kit 3.2 cannot convert them either."""
_WHERE: Final = "model.descriptor"
_LN_EPS: Final = 1e-3
_NORM: Final = {"w": "gamma", "b": "beta"}


def section_of_constants(given: Tree, constants: Constants, types: list[str], embedding: Tree | None) -> Tree:
    """The section of a tree, from what the TensorFlow backend stores.

    Args:
        given: the section `descriptor` of the input.
        constants: of the graph.
        types: names of the types.
        embedding: the section `type_embedding` of the input; None where it has none.

    Raises:
        ModelFileError: something is missing, or the graph does what no other backend does.
    """
    n_layers = get_or(given, "attn_layer", 2, _WHERE)
    is_newer = given.get("type") == "se_atten_v2"
    is_stripped = is_newer or given.get("tebd_input_mode") == "strip" or given.get("stripped_type_embedding") is True
    if (is_newer or given.get("smooth_type_embedding") is True) and (is_stripped or n_layers):
        raise ModelFileError(
            "the TensorFlow backend smooths type embedding (smooth_type_embedding) in a way of its own, which is not "
            f"supported; {ADVICE}"
        )
    environment = environment_of_constants(given, constants, 4)
    if np.any(environment["@variables"]["davg"]):
        raise ModelFileError(
            "it was trained with set_davg_zero false, and the TensorFlow backend has another type for empty slots, "
            f"which is not supported; {ADVICE}"
        )
    nets = {"embeddings": _net(constants, "filter_type_all", "")}
    if is_stripped:
        nets["embeddings_strip"] = _net(constants, "filter_type_all", "_two_side_ebd")
    if not all(nets.values()):
        raise ModelFileError(
            "it is a compressed model: its graph holds tables in place of the embedding nets; import the uncompressed "
            "model it was made from (the input of `dp compress`)"
        )
    table = _type_vectors(constants, types, embedding)
    return {
        **given,
        **environment,
        "type": "se_atten_v2" if is_newer else "dpa1",
        "tebd_input_mode": "strip" if is_stripped else "concat",
        "type_one_side": get_or(given, "type_one_side", False, _WHERE) and not is_stripped,
        "smooth_type_embedding": False,
        "temperature": 1.0,
        "shortest": 1e-6,
        "ln_eps": _LN_EPS if given.get("ln_eps") is None else given["ln_eps"],
        "tebd_dim": table.shape[1],
        "use_econf_tebd": False,
        "use_tebd_bias": False,
        **{key: collection_of_layers([net], 0) for key, net in nets.items()},
        "type_embedding": {"embedding": {"layers": [{"@variables": {"w": _as_weights(table)}}]}},
        "attention_layers": {"attention_layers": [_attention(constants, k) for k in range(n_layers)]},
    }


def _net(constants: Constants, scope: str, ending: str) -> Layers:
    """Layers of a net, from 1 on."""
    pattern = re.compile(rf"{scope}/(matrix|bias|idt)_(\d+){ending}")
    net: Layers = {}
    for name, value in constants.items():
        if match := pattern.fullmatch(name):
            net.setdefault(int(match[2]), {})[VARIABLES[match[1]]] = value
    return net


def _type_vectors(constants: Constants, types: list[str], embedding: Tree | None) -> Floats:
    """The embedding of each type, (n_types, n)."""
    where, section = "model.type_embedding", embedding or {}
    name = "linear" if embedding is None else get_or(section, "activation_function", "tanh", where)
    try:
        function = activation(name)
        of_electrons = get_or(section, "use_econf_tebd", False, where)
        x = np.stack([configuration(symbol) for symbol in types]) if of_electrons else np.eye(len(types))
    except ConfigError as error:
        raise ModelFileError(f"its {where} is not supported: {error}") from None
    net = _net(constants, "type_embed_net", "")
    for k in sorted(net):
        n_in, place = x.shape[1], f"type_embed_net[{k}]"
        n_out = int(np.prod(np.shape(get(net[k], "w", np.ndarray, place))[1:]))
        z = x @ array(net[k], "w", (n_in, n_out), place)
        z += array(net[k], "b", (n_out,), place) if "b" in net[k] else 0.0
        y = function(torch.from_numpy(z)).numpy()
        y = y * array(net[k], "idt", (n_out,), place) if "idt" in net[k] else y
        x = y + np.tile(x, n_out // n_in) if n_out in (n_in, 2 * n_in) else y
    if not net:
        raise ModelFileError("its graph has no type_embed_net")
    return np.asarray(x)


def _as_weights(table: Floats) -> Floats:
    """What one linear layer adds to its skip connection, if it has one, to give these vectors."""
    n_types, n = table.shape
    return table - np.tile(np.eye(n_types), n // n_types) if n in (n_types, 2 * n_types) else table


def _attention(constants: Constants, number: int) -> Tree:
    """An attention layer as it stands in the tree."""
    scope = f"attention_layer_{number}"

    def parts(names: tuple[str, ...], part: str) -> Any:
        found = [constants.get(f"{scope}/{name}/{part}") for name in names]
        if not all(isinstance(value, np.ndarray) and value.ndim for value in found):
            raise ModelFileError(f"its graph lacks {scope}/{names[0]}/{part}")
        try:
            return np.concatenate([np.asarray(value) for value in found], axis=-1)
        except ValueError:
            raise ModelFileError(f"the parts of {scope} in its graph do not fit together") from None

    def layer(*names: str) -> Tree:
        return {"@variables": {ours: parts(names, theirs) for theirs, ours in (("matrix", "w"), ("bias", "b"))}}

    norm = {ours: parts(("layer_normalization",), theirs) for ours, theirs in _NORM.items()}
    inner = {"in_proj": layer("c_query", "c_key", "c_value"), "out_proj": layer("c_out")}
    return {"attention_layer": inner, "attn_layer_norm": {"@variables": norm}}
