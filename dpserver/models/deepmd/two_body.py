"""The descriptors se_e2_a and se_e2_r in DeePMD-kit's files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Final, cast

import numpy as np
import torch
from torch import Tensor, nn

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.forms import Form, cannot_dump
from dpserver.models.deepmd.graphdef import Constants, numbers
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
from dpserver.models.deepmd.tree import Array, Budget, Tree, array, both_ways, get, get_or, is_unset
from dpserver.models.se_e2_a import SeE2A
from dpserver.models.se_e2_r import SeE2R

_KEYS: Final = (
    "sel", "rcut", "rcut_smth", "axis_neuron", "type_one_side", "exclude_types", "set_davg_zero", "env_protection",
    "neuron", "activation_function", "resnet_dt",
)  # fmt: skip
_EMBEDDING: Final = re.compile(r"filter_type_(all|\d+)/(matrix|bias|idt)_(\d+)_(\d+)")


class _TwoBody(Form):
    """What se_e2_a and se_e2_r have in common."""

    keys = frozenset(_KEYS)
    n_columns: ClassVar[int]

    def config(self, section: Tree, types: list[str]) -> Tree:
        """The section `descriptor` of our configuration, from that of a tree."""
        return {
            "type": self.ours,
            "keeps_excluded_slots": _keeps_excluded_slots(section, types),
            **{key: section[key] for key in _KEYS if section.get(key) is not None},
        }

    def spend(self, config: Tree, n_types: int, budget: Budget) -> int:
        """Refuse networks of absurd size before they are made."""
        n_embeddings = n_types if config["type_one_side"] else n_types**2
        for n_in, n_out in pairwise([1, *config["neuron"]]):
            budget.spend([n_embeddings, n_in, n_out], 8, "model.descriptor.neuron")
        return int(config["neuron"][-1] * config.get("axis_neuron", 1))

    def fill(self, descriptor: nn.Module, section: Tree) -> None:
        """Give a descriptor the statistics and embedding nets of a tree."""
        descriptor = cast(SeE2A | SeE2R, descriptor)
        n_types = descriptor.n_species
        fill_moments(descriptor.davg, descriptor.dstd, section, sum(descriptor.sel))
        networks = stored_networks(section, "embeddings", "model.descriptor", len(descriptor.embedding))
        for k, (net, stored) in enumerate(zip(descriptor.embedding, networks, strict=True)):
            neighbour, centre = (k, None) if descriptor.config.type_one_side else divmod(k, n_types)
            place = f"model.descriptor.embeddings.networks[{k}]"
            is_unused = descriptor.sel[neighbour] == 0 or (centre, neighbour) in descriptor.silent
            activations = [descriptor.config.activation_function] * len(descriptor.config.neuron)
            fill_net(cast(nn.Sequential, net), stored, place, activations, is_unused)

    def dump(self, descriptor: nn.Module, types: list[str], precision: str) -> Tree:
        """The section of a tree that describes a descriptor."""
        descriptor = cast(SeE2A | SeE2R, descriptor)
        config = descriptor.config.model_dump(mode="json")
        keys = (
            "rcut", "rcut_smth", "sel", "neuron", "resnet_dt", "type_one_side", "exclude_types", "env_protection",
            "set_davg_zero", "activation_function",
        )  # fmt: skip
        nets = []
        for k, net in enumerate(descriptor.embedding):
            is_used = config["type_one_side"] or divmod(k, len(types)) not in descriptor.silent
            layers = list(dumped_layers(net, config["activation_function"], precision)) if is_used else []
            nets.append(dumped_network("EmbeddingNetwork", 2, 1, config, precision, layers))
        n_axes = 1 if config["type_one_side"] else 2
        return {
            "@class": "Descriptor",
            "@version": 2,
            "type": self.theirs,
            **{key: config[key] for key in keys},
            "precision": precision,
            "trainable": True,
            "spin": None,
            "type_map": types,
            "env_mat": dumped_environment(config),
            "embeddings": dumped_collection("embedding_network", n_axes, len(types), nets),
            "@variables": dumped_moments(descriptor.davg, descriptor.dstd, sum(descriptor.sel)),
        }

    def of_tensors(self, given: Tree, tensors: Mapping[str, Array], prefix: str, n_types: int) -> Tree:
        """The section of a tree, from what the PyTorch backend stores."""
        is_one_side = self._is_one_side(given)
        embeddings = networks_of_tensors(tensors, f"{prefix}filter_layers.", 1 if is_one_side else 2, n_types)
        if None in embeddings["networks"] and np.any(tensors.get(f"{prefix}mean", 0)):
            raise ModelFileError(
                "it lacks embedding nets of excluded pairs, which DeePMD-kit's PyTorch backend misreads; import the "
                "file it was converted from"
            )
        return {
            **given,
            "type": self.theirs,
            "type_one_side": is_one_side,
            "embeddings": embeddings,
            "@variables": named(tensors, {"davg": f"{prefix}mean", "dstd": f"{prefix}stddev"}),
        }

    def of_constants(self, given: Tree, constants: Constants, n_types: int) -> Tree:
        """The section of a tree, from what the TensorFlow backend stores."""
        environment = environment_of_constants(given, constants, self.n_columns)
        is_one_side = given.get("type_one_side", False) is True
        nets = _embeddings(constants, is_one_side, n_types)
        if not any(nets):
            raise ModelFileError(
                "it is a compressed model: its graph holds tables in place of the embedding nets; import the "
                "uncompressed model it was made from (the input of `dp compress`)"
            )
        excluded: list[Any] = get_or(given, "exclude_types", [], "model.descriptor")
        if is_one_side and not is_unset(excluded):
            self._drops_excluded(constants)
            places = both_ways(excluded)
            pairs = [divmod(k, n_types) for k in range(n_types**2)]
            is_one_side, nets = False, [{} if pair in places else nets[pair[0]] for pair in pairs]
        return {
            **given,
            **environment,
            "type": self.theirs,
            "type_one_side": is_one_side,
            "embeddings": collection_of_layers(nets, 1 if is_one_side else 2),
        }

    def _is_one_side(self, given: Tree) -> bool:
        return get_or(given, "type_one_side", False, "model.descriptor")

    def _drops_excluded(self, constants: Constants) -> None:
        """Refuse a graph whose excluded neighbours of `type_one_side` cannot be repeated."""


class SeE2AForm(_TwoBody):
    """The descriptor se_e2_a."""

    ours, theirs, names, n_columns = "se_e2_a", "se_e2_a", ("se_e2_a", "se_a"), 4

    def dump(self, descriptor: nn.Module, types: list[str], precision: str) -> Tree:
        """The section of a tree that describes a descriptor."""
        return {
            **super().dump(descriptor, types, precision),
            "axis_neuron": cast(SeE2A, descriptor).config.axis_neuron,
        }

    def of_tensors(self, given: Tree, tensors: Mapping[str, Array], prefix: str, n_types: int) -> Tree:
        """The section of a tree, from what the PyTorch backend stores."""
        return super().of_tensors(given, tensors, f"{prefix}sea.", n_types)


class SeE2RForm(_TwoBody):
    """The descriptor se_e2_r, called se_r in files."""

    ours, theirs, names, n_columns = "se_e2_r", "se_r", ("se_e2_r", "se_r"), 1

    def dump(self, descriptor: nn.Module, types: list[str], precision: str) -> Tree:
        """The section of a tree that describes a descriptor."""
        if not cast(SeE2R, descriptor).config.type_one_side:
            raise cannot_dump('a se_e2_r model with type_one_side false (train it with "type_one_side": true)')
        return super().dump(descriptor, types, precision)

    def of_tensors(self, given: Tree, tensors: Mapping[str, Array], prefix: str, n_types: int) -> Tree:
        """The section of a tree, from what the PyTorch backend stores; it knows one-sided nets only."""
        return super().of_tensors({**given, "type_one_side": True}, tensors, prefix, n_types)

    def _drops_excluded(self, constants: Constants) -> None:
        if np.any(numbers(constants, "descrpt_attr/t_avg")):
            raise ModelFileError(
                "it is a se_e2_r model with exclude_types and type_one_side, whose graph counts excluded neighbours in "
                "a way that is not supported"
            )


def fill_moments(davg: Tensor, dstd: Tensor, section: Tree, n_slots: int, where: str = "model.descriptor") -> None:
    """Take over the normalisation of the environment matrix, which the files store for every slot of `sel`.

    Args:
        davg: (n_types, n_columns).
        dstd: (n_types, n_columns).
        section: of the descriptor.
        n_slots: sum of `sel`.
        where: dotted place of the section.

    Raises:
        ModelFileError: missing, of another shape, or not the same for all slots.
    """
    variables = get(section, "@variables", dict, where)
    for name, buffer in (("davg", davg), ("dstd", dstd)):
        per_slot = array(variables, name, (len(buffer), n_slots, buffer.shape[1]), f"{where}.@variables")
        if not np.array_equal(per_slot, np.broadcast_to(per_slot[:, :1], per_slot.shape)):
            raise ModelFileError(
                f"its {where}.@variables.{name} differs between the neighbours of a type, which is not supported"
            )
        buffer.copy_(torch.from_numpy(per_slot[:, 0]))
    if not bool((dstd > 0).all()):
        raise ModelFileError(f"its {where}.@variables.dstd holds numbers that are not above 0")


def dumped_moments(davg: Tensor, dstd: Tensor, n_slots: int) -> Tree:
    """The normalisation of the environment matrix as the files store it; see `fill_moments`."""
    return {
        name: np.repeat(moment.cpu().numpy()[:, None, :], n_slots, axis=1)
        for name, moment in (("davg", davg), ("dstd", dstd))
    }


def environment_of_constants(given: Tree, constants: Constants, n_columns: int) -> Tree:
    """What a graph says of the environment matrix: cutoffs in the float32 of its operators, `sel`, normalisation.

    Args:
        given: the section `descriptor` of the input.
        constants: of the graph.
        n_columns: of the environment matrix.

    Raises:
        ModelFileError: something is missing, or `sel` was changed after training.
    """
    sel, original = (numbers(constants, f"descrpt_attr/{name}") for name in ("sel", "original_sel"))
    if sel is not None and original is not None and not np.array_equal(sel, original):
        raise ModelFileError(
            f"its sel was changed after training, from {original.tolist()} to {sel.tolist()}, which is not supported"
        )
    moments = {}
    for name, constant in (("davg", "t_avg"), ("dstd", "t_std")):
        value = numbers(constants, f"descrpt_attr/{constant}")
        if value is None or value.ndim != 2 or value.shape[1] % n_columns:
            raise ModelFileError(f"its graph has no descrpt_attr/{constant} of the expected shape")
        moments[name] = value.reshape(len(value), -1, n_columns)
    rcut, rcut_smth = (np.float32(get(given, key, float, "model.descriptor")) for key in ("rcut", "rcut_smth"))
    return {
        "rcut": float(rcut_smth) + float(rcut - rcut_smth),  # whose difference is rounded, too
        "rcut_smth": float(rcut_smth),
        "sel": given.get("sel") if sel is None else sel.tolist(),
        "@variables": moments,
    }


def dumped_environment(config: Tree) -> Tree:
    """What a tree says of the environment matrix."""
    return {
        "rcut": config["rcut"],
        "rcut_smth": config["rcut_smth"],
        "protection": config["env_protection"],
        "use_exp_switch": False,
    }


def _keeps_excluded_slots(descriptor: Tree, types: Sequence[str]) -> bool | None:
    """Whether the empty slots of excluded pairs add to the descriptor: they do where the pairs have nets.

    Backends differ here; those that leave the whole pair out leave out its net. None is the default.
    """
    pairs: list[Any] = get_or(descriptor, "exclude_types", [], "model.descriptor")
    if get_or(descriptor, "type_one_side", False, "model.descriptor") or is_unset(pairs):
        return None
    networks = stored_networks(descriptor, "embeddings", "model.descriptor", len(types) ** 2)
    places = both_ways(pairs)
    has_net = {
        bool(get_or(net, "layers", [], "model.descriptor.embeddings.networks")) if net is not None else False
        for k, net in enumerate(networks)
        if divmod(k, len(types)) in places
    }
    if len(has_net) != 1:
        raise ModelFileError("its excluded pairs of types have nets in part, or do not exist")
    return has_net.pop()


def _embeddings(constants: Constants, is_one_side: bool, n_types: int) -> list[Layers]:
    """Layers of the embedding nets, from 1 on, in the order of the tree."""
    nets: list[Layers] = [{} for _ in range(n_types if is_one_side else n_types**2)]
    for name, value in constants.items():
        if match := _EMBEDDING.fullmatch(name):
            centre, kind, layer, neighbour = match[1], match[2], int(match[3]), int(match[4])
            if (centre == "all") != is_one_side or max(neighbour, int(centre) if centre != "all" else 0) >= n_types:
                raise ModelFileError(f"its graph has the constant {name}, which its training_script has no place for")
            place = neighbour if is_one_side else neighbour * n_types + int(centre)
            nets[place].setdefault(layer, {})[VARIABLES[kind]] = value
    return nets
