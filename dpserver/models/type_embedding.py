"""The embedding of types: each becomes a short vector, so that one net serves them all.

    T = X W + b,   X the unit matrix, or the types' electron configurations

to which X is added where W is square, and (X, X) where it has twice as many columns as rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dpserver.models.electrons import LENGTH, configuration


class TypeEmbedding(nn.Module):
    """A vector for each type.

    Args:
        species: their symbols, in order.
        n_columns: length of the vectors.
        generator: source of the initial values.
        of_electrons: embed the electron configurations; else the bare numbers.
        has_bias: whether there is b.

    Raises:
        ConfigError: of electrons, and a type is no element.
    """

    inputs: Tensor | None

    def __init__(
        self, species: Sequence[str], n_columns: int, generator: torch.Generator, *, of_electrons: bool, has_bias: bool
    ) -> None:
        super().__init__()
        n_in = LENGTH if of_electrons else len(species)
        draws = torch.randn(n_in, n_columns, dtype=torch.float64, generator=generator)
        self.weight = nn.Parameter(draws / math.sqrt(n_in + n_columns))
        self.bias = nn.Parameter(torch.randn(n_columns, dtype=torch.float64, generator=generator)) if has_bias else None
        rows = torch.from_numpy(np.stack([configuration(symbol) for symbol in species])) if of_electrons else None
        self.register_buffer("inputs", rows, persistent=False)
        self.copies = n_columns // n_in if n_columns in (n_in, 2 * n_in) else 0

    def forward(self) -> Tensor:
        """The vectors, (n_species, n_columns), in the precision of the weights."""
        weight = self.weight
        x = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        if self.inputs is not None:
            x = self.inputs.to(weight.dtype)
        y = x @ weight if self.bias is None else torch.addmm(self.bias, x, weight)
        return y + torch.cat([x] * self.copies, dim=1) if self.copies else y
