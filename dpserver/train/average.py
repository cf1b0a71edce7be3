"""A running mean of the weights, which is often a better model than the last weights are.

w̄ ← d w̄ + (1 - d) w after every step, d the decay
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class RunningAverage:
    """The mean of a model's weights over its last steps.

    Args:
        model: whose weights to begin with, in the precision of the training.
        decay: part of the mean that is kept at each step.

    Attributes:
        weights: the mean, by the names of the model's parameters.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights as they stand."""
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The mean, on the CPU."""
        return {name: weights.cpu().clone() for name, weights in self.weights.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue with a mean of before."""
        for name, weights in state.items():
            self.weights[name].copy_(weights)
