"""Networks as DeePMD-kit's tree holds them: collections, one network for each type or pair of types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch import nn

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.tree import Array, Tree, array, get, get_or, is_unset
from dpserver.models.networks import Layer

_LAYER: Final = re.compile(r"networks\.(\d+)\.layers\.(\d+)\.(matrix|bias|idt)")
VARIABLES: Final = {"matrix": "w", "bias": "b", "idt": "idt"}
"""Parts of a layer: in the backends, and in the tree."""

Layers = dict[int, dict[str, Any]]
"""The parts of the layers of a network, by their number."""


def stored_networks(section: Tree, key: str, where: str, number: int) -> list[Any]:
    """The networks of a collection.

    Args:
        section: that holds the collection.
        key: of it.
        where: dotted place of the section.
        number: of networks expected.

    Raises:
        ModelFileError: there is no such collection, or it holds another number of them.
    """
    networks = get(get(section, key, dict, where), "networks", list, f"{where}.{key}")
    if len(networks) != number:
        raise ModelFileError(f"its {where}.{key} holds {len(networks)} networks, expected {number}")
    return networks


def fill_net(
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
        fill_layer(layer, section, f"{where}.layers[{k}]", activation)


def fill_layer(layer: Layer, stored: object, where: str, activation: str) -> None:
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


def dumped_collection(kind: str, n_axes: int, n_types: int, networks: list[Tree]) -> Tree:
    """A collection as the tree holds it; `n_axes` is 0 for one network, 1 for one of each type, 2 for each pair."""
    return {
        "@class": "NetworkCollection",
        "@version": 1,
        "network_type": kind,
        "ndim": n_axes,
        "ntypes": n_types,
        "networks": networks,
    }


def dumped_network(name: str, version: int, n_in: int, config: Tree, precision: str, layers: list[Tree]) -> Tree:
    """A network as the tree holds it."""
    section = {
        "@class": name,
        "@version": version,
        "in_dim": n_in,
        "neuron": config["neuron"],
        "activation_function": config["activation_function"],
        "resnet_dt": config["resnet_dt"],
        "precision": precision,
        "layers": layers,
    }
    return section if name == "FittingNetwork" else {**section, "bias": True}


def dumped_layers(net: nn.Module, activation: str, precision: str, has_linear_end: bool = False) -> Iterable[Tree]:
    """The layers of a network as the tree holds them."""
    layers = cast(list[Layer], list(net.children()))
    for k, layer in enumerate(layers):
        is_end = has_linear_end and k == len(layers) - 1
        n_in, n_out = layer.weight.shape
        yield {
            "@class": "Layer",
            "@version": 2,
            "bias": True,
            "use_timestep": layer.timestep is not None,
            "activation_function": "none" if is_end else activation,
            "resnet": not is_end and (layer.copies > 0 or n_out not in (n_in, 2 * n_in)),
            "precision": precision,
            "trainable": True,
            "@variables": {
                name: None if value is None else value.detach().cpu().numpy().astype(precision)
                for name, value in (("w", layer.weight), ("b", layer.bias), ("idt", layer.timestep))
            },
        }


def named(tensors: Mapping[str, Array], names: Mapping[str, str]) -> Tree:
    """The tensors that are there, by their names in the tree."""
    return {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}


def networks_of_tensors(tensors: Mapping[str, Array], prefix: str, n_axes: int, n_types: int) -> Tree:
    """A collection of networks, as it stands in the tree, from the tensors of the PyTorch backend.

    Args:
        tensors: of the whole model, by name.
        prefix: of those of the collection.
        n_axes: 0 for one network, 1 for one of each type, 2 for each pair.
        n_types: number of types.
    """
    networks: list[dict[int, Tree]] = [{} for _ in range(n_types**n_axes)]
    for name, value in tensors.items():
        if name.startswith(prefix) and (match := _LAYER.fullmatch(name, len(prefix))):
            network, layer, kind = int(match[1]), int(match[2]), VARIABLES[match[3]]
            if network >= len(networks):
                raise ModelFileError(f"it has the tensor {name}, but {len(networks)} networks")
            networks[network].setdefault(layer, {})[kind] = value
    return {
        "ndim": n_axes,
        "networks": [
            {"layers": [{"@variables": layers[k]} for k in sorted(layers)]} if layers else None for layers in networks
        ],
    }


def collection_of_layers(nets: list[Layers], n_axes: int) -> Tree:
    """A collection of networks, as it stands in the tree, from their layers; `n_axes` as in `dumped_collection`."""
    networks = [
        {"layers": [{"resnet": net[k].pop("resnet", True), "@variables": net[k]} for k in sorted(net)]} if net else None
        for net in nets
    ]
    return {"ndim": n_axes, "networks": networks}
