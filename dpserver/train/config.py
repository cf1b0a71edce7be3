"""The training input: DeePMD-kit's own v2/v3 `input.json`, checked key by key.

Beside DeePMD-kit's sections there is one of ours, `"dpserver"`, for what DeePMD-kit has no key for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from dpserver.errors import ConfigError
from dpserver.models.config import ModelConfig
from dpserver.models.config.model import MULTI_TASK
from dpserver.models.section import Section, Str, Table, complain, parse
from dpserver.train.data_config import DataConfig, ValidationDataConfig
from dpserver.train.formats.sources import resolve
from dpserver.train.input_file import read_input
from dpserver.train.learning_rate import ExponentialDecay, LearningRateConfig
from dpserver.train.loss_config import AnyLossConfig, LossConfig
from dpserver.train.pretrained import completed
from dpserver.train.training_config import (
    V1_HINT,
    AdamConfig,
    OptimizerConfig,
    TrainingConfig,
    ValidatingConfig,
)

Precision = Literal["double", "mixed", "single"]

V0_KEYS: Final = {
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
_MOVED: Final = {
    "warmup_steps": ("learning_rate", "warmup_steps"),
    "warmup_ratio": ("learning_rate", "warmup_ratio"),
    "warmup_start_factor": ("learning_rate", "warmup_start_factor"),
    "opt_type": ("optimizer", "type"),
    "adam_beta1": ("optimizer", "adam_beta1"),
    "adam_beta2": ("optimizer", "adam_beta2"),
    "weight_decay": ("optimizer", "weight_decay"),
}
"""Keys of `training` that DeePMD-kit 3.2 has elsewhere, and where."""


class OptionsConfig(Section):
    """Our own section, `"dpserver"`.

    Attributes:
        precision: double (float64 everywhere), mixed (float32 networks; distances, energies and virials in float64)
            or single. It governs. Where it is missing, DeePMD-kit's `precision` of descriptors and fitting net
            decide: float32 in all of them means mixed, and "default" or float64 in any means double.
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
        optimizer: Adam or AdamW.
        validating: accepted where it asks for nothing.
        dpserver: our own section, its precision resolved.
    """

    hints: ClassVar[Table] = {
        **{key: V1_HINT.format(place) for key, place in V0_KEYS.items()},
        "nvnmd": "is about models for the NVNMD chip, which dpserver does not train; leave the section out",
        **dict.fromkeys(("loss_dict", "learning_rate_dict", "model_dict"), MULTI_TASK),
    }

    model: ModelConfig
    learning_rate: LearningRateConfig = ExponentialDecay()
    loss: AnyLossConfig = LossConfig()
    training: TrainingConfig
    optimizer: OptimizerConfig = AdamConfig()
    validating: ValidatingConfig = ValidatingConfig()
    dpserver: OptionsConfig = OptionsConfig()

    _data_types: tuple[str, ...] | None = PrivateAttr(default=None)
    _adopts_charges: bool = PrivateAttr(default=False)

    @property
    def data_types(self) -> tuple[str, ...]:
        """What the numbers of systems without names of their own stand for: the input's `type_map`."""
        return self.model.type_map if self._data_types is None else self._data_types

    def with_data_types(self, types: Sequence[str]) -> Self:
        """The same input for data whose numbers stand for these species."""
        copied = self.model_copy()
        copied._data_types = tuple(types)
        return copied

    @property
    def adopts_charges(self) -> bool:
        """Whether the charges are those of the model that training starts from, of which the input says nothing."""
        return self._adopts_charges

    @property
    def options(self) -> OptionsConfig:
        """Our own section, `"dpserver"`."""
        return self.dpserver

    @model_validator(mode="before")
    @classmethod
    def _move(cls, data: Any) -> Any:
        """Put keys of `training` that belong elsewhere since DeePMD-kit 3.2 where they belong."""
        training = data.get("training") if isinstance(data, Mapping) else None
        if not isinstance(training, Mapping) or training.keys().isdisjoint(_MOVED):
            return data
        sections = {"training": {key: value for key, value in training.items() if key not in _MOVED}}
        for key, (section, name) in _MOVED.items():
            if key not in training:
                continue
            there = sections.setdefault(section, dict(data.get(section) or {}))
            if name in there:
                raise complain(f"training.{key}", f"says the same as {section}.{name}, which is given too; keep that")
            there[name] = training[key]
        return {**data, **sections}

    @model_validator(mode="after")
    def _loss_fits(self) -> Self:
        kind, wanted = self.model.fitting_net.type, "ener" if self.model.fitting_net.type == "ener" else "tensor"
        if self.loss.type != wanted:
            raise complain("loss.type", f"must be {wanted} with model.fitting_net.type = {kind}, got {self.loss.type}")
        return self

    @model_validator(mode="after")
    def _resolve_precision(self) -> Self:
        if "precision" in self.dpserver.model_fields_set:
            return self
        nets = self.model.descriptor.precisions | {self.model.fitting_net.precision}
        if nets == {"float32"}:
            object.__setattr__(self, "dpserver", self.dpserver.model_copy(update={"precision": "mixed"}))
        return self


