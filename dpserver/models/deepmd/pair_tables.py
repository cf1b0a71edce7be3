"""Tables of pair energies in DeePMD-kit's files: its models `zbl`, `linear_ener` of a net and a table, and `pairtab`.

Each becomes the tree of a standard model with one section more, `pair_table`; a `zbl` model goes back, too. A net and a
table have biases of their own, and the whole has one:

    zbl       (1 - w)(N + d) + w (T + t) + o
    linear    w₁ (N + d) + w₂ (T + t) + o
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from dpserver.errors import ModelFileError
from dpserver.frames import Floats
from dpserver.models.deepmd.forms import cannot_dump
from dpserver.models.deepmd.graphdef import Constants, numbers
from dpserver.models.deepmd.nets import named
from dpserver.models.deepmd.tree import Array, Tree, array, get, get_or, get_section, is_unset, shown
from dpserver.models.pair_table import PairTable
from dpserver.models.potential import Potential
from dpserver.models.splines import values_of

_KINDS: Final = {"zbl": "zbl", "linear": "linear", "linear_ener": "linear", "pairtab": "pairtab"}
_SWITCH: Final = ("smin_alpha", "sw_rmin", "sw_rmax")
_INPUT: Final = ("use_srtab", *_SWITCH, "srtab_add_bias")
_ALPHA: Final = 0.1
"""What the PyTorch backend has for `smin_alpha`, whatever its input says."""
KEYS: Final = frozenset(["models", "weights", "tab", "rcut", "sel", *_SWITCH])
"""Entries of such a model that are read."""
_FLOOR: Final = 1e-20
"""Of sums of exponentials, in all backends but TensorFlow."""
_IN_THE_FILE: Final = "(the table is in the model)"

Reader = Callable[[Tree, str], Tree]
"""Makes the tree of a standard model of its input and the prefix of its tensors."""


def kind_of(model: object) -> str | None:
    """Tell a model with a table: `zbl`, `linear` or `pairtab`; None for any other.

    Args:
        model: the section `model` of a tree, or of a training input.
    """
    if not isinstance(model, Mapping):
        return None
    kind = str(model.get("type", "standard")).lower()
    return "zbl" if kind == "standard" and not is_unset(model.get("use_srtab")) else _KINDS.get(kind)


# --- from files -----------------------------------------------------------------------------------------------------


def joined(model: Tree) -> Tree:
    """The tree of a standard model with the section `pair_table`, from that of a model with a table.

    Raises:
        ModelFileError: it is no such model of one table and at most one net.
    """
    kind, n_types = kind_of(model), len(get(model, "type_map", list, "model"))
    if kind == "pairtab":
        return {**model, "pair_table": _section(model, "model", n_types)}
    net, table, weights = _parts(model)
    where = "model.models"
    for part in (net, table):
        if part.get("type_map") != model["type_map"]:
            raise ModelFileError(f"its {where} have other species than the whole, which is not supported")
        if excluded := [key for key in ("atom_exclude_types", "pair_exclude_types") if not is_unset(part.get(key))]:
            raise ModelFileError(f"its {where} have {excluded[0]} of their own, which is not supported")
    outer, d, t = (bias_of(part, n_types) for part in (model, net, table))
    fitting = get(net, "fitting", dict, where)
    variables = get(fitting, "@variables", dict, f"{where}.fitting")
    of_net = array(variables, "bias_atom_e", (n_types,), f"{where}.fitting.@variables")
    section = _section(table, where, n_types)
    if kind == "linear":
        section["weights"] = weights
        fitting = {**fitting, "@variables": {**variables, "bias_atom_e": np.zeros(n_types)}}
        bias = weights[0] * (d + of_net) + weights[1] * t + outer
    else:
        section["switch"] = {key: get(model, key, float, "model") for key in _SWITCH}
        section["switch"]["srtab_add_bias"] = bool(outer.any())
        section["softmin_floor"] = get_or(model, "_softmin_floor", _FLOOR, "model")
        bias = outer + d
        t = t - (d + of_net) if outer.any() else t
        section["@variables"]["bias"] = t
    return {
        **net,
        **{key: model.get(key) for key in ("type_map", "atom_exclude_types", "pair_exclude_types")},
        "fitting": fitting,
        "@variables": {"out_bias": bias},
        "pair_table": section,
    }


def of_tensors(parameters: Tree, tensors: Mapping[str, Array], alpha: object, standard: Reader) -> Tree:
    """The tree of a model with a table, from what the PyTorch backend stores.

    Args:
        parameters: the input.
        tensors: of the whole model, by name.
        alpha: `smin_alpha` as the file says, if it does.
        standard: makes the tree of its net.

    Raises:
        ModelFileError: it is no model of one table and at most one net.
    """
    kind, prefix = kind_of(parameters), "atomic_model."
    types = get(parameters, "type_map", list, "model")
    whole = {key: parameters.get(key) or [] for key in ("type_map", "atom_exclude_types", "pair_exclude_types")}
    whole["@variables"] = named(tensors, {"out_bias": f"{prefix}out_bias"})
    if kind == "zbl":
        given = {key: value for key, value in parameters.items() if key not in (*_INPUT, *whole)}
        net = standard({**given, "type_map": types}, f"{prefix}models.0.")
        rcut = max(part["rcut"] for part in _listed(net["descriptor"]))
        table = _table_of_tensors({"type_map": types, "rcut": rcut}, tensors, f"{prefix}models.1.")
        switch = {"smin_alpha": alpha if isinstance(alpha, float) else _ALPHA}
        switch |= {key: get(parameters, key, float, "model") for key in ("sw_rmin", "sw_rmax")}
        return {**whole, **switch, "type": "zbl", "models": [net, table]}
    parts = []
    for k, part in enumerate(get(parameters, "models", list, "model")):
        given, at = {"type_map": types, **part}, f"{prefix}models.{k}."
        is_table = given.get("type") == "pairtab"
        parts.append(_table_of_tensors(given, tensors, at) if is_table else standard(given, at))
    return {**whole, "type": "linear", "models": parts, "weights": parameters.get("weights", "mean")}


def of_constants(parameters: Tree, constants: Constants, net: Tree) -> Tree:
    """The tree of a model with a table, from what the TensorFlow backend stores; its operators have float32 switches.

    Args:
        parameters: the input.
        constants: of the graph.
        net: the tree of its net.

    Raises:
        ModelFileError: it has no table.
    """
    found = [
        numbers(constants, f"model_attr/{name}", f"model_attr/model_attr/{name}")
        for name in ("t_tab_info", "t_tab_data")
    ]
    if found[0] is None or found[1] is None:
        raise ModelFileError("its graph lacks the table model_attr/t_tab_data that its training_script asks for")
    net = {key: value for key, value in net.items() if key not in _INPUT}
    types = net["type_map"]
    rcut = max(part["rcut"] for part in _listed(net["descriptor"]))
    table = {"type": "pairtab", "type_map": types, "rcut": rcut, "tab": _tab(*found)}
    bias = np.reshape(get(net["fitting"]["@variables"], "bias_atom_e", np.ndarray, "model.fitting"), -1)
    alpha, rmin, rmax = (np.float32(get(parameters, key, float, "model")) for key in _SWITCH)
    has_bias = get_or(parameters, "srtab_add_bias", True, "model")
    if has_bias:
        variables = {**net["fitting"]["@variables"], "bias_atom_e": np.zeros_like(bias)}
        net = {**net, "fitting": {**net["fitting"], "@variables": variables}}
    return {
        "type": "zbl",
        "type_map": types,
        "models": [net, table],
        "smin_alpha": float(alpha),
        "sw_rmin": float(rmin),
        "sw_rmax": float(rmin) + float(rmax - rmin),  # whose difference is rounded, too
        "_softmin_floor": 0.0,
        "@variables": {"out_bias": bias} if has_bias else {},
    }


def config_of(section: Tree) -> Tree:
    """What our configuration says of a table, from the section `pair_table`; nothing where it is empty."""
    if not section:
        return {}
    table = {k: v for k, v in section.items() if k not in ("@variables", "switch")}
    return {"pair_table": table, **section.get("switch", {})}


def fill(table: PairTable, section: Tree) -> None:
    """Give a table the numbers of the section `pair_table`.

    Raises:
        ModelFileError: an array is of another shape.
    """
    variables, where = section["@variables"], "model.tab.@variables"
    shape = tuple(table.coefficients.shape)
    coefficients = array(variables, "tab_data", shape, where)
    values = values_of(coefficients, table.config.rmin, table.config.step)
    if variables.get("vdata") is not None:
        values = array(variables, "vdata", values.shape, where)
    table.fill(values, coefficients)
    table.bias.numpy()[:] = variables.get("bias", 0.0)


def _parts(model: Tree) -> tuple[Tree, Tree, tuple[float, float]]:
    """The net and the table of a model, and their weights."""
    parts = get(model, "models", list, "model")
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts]
    if sorted(map(str, kinds)) != ["pairtab", "standard"]:
        raise ModelFileError(
            f"it is a combination of {', '.join(map(str, kinds))}; supported is one of a net and a table"
        )
    given, at = model.get("weights", "mean"), kinds.index("standard")
    weights = {"sum": [1.0, 1.0], "mean": [0.5, 0.5]}.get(given, given) if isinstance(given, str) else given
    if not isinstance(weights, list) or len(weights) != 2 or not all(type(w) in (int, float) for w in weights):
        raise ModelFileError(f"its model.weights is {shown(given)}, expected sum, mean or two numbers")
    return parts[at], parts[1 - at], (float(weights[at]), float(weights[1 - at]))


def bias_of(model: Tree, n_types: int) -> Floats:
    """The bias of a model or a part of it, (n_types,), eV."""
    variables = get_section(model, "@variables", "model")
    return (
        array(variables, "out_bias", (n_types,), "model.@variables")
        if variables.get("out_bias") is not None
        else np.zeros(n_types)
    )


def _section(table: Tree, where: str, n_types: int) -> Tree:
    """The section `pair_table`, from that of a model `pairtab`."""
    tab = get(table, "tab", dict, where)
    variables = get(tab, "@variables", dict, f"{where}.tab")
    rmin, step, n_splines, n_table = array(variables, "tab_info", (4,), f"{where}.tab.@variables")
    data = get(variables, "tab_data", np.ndarray, f"{where}.tab.@variables")
    if n_table != n_types or n_splines < 1 or data.size != n_types**2 * int(n_splines) * 4:
        raise ModelFileError(f"its {where}.tab has {data.size} numbers for {n_table:g} types and {n_splines:g} pieces")
    sel = table.get("sel")
    return {
        "rmin": float(rmin),
        "step": float(step),
        "n_splines": int(n_splines),
        "rcut": get(table, "rcut", float, where),
        "sel": sum(sel) if isinstance(sel, list) and all(type(n) is int for n in sel) else sel,
        "@variables": {"tab_data": data.reshape(n_types, n_types, -1, 4), "vdata": variables.get("vdata")},
    }


def _listed(descriptor: Tree) -> list[Tree]:
    """A descriptor, or those that a hybrid consists of."""
    return [part for each in descriptor["list"] for part in _listed(each)] if "list" in descriptor else [descriptor]


def _table_of_tensors(given: Tree, tensors: Mapping[str, Array], prefix: str) -> Tree:
    """The section of a model `pairtab`."""
    kept = {key: given.get(key) for key in ("type_map", "rcut", "sel")}
    found = [tensors.get(f"{prefix}{name}") for name in ("tab_info", "tab_data")]
    if found[0] is None or found[1] is None:
        raise ModelFileError(f"it lacks the table {prefix}tab_data that its model_def_script asks for")
    return {
        **kept,
        "type": "pairtab",
        "tab": _tab(found[0], found[1]),
        "@variables": named(tensors, {"out_bias": f"{prefix}out_bias"}),
    }


def _tab(info: Array, data: Array) -> Tree:
    return {"@variables": {"tab_info": info, "tab_data": data}}


# --- to files -------------------------------------------------------------------------------------------------------


def dumped(potential: Potential, net: Tree) -> Tree:
    """The section `model` of a tree of a potential with a table, as the PyTorch backend writes it.

    Args:
        potential: the model.
        net: the same section of a standard model with its net.

    Raises:
        ConfigError: DeePMD-kit has no such model.
    """
    table, config = potential.table, potential.config
    if table is None or table.switch is None:
        raise cannot_dump("a sum of a net and a table of pair energies")
    if not config.descriptor.embeds_types:
        raise cannot_dump("a table of pair energies beside another descriptor than se_atten")
    bias, zeros = net["@variables"]["out_bias"], np.zeros_like(net["@variables"]["out_bias"])
    parts = [{**net, **_whole([], [], zeros)}, _dumped_table(potential, table, net)]
    whole = _whole(net["atom_exclude_types"], net["pair_exclude_types"], bias)
    if not table.switch.has_bias:
        parts[0], whole = {**parts[0], **_whole([], [], bias)}, {**whole, "@variables": _variables(zeros)}
    return {
        "@class": "Model",
        "@version": 2,
        "type": "zbl",
        "type_map": net["type_map"],
        **whole,
        "rcond": None,
        "preset_out_bias": None,
        "models": parts,
        "weights": "mean",
        "smin_alpha": table.switch.alpha,
        "sw_rmin": table.switch.rmin,
        "sw_rmax": table.switch.rmax,
    }


def input_of(potential: Potential, given: Tree) -> Tree:
    """The section `model` of an input that makes such a model.

    Args:
        potential: the model.
        given: that of its net alone.
    """
    return {**given, "use_srtab": _IN_THE_FILE, **{key: getattr(potential.config, key) for key in _SWITCH}}


def _variables(bias: Array) -> Tree:
    return {"out_bias": bias, "out_std": np.ones_like(bias)}


def _whole(atoms: list[Any], pairs: list[Any], bias: Array) -> Tree:
    """What a model and its parts each say of exclusions and biases."""
    return {"atom_exclude_types": atoms, "pair_exclude_types": pairs, "@variables": _variables(bias)}


def _sel(potential: Potential, table: PairTable) -> int:
    """Neighbours that the table is made for; by default those of the descriptor."""
    if table.config.sel is not None:
        return table.config.sel
    parts = potential.descriptor if hasattr(potential.descriptor, "parts") else [potential.descriptor]
    return max(int(sum(part.sel)) for part in parts)  # type: ignore[union-attr, arg-type]


def _dumped_table(potential: Potential, table: PairTable, net: Tree) -> Tree:
    """The section of a model `pairtab`."""
    config, n_types = table.config, table.n_species
    values = table.values.cpu().numpy().copy()
    bias = table.bias.cpu().numpy().reshape(net["@variables"]["out_bias"].shape).copy()
    return {
        "@class": "Model",
        "@version": 2,
        "type": "pairtab",
        "type_map": net["type_map"],
        "rcond": None,
        "preset_out_bias": None,
        **_whole([], [], bias),
        "tab": {
            "@class": "PairTab",
            "@version": 1,
            "rmin": config.rmin,
            "rmax": float(values[-1, 0]),
            "hh": config.step,
            "ntypes": n_types,
            "rcut": config.rcut,
            "nspline": config.n_splines,
            "@variables": {
                "vdata": values,
                "tab_info": np.array([config.rmin, config.step, config.n_splines, n_types]),
                "tab_data": table.coefficients.cpu().numpy().reshape(-1).copy(),
            },
        },
        "rcut": config.rcut,
        "sel": _sel(potential, table),
    }
