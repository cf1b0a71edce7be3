"""The attention of DPA-1: how the neighbours of one atom take notice of each other (Zhang et al., arXiv:2208.08236).

Of the embedded neighbours G_j of an atom each layer makes

    (q, k, v)_j = G_j W_in + b_in,  each of length 1 if `normalize`
    a_jk  = softmax_k(q_j·k_k λ),   λ = (n_hidden scaling_factor)^-1/2, or `temperature`
    a_jk *= r̂_j·r̂_k               if `attn_dotr`
    G_j  <- LayerNorm(G_j + (Σ_k a_jk v_k) W_out + b_out)

With smooth attention a neighbour at the cutoff, w = 0, is no different from an empty slot of `sel`:

    a_jk  = softmax_k((q_j·k_k λ + 20) w_j w_k - 20) w_j w_k

There the empty slots count in the denominator of the softmax, exp(-20) each. As DeePMD-kit has it they go through the
layers as well; nothing attends to them, so that they all change the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from dpserver.kernels.segments import Segments, gather, spread
from dpserver.models.config import AttentionConfig
from dpserver.models.networks import Layer

SHIFT: Final = 20.0
"""What smooth attention adds before and takes off after the factor that goes to zero."""

_NEVER: Final = -1e30
LN_EPS: Final = 1e-5


def unit(x: Tensor, shortest: float = 1e-12) -> Tensor:
    """Vectors of length 1 along the last axis; those shorter than `shortest` are divided by that."""
    square = (x * x).sum(dim=-1, keepdim=True)
    return x / torch.sqrt(torch.where(square > shortest**2, square, torch.full_like(square, shortest**2)))


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """The neighbours of the atoms of one species that attend to each other.

    Attributes:
        segments: their edges, a row for each atom.
        switch: w of each edge, (n_edges, 1).
        directions: of length 1, (n_edges, 3).
        n_slots: `sel`.
    """

    segments: Segments
    switch: Tensor
    directions: Tensor
    n_slots: int


class AttentionLayer(nn.Module):
    """One layer.

    Args:
        config: of the descriptor.
        generator: source of the initial values.

    Attributes:
        scale: of the layer normalisation, (n_channels,); shift: what it adds.
    """

    def __init__(self, config: AttentionConfig, generator: torch.Generator) -> None:
        super().__init__()
        n_channels, n_hidden = config.neuron[-1], config.attn
        self.inner = _linear(n_channels, 3 * n_hidden, generator)
        self.outer = _linear(n_hidden, n_channels, generator)
        self.scale = nn.Parameter(torch.ones(n_channels, dtype=torch.float64), config.trainable_ln)
        self.shift = nn.Parameter(torch.zeros(n_channels, dtype=torch.float64), config.trainable_ln)
        self.is_smooth, self.has_angles, self.normalizes = config.is_smooth, config.attn_dotr, config.normalize
        self.factor = config.temperature or 1 / math.sqrt(n_hidden * config.scaling_factor)
        self.eps = LN_EPS if config.ln_eps is None else config.ln_eps

    def forward(self, g: Tensor, near: Neighbourhoods) -> Tensor:
        """New features of the neighbours, (n_edges, n_channels), from those before."""
        q, k, v = self.inner(g).chunk(3, dim=-1)
        if self.normalizes:
            q, k, v = unit(q), unit(k), unit(v)
        q, k, v = (spread(part, near.segments) for part in (q, k, v))
        attention = self._attention(self.factor * (q @ k.transpose(1, 2)), near)
        if self.has_angles:
            directions = spread(near.directions, near.segments)
            attention = attention * (directions @ directions.transpose(1, 2))
        return self._finish(g, self.outer(gather(attention @ v, near.segments)))

    def of_empty(self, g: Tensor) -> Tensor:
        """New features of empty slots, (n, n_channels), from those before."""
        return self._finish(g, self.outer.bias)

    def _attention(self, logits: Tensor, near: Neighbourhoods) -> Tensor:
        """The softmax, (n_rows, width, width), with what makes it smooth; slots beyond a row's edges count nothing."""
        segments, width = near.segments, near.segments.width
        if not self.is_smooth:
            is_there = torch.arange(width, device=logits.device) < segments.counts[:, None]
            return torch.softmax(torch.where(is_there[:, None], logits, _NEVER), dim=-1)
        w = spread(near.switch, segments)
        both = w @ w.transpose(1, 2)
        logits = (logits + SHIFT) * both - SHIFT
        if near.n_slots > width:
            # The empty slots within the width have w = 0, and are right as they are; those beyond are one column.
            beyond = -SHIFT + math.log(near.n_slots - width)
            logits = torch.cat([logits, torch.full_like(logits[:, :, :1], beyond)], dim=-1)
        return torch.softmax(logits, dim=-1)[:, :, :width] * both

    def _finish(self, g: Tensor, change: Tensor) -> Tensor:
        return nn.functional.layer_norm(g + change, self.scale.shape, self.scale, self.shift, self.eps)


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> Layer:
    return Layer(n_in, n_out, "linear", is_residual=False, has_timestep=False, generator=generator)
