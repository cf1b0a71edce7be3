"""Load the parameters of DeePMD-kit's `.dp` files into our potential; for tests, se_e2_a with `ener` only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

from dpserver.frames import Floats, Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential


def read(path: Path) -> dict[str, Any]:
    """The tree in the attribute `json`, with the datasets that strings below `@variables` name."""
    with h5py.File(path) as file:

        def resolve(value: Any, is_variable: bool = False) -> Any:
            if isinstance(value, dict):
                return {k: resolve(v, is_variable or k == "@variables") for k, v in value.items()}
            if isinstance(value, list):
                return [resolve(v, is_variable) for v in value]
            return np.asarray(file[value][()], dtype=np.float64) if is_variable and isinstance(value, str) else value

        model: dict[str, Any] = resolve(json.loads(file.attrs["json"]))["model"]
    return model


def load(path: Path) -> Potential:
    """Make a potential with the numbers of a `.dp` file."""
    model = read(path)
    descriptor, fitting = model["descriptor"], model["fitting"]
    keys = (
        "type", "sel", "rcut", "rcut_smth", "neuron", "axis_neuron", "activation_function", "resnet_dt",
        "type_one_side", "exclude_types", "set_davg_zero", "env_protection",
    )  # fmt: skip
    config = {
        "type_map": model["type_map"],
        "descriptor": {key: descriptor[key] for key in keys},
        "fitting_net": {key: fitting[key] for key in ("neuron", "activation_function", "resnet_dt")},
    }
    potential = Potential(parse(ModelConfig, config))
    for ours, theirs in (
        (potential.descriptor.embedding, descriptor["embeddings"]),
        (potential.fitting, fitting["nets"]),
    ):
        for net, network in zip(ours, theirs["networks"], strict=True):
            _fill(net, network["layers"])
    for name in ("davg", "dstd"):
        per_slot = descriptor["@variables"][name]
        assert np.array_equal(per_slot, np.broadcast_to(per_slot[:, :1], per_slot.shape)), f"{name} depends on the slot"
        getattr(potential.descriptor, name).copy_(torch.from_numpy(per_slot[:, 0]))
    bias = fitting["@variables"]["bias_atom_e"].reshape(-1) + model["@variables"]["out_bias"].reshape(-1)
    potential.energy_bias.copy_(torch.from_numpy(bias))
    return potential


def _fill(net: nn.Module, layers: list[dict[str, Any]]) -> None:
    for layer, stored in zip(net.children(), layers, strict=True):
        for ours, theirs in (("weight", "w"), ("bias", "b"), ("timestep", "idt")):
            parameter, value = getattr(layer, ours), stored["@variables"].get(theirs)
            assert (parameter is None) == (value is None), f"{theirs} is present on one side only"
            if parameter is not None:
                parameter.data.copy_(torch.from_numpy(value))


def stored_frames(path: Path) -> tuple[list[str], Frames, dict[str, Floats]]:
    """Names, structures and DeePMD-kit's results e, v (per frame), f, ae (per atom) of a `frames.npz`."""
    with np.load(path) as z:
        frames = Frames(
            z["coords"].astype(np.float64),
            z["types"].astype(np.int64),
            z["cell"].astype(np.float64),
            z["pbc"].astype(bool),
            z["frame_idx"].astype(np.int64),
        )
        return list(z["names"]), frames, {name: z[name] for name in ("e", "f", "v", "ae")}
