"""The section `learning_rate`: schedules of the step length, DeePMD-kit's `exp`, `cosine` and `wsd`.

Each rises linearly over the warm-up, then falls over the T steps that are left. With t counted from the end of the
warm-up and τ = t/T:

    exp     lr(t) = max(lr0 · rate^⌊t/stair⌋, lr1)
    cosine  lr(t) = lr1 + (lr0 - lr1)/2 · (1 + cos πτ)
    wsd     lr(t) = lr0, and over the last part of the training from lr0 to lr1 by one of three rules
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpserver.errors import ConfigError
from dpserver.models.section import (
    Bool,
    Count,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    complain,
)

Ratio = Annotated[float, Field(strict=True, ge=0, lt=1)]
DEFAULT_LIMIT = 5e-8
"""The last learning rate where the input names none."""


class Schedule(Section):
    """What all schedules have in common.

    Attributes:
        start_lr: learning rate after the warm-up, lr0.
        stop_lr: the last learning rate, lr1; 5e-8 where neither it nor `stop_lr_ratio` is given.
        stop_lr_ratio: `stop_lr` in units of `start_lr`.
        warmup_steps: steps of the warm-up.
        warmup_ratio: these as a part of all steps, instead.
        warmup_start_factor: learning rate of the first step of a warm-up, in units of `start_lr`.
        scale_by_worker: accepted; there is one worker.
    """

    start_lr: PositiveFloat = 1e-3
    stop_lr: NonNegativeFloat | None = None
    stop_lr_ratio: NonNegativeFloat | None = None
    warmup_steps: Count = 0
    warmup_ratio: Ratio | None = None
    warmup_start_factor: NonNegativeFloat = 0.0
    scale_by_worker: Literal["linear", "sqrt", "none"] = "linear"

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.stop_lr is not None and self.stop_lr_ratio is not None:
            raise complain("stop_lr_ratio", "says the same as stop_lr, which is given too; keep one of them")
        if self.warmup_steps and self.warmup_ratio is not None:
            raise complain("warmup_ratio", "says the same as warmup_steps, which is given too; keep one of them")
        if self.limit > self.start_lr:
            raise complain("stop_lr", f"must not exceed start_lr = {self.start_lr}, got {self.limit}")
        return self

    @property
    def limit(self) -> float:
        """The last learning rate, lr1."""
        if self.stop_lr_ratio is not None:
            return self.start_lr * self.stop_lr_ratio
        return DEFAULT_LIMIT if self.stop_lr is None else self.stop_lr

    def warmup(self, numb_steps: int) -> int:
        """Steps of the warm-up of a training of so many steps.

        Raises:
            ConfigError: nothing is left after it.
        """
        n_warm = self.warmup_steps if self.warmup_ratio is None else int(self.warmup_ratio * numb_steps)
        if n_warm >= numb_steps:
            raise ConfigError(
                f"learning_rate.warmup_steps: must be smaller than the {numb_steps} steps of the training, got {n_warm}"
            )
        return n_warm

    def summary(self) -> dict[str, Any]:
        """What a model's card says of it: without what is not given or has no influence."""
        unused = {"scale_by_worker"} | (
            set() if self.warmup_steps or self.warmup_ratio else {"warmup_steps", "warmup_start_factor"}
        )
        return self.model_dump(mode="json", exclude=unused, exclude_none=True)

    def at(self, step: int, numb_steps: int) -> float:
        """Learning rate of a step.

        Args:
            step: counted from 0.
            numb_steps: length of the whole training.
        """
        n_warm = self.warmup(numb_steps)
        if step < n_warm:
            first = self.warmup_start_factor * self.start_lr
            return first + (self.start_lr - first) * step / n_warm
        return self._falling(step - n_warm, numb_steps - n_warm, numb_steps)

    def _falling(self, step: int, n_falling: int, numb_steps: int) -> float:
        """Learning rate of a step counted from the end of the warm-up, of so many, in a training of so many."""
        raise NotImplementedError


class ExponentialDecay(Schedule):
    """The learning rate falls exponentially, in stairs: DeePMD-kit's `exp`.

    Without `decay_rate` it is chosen so that the last step has `stop_lr`; stairs longer than the training are then
    shortened, as in DeePMD-kit.

    Attributes:
        decay_steps: length of a stair.
        decay_rate: factor from stair to stair.
        smooth: decay at every step instead of in stairs.
    """

    type: Literal["exp"] = "exp"
    decay_steps: Positive = 5000
    decay_rate: Annotated[PositiveFloat, Field(le=1)] | None = None
    smooth: Bool = False

    def _falling(self, step: int, n_falling: int, numb_steps: int) -> float:
        stair, rate = self.decay_steps, self.decay_rate
        if rate is None:
            if stair >= n_falling:
                stair = 100 if n_falling // 10 > 100 else n_falling // 100 + 1
            rate = (max(self.limit, 1e-10) / self.start_lr) ** (stair / n_falling)
        exponent = step / stair if self.smooth else step // stair
        return max(self.start_lr * math.pow(rate, exponent), self.limit)


class CosineDecay(Schedule):
    """The learning rate falls along half a wave: DeePMD-kit's `cosine`."""

    type: Literal["cosine"] = "cosine"

    def _falling(self, step: int, n_falling: int, numb_steps: int) -> float:
        progress = min(step / n_falling, 1.0)
        return self.limit + (self.start_lr - self.limit) / 2 * (1 + math.cos(math.pi * progress))


class StableThenDecay(Schedule):
    """The learning rate stays, and falls towards the end: DeePMD-kit's `wsd`.

    Attributes:
        decay_phase_ratio: length of the fall as a part of all steps.
        decay_type: linear in 1/lr, along half a wave, or linear in lr.
    """

    type: Literal["wsd"] = "wsd"
    decay_phase_ratio: Annotated[PositiveFloat, Field(le=1)] = 0.1
    decay_type: Literal["inverse_linear", "cosine", "linear"] = "inverse_linear"

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.limit <= 0:
            raise complain("stop_lr", "must be greater than 0 with the type wsd")
        return self

    def _falling(self, step: int, n_falling: int, numb_steps: int) -> float:
        n_last = max(1, min(int(self.decay_phase_ratio * numb_steps), n_falling))
        progress = min(max((step - (n_falling - n_last)) / n_last, 0.0), 1.0)
        high, low = self.start_lr, self.limit
        if self.decay_type == "inverse_linear":
            return 1 / (progress / low + (1 - progress) / high)
        if self.decay_type == "cosine":
            return low + (high - low) / 2 * (1 + math.cos(math.pi * progress))
        return high + (low - high) * progress


def _with_type(value: Any) -> Any:
    return {"type": "exp", **value} if isinstance(value, Mapping) else value


LearningRateConfig = Annotated[
    ExponentialDecay | CosineDecay | StableThenDecay, Field(discriminator="type"), BeforeValidator(_with_type)
]
