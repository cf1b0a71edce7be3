"""From a potential to DeePMD-kit's tree, as its PyTorch backend writes it.

`dp convert-backend model.dp model.pth` (or `model.pb`) then makes what LAMMPS and the other codes load.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, cast

import numpy as np
from torch import Tensor, nn

from dpserver import __version__
from dpserver.errors import ConfigError
from dpserver.models.config import LocFrameConfig
from dpserver.models.deepmd.neutral import write_hdf5
from dpserver.models.deepmd.tree import Array, Tree
from dpserver.models.networks import Layer
from dpserver.models.potential import Potential
from dpserver.models.se_e2_a import SeE2A
from dpserver.models.se_e2_r import SeE2R

_PRECISIONS: Final = {"double": "float64", "single": "float32"}


def save(path: str | Path, potential: Potential, precision: str = "double") -> None:
    """Write a `.dp` file, atomically.

    Args:
        path: of the file.
        potential: with the descriptor se_e2_a or se_e2_r.
        precision: in which DeePMD-kit is to evaluate it: `double`, or `single`, which rounds the coordinates too.

    Raises:
        ConfigError: DeePMD-kit's tree has no place for the model, the precision is unknown, or h5py is not installed.
    """
    path, tree = Path(path), tree_of(potential, precision)
    part = path.with_name(f".{path.name}.part")
    try:
        write_hdf5(part, tree)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def tree_of(potential: Potential, precision: str = "double") -> Tree:
    """Describe a potential by DeePMD-kit's tree, with arrays of its own; see `save`.

    Raises:
        ConfigError: the tree has no place for its descriptor, or none for its form of it; the precision is unknown.
    """
    if precision not in _PRECISIONS:
        raise ConfigError(f"precision {precision!r} is unknown; expected one of {', '.join(_PRECISIONS)}")
    config = potential.config
    if isinstance(config.descriptor, LocFrameConfig):
        raise ConfigError("a model with the descriptor loc_frame cannot be exported: DeePMD-kit's .dp files know none")
    number, types = _PRECISIONS[precision], list(config.type_map)
    pairs = [list(pair) for pair in config.pair_exclude_types]
    distance = float(potential.min_distance.min())
    return {
        "software": "dpserver",
        "version": __version__,
        "backend": "PyTorch",
        "model": {
            "@class": "Model",
            "@version": 2,
            "type": "standard",
            "type_map": types,
            "atom_exclude_types": [],
            "pair_exclude_types": pairs,
            "rcond": None,
            "preset_out_bias": None,
            "@variables": {
                "out_bias": potential.energy_bias.detach().cpu().numpy().reshape(1, -1, 1).copy(),
                "out_std": np.ones((1, len(types), 1)),
            },
            "descriptor": _descriptor(cast(SeE2A | SeE2R, potential.descriptor), types, number),
            "fitting": _fitting(potential, types, number),
        },
        "model_def_script": _input(potential, pairs, number),
        "@variables": {"min_nbor_dist": np.array(distance)} if np.isfinite(distance) else {},
    }


def _input(potential: Potential, pairs: list[list[int]], precision: str) -> Tree:
    """The section `model` of an input that makes such a model."""
    ours = {"descriptor": {"keeps_excluded_slots"}, "fitting_net": {"skips_only_equal"}}
    dumped = potential.config.model_dump(mode="json", exclude=ours)
    return {
        "type": "standard",
        "type_map": dumped["type_map"],
        "descriptor": {**dumped["descriptor"], "precision": precision},
        "fitting_net": {**dumped["fitting_net"], "precision": precision},
        "pair_exclude_types": pairs,
        "atom_exclude_types": [],
    }


def _descriptor(descriptor: SeE2A | SeE2R, types: list[str], precision: str) -> Tree:
    config = descriptor.config.model_dump(mode="json")
    is_radial = isinstance(descriptor, SeE2R)
    if is_radial and not descriptor.config.type_one_side:
        raise ConfigError("a se_e2_r model with type_one_side false cannot be exported: DeePMD-kit's .dp knows none")
    keys = (
        "rcut", "rcut_smth", "sel", "neuron", "resnet_dt", "type_one_side", "exclude_types", "env_protection",
        "set_davg_zero", "activation_function",
    )  # fmt: skip
    n_slots, n_types = sum(descriptor.sel), len(types)

    def per_slot(moment: Tensor) -> Array:
        return np.repeat(moment.cpu().numpy()[:, None, :], n_slots, axis=1)

    nets = []
    for k, net in enumerate(descriptor.embedding):
        is_used = config["type_one_side"] or divmod(k, n_types) not in descriptor.silent
        layers = list(_layers(net, config["activation_function"], precision)) if is_used else []
        nets.append(_network("EmbeddingNetwork", 2, 1, config, precision, layers))
    return {
        "@class": "Descriptor",
        "@version": 2,
        "type": "se_r" if is_radial else "se_e2_a",
        **{key: config[key] for key in keys},
        **({} if is_radial else {"axis_neuron": config["axis_neuron"]}),
        "precision": precision,
        "trainable": True,
        "spin": None,
        "type_map": types,
        "env_mat": {
            "rcut": config["rcut"],
            "rcut_smth": config["rcut_smth"],
            "protection": config["env_protection"],
            "use_exp_switch": False,
        },
        "embeddings": _collection("embedding_network", 1 if config["type_one_side"] else 2, n_types, nets),
        "@variables": {"davg": per_slot(descriptor.davg), "dstd": per_slot(descriptor.dstd)},
    }


def _fitting(potential: Potential, types: list[str], precision: str) -> Tree:
    config = potential.config.fitting_net.model_dump(mode="json")
    n_features = potential.descriptor.n_features
    nets = []
    for net in potential.fitting:
        layers = list(_layers(net, config["activation_function"], precision, has_linear_end=True))
        section = _network("FittingNetwork", 1, n_features, config, precision, layers)
        nets.append({**section, "out_dim": 1, "bias_out": True})
    return {
        "@class": "Fitting",
        "@version": 4,
        "type": "ener",
        "var_name": "energy",
        "ntypes": len(types),
        "dim_descrpt": n_features,
        "dim_out": 1,
        "neuron": config["neuron"],
        "resnet_dt": config["resnet_dt"],
        "activation_function": config["activation_function"],
        "precision": precision,
        "mixed_types": False,
        "numb_fparam": 0,
        "numb_aparam": 0,
        "dim_case_embd": 0,
        "default_fparam": None,
        "rcond": config["rcond"],
        "exclude_types": [],
        "atom_ener": [],
        "tot_ener_zero": False,
        "trainable": [True] * (len(config["neuron"]) + 1),
        "layer_name": None,
        "use_aparam_as_mask": False,
        "spin": None,
        "type_map": types,
        "nets": _collection("fitting_network", 1, len(types), nets),
        "@variables": {
            "bias_atom_e": np.zeros((len(types), 1)),
            "case_embd": None,
            "fparam_avg": None,
            "fparam_inv_std": None,
            "aparam_avg": None,
            "aparam_inv_std": None,
        },
    }


def _collection(kind: str, n_axes: int, n_types: int, networks: list[Tree]) -> Tree:
    return {
        "@class": "NetworkCollection",
        "@version": 1,
        "network_type": kind,
        "ndim": n_axes,
        "ntypes": n_types,
        "networks": networks,
    }


def _network(name: str, version: int, n_in: int, config: Tree, precision: str, layers: list[Tree]) -> Tree:
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


def _layers(net: nn.Module, activation: str, precision: str, has_linear_end: bool = False) -> Iterable[Tree]:
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
