from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dpserver.train import soap
from dpserver.train.soap import SOAP


def descend(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], n_steps: int) -> float:
    """Take steps and return the loss before the last one."""
    for _ in range(n_steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    return value.item()


def learn_matrix(kind: type[torch.optim.Optimizer], **arguments: object) -> float:
    """Learn a matrix from random batches whose spread lies along no coordinate and spans two decades.

    Returns:
        Mean squared error of its elements.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = torch.linalg.qr(normal(8, 8))[0] * torch.logspace(-2, 0, 8, dtype=torch.float64)
    target, weight = normal(6, 8), nn.Parameter(torch.zeros(6, 8, dtype=torch.float64))
    descend(
        kind([weight], lr=0.01, **arguments), lambda: (((weight - target) @ spread @ normal(8, 16)) ** 2).mean(), 500
    )
    return ((weight - target) ** 2).mean().item()


def test_rotation_helps_where_the_axes_are_not_the_coordinates():
    assert learn_matrix(SOAP) < 0.2 * learn_matrix(torch.optim.Adam, betas=(0.95, 0.95))


def test_without_rotation_it_is_adam(monkeypatch):
    monkeypatch.setattr(soap, "LONGEST_SIDE", 1)
    start = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    ours = SOAP([weights[0]], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    theirs = torch.optim.Adam([weights[1]], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    weights[0].grad = torch.zeros_like(start)
    ours.step()
    for _ in range(10):
        for weight, optimizer in zip(weights, (ours, theirs), strict=True):
            optimizer.zero_grad()
            (weight**4).sum().backward()
            optimizer.step()
    assert weights[0].detach().numpy() == pytest.approx(weights[1].detach().numpy(), abs=1e-12)


def test_bases_stay_orthogonal_and_diagonalise_their_matrices():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(torch.zeros(6, 8, dtype=torch.float64))
    optimizer = SOAP([weight], lr=1e-3)
    descend(optimizer, lambda: ((target * (weight - target)) ** 2).sum(), 200)
    state = optimizer.state[weight]
    for basis, moment in zip(state["bases"], state["moments"], strict=True):
        assert torch.linalg.norm(basis.T @ basis - torch.eye(len(basis), dtype=torch.float64)) < 1e-12
        image = basis.T @ moment @ basis
        rest = image - torch.diag(torch.diagonal(image))
        assert torch.linalg.norm(rest) < 0.01 * torch.linalg.norm(image)


@pytest.mark.parametrize("shape", [(4,), (1, 5), (5, 1), (600, 2), (3, 4)])
def test_every_shape_descends(shape):
    weight = nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    before = (weight**2).sum().item()
    assert descend(SOAP([weight], lr=0.03), lambda: (weight**2).sum(), 200) < 0.05 * before


def test_a_closure_is_refused():
    with pytest.raises(NotImplementedError, match="no closure"):
        SOAP([nn.Parameter(torch.zeros(2))]).step(lambda: 0.0)
