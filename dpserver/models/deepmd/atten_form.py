"""The descriptors of DPA-1 in DeePMD-kit's files: se_atten, called dpa1 there, and se_atten_v2."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Final, cast

import numpy as np
import torch
from torch import nn

from dpserver.errors import ModelFileError
from dpserver.models.attention import LN_EPS, AttentionLayer
from dpserver.models.deepmd.atten_graph import ADVICE, section_of_constants
from dpserver.models.deepmd.forms import Form, cannot_dump
from dpserver.models.deepmd.graphdef import Constants
from dpserver.models.deepmd.nets import (
    VARIABLES,
    dumped_collection,
    dumped_layers,
    dumped_network,
    fill_layer,
    fill_net,
    named,
    networks_of_tensors,
    stored_networks,
)
from dpserver.models.deepmd.tree import Array, Budget, Tree, array, get, get_or, get_section
from dpserver.models.deepmd.two_body import dumped_environment, dumped_moments, fill_moments
from dpserver.models.electrons import LENGTH
from dpserver.models.networks import Layer
from dpserver.models.se_atten import SeAtten
from dpserver.models.type_embedding import TypeEmbedding

_WHERE: Final = "model.descriptor"
_KEYS: Final = (
    "sel", "rcut", "rcut_smth", "neuron", "axis_neuron", "activation_function", "resnet_dt", "type_one_side",
    "exclude_types", "set_davg_zero", "env_protection", "tebd_dim", "use_econf_tebd", "use_tebd_bias",
    "concat_output_tebd", "attn", "attn_layer", "attn_dotr", "normalize", "scaling_factor", "temperature",
    "trainable_ln", "ln_eps", "lmax",
)  # fmt: skip
_PARTS: Final = ("attention_layers", "type_embedding", "embeddings_strip", "stripped_type_embedding")
_SHORTEST: Final = 1e-12
_LAYER_COST: Final = 1000
"""What a layer counts at least: small ones are not to come in thousands."""
_UNSAID: Final = {
    "neuron": [25, 50, 100],
    "axis_neuron": 16,
    "set_davg_zero": True,
    "smooth_type_embedding": True,
}
"""What a PyTorch model has where its input does not say, as far as it is not what our configuration has."""


class SeAttenForm(Form):
    """The descriptor se_atten, called dpa1 in files."""

    ours: ClassVar[str] = "se_atten"
    theirs: ClassVar[str] = "dpa1"
    names: ClassVar[tuple[str, ...]] = ("se_atten", "dpa1")
    own_keys: ClassVar[tuple[str, ...]] = ("tebd_input_mode", "smooth_type_embedding")
    keys = frozenset((*_KEYS, *_PARTS, *own_keys, "shortest"))
    ours_only = frozenset({"keeps_excluded_slots", "shortest"})

    def embeds_types(self, section: Tree) -> bool:
        """Whether a descriptor tells the type of its atom."""
        return True

    def config(self, section: Tree, types: list[str]) -> Tree:
        """The section `descriptor` of our configuration, from that of a tree."""
        given = {key: section[key] for key in (*_KEYS, *self.own_keys, "shortest") if section.get(key) is not None}
        # Files from before there was such a key have the bias.
        return {"type": self.ours, "use_tebd_bias": True, **given}

    def spend(self, config: Tree, n_types: int, budget: Budget) -> int:
        """Refuse networks of absurd size before they are made."""
        place, neuron = f"{_WHERE}.neuron", config["neuron"]
        n_pair = config["tebd_dim"] * (1 if config["type_one_side"] else 2)
        budget.spend([max(n_types, LENGTH), config["tebd_dim"]], 8, f"{_WHERE}.tebd_dim")
        for n_in, n_out in (*pairwise([1 + n_pair, *neuron]), *pairwise([n_pair, *neuron])):
            budget.spend([n_in, n_out], 8, place)
        budget.spend(
            [4 * config["attn_layer"], max(config["attn"], _LAYER_COST), neuron[-1]], 8, f"{_WHERE}.attn_layer"
        )
        n_own = config["tebd_dim"] if config["concat_output_tebd"] else 0
        return int(neuron[-1] * config["axis_neuron"] + n_own)

    def fill(self, descriptor: nn.Module, section: Tree) -> None:
        """Give a descriptor the statistics and weights of a tree."""
        descriptor = cast(SeAtten, descriptor)
        fill_moments(descriptor.davg, descriptor.dstd, section, descriptor.n_slots)
        activations = [descriptor.config.activation_function] * len(descriptor.config.neuron)
        for net, key in zip(descriptor.embedding, ("embeddings", "embeddings_strip"), strict=False):
            stored = stored_networks(section, key, _WHERE, 1)[0]
            fill_net(cast(nn.Sequential, net), stored, f"{_WHERE}.{key}.networks[0]", activations)
        if descriptor.config.lmax > 1:
            variables = get(section, "@variables", dict, _WHERE)
            gain = array(variables, "degree_gain_raw", (descriptor.config.lmax - 1,), f"{_WHERE}.@variables")
            descriptor.gain.data.copy_(torch.from_numpy(gain))
        _fill_types(descriptor.types, get(section, "type_embedding", dict, _WHERE))
        where = f"{_WHERE}.attention_layers"
        stored = get_or(get_section(section, "attention_layers", _WHERE), "attention_layers", [], where)
        if len(stored) != len(descriptor.attention):
            raise ModelFileError(f"its {where} holds {len(stored)} layers, expected {len(descriptor.attention)}")
        for k, layer in enumerate(descriptor.attention):
            _fill_attention(cast(AttentionLayer, layer), stored[k], f"{where}.attention_layers[{k}]")

    def dump(self, descriptor: nn.Module, types: list[str], precision: str) -> Tree:
        """The section of a tree that describes a descriptor."""
        descriptor = cast(SeAtten, descriptor)
        config: Tree = descriptor.config.model_dump(mode="json")
        config["ln_eps"] = config["ln_eps"] or LN_EPS
        if config["attn_layer"] and config["attn_dotr"] and config["shortest"] != _SHORTEST:
            raise cannot_dump("attention between directions as the TensorFlow backend has them")
        section = {
            "@class": "Descriptor",
            "@version": 2 if config["lmax"] == 1 else 4,
            "type": self.theirs,
            "ntypes": len(types),
            **{key: config[key] for key in (*_KEYS, *self.own_keys)},
            "attn_mask": False,
            "precision": precision,
            "trainable": config["trainable"],
            "spin": None,
            "type_map": types,
            "env_mat": dumped_environment(config),
            "type_embedding": _dumped_types(descriptor.types, types, config, precision),
            "attention_layers": _dumped_attention(descriptor, config, precision),
            "@variables": dumped_moments(descriptor.davg, descriptor.dstd, descriptor.n_slots),
        }
        for net, key in zip(descriptor.embedding, ("embeddings", "embeddings_strip"), strict=False):
            layers = list(dumped_layers(net, config["activation_function"], precision))
            n_in = len(layers[0]["@variables"]["w"])
            network = dumped_network("EmbeddingNetwork", 2, n_in, config, precision, layers)
            section[key] = dumped_collection("embedding_network", 0, len(types), [network])
        if config["lmax"] == 1:
            del section["lmax"]
        else:
            section["@variables"]["degree_gain_raw"] = _numbers(descriptor.gain, precision)
        return section

    def of_tensors(self, given: Tree, tensors: Mapping[str, Array], prefix: str, n_types: int) -> Tree:
        """The section of a tree, from what the PyTorch backend stores."""
        block, types = f"{prefix}se_atten.", f"{prefix}type_embedding.embedding.embedding_net."
        section = {
            **_UNSAID,
            **given,
            "type": self.theirs,
            "use_tebd_bias": given.get("use_tebd_bias", False),
            "embeddings": networks_of_tensors(tensors, f"{block}filter_layers.", 0, n_types),
            "embeddings_strip": networks_of_tensors(tensors, f"{block}filter_layers_strip.", 0, n_types),
            "type_embedding": {"embedding": {"layers": [_layer(tensors, f"{types}layers.0")]}},
            "attention_layers": {"attention_layers": _attention_of_tensors(tensors, f"{block}dpa1_attention.")},
            "@variables": named(
                tensors,
                {
                    "davg": f"{block}mean",
                    "dstd": f"{block}stddev",
                    "degree_gain_raw": f"{block}adam_degree_gain_raw",
                },
            ),
        }
        if isinstance(is_stripped := given.get("stripped_type_embedding"), bool):
            section["tebd_input_mode"] = "strip" if is_stripped else "concat"
        return section

    def of_constants(self, given: Tree, constants: Constants, n_types: int) -> Tree:
        """The section of a tree, from what the TensorFlow backend stores; `read_graph` adds the types to `given`."""
        if "_type_map" not in given:
            raise ModelFileError(f"{self.ours} as a part of a hybrid is not read from a .pb file; {ADVICE}")
        return section_of_constants(given, constants, given["_type_map"], given["_type_embedding"])


class SeAttenV2Form(SeAttenForm):
    """The descriptor se_atten_v2."""

    ours: ClassVar[str] = "se_atten_v2"
    theirs: ClassVar[str] = "se_atten_v2"
    names: ClassVar[tuple[str, ...]] = ("se_atten_v2",)
    own_keys = ()


def _fill_types(types: TypeEmbedding, section: Tree) -> None:
    """Copy the embedding of types: a net of one linear layer."""
    where = f"{_WHERE}.type_embedding"
    layers = get(get(section, "embedding", dict, where), "layers", list, f"{where}.embedding")
    if len(layers) != 1:
        raise ModelFileError(f"its {where}.embedding has {len(layers)} layers, expected 1")
    place = f"{where}.embedding.layers[0]"
    activation = get_or(layers[0], "activation_function", "linear", place)
    if activation.lower() not in ("linear", "none"):
        raise ModelFileError(f"its {place} has the activation function {activation}, expected linear")
    variables = get(layers[0], "@variables", dict, place)
    for name, parameter in (("w", types.weight), ("b", types.bias)):
        if parameter is not None:
            values = array(variables, name, tuple(parameter.shape), f"{place}.@variables")
            parameter.data.copy_(torch.from_numpy(values))
        elif variables.get(name) is not None and np.any(variables[name]):
            raise ModelFileError(f"its {place} has a bias, where its use_tebd_bias says otherwise")


def _fill_attention(layer: AttentionLayer, stored: object, where: str) -> None:
    """Copy the weights of an attention layer, whose options must be those of the descriptor."""
    inner = get(stored, "attention_layer", dict, where)
    if get_or(inner, "num_heads", 1, f"{where}.attention_layer") != 1:
        raise ModelFileError(f"its {where} has several heads, which is not supported")
    if get_or(inner, "do_mask", False, f"{where}.attention_layer"):
        raise ModelFileError(f"its {where} has a mask (attn_mask), which is not supported")
    if get_or(inner, "smooth", layer.is_smooth, f"{where}.attention_layer") != layer.is_smooth:
        raise ModelFileError(f"its {where} does not agree with smooth_type_embedding of the descriptor")
    for part, name in ((layer.inner, "in_proj"), (layer.outer, "out_proj")):
        fill_layer(part, get(inner, name, dict, f"{where}.attention_layer"), f"{where}.{name}", "linear")
    norm = get(stored, "attn_layer_norm", dict, where)
    variables = get(norm, "@variables", dict, f"{where}.attn_layer_norm")
    for name, parameter in (("w", layer.scale), ("b", layer.shift)):
        values = array(variables, name, tuple(parameter.shape), f"{where}.attn_layer_norm.@variables")
        parameter.data.copy_(torch.from_numpy(values))


def _attention_of_tensors(tensors: Mapping[str, Array], prefix: str) -> list[Tree]:
    """The attention layers as they stand in the tree, from the tensors of the PyTorch backend."""
    layers: list[Tree] = []
    while f"{(at := f'{prefix}attention_layers.{len(layers)}.')}attn_layer_norm.matrix" in tensors:
        inner = {name: _layer(tensors, f"{at}attention_layer.{name}") for name in ("in_proj", "out_proj")}
        layers.append({"attention_layer": inner, "attn_layer_norm": _layer(tensors, f"{at}attn_layer_norm")})
    return layers


def _layer(tensors: Mapping[str, Array], prefix: str) -> Tree:
    """A layer as it stands in the tree, from the tensors of the PyTorch backend."""
    return {"@variables": named(tensors, {ours: f"{prefix}.{theirs}" for theirs, ours in VARIABLES.items()})}


def _dumped_types(types: TypeEmbedding, names: list[str], config: Tree, precision: str) -> Tree:
    """The embedding of types as the tree holds it."""
    has_bias, n_in = config["use_tebd_bias"], len(types.weight)
    activation = {"neuron": [config["tebd_dim"]], "activation_function": "Linear", "resnet_dt": False}
    layer = {**_dumped_linear(types.weight, types.bias, precision), "activation_function": "Linear", "resnet": True}
    network = dumped_network("EmbeddingNetwork", 2, n_in, activation, precision, [layer])
    return {
        "@class": "TypeEmbedNet",
        "@version": 2,
        "ntypes": len(names),
        **activation,
        "precision": precision,
        "trainable": True,
        "padding": True,
        "use_econf_tebd": config["use_econf_tebd"],
        "use_tebd_bias": has_bias,
        "type_map": names,
        "embedding": {**network, "bias": has_bias},
    }


def _dumped_attention(descriptor: SeAtten, config: Tree, precision: str) -> Tree:
    """The attention layers as the tree holds them."""
    options = {
        "nnei": descriptor.n_slots,
        "embed_dim": config["neuron"][-1],
        "hidden_dim": config["attn"],
        "dotr": config["attn_dotr"],
        "do_mask": False,
        "scaling_factor": config["scaling_factor"],
        "normalize": config["normalize"],
        "temperature": config["temperature"],
        "precision": precision,
    }
    of_norm = {"trainable_ln": config["trainable_ln"], "ln_eps": config["ln_eps"]}
    layers = []
    for layer in cast("list[AttentionLayer]", list(descriptor.attention)):
        inner = {
            **options,
            "num_heads": 1,
            "bias": True,
            "smooth": layer.is_smooth,
            "in_proj": _dumped_layer(layer.inner, precision),
            "out_proj": _dumped_layer(layer.outer, precision),
        }
        norm = {
            "@class": "LayerNorm",
            "@version": 1,
            "eps": config["ln_eps"],
            "trainable": config["trainable_ln"],
            "precision": precision,
            "@variables": {name: _numbers(t, precision) for name, t in (("w", layer.scale), ("b", layer.shift))},
        }
        layers.append({**options, **of_norm, "attention_layer": inner, "attn_layer_norm": norm})
    return {
        "@class": "NeighborGatedAttention",
        "@version": 1,
        "layer_num": len(layers),
        **options,
        **of_norm,
        "attention_layers": layers,
    }


def _dumped_layer(layer: Layer, precision: str) -> Tree:
    return _dumped_linear(layer.weight, layer.bias, precision)


def _dumped_linear(weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> Tree:
    """A linear layer as the tree holds it."""
    return {
        "@class": "Layer",
        "@version": 2,
        "bias": bias is not None,
        "use_timestep": False,
        "activation_function": "none",
        "resnet": False,
        "precision": precision,
        "trainable": True,
        "@variables": {
            "w": _numbers(weight, precision),
            "b": None if bias is None else _numbers(bias, precision),
            "idt": None,
        },
    }


def _numbers(tensor: torch.Tensor, precision: str) -> Array:
    return tensor.detach().cpu().numpy().astype(precision)
