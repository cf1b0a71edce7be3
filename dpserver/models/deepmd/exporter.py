"""From a potential to DeePMD-kit's tree, as its PyTorch backend writes it.

`dp convert-backend model.dp model.pth` (or `model.pb`) then makes what LAMMPS and the other codes load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from dpserver import __version__
from dpserver.errors import ConfigError
from dpserver.models.deepmd.kinds import form_of_input
from dpserver.models.deepmd.nets import dumped_collection, dumped_layers, dumped_network
from dpserver.models.deepmd.neutral import write_hdf5
from dpserver.models.deepmd.tree import Tree
from dpserver.models.potential import Potential

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
    form = form_of_input(config.descriptor.type)
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
            "descriptor": form.dump(potential.descriptor, types, number),
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


def _fitting(potential: Potential, types: list[str], precision: str) -> Tree:
    config = potential.config.fitting_net.model_dump(mode="json")
    n_features = potential.descriptor.n_features
    nets = []
    for net in potential.fitting:
        layers = list(dumped_layers(net, config["activation_function"], precision, has_linear_end=True))
        section = dumped_network("FittingNetwork", 1, n_features, config, precision, layers)
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
        "nets": dumped_collection("fitting_network", 1, len(types), nets),
        "@variables": {
            "bias_atom_e": np.zeros((len(types), 1)),
            "case_embd": None,
            "fparam_avg": None,
            "fparam_inv_std": None,
            "aparam_avg": None,
            "aparam_inv_std": None,
        },
    }
