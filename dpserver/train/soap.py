"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., ICLR 2025, arXiv:2409.11321).

For a weight matrix with gradient G, running means L of G Gᵀ and R of Gᵀ G have the eigenvectors Q_L and Q_R. Adam runs
on the rotated gradient Q_Lᵀ G Q_R, and its step is rotated back. The eigenvectors follow by one power iteration and QR
decomposition now and then. Vectors, and sides of a matrix that are too long, are not rotated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

LONGEST_SIDE: Final = 512
"""Sides of a matrix beyond this are not rotated: the cost of their QR decomposition would rule."""


class SOAP(torch.optim.Optimizer):
    """Optimizer for the few and small matrices of a Deep Potential.

    The first step only starts the running means; it leaves the weights as they are.

    Args:
        params: weights, matrices and vectors.
        lr: learning rate, as for Adam, though three times its value is stable.
        betas: decay of the running means of the gradient and of its square; the latter also of L and R.
        eps: keeps steps finite where the gradient vanishes.
        refresh: steps from one update of the eigenvectors to the next.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        refresh: int = 10,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "refresh": refresh})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient; a closure is not supported."""
        if closure is not None:
            raise NotImplementedError("SOAP takes no closure")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if state:
                    self._move(weight, weight.grad, state, group)
                else:
                    state.update(_initial_state(weight.grad))

    @staticmethod
    def _move(weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """One step of Adam in the rotated basis, then the upkeep of that basis."""
        beta1, beta2 = group["betas"]
        bases: list[Tensor | None] = state["bases"]
        state["step"] += 1
        state["mean"].lerp_(grad, 1 - beta1)
        state["square"].lerp_(_rotate(grad, bases) ** 2, 1 - beta2)
        mean = _rotate(state["mean"], bases) / (1 - beta1 ** state["step"])
        scale = (state["square"] / (1 - beta2 ** state["step"])).sqrt() + group["eps"]
        weight.sub_(_rotate_back(mean / scale, bases), alpha=group["lr"])
        for side, moment in enumerate(state["moments"]):
            if moment is not None:
                moment.lerp_(_outer(grad, side), 1 - beta2)
        if state["step"] % group["refresh"] == 0:
            _refresh(state)


def _initial_state(grad: Tensor) -> dict[str, Any]:
    """Running means and eigenvectors after the first gradient."""
    is_rotated = [grad.dim() == 2 and 1 < n <= LONGEST_SIDE for n in grad.shape]
    moments = [_outer(grad, side) if rotated else None for side, rotated in enumerate(is_rotated)]
    return {
        "step": 0,
        "mean": torch.zeros_like(grad),
        "square": torch.zeros_like(grad),
        "moments": moments,
        "bases": [None if m is None else torch.linalg.eigh(m)[1].flip(1) for m in moments],
    }


def _refresh(state: dict[str, Any]) -> None:
    """Let the eigenvectors follow their matrices, largest eigenvalue first."""
    for side, moment in enumerate(state["moments"]):
        if moment is None:
            continue
        basis = state["bases"][side]
        image = moment @ basis
        order = (basis * image).sum(dim=0).argsort(descending=True)
        state["square"] = state["square"].index_select(side, order)
        state["bases"][side] = torch.linalg.qr(image[:, order])[0]


def _outer(grad: Tensor, side: int) -> Tensor:
    """G Gᵀ for the rows, Gᵀ G for the columns."""
    return grad @ grad.T if side == 0 else grad.T @ grad


def _rotate(x: Tensor, bases: list[Tensor | None]) -> Tensor:
    """Into the eigenbasis."""
    if bases[0] is not None:
        x = bases[0].T @ x
    if bases[-1] is not None and len(bases) > 1:
        x = x @ bases[-1]
    return x


def _rotate_back(x: Tensor, bases: list[Tensor | None]) -> Tensor:
    """Out of the eigenbasis."""
    if bases[0] is not None:
        x = bases[0] @ x
    if bases[-1] is not None and len(bases) > 1:
        x = x @ bases[-1].T
    return x
