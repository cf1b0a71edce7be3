"""The fitting nets in DeePMD-kit's files: those of energies, dipoles and polarizabilities.

What DeePMD-kit does and a model has no word for is put into its weights: two biases become one, and a case embedding
goes into the bias of the first layer.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
import torch
from torch import nn

from dpserver.errors import ModelFileError
from dpserver.frames import Floats
from dpserver.models.atomic import AtomicModel
from dpserver.models.config import FittingConfig, PolarFittingConfig
from dpserver.models.deepmd.nets import (
    dumped_collection,
    dumped_layers,
    dumped_network,
    fill_net,
    stored_networks,
)
from dpserver.models.deepmd.tree import Array, Budget, Tree, array, get, get_or, get_section, is_unset, shown
from dpserver.models.fitting import Fitting
from dpserver.models.networks import Layer
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel

WHERE: Final = "model.fitting"
KEYS: Final = frozenset(
    [
        *("neuron", "activation_function", "resnet_dt", "numb_fparam", "numb_aparam", "default_fparam"),
        *("dim_case_embd", "atom_ener", "embedding_width", "fit_diag", "scale", "shift_diag", "sel_type"),
        *("dipole_type", "pol_type", "r_differentiable", "c_differentiable"),
    ]
)
"""Entries of their sections that are read, or change no number."""

_NET_KEYS: Final = ("neuron", "activation_function", "resnet_dt", "numb_fparam", "numb_aparam", "default_fparam")
STATISTICS: Final = ("fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std")
_VERSIONS: Final = {"ener": 4, "dipole": 4, "polar": 5}


# --- from a tree --------------------------------------------------------------------------------------------------


def config_of(section: Tree, model: Tree, n_types: int) -> Tree:
    """The section `fitting_net` of our configuration.

    Args:
        section: of the tree.
        model: that it belongs to.
        n_types: number of types.

    Raises:
        ModelFileError: an entry is missing or wrong.
    """
    kind = get_or(section, "type", "ener", WHERE)
    config = {
        "type": kind,
        "skips_only_equal": _skips_only_equal(section),
        **{key: section[key] for key in _NET_KEYS if section.get(key) is not None},
    }
    if kind == "ener":
        return {**config, "atom_ener": _vacuum_energies(section, n_types)}
    absent = excluded_atoms(model, n_types)
    config["sel_type"] = [c for c in range(n_types) if c not in absent] if absent else None
    if kind == "polar":
        config["fit_diag"] = get_or(section, "fit_diag", True, WHERE)
        config["shift_diag"] = get_or(section, "shift_diag", True, WHERE)
        scale = array(get_section(section, "@variables", WHERE), "scale", (n_types,), f"{WHERE}.@variables")
        config["scale"] = scale.tolist()
    return config


def spend(config: FittingConfig, n_features: int, n_channels: int, n_types: int, budget: Budget) -> None:
    """Refuse fitting nets of absurd size before they are made.

    Args:
        config: of the nets.
        n_features: of a descriptor.
        n_channels: number of its directions, an upper bound.
        n_types: number of types.
        budget: what the nets may take.

    Raises:
        ModelFileError: they would take more.
    """
    n_out = {"ener": 1, "dipole": n_channels, "polar": n_channels**2}[getattr(config, "type", "ener")]
    n_in = n_features + config.numb_fparam + config.numb_aparam
    for a, b in pairwise([n_in, *config.neuron, n_out]):
        budget.spend([n_types, a, b], 8, f"{WHERE}.neuron")


def fill(fitting: Fitting, section: Tree, n_types: int) -> None:
    """Give fitting nets the weights of a tree, and the statistics of their parameters.

    Args:
        fitting: the nets.
        section: of the tree.
        n_types: number of types.

    Raises:
        ModelFileError: an array is missing or of another shape, or a net is not supported.
    """
    is_shared = get(section, "nets", dict, WHERE).get("ndim") == 0
    networks = stored_networks(section, "nets", WHERE, 1 if is_shared or fitting.is_shared else n_types)
    variables = get_section(section, "@variables", WHERE)
    config, n_case = fitting.config, get_or(section, "dim_case_embd", 0, WHERE)
    case = array(variables, "case_embd", (n_case,), f"{WHERE}.@variables") if n_case else np.zeros(0)
    activations = [*([config.activation_function] * len(config.neuron)), "none"]
    for c, net in enumerate(fitting):
        k = 0 if is_shared else c
        place = f"{WHERE}.nets.networks[{k}]"
        stored = _with_case(networks[k], case, place) if n_case else networks[k]
        fill_net(cast(nn.Sequential, net), stored, place, activations, is_unused=networks[k] is None)
    for name, number in zip(STATISTICS, np.repeat([config.numb_fparam, config.numb_aparam], 2), strict=True):
        if number:
            values = array(variables, name, (int(number),), f"{WHERE}.@variables")
            getattr(fitting, name).copy_(torch.from_numpy(values))


@torch.no_grad()
def fill_energies(potential: Potential, model: Tree, section: Tree) -> None:
    """Give a potential the energy of each type besides its net.

    e_i = net(D_i) + bias_atom_e + out_bias

    Raises:
        ModelFileError: an array is missing or of another shape.
    """
    n_types = len(potential.species)
    bias = array(get(section, "@variables", dict, WHERE), "bias_atom_e", (n_types,), f"{WHERE}.@variables")
    outer = get_section(model, "@variables", "model")
    if outer.get("out_bias") is not None:
        bias += array(outer, "out_bias", (n_types,), "model.@variables")
    potential.energy_bias.copy_(torch.from_numpy(bias))


@torch.no_grad()
def fill_tensors(tensors: TensorModel, model: Tree, section: Tree) -> None:
    """Give a model of dipoles or polarizabilities what its nets are added to.

    Raises:
        ModelFileError: an array is missing or of another shape.
    """
    n_types, variables = len(tensors.species), get(section, "@variables", dict, WHERE)
    last = [cast(Layer, tensors.fitting.net_of(c)[-1]) for c in range(len(tensors.fitting))]
    if variables.get("bias_atom_e") is not None:
        n_out = last[0].weight.shape[1]
        bias = array(variables, "bias_atom_e", (n_types, n_out), f"{WHERE}.@variables")
        if len(last) < n_types and np.any(bias != bias[0]):
            raise ModelFileError(f"its {WHERE}.@variables.bias_atom_e differs between types of one net")
        for layer, values in zip(last, bias, strict=False):
            layer.bias.add_(torch.from_numpy(values))
    fitting = tensors.config.fitting_net
    if isinstance(fitting, PolarFittingConfig) and fitting.shift_diag:
        shift: Floats = np.zeros(n_types)
        if variables.get("constant_matrix") is not None:
            shift = shift + array(variables, "constant_matrix", (n_types,), f"{WHERE}.@variables")
        outer = get_section(model, "@variables", "model")
        if outer.get("out_bias") is not None:
            out_bias = array(outer, "out_bias", (n_types, 9), "model.@variables")
            shift = shift + np.trace(out_bias.reshape(-1, 3, 3), axis1=1, axis2=2) / 3
        tensors.shift.copy_(torch.from_numpy(shift * np.array(fitting.scales(n_types))))


def excluded_atoms(model: Tree, n_types: int) -> list[int]:
    """The types whose atoms add nothing, `atom_exclude_types`.

    Raises:
        ModelFileError: they are no types.
    """
    absent: list[Any] = get_or(model, "atom_exclude_types", [], "model")
    if not all(type(c) is int and 0 <= c < n_types for c in absent):
        raise ModelFileError(f"its model.atom_exclude_types is {shown(absent)}, expected types from 0 to {n_types - 1}")
    return absent


def _skips_only_equal(section: Tree) -> bool:
    """Whether the hidden layers of the fitting nets lack skip connections that their widths would allow."""
    nets = get(get(section, "nets", dict, WHERE), "networks", list, f"{WHERE}.nets")
    first = next((net for net in nets if net is not None), None)
    layers = [] if first is None else get(first, "layers", list, f"{WHERE}.nets.networks")
    return any(isinstance(layer, dict) and layer.get("resnet") is False for layer in layers[:-1])


def _vacuum_energies(section: Tree, n_types: int) -> list[float | None]:
    """Energy in vacuum of the types whose nets are taken less their value there; types beyond the list are.

    Its numbers have no effect: what an atom has in vacuum is its bias.
    """
    given: list[Any] = get_or(section, "atom_ener", [], WHERE)
    if is_unset(given):
        return []
    found: list[float | None] = []
    is_shared = get(section, "nets", dict, WHERE).get("ndim") == 0
    for c in range(n_types):
        energy = given[c] if c < len(given) else 0.0
        energy = 0.0 if energy is None and is_shared else energy
        try:
            found.append(None if energy is None else float(np.asarray(energy, dtype=np.float64).reshape(())))
        except (TypeError, ValueError):
            raise ModelFileError(f"its {WHERE}.atom_ener is {shown(given)}, expected energies") from None
    return found


def _with_case(stored: object, case: Floats, where: str) -> Tree:
    """A net whose input ends with constants, as one without them: they go into the bias of its first layer."""
    layers = get(stored, "layers", list, where)
    if not layers:
        raise ModelFileError(f"its {where} has no layers")
    variables = get(layers[0], "@variables", dict, f"{where}.layers[0]")
    weight = get(variables, "w", np.ndarray, f"{where}.layers[0].@variables")
    if weight.ndim != 2 or len(weight) <= len(case):
        raise ModelFileError(f"its {where}.layers[0].@variables.w has the shape {list(weight.shape)}")
    n_in, n_out = weight.shape
    if len(layers) > 1 and {n_out, n_out / 2} & {n_in, n_in - len(case)}:
        raise ModelFileError(f"its {where} has a skip connection around a case embedding, which is not supported")
    bias = variables.get("b")
    shifted = case @ weight[n_in - len(case) :] + (0.0 if bias is None else np.reshape(bias, n_out))
    first = {**layers[0], "@variables": {**variables, "w": weight[: n_in - len(case)], "b": shifted}}
    return {"layers": [first, *layers[1:]]}


# --- to a tree ----------------------------------------------------------------------------------------------------


def dump(model: AtomicModel, types: list[str], precision: str) -> Tree:
    """The section of a tree that describes the fitting nets of a model, as the PyTorch backend writes it."""
    fitting = model.fitting
    config: Tree = model.config.fitting_net.model_dump(mode="json")
    n_in = model.descriptor.n_features + config["numb_fparam"] + config["numb_aparam"]
    nets, n_out = [], 1
    for net in fitting:
        layers = list(dumped_layers(net, config["activation_function"], precision, has_linear_end=True))
        n_out = layers[-1]["@variables"]["w"].shape[1]
        section = dumped_network("FittingNetwork", 1, n_in, config, precision, layers)
        nets.append({**section, "out_dim": n_out, "bias_out": True})
    return {
        "@class": "Fitting",
        "@version": _VERSIONS[config["type"]],
        "type": config["type"],
        "var_name": "energy" if config["type"] == "ener" else config["type"],
        "ntypes": len(types),
        "dim_descrpt": model.descriptor.n_features,
        "neuron": config["neuron"],
        "resnet_dt": config["resnet_dt"],
        "activation_function": config["activation_function"],
        "precision": precision,
        "mixed_types": fitting.is_shared,
        "numb_fparam": config["numb_fparam"],
        "numb_aparam": config["numb_aparam"],
        "dim_case_embd": 0,
        "default_fparam": config["default_fparam"],
        "rcond": config.get("rcond"),
        "exclude_types": dumped_exclusions(model),
        "tot_ener_zero": False,
        "trainable": [True] * (len(config["neuron"]) + 1),
        "layer_name": None,
        "use_aparam_as_mask": False,
        "spin": None,
        "type_map": types,
        "nets": dumped_collection("fitting_network", 0 if fitting.is_shared else 1, len(types), nets),
        **_dumped_kind(model, config),
        "@variables": {
            "bias_atom_e": np.zeros((len(types), n_out)),
            "case_embd": None,
            **{name: _numpy(getattr(fitting, name, None), precision) for name in STATISTICS},
            **_dumped_scales(model),
        },
    }


def dumped_exclusions(model: AtomicModel) -> list[int]:
    """The types whose atoms carry no energy, dipole or polarizability."""
    if not isinstance(model, TensorModel):
        return list(model.config.atom_exclude_types)
    return [c for c in range(len(model.species)) if c not in model.selected]


def dumped_bias(model: AtomicModel) -> Array:
    """What a tree adds to the numbers of each type, (1, n_types, n)."""
    n_types = len(model.species)
    if isinstance(model, Potential):
        return np.asarray(model.energy_bias.detach().cpu().numpy().reshape(1, -1, 1).copy())
    fitting = model.config.fitting_net
    if not isinstance(fitting, PolarFittingConfig) or not isinstance(model, TensorModel):
        return np.zeros((1, n_types, 3))
    scales = np.array(fitting.scales(n_types))
    shift = np.divide(model.shift.cpu().numpy(), scales, out=np.zeros(n_types), where=scales != 0)
    return np.asarray((shift[:, None, None] * np.eye(3)).reshape(1, n_types, 9))


def _dumped_kind(model: AtomicModel, config: Tree) -> Tree:
    """The entries that one kind of fitting nets has."""
    if config["type"] == "ener":
        return {"dim_out": 1, "atom_ener": config["atom_ener"]}
    entries = {"embedding_width": model.descriptor.n_channels}
    if config["type"] == "dipole":
        return {**entries, "r_differentiable": True, "c_differentiable": True}
    return {**entries, "fit_diag": config["fit_diag"], "shift_diag": config["shift_diag"]}


def _dumped_scales(model: AtomicModel) -> Tree:
    fitting, n_types = model.config.fitting_net, len(model.species)
    if not isinstance(fitting, PolarFittingConfig):
        return {}
    return {"scale": np.array(fitting.scales(n_types))[:, None], "constant_matrix": np.zeros(n_types)}


def _numpy(values: torch.Tensor | None, precision: str) -> Array | None:
    return None if values is None else values.cpu().numpy().astype(precision)
