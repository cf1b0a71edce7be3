"""The training loop: draw a batch, differentiate the loss, take a step; now and then validate and save."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpserver import __version__, files
from dpserver.errors import ConfigError, DataError, ModelFileError, StructureError
from dpserver.frames import Ints
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel
from dpserver.train.average import RunningAverage
from dpserver.train.bias import BiasChange, change_bias
from dpserver.train.config import TrainInput
from dpserver.train.data import fingerprint, template
from dpserver.train.data_config import DataConfig
from dpserver.train.evaluator import Evaluator
from dpserver.train.initial import Model, initial_model, neighbour_statistics
from dpserver.train.loss import Errors, Loss, TensorLoss
from dpserver.train.loss_config import LossConfig, TensorLossConfig
from dpserver.train.pair_table import with_table
from dpserver.train.pretrained import Pretrained, check_same
from dpserver.train.residual import take_charges_off
from dpserver.train.room import Room
from dpserver.train.sampling import Batch, BatchSampler
from dpserver.train.soap import SOAP
from dpserver.train.systems import System, check_coordinates, check_labels, open_systems
from dpserver.train.training_config import AdamWConfig


@dataclass(frozen=True)
class StepReport:
    """What one step has to say.

    Attributes:
        step: steps taken so far, this one included.
        lr: the learning rate it was taken with.
        train: errors on its batch by name (`total`, `e` eV/atom, `f` eV/Å, `v` eV/atom); only where the curve has a
            line.
        validation: errors on batches of the validation set, likewise.
    """

    step: int
    lr: float
    train: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """A training, from its input to the model file.

    Args:
        config: the checked input.
        folder: where the checkpoints go that the input names by relative paths.
        restart: a checkpoint to continue from.
        pretrained: a model whose weights to start from.

    Attributes:
        potential: the model as it stands.
        fitted: what of it is fitted to the systems: all, or what is left where their labels are without the energy of
            charges that training does not change. It has the same weights, not copies of them.
        step: steps taken so far.
        numb_steps: length of the training.
        evaluator: evaluates what is fitted, and tells how.
        seed: seed of weights and batches.
        saved: newest checkpoint, the one continued from at first.
        notes: what the user should know of the data before it is trained on.
        bias_change: what starting from a trained model did to the energies of the species, if it did.

    Raises:
        DataError: the data cannot be used.
        ConfigError: the input does not fit the data or the checkpoint.
        ModelFileError: the checkpoint cannot be used.
        DeviceError: the device does not exist.
    """

    def __init__(
        self, config: TrainInput, folder: Path, restart: Path | None = None, pretrained: Pretrained | None = None
    ) -> None:
        network, table = with_table(config.model)
        self.config = config = config.model_copy(update={"model": network})
        self.folder = folder
        self.step = 0
        self.saved = restart
        resumed = None if restart is None else _read_checkpoint(restart)
        device = checkpoint.choose_device(config.options.device)
        training, validation = config.training.training_data, config.training.validation_data
        self._room = Room()
        self.systems = self._read(training)
        self.valid_systems = [] if validation is None else self._read(validation)
        charges = config.model.electrostatics
        self.notes = [
            *check_labels(self.systems, _needed(config)),
            *([] if charges is None else charges.doubts(config.model.rcut)),
        ]
        self.seed = _choose_seed(config) if resumed is None else int(resumed["training"]["seed"])
        self.sampler = BatchSampler([s.data for s in self.systems], training, self.seed)
        self.valid_sampler = (
            None
            if validation is None
            else BatchSampler([s.data for s in self.valid_systems], validation, self.seed + 1)
        )
        self.neighbours = neighbour_statistics(self.systems, config.model.descriptor.cutoffs)
        closest = self.neighbours.min_distance
        if self.valid_systems:
            seen = neighbour_statistics(self.valid_systems, config.model.descriptor.cutoffs)
            self.neighbours = self.neighbours.allowing(seen)
            closest = np.minimum(closest, seen.min_distance)
        self.numb_steps = config.training.numb_steps or math.ceil(
            (config.training.numb_epoch or 0) * self.sampler.n_batches_of_epoch
        )
        self.fingerprint = fingerprint(s.data for s in self.systems)
        take_charges_off([*self.systems, *self.valid_systems], config.model)
        self.origin: dict[str, Any] = {} if resumed is None else dict(resumed["training"].get("started_from", {}))
        self.bias_change: BiasChange | None = None
        if resumed is not None:
            self.potential: Model = checkpoint.restore_model(resumed, str(restart))
        elif pretrained is not None:
            self.potential = self._adopt(pretrained)
        else:
            precision = config.options.precision
            self.potential = initial_model(
                config.model, self.systems, self._sampled, self.seed, precision, table, self.neighbours
            )
        self._check_sel(self.potential)
        self.potential = self.potential.to(device)
        self.fitted = _near(self.potential) if isinstance(self.potential, Potential) else self.potential
        self.evaluator = Evaluator(self.fitted, closest, self._room)
        self.optimizer = _make_optimizer(config, self.potential, self.lr(0))
        self.loss = _make_loss(config, self.potential)
        self._interval: list[dict[str, float]] = []
        if resumed is not None:
            self._resume(resumed, str(restart))
        t = config.training
        self.average = RunningAverage(self.potential, t.ema_decay) if t.enable_ema else None
        if self.average is not None and resumed is not None and "average" in resumed["resume"]:
            self.average.load_state_dict(resumed["resume"]["average"])

    def lr(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.config.learning_rate.at(step, self.numb_steps)

    @property
    def columns(self) -> list[str]:
        """Errors that the learning curve shows, the loss itself first."""
        loss = self.config.loss
        kind = self.config.model.fitting_net.type
        return ["total", *(loss.columns if isinstance(loss, LossConfig) else loss.columns_of(kind))]

    def run(
        self, on_step: Callable[[StepReport], None] | None = None, should_stop: Callable[[], bool] | None = None
    ) -> bool:
        """Train up to the last step.

        Args:
            on_step: called after each step.
            should_stop: asked before each step; True saves a checkpoint and returns.

        Returns:
            Whether the last step was reached.

        Raises:
            DataError: the loss is not finite any more.
        """
        t = self.config.training
        while self.step < self.numb_steps:
            if should_stop is not None and should_stop():
                self.save_checkpoint()
                return False
            lr = self.lr(self.step)
            errors = self._take_step(lr)
            if t.disp_avg:
                self._interval.append(errors.rmse())
            is_last = self.step == self.numb_steps
            if self.step % t.disp_freq == 0 or self.step == 1 or is_last:
                report = StepReport(self.step, lr, self._shown(errors), self.validate())
            else:
                report = StepReport(self.step, lr)
            if on_step is not None:
                on_step(report)
            if is_last and t.change_bias_after_training:
                self.bias_change = self._change_bias()
            if self.step % t.save_freq == 0 or is_last:
                self.save_checkpoint()
        return True

    def _shown(self, errors: Errors) -> dict[str, float]:
        """The errors of a line of the learning curve: those of a batch, or their mean since the last line."""
        if not self.config.training.disp_avg:
            return errors.rmse()
        found, self._interval = self._interval, []
        names = {name for one in found for name in one}
        return {name: float(np.mean([one[name] for one in found if name in one])) for name in sorted(names)}

    def validate(self, *, whole: bool = False) -> dict[str, float]:
        """Root mean squared errors on the validation set by name; empty without one.

        Args:
            whole: use every frame once; by default the next `numb_btch` batches.
        """
        validation = self.config.training.validation_data
        if self.valid_sampler is None or validation is None:
            return {}
        if whole:
            frames = ((k, n) for k, s in enumerate(self.valid_systems) for n in range(s.data.n_frames))
            return self._errors(Batch(k, np.array([n])) for k, n in frames)
        return self._errors(next(self.valid_sampler) for _ in range(validation.numb_btch))

    def save_checkpoint(self) -> Path:
        """Write a checkpoint, a model file that training can continue from; drop the oldest beyond the limit.

        Returns:
            Its path.

        Raises:
            OutputError: it cannot be written; those before it are as they were.
        """
        t = self.config.training
        values = checkpoint.contents(self.potential, self.card())
        resume: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "valid_sampler": None if self.valid_sampler is None else self.valid_sampler.state_dict(),
            "evaluator": self.evaluator.state_dict(),
        }
        if self.average is not None:
            resume["average"] = self.average.state_dict()
            averaged = {**values, "state": {**values["state"], **resume["average"]}}
            averaged.pop("tables", None)  # which are of the other weights
            self._write(t.average_prefix, averaged, t.ema_ckpt_keep)
        self.saved = self._write(t.checkpoint_prefix, {**values, "resume": resume})
        return self.saved

    def _write(self, name: Path, values: Mapping[str, Any], n_kept: int | None = None) -> Path:
        """Write one of a series of files, and drop the oldest."""
        t, prefix = self.config.training, self.folder / name
        path = prefix.with_name(f"{prefix.name}-{self.step}.pt")
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write(path, values)
        for old in checkpoints(prefix)[: -t.n_kept(self.numb_steps, n_kept)]:
            with files.writing(old):
                old.unlink()
        return path

    def save_model(self, path: Path) -> None:
        """Write the model file, with its errors on the whole validation set."""
        validation = {name: value for name, value in self.validate(whole=True).items() if name != "total"}
        checkpoint.save(path, self.potential, {**self.card(), "validation": validation})

    def card(self) -> dict[str, Any]:
        """Where the model comes from, as plain values."""
        return {
            "step": self.step,
            "numb_steps": self.numb_steps,
            "seed": self.seed,
            "data_fingerprint": self.fingerprint,
            "n_frames": sum(s.data.n_frames for s in self.systems),
            "systems": [Path(s.data.name).name for s in self.systems],
            **({"started_from": self.origin} if self.origin else {}),
            "optimizer": _optimizer_name(self.config),
            "learning_rate": self.config.learning_rate.summary(),
            "loss": self.config.loss.summary(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "dpserver": __version__,
            "torch": str(torch.__version__),
        }

    def _take_step(self, lr: float) -> Errors:
        """One step of the optimizer; returns the errors before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.evaluator.follow(self.step)
        batch = next(self.sampler)
        system = self.systems[batch.system]
        errors = self._weigh(system, batch.frames, lr, is_training=True)
        if not torch.isfinite(errors.total):
            raise DataError(
                f"the loss is not finite at step {self.step} ({system.data.name}, frames {batch.frames.tolist()}): "
                "check these frames, or lower learning_rate.start_lr and restart from the last checkpoint"
            )
        self.optimizer.zero_grad()
        errors.total.backward()  # type: ignore[no-untyped-call]
        if longest := self.config.training.gradient_max_norm:
            torch.nn.utils.clip_grad_norm_(self.potential.parameters(), longest)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.potential)
        self.step += 1
        return errors

    def _errors(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Root mean squared errors over batches, by name."""
        found = []
        for batch in batches:
            system, lr = self.valid_systems[batch.system], self.lr(max(self.step - 1, 0))
            found.append(self._weigh(system, batch.frames, lr).rmse())
        names = {name for f in found for name in f}
        return {name: float(np.mean([f[name] ** 2 for f in found if name in f]) ** 0.5) for name in sorted(names)}

    def _weigh(self, system: System, frames: Ints, lr: float, *, is_training: bool = False) -> Errors:
        """The loss of the model on a batch, and its errors."""
        graph, labels = system.batch(frames, self.potential.device)
        try:
            return self.loss(self.evaluator(graph, is_training=is_training), labels, lr)
        except StructureError as error:
            raise DataError(f"{system.data.name}, frames {frames.tolist()}: {error}") from None

    def _read(self, data: DataConfig) -> list[System]:
        loss = self.config.loss
        has_coefficients = isinstance(loss, LossConfig) and loss.enable_atom_ener_coeff
        systems = open_systems(
            data, self.config.model, self.config.data_types, has_coefficients=has_coefficients, room=self._room
        )
        if isinstance(loss, LossConfig) and "gf" in loss.terms:
            check_coordinates(systems, loss.numb_generalized_coord)
        return systems

    def _check_sel(self, potential: Model) -> None:
        """Refuse data with more neighbours than the descriptor holds now, rather than in the midst of the training."""
        model = potential.config
        if model.pair_exclude_types:
            return  # such pairs are no neighbours, and the counts do not tell them apart
        if (said := model.descriptor.too_many(self.neighbours.counts, model.type_map)) is not None:
            raise DataError(f"model.{said}; write more, or sel: auto, or leave such frames out")

    def _adopt(self, pretrained: Pretrained) -> Model:
        """The weights of a trained model, with what the new data says of distances and energies."""
        check_same(self.config.model, parse(ModelConfig, pretrained.model, "model"), str(pretrained.path))
        given = {"model": self.config.model.model_dump(mode="json"), "precision": self.config.options.precision}
        model: Model = checkpoint.restore_model({**pretrained.values, "config": given}, str(pretrained.path))
        self._check_sel(model)
        model.min_distance = np.minimum(model.min_distance, self.neighbours.min_distance)
        model.crowd_distance = np.minimum(model.crowd_distance, self.neighbours.crowd_distance)
        model.template = template(s.data for s in self.systems)
        self.origin = pretrained.origin
        if pretrained.refits_bias and isinstance(model, Potential):
            self.bias_change = change_bias(_near(model), self.systems, self._sampled)
        return model

    @property
    def _sampled(self) -> list[int]:
        """Frames of each system that statistics are taken from."""
        return [self.config.model.data_stat_nbatch * size for size in self.sampler.batch_sizes]

    def _change_bias(self) -> BiasChange | None:
        """Fit the energies of the species to what the trained model's energies lack."""
        if not isinstance(self.fitted, Potential):
            return None
        return change_bias(self.fitted, self.systems, self._sampled)

    def _resume(self, values: Mapping[str, Any], name: str) -> None:
        """Take over the state of a checkpoint."""
        check_same(self.config.model, self.potential.config, f"the checkpoint {name}")
        used, wanted = values["training"]["optimizer"], _optimizer_name(self.config)
        if used != wanted:
            raise ConfigError(f"the optimizer is {wanted}, but the checkpoint {name} was trained with {used}")
        if values["training"]["data_fingerprint"] != self.fingerprint:
            raise DataError(f"the training data is not that of the checkpoint {name}; restart with the same data")
        self.potential.set_precision(self.config.options.precision)
        self.optimizer.load_state_dict(values["resume"]["optimizer"])
        self.sampler.load_state_dict(values["resume"]["sampler"])
        if self.valid_sampler is not None and values["resume"]["valid_sampler"] is not None:
            self.valid_sampler.load_state_dict(values["resume"]["valid_sampler"])
        self.evaluator.load_state_dict(values["resume"].get("evaluator", {}), f"the checkpoint {name}")
        self.step = int(values["training"]["step"])
        if self.step > self.numb_steps:
            raise ConfigError(
                f"the checkpoint {name} is already at step {self.step} of {self.numb_steps}: nothing is left to train; "
                f"make training.numb_steps (or numb_epoch) larger than {self.step} steps, or equal to write its model"
            )


def checkpoints(prefix: Path) -> list[Path]:
    """Checkpoints `prefix-STEP.pt` in order of their steps."""
    steps = {p: p.name[len(prefix.name) + 1 : -len(".pt")] for p in prefix.parent.glob(f"{prefix.name}-*.pt")}
    return sorted((p for p, step in steps.items() if step.isdecimal()), key=lambda p: int(steps[p]))


def _near(model: Potential) -> Potential:
    """What of a potential is fitted to labels that `take_charges_off` has been at."""
    charges = model.config.electrostatics
    return model if charges is None or not charges.is_fixed else model.without_charges()


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """The dict of a checkpoint; a finished model or a committee lacks what a training needs to continue."""
    values = checkpoint.read(path)
    if "resume" not in values:
        raise ModelFileError(f"{path} is a finished model; restart needs a checkpoint, a file like model.ckpt-N.pt")
    return values


def _optimizer_name(config: TrainInput) -> str:
    """What the card of a model calls its optimizer."""
    return config.options.optimizer if config.options.optimizer == "soap" else config.optimizer.type.lower()


def _make_optimizer(config: TrainInput, model: Model, lr: float) -> torch.optim.Optimizer:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise ConfigError("model.descriptor.trainable and model.fitting_net.trainable leave nothing to train")
    if config.options.optimizer == "soap":
        return SOAP(weights, lr=lr)
    adam = config.optimizer
    kind = torch.optim.AdamW if isinstance(adam, AdamWConfig) else torch.optim.Adam
    return kind(weights, lr=lr, betas=adam.betas, weight_decay=adam.weight_decay, fused=True)


def _make_loss(config: TrainInput, model: Model) -> Loss | TensorLoss:
    if isinstance(config.loss, TensorLossConfig) and isinstance(model, TensorModel):
        return TensorLoss(config.loss, model)
    if isinstance(config.loss, LossConfig) and isinstance(model, Potential):
        return Loss(config.loss, config.learning_rate.start_lr)
    raise ConfigError(f"loss.type is {config.loss.type}, but the fitting net is {config.model.fitting_net.type}")


def _needed(config: TrainInput) -> dict[str, str]:
    """Labels that the loss needs, and what to do without each."""
    if isinstance(config.loss, LossConfig):
        return config.loss.labels
    return config.loss.labels_of(config.model.fitting_net.type)


def _choose_seed(config: TrainInput) -> int:
    """The input's seed, or a new one, which the card of the model tells."""
    if config.training.seed is not None:
        return config.training.seed
    return int(np.random.SeedSequence().generate_state(1)[0])
