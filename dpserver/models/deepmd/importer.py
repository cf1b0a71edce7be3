"""From DeePMD-kit's tree to a potential with the same numbers.

It is evaluated in double precision, with float32 weights too: DeePMD-kit's own float32 moves the coordinates by their
rounding, and the exact result of the same weights is the closest to it.

What DeePMD-kit does and the potential has no word for is put into its parameters: the two biases become one, a vacuum
energy that is taken off (`atom_ener`) goes into it, and atoms without energy get a fitting net of zeros.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
import torch
from torch import nn

from dpserver.errors import ConfigError, ModelFileError
from dpserver.frames import Floats
from dpserver.models.config import ModelConfig, parse
from dpserver.models.deepmd.forms import Form
from dpserver.models.deepmd.kinds import check_kind, read_types
from dpserver.models.deepmd.nets import fill_net, stored_networks
from dpserver.models.deepmd.tree import Budget, Tree, array, get, get_or, get_section, is_unset, shown
from dpserver.models.potential import Potential

_NET_KEYS: Final = ("neuron", "activation_function", "resnet_dt")
_BOOKKEEPING: Final = frozenset(
    [
        *("@class", "@version", "@variables", "type", "type_map", "ntypes", "trainable", "seed", "precision"),
        *("embeddings", "env_mat", "compress", "nets", "dim_out", "dim_descrpt", "var_name", "rcond", "mixed_types"),
        *("atom_ener", "exclude_types", "data_stat_nbatch", "data_stat_protect", "data_bias_nsample"),
        *("atom_exclude_types", "pair_exclude_types", "preset_out_bias", "srtab_add_bias", "model_branch_alias"),
        *("info", "bridging_method", "bridging_r_inner", "bridging_r_outer", "descriptor", "fitting", "fitting_net"),
    ]
)
"""Keys that are read elsewhere, or change no number of a trained model."""
_PRECISIONS: Final = ("default", "float64", "double", "float32", "single")


def potential_of(tree: Tree) -> Potential:
    """Make a potential of a tree.

    Raises:
        ModelFileError: the tree is inconsistent, or describes what is not supported.
    """
    model = get(tree, "model", dict, "tree")
    form = check_kind(model)
    types = read_types(model)
    descriptor, fitting = (get(model, key, dict, "model") for key in ("descriptor", "fitting"))
    _check_options(model, _BOOKKEEPING, "model")
    _check_options(descriptor, _BOOKKEEPING | form.keys, "model.descriptor")
    _check_options(fitting, _BOOKKEEPING.union(_NET_KEYS), "model.fitting")
    if not is_unset(get_section(descriptor, "env_mat", "model.descriptor").get("use_exp_switch")):
        raise ModelFileError("its descriptor has use_exp_switch, which is not supported")
    potential = _blank(model, form, types)
    form.fill(potential.descriptor, descriptor)
    _fill_fitting(potential, fitting)
    potential.energy_bias.copy_(torch.from_numpy(_biases(potential, model, fitting)))
    distance = get_section(tree, "@variables", "tree").get("min_nbor_dist")
    if isinstance(distance, np.ndarray | float) and np.size(distance) == 1 and 0 < np.min(distance) < np.inf:
        potential.min_distance[:] = float(np.min(distance))
    return potential


def _check_options(section: Tree, known: Iterable[str], where: str) -> None:
    """Refuse an option that is set and has no counterpart here; one that is off says nothing."""
    for key, value in section.items():
        if key not in known and not str(key).startswith("_") and not is_unset(value):
            raise ModelFileError(f"its {where} has {key} = {shown(value)}, which is not supported")


def _blank(model: Tree, form: Form, types: list[str]) -> Potential:
    """A potential of the right shape."""
    descriptor, fitting = model["descriptor"], model["fitting"]
    config = {
        "type_map": types,
        "descriptor": form.config(descriptor, types),
        "fitting_net": {
            "skips_only_equal": _skips_only_equal(fitting),
            **{k: fitting[k] for k in _NET_KEYS if fitting.get(k) is not None},
        },
        "pair_exclude_types": get_or(model, "pair_exclude_types", [], "model"),
    }
    for section, where in ((descriptor, "model.descriptor"), (fitting, "model.fitting")):
        precision = get_or(section, "precision", "default", where).lower()
        if precision not in _PRECISIONS:
            raise ModelFileError(f"its {where}.precision is {precision!r}, expected float64 or float32")
    try:
        parsed = parse(ModelConfig, config, "model")
        _check_size(parsed, form)
        return Potential(parsed)
    except ConfigError as error:
        raise ModelFileError(f"its configuration is not supported: {error}") from None


def _check_size(config: ModelConfig, form: Form) -> None:
    """Refuse networks of absurd size before they are made."""
    n_types, budget = len(config.type_map), Budget()
    n_features = form.spend(config.descriptor.model_dump(), n_types, budget)
    for n_in, n_out in pairwise([n_features, *config.fitting_net.neuron]):
        budget.spend([n_types, n_in, n_out], 8, "model.fitting.neuron")


def _skips_only_equal(fitting: Tree) -> bool:
    """Whether the hidden layers of the fitting nets lack skip connections that their widths would allow."""
    nets = get(get(fitting, "nets", dict, "model.fitting"), "networks", list, "model.fitting.nets")
    layers = get(nets[0], "layers", list, "model.fitting.nets.networks[0]") if nets else []
    return any(isinstance(layer, dict) and layer.get("resnet") is False for layer in layers[:-1])


def _fill_fitting(potential: Potential, section: Tree) -> None:
    """Give every type its fitting net; with `mixed_types` all share one."""
    n_types = len(potential.species)
    nets = get(section, "nets", dict, "model.fitting")
    is_shared = nets.get("ndim") == 0
    networks = stored_networks(section, "nets", "model.fitting", 1 if is_shared else n_types)
    for c, net in enumerate(potential.fitting):
        k = 0 if is_shared else c
        place = f"model.fitting.nets.networks[{k}]"
        config = potential.config.fitting_net
        activations = [config.activation_function] * len(config.neuron) + ["none"]
        fill_net(cast(nn.Sequential, net), networks[k], place, activations)


@torch.no_grad()
def _biases(potential: Potential, model: Tree, fitting: Tree) -> Floats:
    """Energy of each type besides its net, eV; nets of types without energy are set to zero.

    e_i = net(D_i) - net(0) where atom_ener is given + bias_atom_e + out_bias, or 0 where the type is excluded
    """
    n_types = len(potential.species)
    variables = get(fitting, "@variables", dict, "model.fitting")
    bias = array(variables, "bias_atom_e", (n_types,), "model.fitting.@variables")
    energies: list[Any] = get_or(fitting, "atom_ener", [], "model.fitting")
    for c, energy in enumerate(energies[:n_types]):
        if energy is not None:
            net = potential.fitting[c]
            bias[c] -= float(net(torch.zeros(1, potential.descriptor.n_features, dtype=torch.float64)))
    outer = get_section(model, "@variables", "model")
    if outer.get("out_bias") is not None:
        bias += array(outer, "out_bias", (n_types,), "model.@variables")
    absent: list[Any] = get_or(model, "atom_exclude_types", [], "model")
    if not all(type(c) is int and 0 <= c < n_types for c in absent):
        raise ModelFileError(f"its model.atom_exclude_types is {shown(absent)}, expected types from 0 to {n_types - 1}")
    bias[absent] = 0.0
    for c in absent:
        nn.init.zeros_(potential.fitting[c][-1].weight)
        nn.init.zeros_(potential.fitting[c][-1].bias)
    return bias