def load_input(
    path: str | Path, known: Mapping[str, Any] | None = None, source: str = "the model", *, replaces: bool = False
) -> TrainInput:
    """Read and check a training input.

    A relative path of a system is taken from the current directory if it exists there, as in DeePMD-kit, and from
    the directory of the input file otherwise.

    Args:
        path: a JSON file, or a YAML file with the suffix .yaml or .yml.
        known: the section `model` of a trained model to start from, which completes that of the input.
        source: what to call that model.
        replaces: take its network whatever the input says of it.

    Raises:
        ConfigError: the file cannot be read, is not JSON, or a key is unknown, unsupported, missing or wrong.
    """
    path = Path(path)
    data = read_input(path)
    given = data.get("model")
    if known is not None:
        data = {**data, "model": completed(given, known, source, replaces=replaces)}
    parsed = parse(TrainInput, data)
    if known is not None and isinstance(given, Mapping) and isinstance(given.get("type_map"), list):
        parsed = parsed.with_data_types(given["type_map"])
    said = given if isinstance(given, Mapping) else {}
    parsed._adopts_charges = parsed.model.electrostatics is not None and "electrostatics" not in said
    table = parsed.model.use_srtab
    if table is not None and not Path(table).exists() and (path.parent / table).exists():
        model = parsed.model.model_copy(update={"use_srtab": str(path.parent / table)})
        parsed = parsed.model_copy(update={"model": model})
    training = parsed.training
    update: dict[str, Any] = {"training_data": _resolve(training.training_data, path.parent)}
    if training.validation_data is not None:
        update["validation_data"] = _resolve(training.validation_data, path.parent)
    return parsed.model_copy(update={"training": training.model_copy(update=update)})


def load_data(path: str | Path, section: str) -> DataConfig:
    """Read one list of systems of a training input, whatever the rest of it asks for.

    Args:
        path: a JSON file, or a YAML file with the suffix .yaml or .yml.
        section: `training_data` or `validation_data`.

    Raises:
        ConfigError: the file cannot be read, or has no such section, or there is something wrong with it.
    """
    path = Path(path)
    training = read_input(path).get("training")
    data = training.get(section) if isinstance(training, Mapping) else None
    if not isinstance(data, Mapping):
        raise ConfigError(f"the training input {path} has no section training.{section}")
    parsed = parse(DataConfig if section == "training_data" else ValidationDataConfig, data)
    return _resolve(parsed, path.parent)


def _resolve(data: DataConfig, folder: Path) -> DataConfig:
    return data.model_copy(update={"systems": tuple(resolve(system, folder) for system in data.systems)})
