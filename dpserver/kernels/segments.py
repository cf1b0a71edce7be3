"""Sums over the edges of each row of a compressed-row (CSR) layout, differentiable any number of times.

Edges sorted by row are spread over a dense (n_rows, width) block, width being the longest row here and now, and a
batched matrix product does the sum. Spreading and gathering are permutations, each the other's adjoint, so that no
derivative needs an atomic or an `index_add`, and results are bitwise reproducible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import Ints


@dataclass(frozen=True, eq=False)
class Segments:
    """Rows of consecutive edges.

    Attributes:
        n_rows: number of rows, empty ones included.
        width: edges in the longest row.
        slot: place of each edge in the spread block, row * width + rank, (n_edges,), int64.
        edge: edge of each slot, n_edges where there is none, (n_rows * width,), int64.
        counts: edges of each row, (n_rows,), int64.
    """

    n_rows: int
    width: int
    slot: Tensor
    edge: Tensor
    counts: Tensor

    @classmethod
    def from_rows(cls, rows: Ints, n_rows: int, device: torch.device) -> Segments:
        """Describe edges whose row indices `rows`, (n_edges,), ascend."""
        counts = np.bincount(rows, minlength=n_rows)
        width = int(counts.max(initial=0))
        rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        slot = rows * width + rank
        edge = np.full(n_rows * width, len(rows), dtype=np.int64)
        edge[slot] = np.arange(len(rows))
        slots, edges, n = (torch.as_tensor(a, device=device) for a in (slot, edge, counts))
        return cls(n_rows, width, slots, edges, n)

    @classmethod
    def joined(cls, parts: Sequence[Segments]) -> Segments:
        """Describe the edges of several parts, one part after the other, with the same rows in each."""
        n_rows = parts[0].n_rows
        counts = torch.stack([part.counts for part in parts])
        first, total = counts.cumsum(dim=0) - counts, counts.sum(dim=0)
        width = int(total.max()) if n_rows else 0
        slots = []
        for part, before in zip(parts, first, strict=True):
            row = torch.div(part.slot, max(part.width, 1), rounding_mode="floor")
            slots.append(row * width + before[row] + part.slot - row * part.width)
        slot = torch.cat(slots)
        edge = torch.full((n_rows * width,), len(slot), dtype=torch.int64, device=slot.device)
        edge[slot] = torch.arange(len(slot), device=slot.device)
        return cls(n_rows, width, slot, edge, total)


def sum_outer(segments: Segments, a: Tensor, b: Tensor) -> Tensor:
    """Sum the outer products of two edge quantities over each row.

    T_r = Σ_{e in row r} a_e ⊗ b_e

    Args:
        segments: the rows.
        a: (n_edges, p).
        b: (n_edges, q).

    Returns:
        (n_rows, p, q).
    """
    return torch.bmm(spread(a, segments).transpose(1, 2), spread(b, segments))


def spread(a: Tensor, segments: Segments) -> Tensor:
    """Spread an edge quantity (n_edges, p) over the rows, (n_rows, width, p), with zeros in empty slots."""
    return cast(Tensor, _Spread.apply(a, segments))  # type: ignore[no-untyped-call]


def gather(a: Tensor, segments: Segments) -> Tensor:
    """Collect an edge quantity, (n_edges, p), from the rows it was spread over, (n_rows, width, p)."""
    return cast(Tensor, _Gather.apply(a, segments))  # type: ignore[no-untyped-call]


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        padded = torch.cat([a, a.new_zeros(1, a.shape[1])])
        return padded.index_select(0, segments.edge).view(segments.n_rows, segments.width, a.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gather(grad, ctx.segments), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        return a.reshape(-1, a.shape[-1]).index_select(0, segments.slot)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return spread(grad, ctx.segments), None
