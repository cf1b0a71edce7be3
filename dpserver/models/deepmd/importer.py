"""From DeePMD-kit's tree to a potential with the same numbers.

It is evaluated in double precision, with float32 weights too: DeePMD-kit's own float32 moves the coordinates by their
rounding, and the exact result of the same weights is the closest to it.

What DeePMD-kit does and the potential has no word for is put into its parameters: the two biases become one, a vacuum
energy that is taken off (`atom_ener`) goes into it, and atoms without energy get a fitting net of zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
import torch
from torch import nn

from dpserver.errors import ConfigError, ModelFileError
from dpserver.frames import Floats
from dpserver.models.config import ModelConfig, SeE2AConfig, SeE2RConfig, parse
from dpserver.models.deepmd.kinds import both_ways, check_kind, read_types
from dpserver.models.deepmd.tree import Budget, Tree, array, get, get_or, get_section, is_unset, shown
from dpserver.models.networks import Layer
from dpserver.models.potential import Potential
from dpserver.models.se_e2_a import SeE2A
from dpserver.models.se_e2_r import SeE2R

_NET_KEYS: Final = ("neuron", "activation_function", "resnet_dt")
_DESCRIPTOR_KEYS: Final = (
    "sel", "rcut", "rcut_smth", "axis_neuron", "type_one_side", "exclude_types", "set_davg_zero", "env_protection",
)  # fmt: skip
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
    kind = check_kind(model)
    types = read_types(model)
    descriptor, fitting = (get(model, key, dict, "model") for key in ("descriptor", "fitting"))
    _check_options(model, _BOOKKEEPING, "model")
    _check_options(descriptor, _BOOKKEEPING.union(_NET_KEYS, _DESCRIPTOR_KEYS), "model.descriptor")
    _check_options(fitting, _BOOKKEEPING.union(_NET_KEYS), "model.fitting")
    if not is_unset(get_section(descriptor, "env_mat", "model.descriptor").get("use_exp_switch")):
        raise ModelFileError("its descriptor has use_exp_switch, which is not supported")
    potential = _blank(model, kind, types)
    _fill_descriptor(potential, descriptor)
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


def _blank(model: Tree, kind: str, types: Sequence[str]) -> Potential:
    """A potential of the right shape."""
    descriptor, fitting = model["descriptor"], model["fitting"]
    config = {
        "type_map": types,
        "descriptor": {
            "type": "se_e2_r" if kind == "se_r" else kind,
            "keeps_excluded_slots": _keeps_excluded_slots(descriptor, types),
            **{k: descriptor[k] for k in (*_DESCRIPTOR_KEYS, *_NET_KEYS) if descriptor.get(k) is not None},
        },
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
        _check_size(parsed)
        return Potential(parsed)
    except ConfigError as error:
        raise ModelFileError(f"its configuration is not supported: {error}") from None


def _keeps_excluded_slots(descriptor: Tree, types: Sequence[str]) -> bool | None:
    """Whether the empty slots of excluded pairs add to the descriptor: they do where the pairs have nets.

    Backends differ here; those that leave the whole pair out leave out its net. None is the default.
    """
    pairs: list[Any] = get_or(descriptor, "exclude_types", [], "model.descriptor")
    if get_or(descriptor, "type_one_side", False, "model.descriptor") or is_unset(pairs):
        return None
    networks = _networks(descriptor, "embeddings", "model.descriptor", len(types) ** 2)
    places = both_ways(pairs)
    has_net = {
        bool(get_or(net, "layers", [], "model.descriptor.embeddings.networks")) if net is not None else False
        for k, net in enumerate(networks)
        if divmod(k, len(types)) in places
    }
    if len(has_net) != 1:
        raise ModelFileError("its excluded pairs of types have nets in part, or do not exist")
    return has_net.pop()


def _skips_only_equal(fitting: Tree) -> bool:
    """Whether the hidden layers of the fitting nets lack skip connections that their widths would allow."""
    nets = get(get(fitting, "nets", dict, "model.fitting"), "networks", list, "model.fitting.nets")
    layers = get(nets[0], "layers", list, "model.fitting.nets.networks[0]") if nets else []
    return any(isinstance(layer, dict) and layer.get("resnet") is False for layer in layers[:-1])


def _check_size(config: ModelConfig) -> None:
    """Refuse networks of absurd size before they are made."""
    descriptor = cast("SeE2AConfig | SeE2RConfig", config.descriptor)
    n_types, width = len(config.type_map), descriptor.neuron[-1]
    n_features = width * descriptor.axis_neuron if isinstance(descriptor, SeE2AConfig) else width
    n_embeddings = n_types if descriptor.type_one_side else n_types**2
    budget = Budget()
    for n_in, n_out in pairwise([1, *descriptor.neuron]):
        budget.spend([n_embeddings, n_in, n_out], 8, "model.descriptor.neuron")
    for n_in, n_out in pairwise([n_features, *config.fitting_net.neuron]):
        budget.spend([n_types, n_in, n_out], 8, "model.fitting.neuron")


def _fill_descriptor(potential: Potential, section: Tree) -> None:
    """Give the descriptor its statistics and its embedding nets."""
    descriptor = cast(SeE2A | SeE2R, potential.descriptor)
    n_types, where = len(potential.species), "model.descriptor.@variables"
    variables = get(section, "@variables", dict, "model.descriptor")
    for name, buffer in (("davg", descriptor.davg), ("dstd", descriptor.dstd)):
        per_slot = array(variables, name, (n_types, sum(descriptor.sel), buffer.shape[1]), where)
        if not np.array_equal(per_slot, np.broadcast_to(per_slot[:, :1], per_slot.shape)):
            raise ModelFileError(f"its {where}.{name} differs between the neighbours of a type, which is not supported")
        buffer.copy_(torch.from_numpy(per_slot[:, 0]))
    if not bool((descriptor.dstd > 0).all()):
        raise ModelFileError(f"its {where}.dstd holds numbers that are not above 0")
    networks = _networks(section, "embeddings", "model.descriptor", len(descriptor.embedding))
    for k, (net, stored) in enumerate(zip(descriptor.embedding, networks, strict=True)):
        neighbour, centre = (k, None) if descriptor.config.type_one_side else divmod(k, n_types)
        place = f"model.descriptor.embeddings.networks[{k}]"
        is_unused = descriptor.sel[neighbour] == 0 or (centre, neighbour) in descriptor.silent
        activations = [descriptor.config.activation_function] * len(descriptor.config.neuron)
        _fill_net(cast(nn.Sequential, net), stored, place, activations, is_unused)


def _fill_fitting(potential: Potential, section: Tree) -> None:
    """Give every type its fitting net; with `mixed_types` all share one."""
    n_types = len(potential.species)
    nets = get(section, "nets", dict, "model.fitting")
    is_shared = nets.get("ndim") == 0
    networks = _networks(section, "nets", "model.fitting", 1 if is_shared else n_types)
    for c, net in enumerate(potential.fitting):
        k = 0 if is_shared else c
        place = f"model.fitting.nets.networks[{k}]"
        config = potential.config.fitting_net
        activations = [config.activation_function] * len(config.neuron) + ["none"]
        _fill_net(cast(nn.Sequential, net), networks[k], place, activations)


def _networks(section: Tree, key: str, where: str, number: int) -> list[Any]:
    networks = get(get(section, key, dict, where), "networks", list, f"{where}.{key}")
    if len(networks) != number:
        raise ModelFileError(f"its {where}.{key} holds {len(networks)} networks, expected {number}")
    return networks


def _fill_net(
    net: nn.Sequential, stored: object, where: str, activations: Sequence[str], is_unused: bool = False
) -> None:
    """Copy the parameters of a network; one that no neighbour ever meets is not always in the file."""
    layers = cast(list[Layer], list(net))
    found = get(stored, "layers", list, where) if stored is not None else []
    if is_unused and not found:
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
        return
    if len(found) != len(layers):
        raise ModelFileError(f"its {where} has {len(found)} layers, expected {len(layers)}")
    for k, (layer, section, activation) in enumerate(zip(layers, found, activations, strict=True)):
        _fill_layer(layer, section, f"{where}.layers[{k}]", activation)


def _fill_layer(layer: Layer, stored: object, where: str, activation: str) -> None:
    """Copy the parameters of a layer, whose other entries, if it has any, must say what its network does."""
    variables = get(stored, "@variables", dict, where)
    n_in, n_out = layer.weight.shape
    has_skip = get_or(cast(Tree, stored), "resnet", bool(layer.copies), where) and n_out in (n_in, 2 * n_in)
    if has_skip != bool(layer.copies):
        given = "has a" if has_skip else "lacks the"
        raise ModelFileError(f"its {where} {given} skip connection from {n_in} to {n_out}; that net is not supported")
    given_activation = get_or(cast(Tree, stored), "activation_function", activation, where).lower()
    if given_activation != activation and not {given_activation, activation} <= {"none", "linear"}:
        raise ModelFileError(f"its {where} has the activation function {given_activation}, its network {activation}")
    if not is_unset(variables.get("idt")) and layer.timestep is None:
        raise ModelFileError(f"its {where} has time steps (idt), where its resnet_dt says otherwise")
    for name, parameter in (("w", layer.weight), ("b", layer.bias), ("idt", layer.timestep)):
        if parameter is None:
            continue
        if name == "b" and variables.get("b") is None:
            nn.init.zeros_(parameter)
        else:
            values = array(variables, name, tuple(parameter.shape), f"{where}.@variables")
            parameter.data.copy_(torch.from_numpy(values))


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
