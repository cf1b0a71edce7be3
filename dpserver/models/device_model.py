"""Potentials as a GPU evaluates them: tables, products and nets of each species of centres, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import Floats
from dpserver.kernels import fused
from dpserver.models.assembly import exclusion
from dpserver.models.curves import descriptor_of, slots_of
from dpserver.models.networks import Layer
from dpserver.models.planning import Plan, constant_of, skip_of

if TYPE_CHECKING:
    from dpserver.models.potential import Potential


@dataclass(frozen=True, eq=False)
class Centre:
    """What centres of one species need, for one member, on the device.

    Attributes:
        pairs: rows `fused.PAIR`; bins: rows `fused.BINS`; bin_first, bin_parts: of all tables, one after the other.
        coefficients: of all tables; norm: davg and 1/dstd, (8,); blocks: rows `fused.BLOCK`.
        columns: of moments; mix: from these to channels, or None.
        left, right: columns whose product is an input of the fitting net, (n_inputs,); places: that input for every two
            columns, or -1.
        weights: of the first layer for these inputs; skip: first column of those that carry the input on, or 0.
        layers: of the fitting net; bias: what is added to its output, eV.
    """

    pairs: Tensor
    bins: Tensor
    bin_first: Tensor
    bin_parts: Tensor
    coefficients: Tensor
    norm: Tensor
    blocks: Tensor
    columns: int
    mix: Tensor | None
    left: Tensor
    right: Tensor
    places: Tensor
    weights: Tensor
    skip: int
    layers: list[Layer]
    bias: float

    @property
    def n_channels(self) -> int:
        """Columns whose products are the inputs of the fitting net."""
        return self.columns if self.mix is None else self.mix.shape[1]

    def energies(self, inputs: Tensor) -> Tensor:
        """The fitting net, from (n, n_inputs) to (n,), eV."""
        first, *others, last = self.layers
        n_out = first.weight.shape[1]
        product = inputs @ self.weights
        y = first.activation(product[:, :n_out] + first.bias)
        if first.timestep is not None:
            y = y * first.timestep
        if self.skip:
            y = y + product[:, self.skip : self.skip + n_out]
        for layer in others:
            y = layer(y)
        return (y @ last.weight).squeeze(-1).double() + self.bias


@dataclass(frozen=True, eq=False)
class DeviceModel:
    """The members of a committee, of one cutoff and one set of species.

    Attributes:
        centres: by member and species.
        cutoff: rcut, rcut_smth, env_protection, (3,), Å.
        dtype: of tables and nets.
    """

    centres: list[list[Centre]]
    cutoff: Tensor
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.cutoff.device


def centre_of(member: Potential, species: int, plan: Plan, reach: Floats, layers: list[Layer]) -> Centre:
    """Put a plan onto a device.

    Args:
        member: that it is a plan for, on the CPU.
        species: of the centres.
        plan: how they are evaluated.
        reach: smallest distance to each species of neighbours, Å.
        layers: of their fitting net, on the device.
    """
    device = layers[0].weight.device
    descriptor, dtype = descriptor_of(member), member.network_dtype

    def tensor(values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype, device=device)

    pairs, bins, parts, firsts, coefficients = [], [], [], [], []
    table_at = bin_at = 0
    ends = [*plan.starts[1:], plan.columns] if any(plan.starts) else [plan.columns] * len(plan.starts)
    for k, (table, start, end) in enumerate(zip(plan.tables, plan.starts, ends, strict=True)):
        n_intervals, powers, columns = table.coefficients.shape
        padded = np.zeros((n_intervals, powers, end - start))
        padded[:, :, :columns] = table.coefficients
        kind, sel = exclusion(descriptor, species, k), slots_of(descriptor)[k]
        pairs.append((table_at, end - start, start, bin_at, len(table.parts), kind, sel))
        bins.append((1 / table.width, reach[k] ** 2))
        parts.append(table.parts)
        firsts.append(table.first)
        coefficients.append(padded.ravel())
        table_at, bin_at = table_at + padded.size, bin_at + len(table.parts)
    davg, dstd = (t[species].numpy() for t in (descriptor.davg, descriptor.dstd))
    segments = plan.products.segments
    left = np.repeat(segments[:, 0], segments[:, 2])
    right = np.concatenate([np.arange(j, j + n) for _, j, n in segments])
    n_channels = plan.columns if plan.mix is None else plan.mix.shape[1]
    places = np.full((n_channels, n_channels), -1)
    places[left, right] = places[right, left] = np.arange(len(left))
    return Centre(
        tensor(pairs, torch.int64),
        tensor(bins),
        tensor(np.concatenate(firsts), torch.int64),
        tensor(np.concatenate(parts)),
        tensor(np.concatenate(coefficients), dtype),
        tensor(np.concatenate([davg, 1 / dstd])),
        tensor(_column_blocks(plan.starts, ends), torch.int64),
        plan.columns,
        None if plan.mix is None else tensor(plan.mix, dtype),
        tensor(left, torch.int32),
        tensor(right, torch.int32),
        tensor(places, torch.int32),
        tensor(plan.products.weights, dtype),
        skip_of(layers[0], np.dtype(np.float64 if dtype == torch.float64 else np.float32)),
        layers,
        constant_of(member, species),
    )


def _column_blocks(starts: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int, int]]:
    """Pieces of a row of moments, each with the species of neighbours whose tables add to it.

    Args:
        starts: first column of the table of each species; all 0 where they share their columns.
        ends: its last column + 1.
    """
    step = fused.MOMENTS["COLUMNS"]
    if not any(starts):
        return [(column, 0, len(starts)) for column in range(0, ends[0], step)]
    spans = enumerate(zip(starts, ends, strict=True))
    return [(column, k, k + 1) for k, (start, end) in spans for column in range(start, end, step)]
