"""The training loop: draw a batch, differentiate the loss, take a step; now and then validate and save."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpserver import __version__
from dpserver.errors import ConfigError, DataError, ModelFileError
from dpserver.models import checkpoint
from dpserver.train.config import TrainInput
from dpserver.train.data import Batch, BatchSampler, fingerprint, read_systems
from dpserver.train.loss import Errors, Loss
from dpserver.train.soap import SOAP
from dpserver.train.systems import System, check_labels, initial_potential


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

    Attributes:
        potential: the model as it stands.
        step: steps taken so far.
        seed: seed of weights and batches.

    Raises:
        DataError: the data cannot be used.
        ConfigError: the input does not fit the data or the checkpoint.
        ModelFileError: the checkpoint cannot be used.
        DeviceError: the device does not exist.
    """

    def __init__(self, config: TrainInput, folder: Path, restart: Path | None = None) -> None:
        self.config = config
        self.folder = folder
        self.step = 0
        resumed = None if restart is None else _read_checkpoint(restart)
        device = checkpoint.choose_device(config.options.device)
        training, validation = config.training.training_data, config.training.validation_data
        self.systems = self._read(training.systems)
        self.valid_systems = [] if validation is None else self._read(validation.systems)
        check_labels(self.systems, config.loss)
        self.seed = _choose_seed(config) if resumed is None else int(resumed["training"]["seed"])
        self.sampler = BatchSampler([s.data for s in self.systems], training, self.seed)
        self.valid_sampler = (
            None
            if validation is None
            else BatchSampler([s.data for s in self.valid_systems], validation, self.seed + 1)
        )
        self.fingerprint = fingerprint(s.data for s in self.systems)
        if resumed is None:
            self.potential = initial_potential(
                config.model, self.systems, self.sampler.batch_sizes, self.seed, config.options.precision
            ).to(device)
        else:
            self.potential = checkpoint.restore(resumed, str(restart)).to(device)
        self.optimizer = _make_optimizer(config.options.optimizer, self.potential.parameters(), self.lr(0))
        self.loss = Loss(config.loss, config.learning_rate.start_lr)
        if resumed is not None:
            self._resume(resumed, str(restart))

    def lr(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.config.learning_rate.at(step, self.config.training.numb_steps)

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
        while self.step < t.numb_steps:
            if should_stop is not None and should_stop():
                self.save_checkpoint()
                return False
            lr = self.lr(self.step)
            errors = self._take_step(lr)
            is_last = self.step == t.numb_steps
            if self.step % t.disp_freq == 0 or self.step == 1 or is_last:
                report = StepReport(self.step, lr, errors.rmse(), self.validate())
            else:
                report = StepReport(self.step, lr)
            if on_step is not None:
                on_step(report)
            if self.step % t.save_freq == 0 or is_last:
                self.save_checkpoint()
        return True

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
        """
        t = self.config.training
        prefix = self.folder / t.save_ckpt
        path = prefix.with_name(f"{prefix.name}-{self.step}.pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        resume = {
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "valid_sampler": None if self.valid_sampler is None else self.valid_sampler.state_dict(),
        }
        checkpoint.write(path, {**checkpoint.contents(self.potential, self.card()), "resume": resume})
        for old in checkpoints(prefix)[: -t.max_ckpt_keep]:
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
            "numb_steps": self.config.training.numb_steps,
            "seed": self.seed,
            "data_fingerprint": self.fingerprint,
            "n_frames": sum(s.data.n_frames for s in self.systems),
            "systems": [Path(s.data.name).name for s in self.systems],
            "optimizer": self.config.options.optimizer,
            "learning_rate": self.config.learning_rate.model_dump(mode="json"),
            "loss": self.config.loss.model_dump(mode="json"),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "dpserver": __version__,
            "torch": str(torch.__version__),
        }

    def _take_step(self, lr: float) -> Errors:
        """One step of the optimizer; returns the errors before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = next(self.sampler)
        system = self.systems[batch.system]
        graph, labels = system.batch(batch.frames, self.potential.device)
        errors = self.loss(self.potential(graph, is_training=True), labels, lr)
        if not torch.isfinite(errors.total):
            raise DataError(
                f"the loss is not finite at step {self.step} ({system.data.name}, frames {batch.frames.tolist()}): "
                "check these frames, or lower learning_rate.start_lr and restart from the last checkpoint"
            )
        self.optimizer.zero_grad()
        errors.total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        return errors

    def _errors(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Root mean squared errors over batches, by name."""
        found = []
        for batch in batches:
            graph, labels = self.valid_systems[batch.system].batch(batch.frames, self.potential.device)
            found.append(self.loss(self.potential(graph), labels, self.lr(max(self.step - 1, 0))).rmse())
        names = set.intersection(*(set(f) for f in found))
        return {name: float(np.mean([f[name] ** 2 for f in found]) ** 0.5) for name in sorted(names)}

    def _read(self, paths: Iterable[str]) -> list[System]:
        model = self.config.model
        return [System(s, model.descriptor.rcut, len(model.type_map)) for s in read_systems(paths, model.type_map)]

    def _resume(self, values: Mapping[str, Any], name: str) -> None:
        """Take over the state of a checkpoint."""
        asked, found = (dict(c.model_dump(mode="json")) for c in (self.config.model, self.potential.config))
        if str(asked["descriptor"].get("sel")).startswith("auto"):
            asked["descriptor"] = {**asked["descriptor"], "sel": found["descriptor"]["sel"]}
        if changed := [key for key in asked if asked[key] != found[key]]:
            raise ConfigError(
                f"model.{', model.'.join(changed)} of the input is not what the checkpoint {name} was trained with; "
                "restart with the same model section"
            )
        used, wanted = values["training"]["optimizer"], self.config.options.optimizer
        if used != wanted:
            raise ConfigError(f"dpserver.optimizer is {wanted}, but the checkpoint {name} was trained with {used}")
        if values["training"]["data_fingerprint"] != self.fingerprint:
            raise DataError(f"the training data is not that of the checkpoint {name}; restart with the same data")
        self.potential.set_precision(self.config.options.precision)
        self.optimizer.load_state_dict(values["resume"]["optimizer"])
        self.sampler.load_state_dict(values["resume"]["sampler"])
        if self.valid_sampler is not None and values["resume"]["valid_sampler"] is not None:
            self.valid_sampler.load_state_dict(values["resume"]["valid_sampler"])
        self.step = int(values["training"]["step"])


def checkpoints(prefix: Path) -> list[Path]:
    """Checkpoints `prefix-STEP.pt` in order of their steps."""
    steps = {p: p.name[len(prefix.name) + 1 : -len(".pt")] for p in prefix.parent.glob(f"{prefix.name}-*.pt")}
    return sorted((p for p, step in steps.items() if step.isdecimal()), key=lambda p: int(steps[p]))


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """The dict of a checkpoint; a finished model or a committee lacks what a training needs to continue."""
    values = checkpoint.read(path)
    if "resume" not in values:
        raise ModelFileError(f"{path} is a finished model; restart needs a checkpoint, a file like model.ckpt-N.pt")
    return values


def _make_optimizer(name: str, weights: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return SOAP(weights, lr=lr) if name == "soap" else torch.optim.Adam(weights, lr=lr, fused=True)


def _choose_seed(config: TrainInput) -> int:
    """The input's seed, or a new one, which the card of the model tells."""
    if config.training.seed is not None:
        return config.training.seed
    return int(np.random.SeedSequence().generate_state(1)[0])
