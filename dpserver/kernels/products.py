"""What the first layer of a fitting net is made of: products of columns of moments, and the weights folded for them.

The descriptor D_ab = Σ_k T_ka T_kb, a over all channels and b over the first few, is symmetric in those, so that the
weights of D_ab and D_ba add up to one. Where channels are mixed from columns, T = M C, the net can as well take

    S_pq = Σ_k M_kp M_kq        Σ_ab W_ab D_ab = Σ_{p≤q} V_pq S_pq,   V = C W C_<ᵀ + (C W C_<ᵀ)ᵀ, once where p = q

and there the products that hardly matter are left out: columns differ in size by as much as the accuracy asked for,
so that of the products of two small ones none matters. What takes fewer operations is to be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpserver.frames import Bools, Floats, Ints
from dpserver.kernels.linear import product


@dataclass(frozen=True, eq=False)
class Products:
    """Inputs of a fitting net.

    Attributes:
        segments: (i, j, count) for the products of column i with columns j, j + 1, …, (n_segments, 3).
        weights: of the first layer for them, (n_inputs, n_out).
    """

    segments: Ints
    weights: Floats

    @property
    def n_inputs(self) -> int:
        """Number of products."""
        return len(self.weights)


def of_channels(weights: Floats) -> Products:
    """Products of channels, those that are equal to others left out.

    Args:
        weights: of D_ab, (n_channels, n_axis, n_out).
    """
    n_channels, n_axis, _ = weights.shape
    segments = np.array([(b, b, n_channels - b) for b in range(n_axis)], dtype=np.int64)
    folded = []
    for b in range(n_axis):
        column = weights[b:, b].copy()
        column[1 : n_axis - b] += weights[b, b + 1 : n_axis]
        folded.append(column)
    return Products(segments, np.concatenate(folded))


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """How large the moments of one column are where the density is usual.

    Attributes:
        moment: root mean square of Σ_edges R φ, (n_columns,).
        slope: of the derivatives of Rφ by the position of a neighbour, (n_columns,), 1/Å.
    """

    moment: Floats
    slope: Floats


def of_columns(
    weights: Floats, mixes: Sequence[Floats], starts: Sequence[int], sizes: Sequence[Magnitudes], tolerance: float
) -> Products:
    """Products of columns of moments, those that hardly matter left out.

    Args:
        weights: of D_ab, (n_channels, n_axis, n_out).
        mixes: matrix C of each neighbour species, (n_columns, n_channels).
        starts: place of each one's columns in a row of moments.
        sizes: of each one's columns.
        tolerance: root mean square of what is left out of the derivatives of the net's first layer, relative to all.
    """
    mix = np.concatenate(mixes)
    n_channels, n_axis, n_out = weights.shape
    by_axis = product(mix[:, :n_axis], weights.transpose(1, 0, 2).reshape(n_axis, -1)).reshape(-1, n_channels, n_out)
    v = product(mix, by_axis.transpose(1, 0, 2).reshape(n_channels, -1)).reshape(len(mix), len(mix), n_out)
    v = v + v.transpose(1, 0, 2)
    v[np.diag_indices(len(mix))] /= 2
    is_kept = _worth_keeping(v, sizes, tolerance)
    bounds = np.cumsum([0, *(len(m) for m in mixes)])
    segments, kept = [], []
    for p in range(len(mix)):
        group_p = int(np.searchsorted(bounds, p, side="right")) - 1
        i = starts[group_p] + p - bounds[group_p]
        for group in range(group_p, len(mixes)):
            low = max(p, bounds[group])
            here = np.flatnonzero(is_kept[p, low : bounds[group + 1]])
            if len(here):
                count = int(here[-1]) + 1
                segments.append((i, starts[group] + low - bounds[group], count))
                kept.append(v[p, low : low + count])
    return Products(np.array(segments, dtype=np.int64).reshape(-1, 3), np.concatenate(kept))


def _worth_keeping(v: Floats, sizes: Sequence[Magnitudes], tolerance: float) -> Bools:
    """Which products p ≤ q matter: ∂S_pq = M_p ∂M_q + M_q ∂M_p, times its weight."""
    moment, slope = (np.concatenate([getattr(size, name) for size in sizes]) for name in ("moment", "slope"))
    size = np.linalg.norm(v, axis=2) * (np.outer(moment, slope) + np.outer(slope, moment))
    upper = np.triu_indices(len(size))
    order = np.argsort(size[upper])
    sums = np.sqrt(np.cumsum(size[upper][order] ** 2))
    is_kept = np.zeros(size.shape, dtype=bool)
    chosen = order[sums > tolerance * sums[-1]]
    is_kept[upper[0][chosen], upper[1][chosen]] = True
    return is_kept
