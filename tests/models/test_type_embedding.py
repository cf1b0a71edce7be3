"""The embedding of types."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpserver.models.electrons import configuration
from dpserver.models.type_embedding import TypeEmbedding


def make(n_columns: int, *, of_electrons: bool = False, has_bias: bool = False) -> TypeEmbedding:
    generator = torch.Generator().manual_seed(4)
    return TypeEmbedding(["O", "H", "Cu"], n_columns, generator, of_electrons=of_electrons, has_bias=has_bias)


@pytest.mark.parametrize(("n_columns", "copies"), [(2, 0), (3, 1), (6, 2)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_rows_of_the_weights(n_columns: int, copies: int, has_bias: bool) -> None:
    types = make(n_columns, has_bias=has_bias)
    expected = types.weight.detach().numpy().copy()
    if copies:
        expected += np.tile(np.eye(3), copies)
    if types.bias is not None:
        expected += types.bias.detach().numpy()
    np.testing.assert_allclose(types().detach(), expected, rtol=1e-14)
    assert (types.bias is not None) == has_bias


def test_of_electrons() -> None:
    types = make(5, of_electrons=True)
    expected = np.stack([configuration(s) for s in ("O", "H", "Cu")]) @ types.weight.detach().numpy()
    np.testing.assert_allclose(types().detach(), expected, rtol=1e-12, atol=1e-15)
    assert list(types.state_dict()) == ["weight"]


def test_initial_values_have_the_spread_of_deepmd_kit() -> None:
    weights = make(2000).weight
    assert float(weights.detach().std()) == pytest.approx(1 / np.sqrt(2003), rel=0.05)
