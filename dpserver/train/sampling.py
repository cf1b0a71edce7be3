"""How the batches of a training are drawn from its systems."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpserver.errors import ConfigError, DataError
from dpserver.frames import Floats, Ints
from dpserver.train.data import LabelledFrames
from dpserver.train.data_config import DataConfig, parse_auto_prob


class Batch(NamedTuple):
    """The frames of one training step.

    Attributes:
        system: index of the system.
        frames: its frames, (n,), int64.
    """

    system: int
    frames: Ints


class BatchSampler:
    """Draw batches: a system by its probability, then frames of it, each once per epoch of that system.

    A frame whose `copies` say so is drawn more than once.

    The frames of every epoch are shuffled anew; the last batch of an epoch holds what is left. Everything drawn is a
    function of the seed and of the number of batches drawn before, so that a sampler whose state is restored
    continues with the same batches.

    Args:
        systems: what to draw from.
        config: batch sizes and probabilities; a batch is at most the whole system.
        seed: None for a new one.

    Raises:
        ConfigError: lists of the configuration do not fit the number of systems.
    """

    def __init__(self, systems: Sequence[LabelledFrames], config: DataConfig, seed: int | None = None) -> None:
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._frames = [_repeated(s) for s in systems]
        self.n_frames = [len(frames) for frames in self._frames]
        self.batch_sizes = _batch_sizes(systems, config)
        self.n_batches = [math.ceil(n / size) for n, size in zip(self.n_frames, self.batch_sizes, strict=True)]
        self.probabilities = _probabilities(self.n_batches, config)
        self._drawn = [0] * len(self.n_frames)
        self._orders: dict[int, tuple[int, Ints]] = {}

    @property
    def n_batches_of_epoch(self) -> int:
        """Batches until every system has been drawn once through, on average; DeePMD-kit's count for `numb_epoch`."""
        probabilities: list[float] = self.probabilities.tolist()
        return math.ceil(max(n / p for n, p in zip(self.n_batches, probabilities, strict=True) if p > 0))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; there is always one."""
        rng = np.random.default_rng([self.seed, 0, sum(self._drawn)])
        system = int(rng.choice(len(self.n_frames), p=self.probabilities))
        epoch, position = divmod(self._drawn[system], self.n_batches[system])
        self._drawn[system] += 1
        size = self.batch_sizes[system]
        return Batch(system, self._order(system, epoch)[position * size : (position + 1) * size])

    def _order(self, system: int, epoch: int) -> Ints:
        """The shuffled frames of an epoch of a system."""
        if self._orders.get(system, (-1,))[0] != epoch:
            rng = np.random.default_rng([self.seed, 1, system, epoch])
            self._orders[system] = (epoch, rng.permutation(self._frames[system]))
        return self._orders[system][1]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue; plain integers."""
        return {
            "seed": self.seed,
            "drawn": list(self._drawn),
            "n_frames": list(self.n_frames),
            "batch_sizes": list(self.batch_sizes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another sampler of the same systems stood.

        Raises:
            DataError: the systems or batch sizes are not those of the state.
        """
        for key, now in (("n_frames", self.n_frames), ("batch_sizes", self.batch_sizes)):
            if state[key] != now:
                raise DataError(
                    f"the training data has changed since the checkpoint: {key} was {state[key]}, now is {now}; "
                    "restart with the same systems and batch sizes"
                )
        self.seed, self._drawn, self._orders = state["seed"], list(state["drawn"]), {}


def _repeated(system: LabelledFrames) -> Ints:
    """The frames of an epoch, each as often as the data wants it."""
    frames = np.arange(system.n_frames)
    return frames if system.copies is None else np.repeat(frames, system.copies.astype(np.int64))


def _batch_sizes(systems: Sequence[LabelledFrames], config: DataConfig) -> list[int]:
    """Frames per batch of each system; "auto" by the mean number of atoms of its frames, "max" by the largest."""
    size = config.batch_size
    if isinstance(size, str):
        word, wanted = config.batch_rule or ("auto", 32)
        if word == "mixed":
            sizes = [wanted] * len(systems)
        elif word == "auto":
            sizes = [math.ceil(wanted / s.counts.mean()) for s in systems]
        else:
            sizes = [max(1, wanted // int(s.counts.max())) for s in systems]
    elif isinstance(size, int):
        sizes = [size] * len(systems)
    else:
        _check_length("batch_size", len(size), len(systems))
        sizes = list(size)
    return [min(n, s.n_frames) for n, s in zip(sizes, systems, strict=True)]


def _check_length(key: str, n_given: int, n_systems: int) -> None:
    if n_given != n_systems:
        raise ConfigError(f"{key}: needs one number for each of the {n_systems} systems found, got {n_given}")


def _probabilities(n_batches: list[int], config: DataConfig) -> Floats:
    """Probability of each system, (n_systems,), which sum to 1."""
    weights = np.array(n_batches, dtype=np.float64)
    if config.sys_probs is not None:
        _check_length("sys_probs", len(config.sys_probs), len(weights))
        weights = np.array(config.sys_probs)
    elif config.auto_prob == "prob_uniform":
        weights = np.ones(len(weights))
    elif blocks := parse_auto_prob(config.auto_prob):
        sizes, weights = weights, np.zeros(len(weights))
        for first, end, weight in blocks:
            if end > len(sizes):
                raise ConfigError(f"auto_prob: the block {first}:{end} ends beyond the {len(sizes)} systems found")
            weights[first:end] = weight * sizes[first:end] / sizes[first:end].sum()
    if not weights.sum() > 0:
        raise ConfigError("sys_probs: all probabilities are 0; at least one system must be drawn")
    probabilities: Floats = weights / weights.sum()
    return probabilities
