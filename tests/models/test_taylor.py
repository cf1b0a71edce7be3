from __future__ import annotations

import numpy as np
import pytest
import torch

from dpserver.models.networks import embedding_net
from dpserver.models.taylor import derivatives
from tests.models.test_se_e2_a import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("resnet_dt", [False, True])
def test_derivatives_are_those_of_autograd(name: str, resnet_dt: bool) -> None:
    net = embedding_net([3, 6, 6, 5], name, resnet_dt, torch.Generator().manual_seed(1))
    x = torch.linspace(-2, 3, 41, dtype=torch.float64, requires_grad=True)
    found = derivatives(net, x.detach())
    assert [tuple(d.shape) for d in found] == [(41, 5)] * 4
    for channel in range(5):
        expected = net(x[:, None])[:, channel]
        for order in range(4):
            np.testing.assert_allclose(found[order][:, channel], expected.detach(), rtol=1e-9, atol=1e-10)
            if not expected.requires_grad:
                expected = torch.zeros_like(x)
                continue
            (expected,) = torch.autograd.grad(expected.sum(), x, create_graph=True, materialize_grads=True)


def test_further_inputs_are_constant() -> None:
    net = embedding_net([3, 6], "tanh", False, torch.Generator().manual_seed(1), n_in=3)
    x, others = torch.linspace(-2, 3, 41, dtype=torch.float64, requires_grad=True), torch.tensor([0.4, -0.9]).double()
    found = derivatives(net, x.detach(), others)
    expected = net(torch.cat([x[:, None], others.expand(41, 2)], dim=1))[:, 4]
    for order in range(4):
        np.testing.assert_allclose(found[order][:, 4], expected.detach(), rtol=1e-9, atol=1e-10)
        (expected,) = torch.autograd.grad(expected.sum(), x, create_graph=True)
