"""The descriptor se_e3 in DeePMD-kit's files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Final, cast

import numpy as np
from torch import nn

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.forms import Form
from dpserver.models.deepmd.graphdef import Constants
from dpserver.models.deepmd.nets import (
    VARIABLES,
    Layers,
    collection_of_layers,
    dumped_collection,
    dumped_layers,
    dumped_network,
    fill_net,
    named,
    networks_of_tensors,
    stored_networks,
)
from dpserver.models.deepmd.tree import Array, Budget, Tree
from dpserver.models.deepmd.two_body import (
    dumped_environment,
    dumped_moments,
    environment_of_constants,
    fill_moments,
)
from dpserver.models.se_e3 import SeE3

_KEYS: Final = (
    "sel", "rcut", "rcut_smth", "exclude_types", "set_davg_zero", "env_protection", "neuron", "activation_function",
    "resnet_dt",
)  # fmt: skip
_EMBEDDING: Final = re.compile(r"filter_type_all/(matrix|bias|idt)_(\d+)_(\d+)_(\d+)")


class SeE3Form(Form):
    """The descriptor se_e3; its files hold a net for each pair of types, of which those of a > b are not used."""

    ours, theirs, names = "se_e3", "se_e3", ("se_e3", "se_at", "se_a_3be", "se_t")
    keys = frozenset(_KEYS)
    ours_only = frozenset({"keeps_excluded_slots", "type_one_side"})

    def config(self, section: Tree, types: list[str]) -> Tree:
        """The section `descriptor` of our configuration, from that of a tree."""
        return {"type": self.ours, **{key: section[key] for key in _KEYS if section.get(key) is not None}}

    def spend(self, config: Tree, n_types: int, budget: Budget) -> int:
        """Refuse networks of absurd size before they are made."""
        for n_in, n_out in pairwise([1, *config["neuron"]]):
            budget.spend([n_types**2, n_in, n_out], 8, "model.descriptor.neuron")
        return int(config["neuron"][-1])

    def fill(self, descriptor: nn.Module, section: Tree) -> None:
        """Give a descriptor the statistics and embedding nets of a tree."""
        descriptor = cast(SeE3, descriptor)
        n_types, config = descriptor.n_species, descriptor.config
        fill_moments(descriptor.davg, descriptor.dstd, section, sum(descriptor.sel))
        networks = stored_networks(section, "embeddings", "model.descriptor", n_types**2)
        for k, (net, stored) in enumerate(zip(descriptor.embedding, networks, strict=True)):
            b, a = divmod(k, n_types)
            is_unused = a > b or 0 in (descriptor.sel[a], descriptor.sel[b])
            activations = [config.activation_function] * len(config.neuron)
            place = f"model.descriptor.embeddings.networks[{k}]"
            fill_net(cast(nn.Sequential, net), stored, place, activations, is_unused)

    def dump(self, descriptor: nn.Module, types: list[str], precision: str) -> Tree:
        """The section of a tree that describes a descriptor."""
        descriptor = cast(SeE3, descriptor)
        config = descriptor.config.model_dump(mode="json")
        nets = [
            dumped_network(
                "EmbeddingNetwork",
                2,
                1,
                config,
                precision,
                list(dumped_layers(net, config["activation_function"], precision)),
            )
            for net in descriptor.embedding
        ]
        return {
            "@class": "Descriptor",
            "@version": 2,
            "type": self.theirs,
            **{key: config[key] for key in _KEYS},
            "precision": precision,
            "trainable": True,
            "type_map": types,
            "env_mat": dumped_environment(config),
            "embeddings": dumped_collection("embedding_network", 2, len(types), nets),
            "@variables": dumped_moments(descriptor.davg, descriptor.dstd, sum(descriptor.sel)),
        }

    def of_tensors(self, given: Tree, tensors: Mapping[str, Array], prefix: str, n_types: int) -> Tree:
        """The section of a tree, from what the PyTorch backend stores."""
        prefix = f"{prefix}seat."
        return {
            **given,
            "type": self.theirs,
            "embeddings": networks_of_tensors(tensors, f"{prefix}filter_layers.", 2, n_types),
            "@variables": named(tensors, {"davg": f"{prefix}mean", "dstd": f"{prefix}stddev"}),
        }

    def of_constants(self, given: Tree, constants: Constants, n_types: int) -> Tree:
        """The section of a tree, from what the TensorFlow backend stores."""
        nets: list[Layers] = [{} for _ in range(n_types**2)]
        for name, value in constants.items():
            if match := _EMBEDDING.fullmatch(name):
                kind, layer, a, b = match[1], *(int(match[k]) for k in (2, 3, 4))
                if max(a, b) >= n_types:
                    raise ModelFileError(
                        f"its graph has the constant {name}, which its training_script has no place for"
                    )
                nets[b * n_types + a].setdefault(layer, {})[VARIABLES[kind]] = np.asarray(value)
        if not any(nets):
            raise ModelFileError(
                "it is a compressed model: its graph holds tables in place of the embedding nets; import the "
                "uncompressed model it was made from (the input of `dp compress`)"
            )
        return {
            **given,
            "type": self.theirs,
            **environment_of_constants(given, constants, 4),
            "embeddings": collection_of_layers(nets, 2),
        }
