"""What a descriptor says of atoms."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Description(NamedTuple):
    """The descriptors of the atoms of one species.

    Attributes:
        features: D, invariant under rotations, (n, n_features).
        directions: vectors that turn with the structure, (n, n_channels, 3); None where the descriptor has none.
    """

    features: Tensor
    directions: Tensor | None = None
