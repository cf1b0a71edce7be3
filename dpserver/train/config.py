"""The training input: DeePMD-kit's own v2/v3 `input.json`, checked key by key.

Beside DeePMD-kit's sections there is one of ours, `"dpserver"`, for what DeePMD-kit has no key for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dpserver.errors import ConfigError
from dpserver.models.config import ModelConfig, Seed
from dpserver.models.section import (
    UNSUPPORTED,
    Bool,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Str,
    Table,
    complain,
    parse,
)
from dpserver.train.data_config import DataConfig, ValidationDataConfig

Precision = Literal["double", "mixed", "single"]

V0_HINT = "this is the place of DeePMD-kit before version 2; today it is {}"
V0_KEYS = {
    "use_smooth": "model.descriptor.type",
    "sel_a": "model.descriptor",
    "sel_r": "model.descriptor",
    "rcut": "model.descriptor.rcut",
    "rcut_smth": "model.descriptor.rcut_smth",
    "axis_rule": "model.descriptor.axis_rule",
    "filter_neuron": "model.descriptor.neuron",
    "n_neuron": "model.fitting_net.neuron",
    "fitting_neuron": "model.fitting_net.neuron",
    "type_map": "model.type_map",
    "systems": "training.training_data.systems",
    "batch_size": "training.training_data.batch_size",
    "set_prefix": "training.training_data",
    "stop_batch": "training.numb_steps",
    "start_lr": "learning_rate.start_lr",
    "decay_steps": "learning_rate.decay_steps",
    "decay_rate": "learning_rate.decay_rate",
    "start_pref_e": "loss.start_pref_e",
    "start_pref_f": "loss.start_pref_f",
    "seed": "training.seed",
    "disp_freq": "training.disp_freq",
    "save_freq": "training.save_freq",
}


class LearningRateConfig(Section):
    """Exponentially decaying learning rate, DeePMD-kit's `exp`.

    lr(t) = max(start_lr · decay_rate^⌊t / decay_steps⌋, stop_lr)

    Without `decay_rate` it is chosen so that lr reaches `stop_lr` at the last step.

    Attributes:
        start_lr: learning rate of the first step.
        stop_lr: smallest learning rate; 5e-8 where neither it nor `stop_lr_ratio` is given.
        stop_lr_ratio: `stop_lr` in units of `start_lr`.
        decay_steps: length of a stair.
        decay_rate: factor from stair to stair.
        smooth: decay at every step instead of in stairs.
        scale_by_worker: accepted; there is one worker.
    """

    fixed: ClassVar[Table] = {
        "warmup_steps": 0,
        "warmup_ratio": None,
        "decay_phase_ratio": UNSUPPORTED,
        "decay_type": UNSUPPORTED,
    }
    inert: ClassVar[frozenset[str]] = frozenset({"warmup_start_factor"})

    type: Literal["exp"] = "exp"
    start_lr: PositiveFloat = 1e-3
    stop_lr: PositiveFloat | None = None
    stop_lr_ratio: PositiveFloat | None = None
    decay_steps: Positive = 5000
    decay_rate: Annotated[PositiveFloat, Field(le=1)] | None = None
    smooth: Bool = False
    scale_by_worker: Literal["linear", "sqrt", "none"] = "linear"

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.stop_lr is not None and self.stop_lr_ratio is not None:
            raise complain("stop_lr_ratio", "says the same as stop_lr, which is given too; keep one of them")
        if self.limit > self.start_lr:
            raise complain("stop_lr", f"must not exceed start_lr = {self.start_lr}, got {self.limit}")
        return self

    @property
    def limit(self) -> float:
        """The smallest learning rate."""
        if self.stop_lr_ratio is not None:
            return self.start_lr * self.stop_lr_ratio
        return 5e-8 if self.stop_lr is None else self.stop_lr

    def at(self, step: int, numb_steps: int) -> float:
        """Learning rate of a step.

        As in DeePMD-kit, stairs longer than the whole training are shortened unless `decay_rate` is given.

        Args:
            step: counted from 0.
            numb_steps: length of the whole training.
        """
        stair, rate = self.decay_steps, self.decay_rate
        if rate is None:
            if stair >= numb_steps:
                stair = 100 if numb_steps // 10 > 100 else numb_steps // 100 + 1
            rate = (max(self.limit, 1e-10) / self.start_lr) ** (stair / numb_steps)
        exponent = step / stair if self.smooth else step // stair
        return max(self.start_lr * math.pow(rate, exponent), self.limit)


class LossConfig(Section):
    """Prefactors of the loss, DeePMD-kit's `ener`.

    p(t) = p_limit (1 − lr/lr0) + p_start lr/lr0; a term takes part where both of its prefactors differ from 0.

    Attributes:
        start_pref_e: energy, at the start.
        limit_pref_e: energy, in the limit of lr → 0.
        start_pref_f: force, at the start.
        limit_pref_f: force, in the limit.
        start_pref_v: virial, at the start.
        limit_pref_v: virial, in the limit.
        intensive_ener_virial: divide the squared errors of energy and virial by N², as the 2018 paper does; by N if
            false, as DeePMD-kit does by default.
    """

    fixed: ClassVar[Table] = {
        **dict.fromkeys(
            (f"{when}_pref_{what}" for when in ("start", "limit") for what in ("ae", "pf", "gf", "h")), 0.0
        ),
        "use_default_pf": False,
        "relative_f": None,
        "enable_atom_ener_coeff": False,
        "numb_generalized_coord": 0,
        "use_huber": False,
        "loss_func": "mse",
        "f_use_norm": False,
    }
    inert: ClassVar[frozenset[str]] = frozenset({"huber_delta"})

    type: Literal["ener"] = "ener"
    start_pref_e: NonNegativeFloat = 0.02
    limit_pref_e: NonNegativeFloat = 1.0
    start_pref_f: NonNegativeFloat = 1000.0
    limit_pref_f: NonNegativeFloat = 1.0
    start_pref_v: NonNegativeFloat = 0.0
    limit_pref_v: NonNegativeFloat = 0.0
    intensive_ener_virial: Bool = False

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.has_energy or self.has_force or self.has_virial):
            raise complain("start_pref_e", "every term of the loss has a prefactor of 0; nothing would be learnt")
        return self

    @property
    def has_energy(self) -> bool:
        """Whether the energy takes part."""
        return bool(self.start_pref_e and self.limit_pref_e)

    @property
    def has_force(self) -> bool:
        """Whether the force takes part."""
        return bool(self.start_pref_f and self.limit_pref_f)

    @property
    def has_virial(self) -> bool:
        """Whether the virial takes part."""
        return bool(self.start_pref_v and self.limit_pref_v)


class TrainingConfig(Section):
    """Data, length and output of a training.

    Attributes:
        training_data: what to train on.
        validation_data: what to validate on, if anything.
        numb_steps: number of batches.
        seed: of the initial weights and of the order of batches.
        disp_file: file of the learning curve.
        disp_freq: steps from line to line of it.
        save_freq: steps from checkpoint to checkpoint.
        save_ckpt: path of checkpoints, to which the step is appended.
        max_ckpt_keep: number of checkpoints kept.
        disp_training: whether to write the learning curve.
        time_training: accepted; the progress bar shows the time in any case.
        tensorboard: whether to write TensorBoard's events, with each line of the learning curve.
        tensorboard_log_dir: where to.
        tensorboard_freq: accepted; `disp_freq` governs.
    """

    aliases: ClassVar[Table] = {name: "numb_steps" for name in ("stop_batch", "num_step", "num_steps", "numb_step")}
    fixed: ClassVar[Table] = {
        **dict.fromkeys(("numb_epoch", "num_epoch", "num_epochs", "numb_epochs", "num_epoch_dict"), None),
        "stat_file": None,
        "mixed_precision": None,
        "save_dir": None,
        "ckpt_keep_ratio": None,
        "enable_ema": False,
        "change_bias_after_training": False,
        "disp_avg": False,
        "profiling": False,
        "enable_profiler": False,
        "gradient_max_norm": 0.0,
        "acc_freq": 1,
        "zero_stage": 0,
        "enable_compile": False,
        "enable_tf32": False,
        "opt_type": "Adam",
        "warmup_steps": 0,
        "data_dict": UNSUPPORTED,
        "model_prob": UNSUPPORTED,
    }
    inert: ClassVar[frozenset[str]] = frozenset(
        {"profiling_file", "stat_file_mode", "ema_decay", "ema_ckpt_keep", "neighbor_graph_method"}
    )
    hints: ClassVar[Table] = {
        "systems": V0_HINT.format("training.training_data.systems"),
        "batch_size": V0_HINT.format("training.training_data.batch_size"),
        "auto_prob": V0_HINT.format("training.training_data.auto_prob"),
        "sys_probs": V0_HINT.format("training.training_data.sys_probs"),
        "sys_weights": V0_HINT.format("training.training_data.sys_probs"),
        "set_prefix": V0_HINT.format("gone: name the directories in training.training_data.systems"),
        "numb_test": V0_HINT.format("training.validation_data.numb_btch"),
    }

    training_data: DataConfig
    validation_data: ValidationDataConfig | None = None
    numb_steps: Positive
    seed: Seed = None
    disp_file: Str = "lcurve.out"
    disp_freq: Positive = 1000
    save_freq: Positive = 1000
    save_ckpt: Str = "model.ckpt"
    max_ckpt_keep: Positive = 5
    disp_training: Bool = True
    time_training: Bool = True
    tensorboard: Bool = False
    tensorboard_log_dir: Str = "log"
    tensorboard_freq: Positive = 1


class OptimizerConfig(Section):
    """DeePMD-kit 3.2's optimizer section: Adam with its usual constants; `OptionsConfig.optimizer` goes before it."""

    fixed: ClassVar[Table] = {"adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.0}

    type: Literal["Adam"] = "Adam"


class OptionsConfig(Section):
    """Our own section, `"dpserver"`.

    Attributes:
        precision: double (float64 everywhere), mixed (float32 networks; distances, energies and virials in float64)
            or single. It governs. Where it is missing, DeePMD-kit's `precision` of descriptor and fitting net
            decides: float32 in both means mixed, "default" and float64 mean double.
        device: auto, cpu, cuda or cuda:N.
        optimizer: adam, DeePMD-kit's; or soap, which needs many times fewer steps, see `dpserver.train.soap`.
    """

    precision: Precision = "double"
    optimizer: Literal["adam", "soap"] = "adam"
    device: Annotated[Str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"


class TrainInput(Section):
    """A whole input file.

    Attributes:
        model: what to train.
        learning_rate: schedule of the step length.
        loss: what to minimise.
        training: data, length and output.
        optimizer: Adam.
        dpserver: our own section, its precision resolved.
    """

    hints: ClassVar[Table] = {key: V0_HINT.format(place) for key, place in V0_KEYS.items()}
    fixed: ClassVar[Table] = {"nvnmd": UNSUPPORTED, "validating": UNSUPPORTED}

    model: ModelConfig
    learning_rate: LearningRateConfig = LearningRateConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    dpserver: OptionsConfig = OptionsConfig()

    @property
    def options(self) -> OptionsConfig:
        """Our own section, `"dpserver"`."""
        return self.dpserver

    @model_validator(mode="after")
    def _resolve_precision(self) -> Self:
        if "precision" in self.dpserver.model_fields_set:
            return self
        nets = {net.precision for net in (self.model.descriptor, self.model.fitting_net) if hasattr(net, "precision")}
        if nets == {"float32"}:
            options = OptionsConfig(precision="mixed", device=self.dpserver.device)
            object.__setattr__(self, "dpserver", options)
        elif "float32" in nets:
            raise complain(
                "model.fitting_net.precision",
                "must be that of model.descriptor.precision; or set dpserver.precision to double, mixed or single",
            )
        return self


def load_input(path: str | Path) -> TrainInput:
    """Read and check a training input.

    A relative path of a system is taken from the current directory if it exists there, as in DeePMD-kit, and from
    the directory of the input file otherwise.

    Args:
        path: a JSON file.

    Raises:
        ConfigError: the file cannot be read, is not JSON, or a key is unknown, unsupported, missing or wrong.
    """
    path = Path(path)
    parsed = parse(TrainInput, _read_json(path))
    training = parsed.training
    update: dict[str, Any] = {"training_data": _resolve(training.training_data, path.parent)}
    if training.validation_data is not None:
        update["validation_data"] = _resolve(training.validation_data, path.parent)
    return parsed.model_copy(update={"training": training.model_copy(update=update)})


def _resolve(data: DataConfig, folder: Path) -> DataConfig:
    systems = tuple(s if Path(s).exists() else str(folder / s) for s in data.systems)
    return data.model_copy(update={"systems": systems})


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise ConfigError(f"cannot read the training input {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the training input {path} is not a text file") from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"the training input {path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    if not isinstance(data, dict):
        raise ConfigError(f"the training input {path} must be one JSON object, got {type(data).__name__}")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys are all different."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and not key.startswith("_"):
            raise ConfigError(f'the key "{key}" appears twice in one section of the training input; keep one of them')
        found[key] = value
    return found
