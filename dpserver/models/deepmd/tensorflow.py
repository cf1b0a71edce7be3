"""Models of DeePMD-kit's TensorFlow backend (`.pb`), made into its tree.

The graph holds the training input as a text, and the numbers as constants with the names of the backend's variables.
Where the backend means something else than the tree does, the tree is written so that it gives the numbers of the
graph: cutoffs are those of its operators, in float32; an excluded pair has no empty slots; and the fitting net has skip
connections only between hidden layers of one width.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dpserver.errors import ModelFileError
from dpserver.models.deepmd import pair_tables, stored_fittings
from dpserver.models.deepmd.graphdef import Constants, numbers, read_constants
from dpserver.models.deepmd.kinds import check_kind, embeds_types, read_types
from dpserver.models.deepmd.tree import Tree, get, get_or, get_section, is_unset


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
    section = get_section(parameters, "descriptor", "model")
    is_embedded = embeds_types(section)
    form = check_kind({k: v for k, v in parameters.items() if k != "type_embedding"} if is_embedded else parameters)
    fitting = get_section(parameters, "fitting_net", "model")
    kind = get_or(fitting, "type", "ener", "model.fitting_net")
    _check_graph(constants, given, kind, is_embedded)
    model: Tree = dict(parameters)
    types = read_types(model)
    if is_embedded:
        section = {**section, "_type_map": types, "_type_embedding": model.pop("type_embedding", None)}
        if not is_unset(fitting.get("atom_ener")):
            raise ModelFileError("its atom_ener with embedded types is not supported")
    model["descriptor"] = form.of_constants(section, constants, len(types))
    columns = form.columns(parameters["descriptor"])
    model["fitting"] = stored_fittings.of_constants(fitting, constants, len(types), columns, is_shared=is_embedded)
    out_bias = numbers(constants, "model_attr/model_attr/t_out_bias", "model_attr/t_out_bias")
    model["atom_exclude_types"] = model["pair_exclude_types"] = []  # no part of a graph
    if kind != "ener":
        selected = stored_fittings.selected_of(fitting, len(types))
        model["atom_exclude_types"] = [c for c in range(len(types)) if c not in selected]
    model["@variables"] = {} if out_bias is None or kind != "ener" else {"out_bias": out_bias}
    if pair_tables.kind_of(parameters) is not None:
        model = pair_tables.of_constants(parameters, constants, model)
    distance = numbers(constants, "train_attr/min_nbor_dist")
    return {
        "backend": "TensorFlow",
        "model": model,
        "model_def_script": parameters,
        "@variables": {} if distance is None else {"min_nbor_dist": distance},
    }


def _check_graph(constants: Constants, given: Tree, kind: str, is_embedded: bool) -> None:
    """Refuse what the constants of a graph tell besides its input, and a kind other than that of the input."""
    found = constants.get("model_attr/model_type", b"ener")
    if found != kind.encode():
        raise ModelFileError(f"it is a model of type {found!r}, expected {kind!r}")
    if any(name.startswith(("modifier_attr/", "dipole_charge/", "spin_attr/")) for name in constants):
        raise ModelFileError("it is a model with a modifier (dplr) or spin, which is not supported")
    if not is_embedded and any(name.startswith(("type_embed_net", "attention_layer")) for name in constants):
        raise ModelFileError("it is a model with type embedding or attention, which is not supported")
    if kind == "polar" and "training" not in given:
        raise ModelFileError(
            "it was converted from another backend, and its graph lacks the scale and the shift of the "
            "polarizabilities; import the file it was made from"
        )
    if isinstance(given.get("training"), dict) and given["training"].get("mixed_precision"):
        raise ModelFileError("it was trained with mixed_precision, whose numbers cannot be repeated")
    spread = numbers(constants, "model_attr/model_attr/t_out_std", "model_attr/t_out_std")
    if kind == "ener" and spread is not None and not np.all(spread == 1):
        raise ModelFileError(
            "it was converted from a PyTorch model, and its graph multiplies the energies by their spread (out_std), "
            "so that they are wrong; import the .pth, .pt or .dp file it was made from"
        )
