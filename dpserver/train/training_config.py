"""The sections `training`, `optimizer` and `validating` of the training input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpserver.models.config import Seed
from dpserver.models.config.model import MULTI_TASK
from dpserver.models.section import (
    Bool,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Str,
    Table,
    complain,
)
from dpserver.train.data_config import DataConfig, ValidationDataConfig

Beta = Annotated[float, Field(strict=True, ge=0, lt=1)]
Part = Annotated[float, Field(strict=True, gt=0, lt=1)]

V1_HINT: Final = "this is the place of DeePMD-kit before version 2; today it is {}"


class TrainingConfig(Section):
    """Data, length and output of a training.

    Attributes:
        training_data: what to train on.
        validation_data: what to validate on, if anything.
        numb_steps: number of batches.
        numb_epoch: length in passes over the data, instead: so many that every system has been seen that often.
        seed: of the initial weights and of the order of batches.
        disp_file: file of the learning curve.
        disp_freq: steps from line to line of it.
        disp_avg: show the mean of the errors since the last line instead of those of one batch.
        save_freq: steps from checkpoint to checkpoint.
        save_ckpt: path of checkpoints, to which the step is appended.
        save_dir: folder of the checkpoints.
        max_ckpt_keep: number of checkpoints kept.
        ckpt_keep_ratio: this as a part of all checkpoints, instead.
        enable_ema: keep a running mean of the weights, and write it with every checkpoint.
        ema_decay: part of the mean that is kept at each step.
        ema_ckpt_keep: number of such files kept; as many as checkpoints by default.
        gradient_max_norm: longer gradients are shortened to this length; 0 for no limit.
        change_bias_after_training: fit the energy of each species once more after the last step.
        disp_training: whether to write the learning curve.
        time_training: accepted; the progress bar shows the time in any case.
        tensorboard: whether to write TensorBoard's events, with each line of the learning curve.
        tensorboard_log_dir: where to.
        tensorboard_freq: accepted; `disp_freq` governs.
    """

    aliases: ClassVar[Table] = {
        **dict.fromkeys(("stop_batch", "num_step", "num_steps", "numb_step"), "numb_steps"),
        **dict.fromkeys(("num_epoch", "num_epochs", "numb_epochs"), "numb_epoch"),
    }
    fixed: ClassVar[Table] = {
        "profiling": False,
        "enable_profiler": False,
        "acc_freq": 1,
        "zero_stage": 0,
        "enable_tf32": False,
    }
    inert: ClassVar[frozenset[str]] = frozenset(
        {
            *("profiling_file", "stat_file", "stat_file_mode", "neighbor_graph_method", "enable_compile"),
        }
    )
    hints: ClassVar[Table] = {
        "systems": V1_HINT.format("training.training_data.systems"),
        "batch_size": V1_HINT.format("training.training_data.batch_size"),
        "auto_prob": V1_HINT.format("training.training_data.auto_prob"),
        "sys_probs": V1_HINT.format("training.training_data.sys_probs"),
        "sys_weights": V1_HINT.format("training.training_data.sys_probs"),
        "set_prefix": V1_HINT.format("gone: name the directories in training.training_data.systems"),
        "numb_test": V1_HINT.format("training.validation_data.numb_btch"),
        "mixed_precision": 'is not supported with half precision; set "dpserver": {"precision": "mixed"} instead',
        **dict.fromkeys(("data_dict", "model_prob", "num_epoch_dict", "tasks"), MULTI_TASK),
    }
    advice: ClassVar[Table] = {"training_data": 'as in {"systems": ["path"], "batch_size": "auto"}'}

    training_data: DataConfig
    validation_data: ValidationDataConfig | None = None
    numb_steps: Positive | None = None
    numb_epoch: PositiveFloat | None = None
    seed: Seed = None
    disp_file: Str = "lcurve.out"
    disp_freq: Positive = 1000
    disp_avg: Bool = False
    save_freq: Positive = 1000
    save_ckpt: Str = "model.ckpt"
    save_dir: Str | None = None
    max_ckpt_keep: Positive = 5
    ckpt_keep_ratio: Part | None = None
    enable_ema: Bool = False
    ema_decay: Beta = 0.999
    ema_ckpt_keep: Positive | None = None
    gradient_max_norm: NonNegativeFloat = 0.0
    change_bias_after_training: Bool = False
    disp_training: Bool = True
    time_training: Bool = True
    tensorboard: Bool = False
    tensorboard_log_dir: Str = "log"
    tensorboard_freq: Positive = 1

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.numb_steps is None and self.numb_epoch is None:
            raise complain("numb_steps", "this key is required, or numb_epoch in its place")
        if self.numb_steps is not None and self.numb_epoch is not None:
            raise complain("numb_epoch", "says the same as numb_steps, which is given too; keep one of them")
        return self

    @property
    def checkpoint_prefix(self) -> Path:
        """What the names of checkpoints begin with."""
        return Path(self.save_ckpt) if self.save_dir is None else Path(self.save_dir) / self.save_ckpt

    @property
    def average_prefix(self) -> Path:
        """What the names of files with the mean of the weights begin with."""
        prefix = self.checkpoint_prefix
        return prefix.with_name(f"{prefix.stem}_ema{prefix.suffix}")

    def n_kept(self, numb_steps: int, own: int | None = None) -> int:
        """Number of files kept of a series, in a training of so many steps.

        Args:
            numb_steps: length of the training.
            own: the number that this series has of its own.
        """
        if self.ckpt_keep_ratio is None:
            return self.max_ckpt_keep if own is None else own
        return math.ceil(self.ckpt_keep_ratio * math.ceil(numb_steps / self.save_freq))


class _Moments(Section):
    """What both kinds of Adam have.

    Attributes:
        adam_beta1: decay of the running mean of the gradient.
        adam_beta2: decay of that of its square.
    """

    adam_beta1: Beta = 0.9
    adam_beta2: Beta = 0.999

    @property
    def betas(self) -> tuple[float, float]:
        """Both decays."""
        return self.adam_beta1, self.adam_beta2


class AdamConfig(_Moments):
    """Adam, DeePMD-kit's usual optimizer; `OptionsConfig.optimizer` goes before it.

    Attributes:
        weight_decay: this times the weights is added to the gradient.
    """

    type: Literal["Adam"] = "Adam"
    weight_decay: NonNegativeFloat = 0.0


class AdamWConfig(_Moments):
    """Adam with decoupled weight decay.

    Attributes:
        weight_decay: this times the learning rate is the part of a weight that a step takes off.
    """

    type: Literal["AdamW"] = "AdamW"
    weight_decay: NonNegativeFloat = 1e-3


def _with_type(value: Any) -> Any:
    return {"type": "Adam", **value} if isinstance(value, Mapping) else value


OptimizerConfig = Annotated[AdamConfig | AdamWConfig, Field(discriminator="type"), BeforeValidator(_with_type)]


class ValidatingConfig(Section):
    """DeePMD-kit's section about validation on the whole set in the course of a training, which is not done here.

    `dpserver train` validates on batches, and on the whole set at the end.
    """

    fixed: ClassVar[Table] = {"full_validation": False, "ema_full_validation": False}
    inert: ClassVar[frozenset[str]] = frozenset(
        {
            *("validation_freq", "save_best", "save_best_dir", "max_best_ckpt", "validation_metric"),
            *("full_val_file", "full_val_start", "compiled_infer", "tf32_infer", "amp_infer"),
        }
    )
