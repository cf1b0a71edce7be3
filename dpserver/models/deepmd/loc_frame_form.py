"""The descriptor loc_frame in DeePMD-kit's files: graphs of its TensorFlow backend know it, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import numpy as np
import torch
from torch import nn

from dpserver.errors import ModelFileError
from dpserver.frames import Ints
from dpserver.models.deepmd.forms import Form, cannot_dump
from dpserver.models.deepmd.graphdef import Constants, numbers
from dpserver.models.deepmd.tree import Array, Budget, Tree, array, get
from dpserver.models.loc_frame import LocFrame

_KEYS: Final = ("sel_a", "sel_r", "rcut", "axis_rule")
_ROW: Final = (0, 2, 3, 1)
"""Where 1/R, x, y and z are in a row of a graph's, which has z before x and y."""


class LocFrameForm(Form):
    """The descriptor loc_frame."""

    ours, theirs, names = "loc_frame", "loc_frame", ("loc_frame",)
    keys = frozenset(_KEYS)

    def config(self, section: Tree, types: list[str]) -> Tree:
        """The section `descriptor` of our configuration, from that of a tree."""
        return {"type": self.ours, **{key: section[key] for key in _KEYS if section.get(key) is not None}}

    def spend(self, config: Tree, n_types: int, budget: Budget) -> int:
        """Refuse networks of absurd size before they are made; it has none."""
        n_features = 4 * sum(config["sel_a"]) + sum(config["sel_r"])
        budget.spend([2, n_types, n_features], 8, "model.descriptor.sel_a")
        return n_features

    def fill(self, descriptor: nn.Module, section: Tree) -> None:
        """Give a descriptor the statistics of a tree."""
        descriptor = cast(LocFrame, descriptor)
        variables, where = get(section, "@variables", dict, "model.descriptor"), "model.descriptor.@variables"
        for name, buffer in (("davg", descriptor.davg), ("dstd", descriptor.dstd)):
            buffer.copy_(torch.from_numpy(array(variables, name, tuple(buffer.shape), where)))
        if not bool((descriptor.dstd > 0).all()):
            raise ModelFileError(f"its {where}.dstd holds numbers that are not above 0")

    def dump(self, descriptor: nn.Module, types: list[str], precision: str) -> Tree:
        """There is no such section."""
        raise cannot_dump("a model with the descriptor loc_frame")

    def of_tensors(self, given: Tree, tensors: Mapping[str, Array], prefix: str, n_types: int) -> Tree:
        """The PyTorch backend has no such descriptor."""
        raise ModelFileError("its descriptor is loc_frame, which DeePMD-kit's PyTorch backend does not have")

    def of_constants(self, given: Tree, constants: Constants, n_types: int) -> Tree:
        """The section of a tree, from what the TensorFlow backend stores."""
        columns = self.columns(given)
        moments = {}
        for name, constant in (("davg", "t_avg"), ("dstd", "t_std")):
            value = numbers(constants, f"descrpt_attr/{constant}")
            if value is None or value.shape != (n_types, len(columns)):
                raise ModelFileError(f"its graph has no descrpt_attr/{constant} of the expected shape")
            moments[name] = value[:, columns]
        rcut = float(np.float32(get(given, "rcut", float, "model.descriptor")))
        return {**given, "rcut": rcut, "@variables": moments}

    def columns(self, given: Tree) -> Ints:
        """Where the features of ours are in a graph, in the order of ours, (n_features,)."""
        sels = [get(given, key, list, "model.descriptor") for key in ("sel_a", "sel_r")]
        if not all(type(n) is int and n >= 0 for sel in sels for n in sel):
            raise ModelFileError("its model.descriptor has sel_a or sel_r that are no lists of numbers")
        n_full, n_radial = (sum(sel) for sel in sels)
        full = 4 * np.arange(n_full)[:, None] + np.array(_ROW)
        return np.concatenate([full.ravel(), 4 * n_full + np.arange(n_radial)]).astype(np.int64)
