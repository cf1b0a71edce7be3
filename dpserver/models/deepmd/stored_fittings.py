"""The fitting nets as DeePMD-kit's backends store them, made into sections of its tree; see `fittings`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from dpserver.errors import ModelFileError
from dpserver.frames import Ints
from dpserver.models.deepmd.fittings import STATISTICS
from dpserver.models.deepmd.graphdef import Constants, numbers
from dpserver.models.deepmd.nets import VARIABLES, Layers, collection_of_layers, named, networks_of_tensors
from dpserver.models.deepmd.tree import Array, Tree, get_or, shown

_GRAPH_STATISTICS: Final = dict(
    zip(STATISTICS, ("t_fparam_avg", "t_fparam_istd", "t_aparam_avg", "t_aparam_istd"), strict=True)
)
_GRAPH_NET: Final = re.compile(r"(?:layer_(\d+)|final_layer)(?:_type_(\d+))?/(matrix|bias|idt)")


def of_tensors(given: Tree, tensors: Mapping[str, Array], prefix: str, n_types: int, n_axes: int = 1) -> Tree:
    """The section of a tree, from what the PyTorch backend stores.

    Args:
        given: the section `fitting_net` of the input.
        tensors: of the whole model, by name.
        prefix: of those of the fitting nets.
        n_types: number of types.
        n_axes: 0 where all types share one net, 1 where each has its own.
    """
    names = ("bias_atom_e", "case_embd", *STATISTICS)
    variables = named(tensors, {name: f"{prefix}{name}" for name in names})
    if given.get("type") == "polar":
        variables["scale"] = _scale_of_input(given, n_types)
    return {
        **{key: value for key, value in given.items() if key not in ("scale", "sel_type", "dipole_type", "pol_type")},
        "nets": networks_of_tensors(tensors, f"{prefix}filter_layers.", n_axes, n_types),
        "@variables": variables,
    }


def _scale_of_input(given: Tree, n_types: int) -> Array:
    """The factor of each type."""
    scale = given.get("scale")
    values = [1.0 if scale is None else scale] * n_types if not isinstance(scale, list) else scale
    if len(values) != n_types or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ModelFileError(f"its model.fitting_net.scale is {shown(scale)}, expected a number, or one of each type")
    return np.array(values, dtype=np.float64)


def of_constants(
    given: Tree, constants: Constants, n_types: int, columns: Ints | None = None, *, is_shared: bool = False
) -> Tree:
    """The section of a tree, from what the TensorFlow backend stores.

    Args:
        given: the section `fitting_net` of the input.
        constants: of the graph.
        n_types: number of types.
        columns: where the features of a descriptor are, see `Form.columns`.
        is_shared: all types share one net.

    Raises:
        ModelFileError: the graph does not fit the input.
    """
    nets: list[Layers] = [{} for _ in range(1 if is_shared else n_types)]
    n_hidden = len(get_or(given, "neuron", [120, 120, 120], "model.fitting_net"))
    for name, value in constants.items():
        if match := _GRAPH_NET.fullmatch(name):
            layer, owner = n_hidden if match[1] is None else int(match[1]), int(match[2] or 0)
            is_known = (match[2] is None) == is_shared and owner < len(nets)
            if not is_known or (match[1] is not None and layer >= n_hidden):
                raise ModelFileError(f"its graph has the constant {name}, which its training_script has no place for")
            nets[owner].setdefault(layer, {})[VARIABLES[match[3]]] = value
    for net in nets:
        first = net.get(0, {}).get("w")
        if columns is not None and isinstance(first, np.ndarray) and first.ndim == 2 and len(first) >= len(columns):
            net[0]["w"] = np.concatenate([first[columns], first[len(columns) :]])
        for k, found in net.items():
            found["resnet"] = 0 < k < n_hidden and len(set(np.shape(found.get("w", 0)))) == 1
    bias = numbers(constants, "fitting_attr/t_bias_atom_e")
    statistics = {ours: numbers(constants, f"fitting_attr/{theirs}") for ours, theirs in _GRAPH_STATISTICS.items()}
    section = {
        **{key: value for key, value in given.items() if key not in ("scale", "sel_type", "dipole_type", "pol_type")},
        "@variables": {
            "bias_atom_e": np.zeros(n_types) if bias is None and given.get("type", "ener") == "ener" else bias,
            **{name: value for name, value in statistics.items() if value is not None},
        },
    }
    kind = given.get("type", "ener")
    if kind == "ener":
        energies: list[Any] = get_or(given, "atom_ener", [], "model.fitting_net")
        section["atom_ener"] = [*energies, *([None] * (n_types - len(energies)))] if energies else []
    if kind == "polar":
        _read_polar(given, constants, nets, section["@variables"])
    return {**section, "nets": collection_of_layers(nets, 0 if is_shared else 1)}


def selected_of(given: Tree, n_types: int) -> list[int]:
    """The types of an input of the TensorFlow backend whose atoms carry a dipole or polarizability, `sel_type`.

    Raises:
        ModelFileError: they are no types.
    """
    found = [given[key] for key in ("sel_type", "dipole_type", "pol_type") if given.get(key) is not None]
    selected = (found[0] if isinstance(found[0], list) else [found[0]]) if found else list(range(n_types))
    if not selected or not all(type(c) is int and 0 <= c < n_types for c in selected):
        raise ModelFileError(f"its model.fitting_net.sel_type is {shown(selected)}, expected types below {n_types}")
    return sorted(selected)


def _read_polar(given: Tree, constants: Constants, nets: Sequence[Layers], variables: Tree) -> None:
    """What the graph does with the nets of polarizabilities, as the tree would say it.

    The graph counts scales and shifts by the place of a type among those selected, adds the shift after the scale, and
    takes the sum of a matrix and its transpose where the tree takes their mean.
    """
    n_types = len(nets)
    selected, scales = selected_of(given, n_types), _scale_of_input(given, n_types)
    constant = numbers(constants, "fitting_attr/t_constant_matrix")
    out_bias = numbers(constants, "model_attr/model_attr/t_out_bias", "model_attr/t_out_bias")
    scale, shift = np.ones(n_types), np.zeros(n_types)
    for place, c in enumerate(selected):
        scale[c] = scales[place]
        shift[c] = 0.0 if constant is None else np.reshape(constant, -1)[place]
        if out_bias is not None and given.get("shift_diag", True):
            shift[c] += np.trace(np.reshape(out_bias, (-1, 3, 3))[place]) / 3
    if (scale == 0).any():
        raise ModelFileError("its model.fitting_net.scale is 0 for a type; leave that type out of sel_type instead")
    variables["scale"], variables["constant_matrix"] = scale, shift / scale
    if not given.get("fit_diag", True):
        for net in nets:
            last = net.get(max(net, default=0), {})
            last.update({name: 2 * last[name] for name in ("w", "b") if name in last})
